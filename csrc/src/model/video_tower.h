// The video tower: Open-Sora's STDiT3 (engine/model/video.py), on the blocks of blocks.h.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "model/denoiser.h"
#include "model/layers.h"
#include "model/shape_tables.h"
#include "package/model_config.h"
#include "package/safetensors.h"
#include "syncflow/blocks.h"

namespace syncflow::engine {

// R rows between two layers.
struct VideoState {
    const ShapeTables* tables;
    std::int64_t rows;
    Floats x, normed;  // (R, T, S, D); the norm that the next layer begins with
    bool has_norm = false;
    Modulation modulation;  // of every row
    std::vector<Text> texts;  // by block
    std::vector<std::int64_t> text_of_row;

    // Rows `index`, which may repeat.
    void take(std::span<const std::int64_t> index);
};

class VideoTower {
   public:
    VideoTower(const DDiTConfig& config, Weights& weights);

    // Of a text's encoder states (L, W), of which `length` count.
    std::shared_ptr<const PromptText> condition(const float* states, std::int64_t length, int threads) const;

    Modulation modulation(std::span<const float> times, float fps, int threads) const;

    // Latents (R, C_v, T, H, W) before the first layer.
    VideoState embed(const float* latents, Modulation modulation, const TextRows& text, const ShapeTables& tables, int threads) const;

    struct Range {
        std::int64_t first, end;                  // layers
        const float* branch = nullptr;            // (R, T, S, D), what a bridge adds to x first; may be null
        bool ahead = true;                        // whether the norm of the layer after these is made with the last residual
        std::int64_t num_outputs = -1;            // rows that go on after the last temporal attention; -1: all
        std::vector<float*> attended = {};        // by layer, x after the temporal attention, where that is wanted
    };
    void run_layers(VideoState& state, const Range& range, int threads) const;

    // Velocity (R, C_v, T, H, W) after the last layer.
    Floats finish(const VideoState& state, int threads) const;

    // The states (L, W) that stand for no prompt.
    const Floats& null_text() const { return null_text_; }
    std::span<const float> frequencies() const { return frequencies_; }

   private:
    DDiTConfig config_;
    Floats frequencies_, null_text_, final_table_;
    PackedLinear patch_embedding_, time_block_, caption_first_, caption_second_, final_;
    ScalarEmbedding time_, fps_;
    std::vector<VideoBlock> blocks_;  // spatial and temporal of layer 0, of layer 1, ...
};

// The weights of a block under a name, and what holds them until the block is made.
class BlockReader {
   public:
    BlockReader(Weights& weights, const std::string& name, std::int64_t width, std::int64_t heads, std::int64_t hidden);

    const BlockWeights& weights() const { return view_; }

   private:
    LinearWeights take(Weights& weights, const std::string& name, std::int64_t out, std::int64_t in);

    std::vector<Floats> kept_;
    BlockWeights view_;
};

}  // namespace syncflow::engine
