// The text encoder: prompts -> states, a T5 encoder that reads UTF-8 bytes (engine/codecs/text.py, t5.py).
#pragma once

#include <cstdint>
#include <filesystem>
#include <string_view>
#include <vector>

#include "model/layers.h"
#include "package/safetensors.h"
#include "syncflow/floats.h"

namespace syncflow::engine {

// The bytes of a prompt as ByT5 numbers them, from 3 on, and an end of 1; at most `most` of them, the last of them the end.
std::vector<std::int64_t> byte_tokens(std::string_view prompt, std::int64_t most);

class TextEncoder {
   public:
    // Reads a component folder. Throws Status::unsupported for another model, and for one with a vocabulary of its own.
    explicit TextEncoder(const std::filesystem::path& folder);

    std::int64_t width() const { return width_; }
    std::int64_t max_tokens() const { return max_tokens_; }

    struct States {
        Floats values;        // (max_tokens, width), 0 behind the tokens that count
        std::int64_t length;  // of those
    };
    States encode(std::string_view prompt, int threads) const;

   private:
    enum class Activation { relu, gelu, gelu_tanh, silu };

    struct Layer {
        Floats attention_norm, mlp_norm;
        PackedLinear query, key, value, out, up, gate, down;
    };

    void norm(const Floats& weight, const Floats& x, Floats& y) const;
    void attend(const Layer& layer, const Floats& x, std::int64_t length, Floats& out, int threads) const;
    void feed_forward(const Layer& layer, const Floats& x, std::int64_t length, Floats& out, int threads) const;
    std::int64_t bucket(std::int64_t distance) const;

    std::int64_t width_ = 512, head_width_ = 64, hidden_ = 2048, heads_ = 8, vocabulary_ = 32'128, max_tokens_ = 300;
    std::int64_t buckets_ = 32, farthest_ = 128;
    double eps_ = 1e-6;
    bool gated_ = false;
    Activation activation_ = Activation::relu;
    Floats embedding_, bias_, final_norm_;  // (vocabulary, W), (buckets, n), (W)
    std::vector<Layer> layers_;
};

}  // namespace syncflow::engine
