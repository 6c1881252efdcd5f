#include "model/audio_tower.h"

#include <algorithm>
#include <cmath>

#include "model/video_tower.h"
#include "syncflow/layers.h"

namespace syncflow::engine {
namespace {

AudioLayer make_layer(const DDiTConfig& config, Weights& weights, const std::string& name) {
    Floats norms;
    for (const char* const norm : {".norm1", ".norm2", ".norm3"}) {
        for (const char* const part : {".weight", ".bias"}) {
            const Floats values = weights.take(name + norm + part, {config.width});
            norms.insert(norms.end(), values.begin(), values.end());
        }
    }
    return {BlockReader(weights, name, config.width, config.audio_heads, config.hidden()).weights(), norms.data(), NORM_EPS};
}

// `key_value` are those of the audio layer that reads, whose weights are taken already.
Adaptor make_adaptor(const DDiTConfig& config, Weights& weights, const std::string& name, const PackedLinear& key_value) {
    const std::int64_t width = config.width;
    std::vector<Floats> kept;
    const auto take = [&](const char* part, const Shape& shape) {
        kept.push_back(weights.take(name + part, shape));
        return static_cast<const float*>(kept.back().data());
    };
    const auto linear = [&](const std::string& part, std::int64_t out) {
        const float* const weight = take((part + ".weight").c_str(), {out, width});
        return LinearWeights{.weight = weight, .bias = take((part + ".bias").c_str(), {out})};
    };
    const float *const q_norm = take(".attn.q_norm.weight", {width / config.audio_heads}), *const k_norm = take(".attn.k_norm.weight", {width / config.audio_heads});
    const float* const norm = take(".norm.weight", {width});
    const Adaptor::Parts parts = {.width = width,
                                  .heads = config.audio_heads,
                                  .qkv = linear(".attn.qkv", 3 * width),
                                  .proj = linear(".attn.proj", width),
                                  .q_norm = q_norm,
                                  .k_norm = k_norm,
                                  .norm = {.weight = norm, .bias = take(".norm.bias", {width})},
                                  .linear = linear(".linear", width),
                                  .key_value = {.weight = nullptr, .bias = nullptr},
                                  .norm_eps = NORM_EPS};
    return Adaptor(parts, key_value);
}

// x += norm(y), of rows of D.
void add_normed(const float* weight_and_bias, float eps, float* y, std::int64_t rows, std::int64_t width, float* x) {
    const float share = 1 / static_cast<float>(width);
    for (std::int64_t r = 0; r < rows; ++r, x += width, y += width) {
        float mean = 0, variance = 0;
        for (std::int64_t c = 0; c < width; ++c) mean += y[c];
        mean *= share;
        for (std::int64_t c = 0; c < width; ++c) variance += (y[c] - mean) * (y[c] - mean);
        const float inverse = 1 / std::sqrt(variance * share + eps);
        for (std::int64_t c = 0; c < width; ++c) x[c] += (y[c] - mean) * inverse * weight_and_bias[c] + weight_and_bias[width + c];
    }
}

}  // namespace

AudioTower::AudioTower(const DDiTConfig& config, Weights& weights)
    : config_(config),
      frequencies_(weights.has("audio.freqs") ? weights.take("audio.freqs", {config.audio_head_width() / 2})
                                              : rope_frequencies(config.audio_head_width(), config.rope_theta)),
      embedding_(take_linear(weights, "audio.x_embedder", config.width, config.audio_channels)),
      final_(take_linear(weights, "audio.final_linear", config.audio_channels, config.width)),
      time_(weights, "audio.t_embedder", config.width),
      final_norm_(weights, "audio.final_norm", config.width) {
    for (std::int64_t i = 0; i < config.depth; ++i) {
        layers_.push_back(make_layer(config, weights, "audio.layers." + std::to_string(i)));
        if (config.bridge == Bridge::adaptor && config.adaptor_tokens != AdaptorTokens::none) {
            adaptors_.push_back(make_adaptor(config, weights, "audio.adaptors." + std::to_string(i), layers_.back().cross_key_value));
        }
    }
}

Floats AudioTower::time(std::span<const float> times, int threads) const {
    Floats noise_levels;
    for (const float time : times) noise_levels.push_back(1000 * (1 - time));
    return time_(noise_levels, threads);
}

AudioState AudioTower::embed(const float* latents, std::span<const float> time_tokens, std::span<const float* const> text_tokens,
                             const ShapeTables& tables, int threads) const {
    const std::int64_t width = config_.width, tokens = tables.shape.audio_tokens;
    const std::int64_t rows = static_cast<std::int64_t>(time_tokens.size()) / width, text = text_tokens.empty() ? 0 : config_.text_tokens;
    AudioState state = {.tables = &tables, .rows = rows, .tail_tokens = 1 + text, .styled = 0, .x = Floats(size_of(rows * tokens * width)), .tail = {}, .style = {}};
    apply(embedding_, latents, rows * tokens, state.x.data(), threads);
    for (std::int64_t r = 0; r < rows; ++r) {
        state.tail.insert(state.tail.end(), time_tokens.begin() + r * width, time_tokens.begin() + (r + 1) * width);
        if (text > 0) state.tail.insert(state.tail.end(), text_tokens[size_of(r)], text_tokens[size_of(r)] + text * width);
    }
    return state;
}

Floats AudioTower::style(std::span<const float> reference, int threads) const {
    const std::int64_t tokens = static_cast<std::int64_t>(reference.size()) / config_.audio_channels;
    Floats embedded(size_of(tokens * config_.width));
    apply(embedding_, reference.data(), tokens, embedded.data(), threads);
    return embedded;
}

void AudioTower::adapt(std::int64_t layer, const float* features, std::span<const std::int64_t> rows, const ShapeTables& tables, std::int64_t kept,
                       Floats& context, int threads) const {
    const std::int64_t width = config_.width, size = tables.context_tokens * 2 * width, count = static_cast<std::int64_t>(rows.size());
    float* const to = context.data() + kept * size;
    if (!adaptors_.empty()) {
        adaptors_[size_of(layer)]({.features = features,
                                   .rows = rows.data(),
                                   .pooled = config_.adaptor_tokens == AdaptorTokens::frame,
                                   .rope = tables.context_rope.data(),
                                   .context = to,
                                   .C = count,
                                   .T = tables.shape.frames,
                                   .S = tables.tokens,
                                   .eps = EPS},
                                  threads);
        return;
    }
    const std::int64_t tokens = tables.shape.frames * tables.tokens;
    for (std::int64_t i = 0; i < count; ++i) {
        apply(layers_[size_of(layer)].cross_key_value, features + rows[size_of(i)] * tokens * width, tokens, to + i * size, threads);
    }
}

void AudioTower::run_layers(AudioState& state, const Context* context, std::span<const std::int64_t> context_of_row,
                            std::span<float* const> attended, std::int64_t num_outputs, int threads) const {
    std::vector<AudioStep> steps;
    for (std::size_t i = 0; i < layers_.size(); ++i) {
        const bool last = i + 1 == layers_.size();
        steps.push_back({.block = &layers_[i],
                         .call = {.x = state.x.data(),
                                  .rope = state.tables->audio_token_rope(),
                                  .context = context == nullptr ? nullptr : context->layers[i].data(),
                                  .context_rope = state.tables->context_rope.data(),
                                  .context_of_row = context == nullptr ? nullptr : context_of_row.data(),
                                  .tail = state.tail.data(),
                                  .attended = attended.empty() ? nullptr : attended[i],
                                  .y = state.x.data(),
                                  .R = state.rows,
                                  .A = state.tables->shape.audio_tokens,
                                  .M = context == nullptr ? 0 : state.tables->context_tokens,
                                  .E = state.tail_tokens,
                                  .num_outputs = last ? num_outputs : state.rows,
                                  .eps = EPS}});
    }
    run(steps, threads);
    state.rows = num_outputs;
}

void AudioTower::run_styled_layer(AudioState& state, std::int64_t index, int threads) const {
    const AudioLayer& layer = layers_[size_of(index)];
    const std::int64_t width = config_.width, head_width = config_.audio_head_width(), packed = 3 * width;
    const std::int64_t A = state.tables->shape.audio_tokens, style = state.tables->shape.style_tokens, both = style + A;
    const std::int64_t styled = state.styled, plain = state.rows - styled;
    // Self-attention: of the style and the tokens behind it, and of the tokens of the other rows alone.
    Floats qkv(size_of((styled * both + plain * A) * packed)), mixed(qkv.size() / 3), projected(mixed.size());
    float* const plain_qkv = qkv.data() + styled * both * packed;
    for (std::int64_t r = 0; r < styled; ++r) {
        float* const of_row = qkv.data() + r * both * packed;
        apply(layer.qkv, state.style.data() + r * style * width, style, of_row, threads);
        apply(layer.qkv, state.x.data() + r * A * width, A, of_row + style * packed, threads);
    }
    apply(layer.qkv, state.x.data() + styled * A * width, plain * A, plain_qkv, threads);
    const auto attend = [&](const float* from, std::int64_t rows, std::int64_t length, const float* rope, float* out) {
        if (rows == 0) return;
        self_attention({.qkv = from,
                        .q_weight = layer.q_norm.data(),
                        .k_weight = layer.k_norm.data(),
                        .rope = rope,
                        .out = out,
                        .outer = rows,
                        .inner = 1,
                        .length = length,
                        .heads = config_.audio_heads,
                        .width = head_width,
                        .outer_stride = length * packed,
                        .inner_stride = 0,
                        .token_stride = packed,
                        .eps = EPS},
                       threads);
    };
    attend(qkv.data(), styled, both, state.tables->audio_rope.data(), mixed.data());
    attend(plain_qkv, plain, A, state.tables->audio_token_rope(), mixed.data() + styled * both * width);
    apply(layer.proj, mixed.data(), styled * both + plain * A, projected.data(), threads);
    float* from = projected.data();
    for (std::int64_t r = 0; r < styled; ++r) {
        add_normed(layer.norms.data(), layer.norm_eps, from, style, width, state.style.data() + r * style * width);
        add_normed(layer.norms.data(), layer.norm_eps, from + style * width, A, width, state.x.data() + r * A * width);
        from += both * width;
    }
    add_normed(layer.norms.data(), layer.norm_eps, from, plain * A, width, state.x.data() + styled * A * width);
    read_tail_and_feed_forward(layer, state.tail.data(), state.tail_tokens, state.tables->audio_rope.data(), state.style.data(), styled, style, threads);
    read_tail_and_feed_forward(layer, state.tail.data(), state.tail_tokens, state.tables->audio_token_rope(), state.x.data(), state.rows, A, threads);
}

void AudioTower::read_tail_and_feed_forward(const AudioLayer& layer, const float* tail, std::int64_t tail_tokens, const float* rope, float* x,
                                            std::int64_t rows, std::int64_t tokens, int threads) const {
    if (rows == 0) return;
    const std::int64_t width = config_.width, head_width = config_.audio_head_width(), count = rows * tokens;
    Floats queries(size_of(count * width)), mixed(queries.size()), keys(size_of(rows * tail_tokens * 2 * width)), hidden(size_of(count * layer.hidden));
    apply(layer.cross_query, x, count, queries.data(), threads);
    apply(layer.cross_key_value, tail, rows * tail_tokens, keys.data(), threads);
    const std::vector<std::int64_t> none(size_of(rows), -1);
    const CrossAttention::Tokens tail_keys = {.data = keys.data(), .row = tail_tokens * 2 * width, .token = 2 * width, .head = head_width};
    CrossAttention::Tokens tail_values = tail_keys;
    tail_values.data += width;
    cross_attention({.q = {.data = queries.data(), .row = tokens * width, .token = width, .head = head_width},
                     .k = tail_keys,
                     .v = tail_values,
                     .tail_k = tail_keys,
                     .tail_v = tail_values,
                     .out = mixed.data(),
                     .rows = rows,
                     .queries = tokens,
                     .heads = config_.audio_heads,
                     .width = head_width,
                     .keys = 0,
                     .tail = tail_tokens,
                     .context_of_row = none.data(),
                     .lengths = nullptr,
                     .q_rope = rope,
                     .k_rope = rope,
                     .q_positions = nullptr,
                     .k_positions = nullptr,
                     .window = -1},
                    threads);
    apply(layer.cross_out, mixed.data(), count, queries.data(), threads);
    add_normed(layer.norms.data() + 2 * width, layer.norm_eps, queries.data(), count, width, x);
    apply(layer.up, x, count, hidden.data(), threads, true);
    apply(layer.down, hidden.data(), count, queries.data(), threads);
    add_normed(layer.norms.data() + 4 * width, layer.norm_eps, queries.data(), count, width, x);
}

Floats AudioTower::finish(const AudioState& state, int threads) const {
    const std::int64_t count = state.rows * state.tables->shape.audio_tokens;
    Floats normed(size_of(count * config_.width)), velocity(size_of(count * config_.audio_channels));
    final_norm_(state.x.data(), count, normed.data());
    apply(final_, normed.data(), count, velocity.data(), threads);
    return velocity;
}

}  // namespace syncflow::engine
