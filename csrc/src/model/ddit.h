// The dual diffusion transformer: both towers, what crosses between them, and their passes (engine/model/ddit.py).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "model/audio_tower.h"
#include "model/layers.h"
#include "model/shape_tables.h"
#include "model/video_tower.h"

namespace syncflow::engine {

// Inputs of the video tower of a one-way model: R rows, or P prefixes of rows.
struct VideoInputs {
    const float* latents;  // (R, C_v, T, H, W)
    Modulation modulation;
    const TextRows* text;
    const ShapeTables* tables;
    std::int64_t num_outputs;  // rows after these serve for contexts alone
    // An `adaptor` model: the rows whose contexts are wanted, put behind the first `kept` contexts of `context`.
    std::span<const std::int64_t> context_rows = {};
    Context* context = nullptr;
    std::int64_t kept = 0;
    // An `audio_rope` model: what row r reads, or -1; and the prefix from which it goes on at the first bridge. May be empty.
    const Context* audio_context = nullptr;
    std::span<const std::int64_t> audio_context_of_row = {};
    std::span<const std::int64_t> prefix_of_row = {};
};

// Inputs of the audio tower of a one-way model, or of any model where the audio reads no video; R rows.
struct AudioInputs {
    const float* latents;                // (R, A, C_a)
    std::span<const float> time_tokens;  // (R, D)
    const TextRows* text;
    const ShapeTables* tables;
    std::int64_t num_outputs;
    // An `adaptor` model.
    const Context* video_context = nullptr;
    std::span<const std::int64_t> context_of_row = {};
    // An `audio_rope` model, as of VideoInputs.
    std::span<const std::int64_t> context_rows = {};
    Context* context = nullptr;
    std::int64_t kept = 0;
};

// Inputs of both towers of a `global_local` model, R rows, of which the first `bridged` read each other.
struct JointInputs {
    const float* video_latents;
    const float* audio_latents;
    Modulation modulation;
    std::span<const float> time_tokens;
    const TextRows* text;
    const ShapeTables* tables;
    std::int64_t bridged;
    std::vector<const Floats*> styles;  // (A_r, D) of each bridged row
    std::vector<std::int64_t> video_output_rows, audio_output_rows;
};

struct Velocities {
    Floats video, audio;  // of the output rows
};

class DDiT {
   public:
    // Throws Status::unsupported for sizes that the blocks do not take, and corrupt for weights that do not fit.
    DDiT(const DDiTConfig& config, Weights& weights);

    const DDiTConfig& config() const { return config_; }
    const VideoTower& video() const { return video_; }
    const AudioTower& audio() const { return audio_; }

    ShapeTables tables(const LatentShape& shape, std::span<const double> frame_times) const;

    // Keys and values of one context, of one layer of those that read: (M, 2, n, d), and how many layers these are.
    std::int64_t context_size(const ShapeTables& tables) const;
    std::int64_t context_layers() const;

    // Style tokens of a reference sound (A_r, C_a), or of none.
    Floats style(std::span<const float> reference, int threads) const;

    // Velocity of the first `num_outputs` rows.
    Floats video_pass(const VideoInputs& inputs, int threads) const;
    Floats audio_pass(const AudioInputs& inputs, int threads) const;
    Velocities joint_pass(const JointInputs& inputs, int threads) const;

   private:
    struct GlobalLocalLayer {
        CrossAttentionLayers to_video, to_audio, style;
        GlobalLocalLayer(Weights& weights, const std::string& name, std::int64_t width);
    };

    std::vector<const float*> text_tokens(const TextRows& text) const;
    void keep_contexts(const VideoInputs& inputs, const std::vector<Floats>& features, int threads) const;

    DDiTConfig config_;
    VideoTower video_;
    AudioTower audio_;
    std::vector<CrossAttentionLayers> audio_rope_;  // of layer first_block + i
    Floats silence_;                                // the style (1, D) of no reference
    std::vector<GlobalLocalLayer> global_local_;
};

}  // namespace syncflow::engine
