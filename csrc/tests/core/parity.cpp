// What tests/native/test_core.py compares with Python.
//
//     core_parity noise SEED STREAM COUNT               floats
//     core_parity schedule STEPS SHIFT LEAD TASK START  doubles: the times of the video, then of the audio
//     core_parity text PACKAGE PROMPT                   floats: the states of the tokens that count
//     core_parity clip PACKAGE REQUEST [BACKEND]        floats: latents after every step, video and then each take; bytes of the
//                                                       frames; floats of every take's sound; its provenance on standard error
//
// A request is the JSON of its settings; media are {"frames": FILE, "sizes": [F, H, W], "fps": ..., "waveform": FILE, "sample_rate":
// ...}. Numbers go to standard output in binary.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "codecs/text_encoder.h"
#include "engine/model_backend.h"
#include "package/json.h"
#include "package/mapped_file.h"
#include "package/settings.h"
#include "sampling/schedule.h"
#include "syncflow/noise.h"

using namespace syncflow::engine;

namespace {

template <typename Values>
void write(const Values& values) {
    std::fwrite(values.data(), sizeof values[0], values.size(), stdout);
}

template <typename T>
std::vector<T> read_values(const std::string& file) {
    const MappedFile mapped(file);
    std::vector<T> values(mapped.bytes().size() / sizeof(T));
    if (!values.empty()) std::memcpy(values.data(), mapped.bytes().data(), values.size() * sizeof(T));
    return values;
}

std::shared_ptr<const Clip> read_clip(const Json& request, const char* name) {
    if (request.find(name) == nullptr) return nullptr;
    const Settings settings(*request.find(name), name);
    auto clip = std::make_shared<Clip>();
    std::string frames, waveform;
    std::vector<std::int64_t> sizes = {0, 0, 0};
    settings.read("frames", frames);
    settings.read("waveform", waveform);
    settings.read("sizes", sizes);
    settings.read("fps", clip->fps);
    settings.read("sample_rate", clip->sample_rate);
    if (!frames.empty()) clip->frames = read_values<std::uint8_t>(frames);
    if (!waveform.empty()) clip->waveform = read_values<float>(waveform);
    clip->num_frames = sizes[0];
    clip->height = sizes[1];
    clip->width = sizes[2];
    return clip;
}

template <typename T>
std::optional<T> optional(const Settings& settings, const char* name) {
    if (!settings.has(name)) return std::nullopt;
    T value{};
    settings.read(name, value);
    return value;
}

Request read_request(const std::string& text) {
    const Json json = parse_json(text);
    const Settings settings(json, "the request");
    Request request;
    std::int64_t seed = 0;
    settings.read("prompt", request.prompt);
    settings.read("seed", seed);
    settings.read("takes", request.takes);
    settings.read("sound_only", request.sound_only);
    request.seed = static_cast<std::uint64_t>(seed);
    request.steps = optional<std::int64_t>(settings, "steps");
    request.guidance = optional<double>(settings, "guidance");
    request.seconds = optional<double>(settings, "seconds");
    request.width = optional<std::int64_t>(settings, "width");
    request.height = optional<std::int64_t>(settings, "height");
    request.shift = optional<double>(settings, "shift");
    request.video_lead = optional<double>(settings, "video_lead");
    request.strength = optional<double>(settings, "strength");
    request.negative_prompt = optional<std::string>(settings, "negative_prompt");
    request.sync_guidance = optional<double>(settings, "sync_guidance");
    request.sync_cfg_audio = optional<double>(settings, "sync_cfg_audio");
    request.sync_cfg_video = optional<double>(settings, "sync_cfg_video");
    if (const auto interval = optional<std::vector<double>>(settings, "guidance_interval")) request.guidance_interval = {interval->at(0), interval->at(1)};
    request.guidance_rescale = optional<double>(settings, "guidance_rescale");
    request.branch_interval = optional<std::int64_t>(settings, "branch_interval");
    request.video = read_clip(json, "video");
    request.image = read_clip(json, "image");
    request.extend = read_clip(json, "extend");
    request.audio = read_clip(json, "audio");
    request.reference = read_clip(json, "reference");
    return request;
}

void write_clip(const std::string& package, const std::string& request, const std::string& name) {
    const std::unique_ptr<Backend> backend = open_backend(package, {.name = name});
    const std::unique_ptr<RequestState> state = backend->prepare(read_request(request));
    RequestState* const one = state.get();
    const Job& job = static_cast<const ModelRequest&>(*state).job;
    const auto write_latents = [&] {
        write(job.video.latents);
        for (const LatentState& take : job.takes) write(take.latents);
    };
    write_latents();
    while (!one->done()) {
        backend->step(std::span(&one, 1));
        write_latents();
    }
    const std::vector<Clip> clips = backend->decode(*one);
    write(clips[0].frames);
    for (const Clip& clip : clips) {
        write(clip.waveform);
        std::fprintf(stderr, "%s\n", clip.provenance.c_str());
    }
}

void write_schedule(std::int64_t steps, double shift, double lead, const std::string& task, double start) {
    Schedule times = schedule(steps, shift, lead);
    if (task == "video") times = times.known_video();
    if (task == "audio") times = times.known_audio();
    if (task == "alone") times = times.without_video();
    if (task == "after") times = times.after(start);
    write(times.video);
    write(times.audio);
}

void write_noise(std::uint64_t seed, std::uint32_t stream, std::size_t count) {
    std::vector<float> values(count);
    syncflow::fill_normal({.seed = seed, .stream = stream, .substream = 0}, 0, values.data(), count);
    write(values);
}

void write_states(const std::string& package, const std::string& prompt) {
    const TextEncoder encoder(std::filesystem::path(package) / "text_encoder");
    TextEncoder::States states = encoder.encode(prompt, 1);
    states.values.resize(static_cast<std::size_t>(states.length * encoder.width()));
    write(states.values);
}

}  // namespace

int main(int count, char** arguments) {
    const std::vector<std::string> given(arguments + 1, arguments + count);
    try {
        if (given.at(0) == "noise") {
            write_noise(std::stoull(given.at(1)), static_cast<std::uint32_t>(std::stoul(given.at(2))), std::stoull(given.at(3)));
        } else if (given.at(0) == "schedule") {
            write_schedule(std::stoll(given.at(1)), std::stod(given.at(2)), std::stod(given.at(3)), given.at(4), std::stod(given.at(5)));
        } else if (given.at(0) == "text") {
            write_states(given.at(1), given.at(2));
        } else {
            write_clip(given.at(1), given.at(2), given.size() > 3 ? given[3] : NATIVE);
        }
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return EXIT_FAILURE;
    }
    return EXIT_SUCCESS;
}
