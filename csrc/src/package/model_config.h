// What a model is, as data: the configuration of engine/config.py, read from the JSON of a package.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "package/json.h"

namespace syncflow::engine {

constexpr double MAX_SECONDS = 60;
constexpr std::int64_t MAX_SIDE = 2048, MAX_STEPS = 1000, MAX_TAKES = 64, MAX_FPS = 240;
constexpr double MAX_WEIGHT = 100, MAX_SHIFT = 100;  // of guidance and of the time grid

// How long, how large and how fine a clip is; every length derives from here.
struct SequenceConfig {
    double seconds = 2;
    std::int64_t width = 256, height = 256, fps = 16, sample_rate = 48000;
    std::int64_t time_factor = 4, space_factor = 8, patch = 2, audio_hop = 960;

    // Throws Status::invalid_argument for a size or duration that the factors cannot carry.
    void validate() const;

    std::int64_t frames() const;         // F
    std::int64_t latent_frames() const;  // T
    std::int64_t padding() const;        // frames that the video codec pads in front
    std::vector<double> frame_times() const;  // the middle of each latent frame, in seconds (T)
    std::int64_t latent_height() const { return height / space_factor; }
    std::int64_t latent_width() const { return width / space_factor; }
    std::int64_t samples() const;       // M
    std::int64_t audio_tokens() const;  // A
};

enum class AdaptorTokens { all, frame, none };
enum class Bridge { adaptor, audio_rope, global_local };

const char* name_of(Bridge bridge);

// The shape of the d-DiT; members as in engine/config.py.
struct DDiTConfig {
    std::int64_t width = 1152, depth = 28, heads = 16, audio_heads = 16;
    double mlp_ratio = 4;
    std::int64_t patch = 2, video_channels = 4, audio_channels = 128, text_width = 4096, text_tokens = 300;
    bool sigma_head = true;
    std::int64_t base_size = 512;
    double latent_fps = 4, audio_rate = 50, rope_theta = 1e4;
    AdaptorTokens adaptor_tokens = AdaptorTokens::all;
    bool audio_text = false;
    Bridge bridge = Bridge::adaptor;
    std::int64_t first_block = 0;
    double window = 1;

    void validate() const;

    std::int64_t hidden() const { return static_cast<std::int64_t>(static_cast<double>(width) * mlp_ratio); }
    std::int64_t head_width() const { return width / heads; }
    std::int64_t audio_head_width() const { return width / audio_heads; }
    bool audio_reads_video() const { return bridge != Bridge::audio_rope; }
    bool video_reads_audio() const { return bridge != Bridge::adaptor; }

    bool operator==(const DDiTConfig&) const = default;
};

// How a model is sampled unless a request says otherwise.
struct SamplingConfig {
    std::int64_t steps = 50;
    double guidance = 6, shift = 1, video_lead = 0, sync_guidance = 0, sync_cfg_audio = 1, sync_cfg_video = 1;
    double v2a_sync_guidance = 0;  // the sync guidance of video-to-audio

    void validate() const;
};

struct ModelConfig {
    std::string name = "unnamed";
    SequenceConfig sequence;
    DDiTConfig ddit;
    SamplingConfig sampling;
};

// Of the object "syncflow" of a model_index.json, and of the config.json of a d-DiT. Throw Status::invalid_argument for a
// setting that is unknown, of another kind or out of its range.
ModelConfig read_model_config(const Json& settings);
DDiTConfig read_ddit_config(const Json& settings);

// The configuration in the text of a model_index.json.
ModelConfig parse_model_config(std::string_view text);

}  // namespace syncflow::engine
