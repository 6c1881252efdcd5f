#include "model/ddit.h"

#include <algorithm>

#include "syncflow/layers.h"

namespace syncflow::engine {
namespace {

const DDiTConfig& require_supported(const DDiTConfig& config) {
    if (Block::supports(config.width, config.heads, config.hidden()) && Block::supports(config.width, config.audio_heads, config.hidden())) return config;
    throw Error(Status::unsupported,
                "the back end native takes widths and MLPs that are multiples of 32 and heads whose width is one of 16; this model has a width of " +
                    std::to_string(config.width) + ", an MLP of " + std::to_string(config.hidden()) + ", " + std::to_string(config.heads) +
                    " heads and " + std::to_string(config.audio_heads) + " of the audio");
}

// x (rows, N, D) reads tokens whose keys and values are (C, M, 2, n, d): the branch that is added to x, (rows, N, D). Row r
// reads context of_row[r], or nothing where that is -1; without of_row its own. Without positions nothing is rotated.
Floats rope_cross_attention(const CrossAttentionLayers& layers, std::int64_t heads, const float* x, std::int64_t rows, std::int64_t queries,
                            const float* context, std::int64_t keys, const RopePositions* positions, double window,
                            std::span<const std::int64_t> of_row, int threads) {
    const std::int64_t width = layers.query.out, head_width = width / heads;
    Floats projected(size_of(rows * queries * width)), mixed(projected.size());
    apply(layers.query, x, rows * queries, projected.data(), threads);
    const CrossAttention::Tokens tokens = {.data = context, .row = keys * 2 * width, .token = 2 * width, .head = head_width};
    CrossAttention::Tokens values = tokens;
    values.data += width;
    const CrossAttention::Tokens none = {.data = nullptr, .row = 0, .token = 0, .head = 0};
    cross_attention({.q = {.data = projected.data(), .row = queries * width, .token = width, .head = head_width},
                     .k = tokens,
                     .v = values,
                     .tail_k = none,
                     .tail_v = none,
                     .out = mixed.data(),
                     .rows = rows,
                     .queries = queries,
                     .heads = heads,
                     .width = head_width,
                     .keys = keys,
                     .tail = 0,
                     .context_of_row = of_row.empty() ? nullptr : of_row.data(),
                     .lengths = nullptr,
                     .q_rope = positions == nullptr ? nullptr : positions->query_rope.data(),
                     .k_rope = positions == nullptr ? nullptr : positions->context_rope.data(),
                     .q_positions = positions == nullptr ? nullptr : positions->queries.data(),
                     .k_positions = positions == nullptr ? nullptr : positions->context.data(),
                     .window = positions == nullptr ? -1 : static_cast<float>(window)},
                    threads);
    apply(layers.out, mixed.data(), rows * queries, projected.data(), threads);
    for (std::size_t r = 0; r < of_row.size(); ++r) {  // the projection has a bias
        if (of_row[r] < 0) std::fill_n(projected.begin() + static_cast<std::ptrdiff_t>(r) * queries * width, queries * width, 0.0f);
    }
    return projected;
}

// Keys and values (rows, N, 2, n, d) of x.
Floats key_values(const CrossAttentionLayers& layers, const float* x, std::int64_t tokens, int threads) {
    Floats projected(size_of(tokens * layers.key_value.out));
    apply(layers.key_value, x, tokens, projected.data(), threads);
    return projected;
}

void add(Floats& x, const Floats& branch) {
    for (std::size_t i = 0; i < branch.size(); ++i) x[i] += branch[i];
}

}  // namespace

DDiT::GlobalLocalLayer::GlobalLocalLayer(Weights& weights, const std::string& name, std::int64_t width)
    : to_video(weights, name + ".to_video", width), to_audio(weights, name + ".to_audio", width), style(weights, name + ".style", width) {}

DDiT::DDiT(const DDiTConfig& config, Weights& weights) : config_(require_supported(config)), video_(config, weights), audio_(config, weights) {
    for (std::int64_t i = config.first_block; config.bridge == Bridge::audio_rope && i < config.depth; ++i) {
        audio_rope_.emplace_back(weights, "bridge.layers." + std::to_string(i - config.first_block), config.width);
    }
    if (config.bridge == Bridge::global_local) {
        silence_ = weights.take("bridge.silence", {1, config.width});
        for (std::int64_t i = 0; i < config.depth; ++i) global_local_.emplace_back(weights, "bridge.layers." + std::to_string(i), config.width);
    }
    weights.finish();
}

ShapeTables DDiT::tables(const LatentShape& shape, std::span<const double> frame_times) const {
    return {config_, shape, frame_times, video_.frequencies(), audio_.frequencies()};
}

std::shared_ptr<const PromptText> DDiT::condition(const float* states, std::int64_t length, int threads) const {
    return video_.condition(states, length, threads);
}

Modulation DDiT::modulation(std::span<const float> times, float fps, int threads) const { return video_.modulation(times, fps, threads); }

Floats DDiT::audio_time(std::span<const float> times, int threads) const { return audio_.time(times, threads); }

Floats DDiT::style(std::span<const float> reference, int threads) const { return reference.empty() ? silence_ : audio_.style(reference, threads); }

std::vector<const float*> DDiT::text_tokens(const TextRows& text) const {
    std::vector<const float*> tokens;
    if (!config_.audio_text) return tokens;
    for (const std::int64_t prompt : text.of_row) tokens.push_back(text.prompts[size_of(prompt)]->tokens.data());
    return tokens;
}

Floats DDiT::video_pass(const VideoInputs& inputs, int threads) const {
    VideoState state = video_.embed(inputs.latents, inputs.modulation, *inputs.text, *inputs.tables, threads);
    if (inputs.audio_context == nullptr) {
        std::vector<Floats> features(inputs.context_rows.empty() ? 0 : size_of(config_.depth));
        std::vector<float*> attended;
        for (Floats& feature : features) {
            feature.resize(state.x.size());
            attended.push_back(feature.data());
        }
        video_.run_layers(state, {.first = 0, .end = config_.depth, .num_outputs = inputs.num_outputs, .attended = attended}, threads);
        keep_contexts(inputs, features, threads);
        return video_.finish(state, threads);
    }
    const ShapeTables& tables = *inputs.tables;
    if (config_.first_block > 0) video_.run_layers(state, {.first = 0, .end = config_.first_block, .ahead = false}, threads);
    if (!inputs.prefix_of_row.empty()) state.take(inputs.prefix_of_row);
    for (std::int64_t i = config_.first_block; i < config_.depth; ++i) {
        const auto bridge = size_of(i - config_.first_block);
        const Floats branch = rope_cross_attention(audio_rope_[bridge], config_.heads, state.x.data(), state.rows,
                                                   tables.shape.frames * tables.tokens, inputs.audio_context->layers[bridge].data(),
                                                   tables.shape.audio_tokens, &tables.video_reads_audio, config_.window,
                                                   inputs.audio_context_of_row, threads);
        video_.run_layers(state, {.first = i, .end = i + 1, .branch = branch.data(), .ahead = false}, threads);
    }
    return video_.finish(state, threads);
}

void DDiT::keep_contexts(const VideoInputs& inputs, const std::vector<Floats>& features, int threads) const {
    for (std::size_t i = 0; i < features.size(); ++i) {
        audio_.adapt(static_cast<std::int64_t>(i), features[i].data(), inputs.context_rows, *inputs.tables, inputs.kept, inputs.context->layers[i], threads);
    }
}

Floats DDiT::audio_pass(const AudioInputs& inputs, int threads) const {
    AudioState state = audio_.embed(inputs.latents, inputs.time_tokens, text_tokens(*inputs.text), *inputs.tables, threads);
    std::vector<Floats> kept(inputs.context_rows.empty() ? 0 : size_of(config_.depth));
    std::vector<float*> attended;
    for (Floats& tokens : kept) {
        tokens.resize(state.x.size());
        attended.push_back(tokens.data());
    }
    audio_.run_layers(state, inputs.video_context, inputs.context_of_row, attended, inputs.num_outputs, threads);
    const std::int64_t tokens = inputs.tables->shape.audio_tokens, size = context_size(*inputs.tables);
    for (std::size_t i = 0; i < audio_rope_.size() && !kept.empty(); ++i) {
        const Floats& of_layer = kept[size_of(config_.first_block) + i];
        for (std::size_t c = 0; c < inputs.context_rows.size(); ++c) {
            float* const to = inputs.context->layers[i].data() + (inputs.kept + static_cast<std::int64_t>(c)) * size;
            apply(audio_rope_[i].key_value, of_layer.data() + inputs.context_rows[c] * tokens * config_.width, tokens, to, threads);
        }
    }
    return audio_.finish(state, threads);
}

Velocities DDiT::joint_pass(const JointInputs& inputs, int threads) const {
    const ShapeTables& tables = *inputs.tables;
    const std::int64_t bridged = inputs.bridged, video_tokens = tables.shape.frames * tables.tokens, audio_tokens = tables.shape.audio_tokens;
    const std::int64_t style_tokens = tables.shape.style_tokens;
    VideoState video = video_.embed(inputs.video_latents, inputs.modulation, *inputs.text, tables, threads);
    AudioState audio = audio_.embed(inputs.audio_latents, inputs.time_tokens, text_tokens(*inputs.text), tables, threads);
    audio.styled = bridged;
    for (const Floats* style : inputs.styles) audio.style.insert(audio.style.end(), style->begin(), style->end());
    for (std::int64_t i = 0; i < config_.depth; ++i) {
        const GlobalLocalLayer& bridge = global_local_[size_of(i)];
        Floats to_video(video.x.size());
        if (bridged > 0) {
            const auto read = [&](const CrossAttentionLayers& layers, std::int64_t heads, const Floats& x, std::int64_t queries, const Floats& of,
                                   std::int64_t keys, const RopePositions* positions) {
                const Floats context = key_values(layers, of.data(), bridged * keys, threads);
                return rope_cross_attention(layers, heads, x.data(), bridged, queries, context.data(), keys, positions, config_.window, {}, threads);
            };
            const Floats branch = read(bridge.to_video, config_.heads, video.x, video_tokens, audio.x, audio_tokens, &tables.video_reads_audio);
            const Floats to_audio = read(bridge.to_audio, config_.audio_heads, audio.x, audio_tokens, video.x, video_tokens, &tables.audio_reads_video);
            const Floats to_style = read(bridge.style, config_.audio_heads, audio.style, style_tokens, video.x, video_tokens, nullptr);
            std::copy(branch.begin(), branch.end(), to_video.begin());
            add(audio.x, to_audio);
            add(audio.style, to_style);
        }
        if (i + 1 == config_.depth) {
            const std::int64_t size = video_tokens * config_.width;
            Floats wanted;
            for (const std::int64_t r : inputs.video_output_rows) wanted.insert(wanted.end(), to_video.begin() + r * size, to_video.begin() + (r + 1) * size);
            video.take(inputs.video_output_rows);
            to_video = std::move(wanted);
        }
        if (video.rows > 0) video_.run_layers(video, {.first = i, .end = i + 1, .branch = to_video.data(), .ahead = false}, threads);
        audio_.run_styled_layer(audio, i, threads);
    }
    const std::int64_t size = audio_tokens * config_.width;
    Floats outputs;
    for (const std::int64_t r : inputs.audio_output_rows) outputs.insert(outputs.end(), audio.x.begin() + r * size, audio.x.begin() + (r + 1) * size);
    audio.x = std::move(outputs);
    audio.rows = static_cast<std::int64_t>(inputs.audio_output_rows.size());
    return {.video = video_.finish(video, threads), .audio = audio_.finish(audio, threads)};
}

}  // namespace syncflow::engine
