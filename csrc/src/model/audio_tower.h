// The audio tower and the modality adaptors through which it reads the video (engine/model/audio.py).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "model/denoiser.h"
#include "model/layers.h"
#include "model/shape_tables.h"
#include "package/model_config.h"
#include "package/safetensors.h"
#include "syncflow/blocks.h"

namespace syncflow::engine {

// R rows between two layers. The style stands in front of the audio tokens of the first N rows.
struct AudioState {
    const ShapeTables* tables;
    std::int64_t rows, tail_tokens, styled = 0;
    Floats x;     // (R, A, D)
    Floats tail;  // (R, E, D): the time token and the text that the tower reads
    Floats style;  // (N, A_r, D)
};

class AudioTower {
   public:
    AudioTower(const DDiTConfig& config, Weights& weights);

    // The token of the flow time, which every layer reads: (n) -> (n, D).
    Floats time(std::span<const float> times, int threads) const;

    // Latents (R, A, C_a) before the first layer, with their time tokens (R, D) and where the tower reads text, the text
    // tokens (L, D) of every row.
    AudioState embed(const float* latents, std::span<const float> time_tokens, std::span<const float* const> text_tokens,
                     const ShapeTables& tables, int threads) const;

    // (A_r, C_a) -> (A_r, D).
    Floats style(std::span<const float> reference, int threads) const;

    // What audio layer `layer` reads of rows of the features (R, T, S, D) of that video layer, behind the first `kept`
    // contexts.
    void adapt(std::int64_t layer, const float* features, std::span<const std::int64_t> rows, const ShapeTables& tables, std::int64_t kept,
               Floats& context, int threads) const;

    // All layers. `context`: of which row r reads `context_of_row[r]`, or none where that is -1; may be null. `attended`: by
    // layer the tokens after the self-attention (R, A, D), where they are wanted. Only the first `num_outputs` rows go on in
    // the last layer.
    void run_layers(AudioState& state, const Context* context, std::span<const std::int64_t> context_of_row, std::span<float* const> attended,
                    std::int64_t num_outputs, int threads) const;

    // One layer of a state with a style.
    void run_styled_layer(AudioState& state, std::int64_t layer, int threads) const;

    // Velocity (R, A, C_a) after the last layer.
    Floats finish(const AudioState& state, int threads) const;

    std::span<const float> frequencies() const { return frequencies_; }

   private:
    // x += norm2(cross-attention of x (rows, tokens, D) at `rope` to the tail); x += norm3(mlp(x)).
    void read_tail_and_feed_forward(const AudioLayer& layer, const float* tail, std::int64_t tail_tokens, const float* rope, float* x,
                                    std::int64_t rows, std::int64_t tokens, int threads) const;

    DDiTConfig config_;
    Floats frequencies_;
    PackedLinear embedding_, final_;
    ScalarEmbedding time_;
    LayerNorm final_norm_;
    std::vector<Adaptor> adaptors_;
    std::vector<AudioLayer> layers_;
};

}  // namespace syncflow::engine
