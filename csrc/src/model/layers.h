// Parts that the towers and the codecs share: linear layers, norms, embeddings of scalars, rotary tables.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "package/safetensors.h"
#include "syncflow/blocks.h"
#include "syncflow/floats.h"

namespace syncflow::engine {

constexpr float EPS = 1e-6f;       // of the norms of video blocks and of heads
constexpr float NORM_EPS = 1e-5f;  // of PyTorch's LayerNorm

inline std::size_t size_of(std::int64_t count) { return static_cast<std::size_t>(count); }

// Memory that is kept between calls and grows; what it holds is whatever it was last used for.
class Scratch {
   public:
    float* operator()(std::int64_t floats) {
        if (memory_.size() < size_of(floats)) memory_ = Floats(size_of(floats));
        return memory_.data();
    }

   private:
    Floats memory_;
};

// `name`.weight (out, in) and `name`.bias (out), which is 0 without `biased`.
PackedLinear take_linear(Weights& weights, const std::string& name, std::int64_t out, std::int64_t in, bool biased = true);

// y = x W^T + b, or its GELU in the tanh form: (rows, in) -> (rows, out).
void apply(const PackedLinear& layer, const float* x, std::int64_t rows, float* y, int threads, bool gelu = false);

// x / (1 + e^-x), in place.
void silu(std::span<float> x);

// Weight and bias of a LayerNorm over D channels. y may be x.
struct LayerNorm {
    Floats weight, bias;
    float eps = NORM_EPS;

    LayerNorm() = default;
    LayerNorm(Weights& weights, const std::string& name, std::int64_t width, float eps = NORM_EPS);

    void operator()(const float* x, std::int64_t rows, float* y) const;
};

// A scalar as a 256-d sinusoid (cosines first) through a two-layer MLP.
class ScalarEmbedding {
   public:
    ScalarEmbedding(Weights& weights, const std::string& name, std::int64_t width);

    // (n) -> (n, D).
    Floats operator()(std::span<const float> x, int threads) const;

   private:
    PackedLinear first_, second_;
};

// The projections of a cross-attention: queries (D, D), keys with values (2 D, D), output (D, D).
struct CrossAttentionLayers {
    PackedLinear query, key_value, out;

    CrossAttentionLayers(Weights& weights, const std::string& name, std::int64_t width);
};

// Cosines and sines of positions times frequencies (d / 2). -> (positions, d / 2, 2).
Floats rope_table(std::span<const float> positions, std::span<const float> frequencies);

// theta^(-2i / d), radians per unit of position. -> (d / 2).
Floats rope_frequencies(std::int64_t head_width, double theta);

}  // namespace syncflow::engine
