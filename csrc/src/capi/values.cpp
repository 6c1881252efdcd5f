#include "capi/values.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <optional>
#include <utility>

#include "capi/structs.h"

namespace syncflow::capi {
namespace {

using service::Failure;

constexpr std::int64_t MAX_SIDE = 1 << 14;           // pixels
constexpr std::int64_t MAX_BYTES = std::int64_t{1} << 34;  // of the frames or the sound of a clip
constexpr std::size_t MAX_TEXT = 1 << 20;            // bytes

[[noreturn]] void refuse(const std::string& sentence) { throw Failure(SYNCFLOW_INVALID_ARGUMENT, sentence); }

void check_range(const char* name, std::int64_t value, std::int64_t low, std::int64_t high) {
    if (value >= low && value <= high) return;
    refuse(std::string(name) + " is " + std::to_string(value) + "; it must be from " + std::to_string(low) + " to " + std::to_string(high));
}

void check_seconds(const char* name, double value) {
    if (!(value >= 0 && value <= 1e9)) refuse(std::string(name) + " is " + std::to_string(value) + "; it must be 0 or more seconds");
}

bool is_utf8(std::string_view text) {
    for (std::size_t i = 0; i < text.size();) {
        const auto lead = static_cast<unsigned char>(text[i]);
        const std::size_t length = lead < 0x80 ? 1 : lead >= 0xc2 && lead < 0xe0 ? 2 : lead >= 0xe0 && lead < 0xf0 ? 3 : lead >= 0xf0 && lead < 0xf5 ? 4 : 0;
        if (length == 0 || i + length > text.size()) return false;
        std::uint32_t code = length == 1 ? lead : lead & (0xffU >> (length + 1));
        for (std::size_t k = 1; k < length; ++k) {
            const auto next = static_cast<unsigned char>(text[i + k]);
            if ((next & 0xc0) != 0x80) return false;
            code = code << 6 | (next & 0x3fU);
        }
        constexpr std::uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
        if (code < least[length] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) return false;
        i += length;
    }
    return true;
}

// A setting; nothing where the model's default is wanted.
std::optional<double> real(double value) { return value == SYNCFLOW_DEFAULT ? std::nullopt : std::optional(value); }
std::optional<std::int64_t> whole(std::int32_t value) { return value == 0 ? std::nullopt : std::optional<std::int64_t>(value); }

std::optional<std::pair<double, double>> interval(double from, double until) {
    if (from == SYNCFLOW_DEFAULT && until == SYNCFLOW_DEFAULT) return std::nullopt;
    return std::pair(from == SYNCFLOW_DEFAULT ? 0.0 : from, until == SYNCFLOW_DEFAULT ? 1.0 : until);
}

std::shared_ptr<const engine::Clip> copy(const syncflow_clip* given, const char* name) {
    if (given == nullptr) return nullptr;
    const syncflow_clip view = clip_view(given, name);
    engine::Clip clip;
    clip.frames.assign(view.frames, view.frames + view.num_frames * view.height * view.width * 3);
    clip.num_frames = view.num_frames;
    clip.height = view.height;
    clip.width = view.width;
    clip.fps = view.fps;
    clip.waveform.assign(view.waveform, view.waveform + view.num_samples);
    clip.sample_rate = view.sample_rate;
    if (view.provenance != nullptr) clip.provenance = view.provenance;
    if (view.latents != nullptr) clip.latents.assign(view.latents, view.latents + view.num_latents);
    clip.latent_frames = view.latent_frames;
    clip.latent_height = view.latent_height;
    clip.latent_width = view.latent_width;
    return std::make_shared<const engine::Clip>(std::move(clip));
}

template <std::size_t size>
void copy_text(char (&to)[size], const std::string& from) {
    std::memcpy(to, from.data(), std::min(from.size(), size - 1));
}

}  // namespace

syncflow_engine_params default_engine_params() {
    syncflow_engine_params params = {};
    params.struct_size = sizeof params;
    params.max_running = service::EngineOptions{}.max_running;
    params.max_queued = service::EngineOptions{}.max_queued;
    params.ageing = service::EngineOptions{}.ageing;
    return params;
}

syncflow_request_params default_request_params() {
    syncflow_request_params params = {};
    params.struct_size = sizeof params;
    for (double* field : {&params.seconds, &params.guidance, &params.shift, &params.video_lead, &params.strength, &params.sync_guidance,
             &params.sync_cfg_audio, &params.sync_cfg_video, &params.guidance_from, &params.guidance_until, &params.guidance_rescale}) {
        *field = SYNCFLOW_DEFAULT;
    }
    return params;
}

syncflow_media_params default_media_params() {
    syncflow_media_params params = {};
    params.struct_size = sizeof params;
    return params;
}

std::string text(const char* given, const char* name) {
    if (given == nullptr) refuse(std::string(name) + " is null");
    const std::size_t size = strnlen(given, MAX_TEXT + 1);
    if (size > MAX_TEXT) refuse(std::string(name) + " has more than " + std::to_string(MAX_TEXT) + " bytes");
    if (!is_utf8({given, size})) refuse(std::string(name) + " is not UTF-8");
    return {given, size};
}

EngineSettings engine_settings(const syncflow_engine_params* given) {
    const syncflow_engine_params params = read_struct(given, default_engine_params(), FirstSize::engine_params, "the engine's params");
    EngineSettings settings;
    settings.package = text(params.package, "package");
    if (params.backend != nullptr) settings.backend.name = text(params.backend, "backend");
    check_range("threads", params.threads, 0, 4096);
    check_range("max_running", params.max_running, 1, 4096);
    check_range("max_queued", params.max_queued, 1, 1 << 24);
    check_range("host_steps", params.host_steps, 0, 1);
    check_range("skip_checksums", params.skip_checksums, 0, 1);
    if (!(params.ageing > 0 && params.ageing <= 1e9)) refuse("ageing is " + std::to_string(params.ageing) + "; it must be above 0 seconds");
    settings.backend.threads = params.threads;
    settings.backend.verify = params.skip_checksums == 0;
    settings.engine = {params.max_running, params.max_queued, params.ageing, params.host_steps != 0};
    return settings;
}

service::Submission submission(const syncflow_request_params* given) {
    const syncflow_request_params params = read_struct(given, default_request_params(), FirstSize::request_params, "the request's params");
    check_range("sound_only", params.sound_only, 0, 1);
    check_range("has_audio_seed", params.has_audio_seed, 0, 1);
    check_range("preview_frames", params.preview_frames, 0, 1);
    check_range("preview_interval", params.preview_interval, 0, 1 << 30);
    check_range("priority", params.priority, -1'000'000, 1'000'000);
    check_range("timeout_ms", params.timeout_ms, 0, std::int64_t{1} << 40);
    service::Submission submission;
    engine::Request& request = submission.request;
    request.prompt = params.prompt == nullptr ? std::string() : text(params.prompt, "prompt");
    if (params.negative_prompt != nullptr) request.negative_prompt = text(params.negative_prompt, "negative_prompt");
    request.seed = params.seed;
    if (params.has_audio_seed != 0) request.audio_seed = params.audio_seed;
    request.sound_only = params.sound_only != 0;
    request.takes = params.takes == 0 ? 1 : params.takes;
    request.steps = whole(params.steps);
    request.branch_interval = whole(params.branch_interval);
    request.width = whole(params.width);
    request.height = whole(params.height);
    request.seconds = real(params.seconds);
    request.guidance = real(params.guidance);
    request.shift = real(params.shift);
    request.video_lead = real(params.video_lead);
    request.strength = real(params.strength);
    request.sync_guidance = real(params.sync_guidance);
    request.sync_cfg_audio = real(params.sync_cfg_audio);
    request.sync_cfg_video = real(params.sync_cfg_video);
    request.guidance_interval = interval(params.guidance_from, params.guidance_until);
    request.guidance_rescale = real(params.guidance_rescale);
    request.video = copy(params.video, "video");
    request.image = copy(params.image, "image");
    request.extend = copy(params.extend, "extend");
    request.audio = copy(params.audio, "audio");
    request.reference = copy(params.reference, "reference");
    submission.priority = params.priority;
    submission.timeout = std::chrono::milliseconds(params.timeout_ms);
    submission.preview_interval = params.preview_interval;
    submission.preview_frames = params.preview_frames != 0;
    submission.on_progress = params.on_progress;
    submission.on_preview = params.on_preview;
    submission.on_finished = params.on_finished;
    submission.user_data = params.user_data;
    return submission;
}

syncflow_media_params media_params(const syncflow_media_params* given) {
    if (given == nullptr) return default_media_params();
    const syncflow_media_params params = read_struct(given, default_media_params(), FirstSize::media_params, "the media's params");
    check_range("width", params.width, 0, MAX_SIDE);
    check_range("height", params.height, 0, MAX_SIDE);
    check_range("sample_rate", params.sample_rate, 0, 768'000);
    if (!(params.fps >= 0 && params.fps <= 1000)) refuse("fps is " + std::to_string(params.fps) + "; it must be at most 1000, and 0 for that of the file");
    check_seconds("start", params.start);
    check_seconds("seconds", params.seconds);
    return params;
}

syncflow_clip clip_view(const syncflow_clip* given, const char* name) {
    const syncflow_clip clip = read_struct(given, syncflow_clip{}, FirstSize::clip, name);
    const std::string what = name;
    for (const std::int64_t count : {clip.num_frames, clip.height, clip.width, clip.num_samples, clip.num_latents, clip.latent_frames, clip.latent_height, clip.latent_width}) {
        if (count < 0 || count > MAX_BYTES) refuse("a size of " + what + " is " + std::to_string(count) + "; it must be 0 or more");
    }
    if (clip.num_frames > 0) {
        if (clip.frames == nullptr) refuse("the frames of " + what + " are null");
        check_range(("the height of " + what).c_str(), clip.height, 1, MAX_SIDE);
        check_range(("the width of " + what).c_str(), clip.width, 1, MAX_SIDE);
        if (clip.num_frames > MAX_BYTES / (3 * clip.height * clip.width)) refuse("the frames of " + what + " have more than 16 GiB");
        if (!(clip.fps > 0 && clip.fps <= 1000)) refuse("fps of " + what + " is " + std::to_string(clip.fps) + "; it must be above 0 and at most 1000");
    }
    if (clip.num_samples > 0) {
        if (clip.waveform == nullptr) refuse("the waveform of " + what + " is null");
        check_range(("the sample rate of " + what).c_str(), clip.sample_rate, 1, 768'000);
        if (clip.num_samples > MAX_BYTES / 4) refuse("the waveform of " + what + " has more than 16 GiB");
        const bool finite = std::all_of(clip.waveform, clip.waveform + clip.num_samples, [](float sample) { return std::isfinite(sample); });
        if (!finite) refuse("the waveform of " + what + " holds NaN or infinity");
    }
    if (clip.latents != nullptr) {
        const std::int64_t sizes[] = {clip.latent_frames, clip.latent_height, clip.latent_width};
        std::int64_t positions = 1;
        for (const std::int64_t size : sizes) {
            if (size < 1 || positions > MAX_BYTES / size) refuse("the latents of " + what + " have no size");
            positions *= size;
        }
        if (clip.num_latents < 1 || clip.num_latents % positions != 0) refuse("the latents of " + what + " do not fill their frames");
    }
    if (clip.provenance != nullptr) static_cast<void>(text(clip.provenance, "the provenance"));
    return clip;
}

syncflow_clip view_of(const engine::Clip& clip) {
    syncflow_clip view = {};
    view.struct_size = sizeof view;
    view.sample_rate = static_cast<std::int32_t>(clip.sample_rate);
    view.fps = clip.fps;
    view.frames = clip.frames.empty() ? nullptr : clip.frames.data();
    view.num_frames = clip.num_frames;
    view.height = clip.height;
    view.width = clip.width;
    view.waveform = clip.waveform.empty() ? nullptr : clip.waveform.data();
    view.num_samples = static_cast<std::int64_t>(clip.waveform.size());
    view.provenance = clip.provenance.empty() ? nullptr : clip.provenance.c_str();
    view.latents = clip.latents.empty() ? nullptr : clip.latents.data();
    view.num_latents = static_cast<std::int64_t>(clip.latents.size());
    view.latent_frames = clip.latent_frames;
    view.latent_height = clip.latent_height;
    view.latent_width = clip.latent_width;
    return view;
}

syncflow_model_info info_of(const engine::ModelInfo& info) {
    const auto int32 = [](std::int64_t value) { return static_cast<std::int32_t>(value); };
    syncflow_model_info values = {};
    values.struct_size = sizeof values;
    copy_text(values.name, info.name);
    copy_text(values.hash, info.hash);
    copy_text(values.backend, info.backend);
    copy_text(values.bridge, info.bridge);
    values.sample_rate = int32(info.sample_rate);
    values.seconds = info.seconds;
    values.max_seconds = info.max_seconds;
    values.fps = static_cast<double>(info.fps);
    values.width = int32(info.width);
    values.height = int32(info.height);
    values.size_multiple = int32(info.size_multiple);
    values.max_side = int32(info.max_side);
    values.steps = int32(info.steps);
    values.max_steps = int32(info.max_steps);
    values.max_takes = int32(info.max_takes);
    values.text_tokens = int32(info.text_tokens);
    values.audio_reads_video = info.audio_reads_video ? 1 : 0;
    values.video_reads_audio = info.video_reads_audio ? 1 : 0;
    values.audio_text = info.audio_text ? 1 : 0;
    values.latent_channels = int32(info.latent_channels);
    values.guidance = info.guidance;
    values.shift = info.shift;
    values.video_lead = info.video_lead;
    values.sync_guidance = info.sync_guidance;
    values.sync_cfg_audio = info.sync_cfg_audio;
    values.sync_cfg_video = info.sync_cfg_video;
    values.parameters = info.parameters;
    values.weight_bytes = info.weight_bytes;
    return values;
}

}  // namespace syncflow::capi
