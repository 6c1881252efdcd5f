#include "codecs/text_encoder.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "package/package.h"
#include "package/settings.h"

namespace syncflow::engine {
namespace {

constexpr std::int64_t BYTE_VOCABULARY = 384, FIRST_BYTE = 3, END = 1;

PackedLinear take_plain(Weights& weights, const std::string& name, std::int64_t out, std::int64_t in) { return take_linear(weights, name, out, in, false); }

}  // namespace

std::vector<std::int64_t> byte_tokens(std::string_view prompt, std::int64_t most) {
    std::vector<std::int64_t> tokens;
    for (const char byte : prompt.substr(0, static_cast<std::size_t>(most - 1))) tokens.push_back(static_cast<unsigned char>(byte) + FIRST_BYTE);
    tokens.push_back(END);
    return tokens;
}

TextEncoder::TextEncoder(const std::filesystem::path& folder) {
    const Json json = read_json_object(folder / "config.json");
    const Settings settings(json, "the text encoder");
    std::string type, activation = "relu";
    std::int64_t layers = 6;
    settings.read("model_type", type);
    settings.read("feed_forward_proj", activation);
    settings.read("vocab_size", vocabulary_);
    settings.read("d_model", width_);
    settings.read("d_kv", head_width_);
    settings.read("d_ff", hidden_);
    settings.read("num_layers", layers);
    settings.read("num_heads", heads_);
    settings.read("relative_attention_num_buckets", buckets_);
    settings.read("relative_attention_max_distance", farthest_);
    settings.read("layer_norm_epsilon", eps_);
    settings.read("max_tokens", max_tokens_);
    if (type != "t5" && type != "mt5") {
        throw Error(Status::unsupported, folder.string() + " holds a " + shown(std::string_view(type)) + " model; a text encoder must be a T5 ('t5')");
    }
    std::error_code none;
    for (const char* const file : {"tokenizer_config.json", "tokenizer.json", "spiece.model"}) {
        if (vocabulary_ != BYTE_VOCABULARY || std::filesystem::exists(folder / file, none) || std::filesystem::exists(folder.parent_path() / "tokenizer" / file, none)) {
            throw Error(Status::unsupported, folder.string() + " has a vocabulary of its own; the back end native reads prompts as bytes");
        }
    }
    require_whole("d_model", width_, 1, 65'536);
    require_whole("d_kv", head_width_, 1, 65'536);
    require_whole("d_ff", hidden_, 1, 1'000'000);
    require_whole("num_layers", layers, 1, 1000);
    require_whole("num_heads", heads_, 1, 4096);
    require_whole("relative_attention_num_buckets", buckets_, 4, 65'536);
    require_whole("relative_attention_max_distance", farthest_, buckets_ / 4 + 1, 10'000'000);
    require_whole("max_tokens", max_tokens_, 1, 65'536);
    require_number("layer_norm_epsilon", eps_, 0, 1, true);
    gated_ = activation.starts_with("gated-");
    if (activation == "gated-gelu") activation = "gated-gelu_new";
    const std::string name = gated_ ? activation.substr(6) : activation;
    if (name == "gelu") {
        activation_ = Activation::gelu;
    } else if (name == "gelu_new") {
        activation_ = Activation::gelu_tanh;
    } else if (name == "silu") {
        activation_ = Activation::silu;
    } else if (name != "relu") {
        refuse("feed_forward_proj", shown(std::string_view(activation)), "one of relu, gelu, gelu_new, silu, also as gated-...");
    }
    Weights weights(folder / "model.safetensors");
    const std::int64_t inner = heads_ * head_width_;
    embedding_ = weights.take(weights.has("shared.weight") ? "shared.weight" : "encoder.embed_tokens.weight", {vocabulary_, width_});
    for (std::int64_t i = 0; i < layers; ++i) {
        const std::string block = "encoder.block." + std::to_string(i), attention = block + ".layer.0.SelfAttention", mlp = block + ".layer.1.DenseReluDense";
        if (i == 0) bias_ = weights.take(attention + ".relative_attention_bias.weight", {buckets_, heads_});
        layers_.push_back({.attention_norm = weights.take(block + ".layer.0.layer_norm.weight", {width_}),
                           .mlp_norm = weights.take(block + ".layer.1.layer_norm.weight", {width_}),
                           .query = take_plain(weights, attention + ".q", inner, width_),
                           .key = take_plain(weights, attention + ".k", inner, width_),
                           .value = take_plain(weights, attention + ".v", inner, width_),
                           .out = take_plain(weights, attention + ".o", width_, inner),
                           .up = take_plain(weights, mlp + (gated_ ? ".wi_0" : ".wi"), hidden_, width_),
                           .gate = gated_ ? take_plain(weights, mlp + ".wi_1", hidden_, width_) : PackedLinear(),
                           .down = take_plain(weights, mlp + ".wo", width_, hidden_)});
    }
    final_norm_ = weights.take("encoder.final_layer_norm.weight", {width_});
}

TextEncoder::States TextEncoder::encode(std::string_view prompt, int threads) const {
    const std::vector<std::int64_t> tokens = byte_tokens(prompt, max_tokens_);
    const auto length = static_cast<std::int64_t>(tokens.size());
    Floats x, normed(size_of(length * width_)), branch(normed.size());
    for (const std::int64_t token : tokens) x.insert(x.end(), embedding_.begin() + token * width_, embedding_.begin() + (token + 1) * width_);
    const auto add_branch = [&] {
        for (std::size_t i = 0; i < x.size(); ++i) x[i] += branch[i];
    };
    for (const Layer& layer : layers_) {
        norm(layer.attention_norm, x, normed);
        attend(layer, normed, length, branch, threads);
        add_branch();
        norm(layer.mlp_norm, x, normed);
        feed_forward(layer, normed, length, branch, threads);
        add_branch();
    }
    norm(final_norm_, x, normed);
    normed.resize(size_of(max_tokens_ * width_));
    return {.values = std::move(normed), .length = length};
}

void TextEncoder::norm(const Floats& weight, const Floats& x, Floats& y) const {
    const std::size_t width = weight.size();
    for (std::size_t first = 0; first < x.size(); first += width) {
        float squares = 0;
        for (std::size_t c = 0; c < width; ++c) squares += x[first + c] * x[first + c];
        const float inverse = 1 / std::sqrt(squares / static_cast<float>(width) + static_cast<float>(eps_));
        for (std::size_t c = 0; c < width; ++c) y[first + c] = weight[c] * (x[first + c] * inverse);
    }
}

void TextEncoder::attend(const Layer& layer, const Floats& x, std::int64_t length, Floats& out, int threads) const {
    const std::int64_t inner = heads_ * head_width_;
    Floats q(size_of(length * inner)), k(q.size()), v(q.size()), mixed(q.size()), scores(size_of(length));
    apply(layer.query, x.data(), length, q.data(), threads);
    apply(layer.key, x.data(), length, k.data(), threads);
    apply(layer.value, x.data(), length, v.data(), threads);
    for (std::int64_t head = 0; head < heads_; ++head) {
        for (std::int64_t i = 0; i < length; ++i) {
            const float* const query = q.data() + i * inner + head * head_width_;
            float most = std::numeric_limits<float>::lowest(), total = 0;
            for (std::int64_t j = 0; j < length; ++j) {
                const float* const key = k.data() + j * inner + head * head_width_;
                float score = bias_[size_of(bucket(j - i) * heads_ + head)];
                for (std::int64_t c = 0; c < head_width_; ++c) score += query[c] * key[c];
                scores[size_of(j)] = score;
                most = std::max(most, score);
            }
            for (float& score : scores) total += score = std::exp(score - most);
            float* const to = mixed.data() + i * inner + head * head_width_;
            for (std::int64_t j = 0; j < length; ++j) {
                const float weight = scores[size_of(j)] / total;
                const float* const value = v.data() + j * inner + head * head_width_;
                for (std::int64_t c = 0; c < head_width_; ++c) to[c] += weight * value[c];
            }
        }
    }
    apply(layer.out, mixed.data(), length, out.data(), threads);
}

void TextEncoder::feed_forward(const Layer& layer, const Floats& x, std::int64_t length, Floats& out, int threads) const {
    Floats hidden(size_of(length * hidden_)), gate(gated_ ? hidden.size() : 0);
    apply(layer.up, x.data(), length, hidden.data(), threads, activation_ == Activation::gelu_tanh);
    for (float& value : hidden) {
        if (activation_ == Activation::relu) value = std::max(value, 0.0f);
        if (activation_ == Activation::gelu) value *= 0.5f * (1 + std::erf(value * 0.70710678f));
    }
    if (activation_ == Activation::silu) silu(hidden);
    if (gated_) {
        apply(layer.gate, x.data(), length, gate.data(), threads);
        for (std::size_t i = 0; i < hidden.size(); ++i) hidden[i] *= gate[i];
    }
    apply(layer.down, hidden.data(), length, out.data(), threads);
}

// One of the buckets for each distance: half of them for each sign, near ones exact, far ones logarithmic.
std::int64_t TextEncoder::bucket(std::int64_t distance) const {
    const std::int64_t half = buckets_ / 2, exact = half / 2, far = std::abs(distance), sign = distance > 0 ? half : 0;
    if (far < exact) return sign + far;
    const float range = static_cast<float>(std::log(static_cast<double>(farthest_) / static_cast<double>(exact)));
    const float grown = std::log(static_cast<float>(far) / static_cast<float>(exact)) / range * static_cast<float>(half - exact);
    return sign + std::min(exact + static_cast<std::int64_t>(grown), half - 1);
}

}  // namespace syncflow::engine
