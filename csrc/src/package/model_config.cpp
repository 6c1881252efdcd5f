#include "package/model_config.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "package/settings.h"

namespace syncflow::engine {
namespace {

constexpr std::array<const char*, 3> ADAPTOR_TOKENS = {"all", "frame", "none"}, BRIDGES = {"adaptor", "audio_rope", "global_local"};

std::int64_t divide_up(std::int64_t count, std::int64_t by) { return (count + by - 1) / by; }

// To the nearest whole number, a half to the even one, as Python rounds.
std::int64_t rounded(double value) { return static_cast<std::int64_t>(std::nearbyint(value)); }

[[noreturn]] void invalid(const std::string& sentence) { throw Error(Status::invalid_argument, sentence); }

// Settings of models that only Python computes.
[[noreturn]] void unsupported(const std::string& setting) {
    throw Error(Status::unsupported, setting + " is a setting that the engine in C++ does not compute; the one in Python does");
}

template <typename Choice>
void choose(const Settings& settings, const char* name, const std::array<const char*, 3>& names, Choice& choice) {
    std::string text = names[static_cast<std::size_t>(choice)];
    settings.read(name, text);
    const auto found = std::find(names.begin(), names.end(), text);
    if (found == names.end()) refuse(name, shown(std::string_view(text)), std::string("one of ") + names[0] + ", " + names[1] + ", " + names[2]);
    choice = static_cast<Choice>(found - names.begin());
}

SequenceConfig read_sequence_config(const Json& json) {
    const Settings settings(json, "SequenceConfig",
                            {"seconds", "width", "height", "fps", "sample_rate", "time_factor", "space_factor", "patch", "audio_hop",
                             "chunk_frames", "any_size", "audio_multiple"});
    SequenceConfig config;
    std::int64_t chunk_frames = 0;
    std::int64_t audio_multiple = 1;
    bool any_size = false;
    settings.read("chunk_frames", chunk_frames);
    settings.read("any_size", any_size);
    require_whole("chunk_frames", chunk_frames, 0, 1024);
    if (chunk_frames != 0) unsupported("chunk_frames " + std::to_string(chunk_frames));
    if (any_size) unsupported("any_size");
    settings.read("audio_multiple", audio_multiple);
    if (audio_multiple != 1) unsupported("audio_multiple " + std::to_string(audio_multiple));
    settings.read("seconds", config.seconds);
    settings.read("width", config.width);
    settings.read("height", config.height);
    settings.read("fps", config.fps);
    settings.read("sample_rate", config.sample_rate);
    settings.read("time_factor", config.time_factor);
    settings.read("space_factor", config.space_factor);
    settings.read("patch", config.patch);
    settings.read("audio_hop", config.audio_hop);
    config.validate();
    return config;
}

SamplingConfig read_sampling_config(const Json& json) {
    const Settings settings(json, "SamplingConfig",
                            {"steps", "guidance", "shift", "video_lead", "sync_guidance", "sync_cfg_audio", "sync_cfg_video",
                             "v2a_sync_guidance", "size_shift"});
    SamplingConfig config;
    bool size_shift = false;
    settings.read("size_shift", size_shift);
    if (size_shift) unsupported("size_shift");
    settings.read("steps", config.steps);
    settings.read("guidance", config.guidance);
    settings.read("shift", config.shift);
    settings.read("video_lead", config.video_lead);
    settings.read("sync_guidance", config.sync_guidance);
    settings.read("sync_cfg_audio", config.sync_cfg_audio);
    settings.read("sync_cfg_video", config.sync_cfg_video);
    settings.read("v2a_sync_guidance", config.v2a_sync_guidance);
    config.validate();
    return config;
}

}  // namespace

const char* name_of(Bridge bridge) { return BRIDGES[static_cast<std::size_t>(bridge)]; }

void SequenceConfig::validate() const {
    require_whole("fps", fps, 1, MAX_FPS);
    require_whole("sample_rate", sample_rate, 1, 384'000);
    require_whole("time_factor", time_factor, 1, 64);
    require_whole("space_factor", space_factor, 1, 256);
    require_whole("patch", patch, 1, 16);
    require_whole("audio_hop", audio_hop, 1, 100'000);
    if (!(seconds > 0 && seconds <= MAX_SECONDS)) {
        refuse("seconds", shown(seconds), "above 0 and at most " + general(MAX_SECONDS));
    }
    if (frames() < 1 || audio_tokens() < 1) {
        const double least = std::max(0.5 / static_cast<double>(fps), 0.5 / static_cast<double>(sample_rate));
        invalid("seconds is " + shown(seconds) + ", shorter than half a frame; at " + std::to_string(fps) + " fps it must be above " + general(least));
    }
    const std::int64_t step = space_factor * patch;
    for (const auto& [name, side] : {std::pair("width", width), std::pair("height", height)}) {
        if (side % step == 0 && side >= step && side <= MAX_SIDE) continue;
        refuse(name, std::to_string(side), "a multiple of " + std::to_string(step) + " from " + std::to_string(step) + " to " + std::to_string(MAX_SIDE));
    }
}

std::int64_t SequenceConfig::frames() const { return rounded(seconds * static_cast<double>(fps)); }

std::int64_t SequenceConfig::latent_frames() const { return divide_up(frames(), time_factor); }

std::int64_t SequenceConfig::padding() const { return latent_frames() * time_factor - frames(); }

std::vector<double> SequenceConfig::frame_times() const {
    std::vector<double> times;
    for (std::int64_t frame = 0; frame < latent_frames(); ++frame) {
        const double middle = static_cast<double>(time_factor) * (static_cast<double>(frame) + 0.5) - static_cast<double>(padding());
        times.push_back(middle / static_cast<double>(fps));
    }
    return times;
}

std::int64_t SequenceConfig::samples() const {
    return rounded(static_cast<double>(frames()) / static_cast<double>(fps) * static_cast<double>(sample_rate));
}

std::int64_t SequenceConfig::audio_tokens() const { return divide_up(samples(), audio_hop); }

void DDiTConfig::validate() const {
    require_whole("width", width, 1, 65'536);
    require_whole("depth", depth, 1, 1024);
    require_whole("heads", heads, 1, 1024);
    require_whole("audio_heads", audio_heads, 1, 1024);
    require_whole("patch", patch, 1, 16);
    require_whole("video_channels", video_channels, 1, 4096);
    require_whole("audio_channels", audio_channels, 1, 4096);
    require_whole("text_width", text_width, 1, 65'536);
    require_whole("text_tokens", text_tokens, 1, 65'536);
    require_whole("base_size", base_size, 1, 65'536);
    require_number("mlp_ratio", mlp_ratio, 0, 64, true);
    require_number("latent_fps", latent_fps, 0, static_cast<double>(MAX_FPS), true);
    require_number("audio_rate", audio_rate, 0, 1e5, true);
    require_number("rope_theta", rope_theta, 0, 1e9, true);
    if (hidden() < 1) {
        invalid("mlp_ratio is " + shown(mlp_ratio) + "; it must be at least " + general(1 / static_cast<double>(width)) + " at this width");
    }
    for (const auto& [name, count] : {std::pair("heads", heads), std::pair("audio_heads", audio_heads)}) {
        if (width % count == 0 && width / count % 2 == 0) continue;
        invalid("width " + std::to_string(width) + " must split into " + name + " (" + std::to_string(count) + ") parts of even width");
    }
    if (width % 4 != 0) invalid("width is " + std::to_string(width) + "; it must be a multiple of 4, for sines and cosines of two axes");
    if (first_block != 0 && bridge != Bridge::audio_rope) {
        invalid("first_block is " + std::to_string(first_block) + "; it must be 0 with the bridge " + name_of(bridge));
    }
    if (first_block < 0 || first_block >= depth) {
        invalid("first_block is " + std::to_string(first_block) + "; it must be from 0 to " + std::to_string(depth - 1));
    }
    if (!std::isfinite(window) || window <= 0) invalid("window is " + shown(window) + "; it must be a number of latent frames above 0");
}

void SamplingConfig::validate() const {
    require_whole("steps", steps, 1, MAX_STEPS);
    require_number("shift", shift, 0, MAX_SHIFT, true);
    require_number("video_lead", video_lead, 0, 1);
    for (const auto& [name, weight] : {std::pair("guidance", guidance), std::pair("sync_guidance", sync_guidance),
                                       std::pair("sync_cfg_audio", sync_cfg_audio), std::pair("sync_cfg_video", sync_cfg_video),
                                       std::pair("v2a_sync_guidance", v2a_sync_guidance)}) {
        require_number(name, weight, -MAX_WEIGHT, MAX_WEIGHT);
    }
}

DDiTConfig read_ddit_config(const Json& json) {
    const Settings settings(json, "DDiTConfig",
                            {"width", "depth", "heads", "audio_heads", "mlp_ratio", "patch", "video_channels", "audio_channels", "text_width",
                             "text_tokens", "sigma_head", "base_size", "latent_fps", "audio_rate", "rope_theta", "adaptor_tokens",
                             "audio_text", "bridge", "first_block", "window", "audio_bins", "audio_patch", "prior_tokens",
                             "prior_width"});
    DDiTConfig config;
    settings.read("width", config.width);
    settings.read("depth", config.depth);
    settings.read("heads", config.heads);
    settings.read("audio_heads", config.audio_heads);
    settings.read("mlp_ratio", config.mlp_ratio);
    settings.read("patch", config.patch);
    settings.read("video_channels", config.video_channels);
    settings.read("audio_channels", config.audio_channels);
    settings.read("text_width", config.text_width);
    settings.read("text_tokens", config.text_tokens);
    settings.read("sigma_head", config.sigma_head);
    settings.read("base_size", config.base_size);
    settings.read("latent_fps", config.latent_fps);
    settings.read("audio_rate", config.audio_rate);
    settings.read("rope_theta", config.rope_theta);
    choose(settings, "adaptor_tokens", ADAPTOR_TOKENS, config.adaptor_tokens);
    settings.read("audio_text", config.audio_text);
    std::string bridge;
    settings.read("bridge", bridge);
    if (bridge == "none" || bridge == "bidirectional") unsupported("the bridge " + bridge);  // alone has the four last settings
    choose(settings, "bridge", BRIDGES, config.bridge);
    settings.read("first_block", config.first_block);
    settings.read("window", config.window);
    config.validate();
    return config;
}

ModelConfig read_model_config(const Json& json) {
    const Settings settings(json, "ModelConfig", {"name", "sequence", "ddit", "sampling", "video_vae", "audio_vae", "text_encoder"});
    ModelConfig config;
    settings.read("name", config.name);
    config.sequence = read_sequence_config(settings.object("sequence"));
    config.ddit = read_ddit_config(settings.object("ddit"));
    config.sampling = read_sampling_config(settings.object("sampling"));
    return config;
}

ModelConfig parse_model_config(std::string_view text) {
    const Json json = parse_json(text);
    const Json* const settings = json.find("syncflow");
    if (settings == nullptr || settings->object() == nullptr) throw Error(Status::corrupt, "it holds no syncflow configuration");
    return read_model_config(*settings);
}

}  // namespace syncflow::engine
