// The values that travel between a program and a back end: what is asked for, what the model is, what comes out.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace syncflow::engine {

// A video with its sound. Either may be empty: a picture has one frame and no sound, a sound alone has no frames.
struct Clip {
    std::vector<std::uint8_t> frames;  // (num_frames, height, width, 3), RGB
    std::int64_t num_frames = 0, height = 0, width = 0;
    double fps = 0;
    std::vector<float> waveform;  // mono, in [-1, 1]
    std::int64_t sample_rate = 0;
    std::string provenance;  // a JSON object: prompt, seed, settings, task, model and its hash; empty: unknown
    // (C_v, T, H, W): what the frames were decoded from, of the model of the provenance. A retake of the sound that is given them
    // back needs no encoding of the frames. May be empty.
    std::vector<float> latents;
    std::int64_t latent_frames = 0, latent_height = 0, latent_width = 0;
};

// One clip to make. Without a value a field takes the model's default. The same settings, names, ranges and messages as
// `Request` in engine/types.py, which documents each.
struct Request {
    std::string prompt;  // UTF-8
    std::uint64_t seed = 0;
    std::optional<std::int64_t> steps;
    std::optional<double> guidance;
    std::optional<double> seconds;
    std::optional<std::int64_t> width, height;  // pixels
    std::optional<double> shift, video_lead;
    // At most one of video, image, extend and audio.
    std::shared_ptr<const Clip> video;   // whose sound is wanted, or with `strength` a clip of which a variation is wanted
    std::shared_ptr<const Clip> image;   // whose first frame the clip begins with
    std::shared_ptr<const Clip> extend;  // a clip to continue
    std::shared_ptr<const Clip> audio;   // a sound whose video is wanted
    std::optional<double> strength;
    std::optional<std::string> negative_prompt;
    std::optional<double> sync_guidance, sync_cfg_audio, sync_cfg_video;
    std::optional<std::pair<double, double>> guidance_interval;
    std::optional<double> guidance_rescale;
    std::optional<std::int64_t> branch_interval;
    std::shared_ptr<const Clip> reference;  // a sound whose style is wanted
    bool sound_only = false;
    std::optional<std::uint64_t> audio_seed;
    std::int64_t takes = 1;
};

// What a model is and what it makes unless a request says otherwise.
struct ModelInfo {
    std::string name, hash;  // the sha256 over all checksums of the package
    std::string backend;     // "native"
    std::string bridge;      // "adaptor", "audio_rope" or "global_local"
    bool audio_reads_video = true, video_reads_audio = false, audio_text = false;
    double seconds = 0;
    std::int64_t width = 0, height = 0, fps = 0, sample_rate = 0;
    std::int64_t size_multiple = 0, max_side = 0;  // allowed widths and heights: multiples up to max_side, pixels
    double max_seconds = 0;
    std::int64_t steps = 0, max_steps = 0, max_takes = 0, text_tokens = 0;
    double guidance = 0, shift = 0, video_lead = 0, sync_guidance = 0, sync_cfg_audio = 0, sync_cfg_video = 0;
    std::int64_t latent_channels = 0, audio_channels = 0, time_factor = 0, space_factor = 0, audio_hop = 0;
    std::int64_t parameters = 0;    // of the d-DiT
    std::int64_t weight_bytes = 0;  // in memory
};

// Where a request is between two steps. Latents are normalised, as the d-DiT has them.
struct Preview {
    std::vector<float> video;  // (C_v, T, H, W)
    std::int64_t channels = 0, latent_frames = 0, latent_height = 0, latent_width = 0;
    std::vector<float> audio;  // (A, C_a) of the first take
    std::int64_t audio_tokens = 0, audio_channels = 0;
    double video_time = 0, audio_time = 0;  // flow times, 0 = noise, 1 = data
    // (frames, height, width, 3): the expected end of the video, decoded; only where the caller asks for frames.
    std::vector<std::uint8_t> frames;
    std::int64_t num_frames = 0, height = 0, width = 0;
};

}  // namespace syncflow::engine
