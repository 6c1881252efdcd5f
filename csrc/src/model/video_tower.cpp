#include "model/video_tower.h"

#include <algorithm>

#include "syncflow/layers.h"

namespace syncflow::engine {
namespace {

Floats taken_rows(const Floats& from, std::span<const std::int64_t> index, std::int64_t size) {
    Floats to;
    to.reserve(index.size() * size_of(size));
    for (const std::int64_t r : index) to.insert(to.end(), from.begin() + r * size, from.begin() + (r + 1) * size);
    return to;
}

VideoBlock make_block(const DDiTConfig& config, Weights& weights, const char* kind, std::int64_t layer) {
    const std::string name = std::string("video.") + kind + "_blocks." + std::to_string(layer);
    const Floats table = weights.take(name + ".scale_shift_table", {6, config.width});
    return {BlockReader(weights, name, config.width, config.heads, config.hidden()).weights(), table.data()};
}

PackedLinear take_patch_embedding(const DDiTConfig& config, Weights& weights) {
    const std::int64_t width = config.width, patch = config.patch;
    const Floats weight = weights.take("video.x_embedder.proj.weight", {width, config.video_channels, 1, patch, patch});
    const Floats bias = weights.take("video.x_embedder.proj.bias", {width});
    return {weight.data(), bias.data(), width, config.video_channels * patch * patch};
}

}  // namespace

void VideoState::take(std::span<const std::int64_t> index) {
    const auto size = static_cast<std::int64_t>(x.size()) / rows, width = static_cast<std::int64_t>(modulation.embedding.size()) / rows;
    x = taken_rows(x, index, size);
    normed = has_norm ? taken_rows(normed, index, size) : Floats(x.size());
    modulation.blocks = taken_rows(modulation.blocks, index, 6 * width);
    modulation.embedding = taken_rows(modulation.embedding, index, width);
    std::vector<std::int64_t> texts_of;
    for (const std::int64_t r : index) texts_of.push_back(text_of_row[size_of(r)]);
    text_of_row = std::move(texts_of);
    rows = static_cast<std::int64_t>(index.size());
}

BlockReader::BlockReader(Weights& weights, const std::string& name, std::int64_t width, std::int64_t heads, std::int64_t hidden) {
    const auto norm = [&](const char* part) {
        kept_.push_back(weights.take(name + part, {width / heads}));
        return kept_.back().data();
    };
    view_ = {.width = width,
             .heads = heads,
             .hidden = hidden,
             .qkv = take(weights, name + ".attn.qkv", 3 * width, width),
             .proj = take(weights, name + ".attn.proj", width, width),
             .q_norm = norm(".attn.q_norm.weight"),
             .k_norm = norm(".attn.k_norm.weight"),
             .cross_query = take(weights, name + ".cross_attn.q_linear", width, width),
             .cross_key_value = take(weights, name + ".cross_attn.kv_linear", 2 * width, width),
             .cross_out = take(weights, name + ".cross_attn.proj", width, width),
             .up = take(weights, name + ".mlp.fc1", hidden, width),
             .down = take(weights, name + ".mlp.fc2", width, hidden)};
}

LinearWeights BlockReader::take(Weights& weights, const std::string& name, std::int64_t out, std::int64_t in) {
    kept_.push_back(weights.take(name + ".weight", {out, in}));
    const float* const weight = kept_.back().data();  // where it stays: a vector that grows moves its elements, not their memory
    kept_.push_back(weights.take(name + ".bias", {out}));
    return {.weight = weight, .bias = kept_.back().data()};
}

VideoTower::VideoTower(const DDiTConfig& config, Weights& weights)
    : config_(config),
      frequencies_(weights.has("video.rope.freqs") ? weights.take("video.rope.freqs", {config.head_width() / 2})
                                                   : rope_frequencies(config.head_width(), config.rope_theta)),
      null_text_(weights.take("video.y_embedder.y_embedding", {config.text_tokens, config.text_width})),
      final_table_(weights.take("video.final_layer.scale_shift_table", {2, config.width})),
      patch_embedding_(take_patch_embedding(config, weights)),
      time_block_(take_linear(weights, "video.t_block.1", 6 * config.width, config.width)),
      caption_first_(take_linear(weights, "video.y_embedder.y_proj.fc1", config.width, config.text_width)),
      caption_second_(take_linear(weights, "video.y_embedder.y_proj.fc2", config.width, config.width)),
      final_(take_linear(weights, "video.final_layer.linear", config.patch * config.patch * config.video_channels * (config.sigma_head ? 2 : 1),
                         config.width)),
      time_(weights, "video.t_embedder", config.width),
      fps_(weights, "video.fps_embedder", config.width) {
    for (std::int64_t i = 0; i < config.depth; ++i) {
        blocks_.push_back(make_block(config, weights, "spatial", i));
        blocks_.push_back(make_block(config, weights, "temporal", i));
    }
}

std::shared_ptr<const PromptText> VideoTower::condition(const float* states, std::int64_t length, int threads) const {
    const std::int64_t width = config_.width, count = config_.audio_text ? config_.text_tokens : length;
    Floats hidden(size_of(count * width)), tokens(hidden.size()), projected(size_of(length * 2 * width));
    apply(caption_first_, states, count, hidden.data(), threads, true);
    apply(caption_second_, hidden.data(), count, tokens.data(), threads);
    PromptText text;
    for (const VideoBlock& block : blocks_) {
        apply(block.cross_key_value, tokens.data(), length, projected.data(), threads);
        const Text prepared = block.prepare_text(projected.data(), projected.data() + width, 0, 2 * width, &length, 1);
        text.blocks.push_back(prepared.prompts[0]);
        const Text::Prompt& prompt = *text.blocks.back();
        for (const Floats* part : {&prompt.keys.weight, &prompt.keys.bias, &prompt.values.weight, &prompt.values.bias}) {
            text.bytes += static_cast<std::int64_t>(part->size() * sizeof(float));
        }
    }
    if (config_.audio_text) text.tokens = std::move(tokens);
    text.bytes += static_cast<std::int64_t>(text.tokens.size() * sizeof(float));
    return std::make_shared<const PromptText>(std::move(text));
}

Modulation VideoTower::modulation(std::span<const float> times, float fps, int threads) const {
    const std::int64_t width = config_.width, count = static_cast<std::int64_t>(times.size());
    Floats noise_levels;
    for (const float time : times) noise_levels.push_back(1000 * (1 - time));
    Modulation made = {.blocks = Floats(size_of(count * 6 * width)), .embedding = time_(noise_levels, threads)};
    const Floats rate = fps_(std::span(&fps, 1), threads);
    for (std::size_t i = 0; i < made.embedding.size(); ++i) made.embedding[i] += rate[i % rate.size()];
    Floats activated = made.embedding;
    silu(activated);
    apply(time_block_, activated.data(), count, made.blocks.data(), threads);
    return made;
}

VideoState VideoTower::embed(const float* latents, Modulation modulation, const TextRows& text, const ShapeTables& tables, int threads) const {
    const LatentShape& shape = tables.shape;
    const std::int64_t patch = config_.patch, channels = config_.video_channels, width = config_.width;
    const std::int64_t rows = static_cast<std::int64_t>(text.of_row.size()), depth = channels * patch * patch;
    const std::int64_t tokens = rows * shape.frames * tables.tokens, across = shape.width / patch;
    Floats patches(size_of(tokens * depth));
    float* to = patches.data();
    for (std::int64_t frame = 0; frame < rows * shape.frames; ++frame) {
        const float* const of_row = latents + frame / shape.frames * channels * shape.frames * shape.height * shape.width;
        for (std::int64_t s = 0; s < tables.tokens; ++s) {
            const std::int64_t top = s / across * patch, left = s % across * patch;
            for (std::int64_t c = 0; c < channels; ++c) {
                const float* const plane = of_row + (c * shape.frames + frame % shape.frames) * shape.height * shape.width;
                for (std::int64_t y = 0; y < patch; ++y) to = std::copy_n(plane + (top + y) * shape.width + left, patch, to);
            }
        }
    }
    VideoState state = {.tables = &tables,
                        .rows = rows,
                        .x = Floats(size_of(tokens * width)),
                        .normed = Floats(size_of(tokens * width)),
                        .has_norm = false,
                        .modulation = std::move(modulation),
                        .texts = std::vector<Text>(blocks_.size()),
                        .text_of_row = text.of_row};
    apply(patch_embedding_, patches.data(), tokens, state.x.data(), threads);
    const std::size_t period = tables.positions.size();
    for (std::size_t first = 0; first < state.x.size(); first += period) {
        for (std::size_t i = 0; i < period; ++i) state.x[first + i] += tables.positions[i];
    }
    for (const auto& prompt : text.prompts) {
        for (std::size_t i = 0; i < blocks_.size(); ++i) state.texts[i].prompts.push_back(prompt->blocks[i]);
    }
    return state;
}

void VideoTower::run_layers(VideoState& state, const Range& range, int threads) const {
    const ShapeTables& tables = *state.tables;
    const std::int64_t width = config_.width, frames = tables.shape.frames;
    const float* const table = blocks_[size_of(2 * range.first)].table.data();
    if (range.branch != nullptr || !state.has_norm) {
        residual_norm({.x = state.x.data(),
                       .branch = range.branch,
                       .gate_table = nullptr,
                       .gate_rows = nullptr,
                       .shift_table = table,
                       .shift_rows = state.modulation.blocks.data(),
                       .scale_table = table + width,
                       .scale_rows = state.modulation.blocks.data() + width,
                       .y = state.x.data(),
                       .normed = state.normed.data(),
                       .rows = state.rows,
                       .frames = frames,
                       .tokens = tables.tokens,
                       .width = width,
                       .row_stride = 6 * width,
                       .frame_stride = 0,
                       .eps = EPS},
                      threads);
    }
    const bool ahead = range.ahead && range.end < config_.depth;
    std::vector<VideoStep> steps;
    for (std::int64_t i = 2 * range.first; i < 2 * range.end; ++i) {
        const bool temporal = i % 2 == 1, last = i + 1 == 2 * range.end;
        const auto layer = size_of(i / 2 - range.first);
        steps.push_back({.block = &blocks_[size_of(i)],
                         .call = {.x = state.x.data(),
                                  .normed = state.normed.data(),
                                  .modulation = state.modulation.blocks.data(),
                                  .row_stride = 6 * width,
                                  .frame_stride = 0,
                                  .text = &state.texts[size_of(i)],
                                  .text_of_row = state.text_of_row.data(),
                                  .rope = temporal ? tables.video_rope.data() : nullptr,
                                  .following = last && !ahead ? nullptr : &blocks_[size_of(i + 1)],
                                  .attended = temporal && !range.attended.empty() ? range.attended[layer] : nullptr,
                                  .y = state.x.data(),
                                  .next = state.normed.data(),
                                  .R = state.rows,
                                  .T = frames,
                                  .S = tables.tokens,
                                  .num_outputs = last && range.num_outputs >= 0 ? range.num_outputs : state.rows,
                                  .eps = EPS}});
    }
    run(steps, threads);
    state.has_norm = ahead;
    if (range.num_outputs >= 0) state.rows = range.num_outputs;
}

Floats VideoTower::finish(const VideoState& state, int threads) const {
    const LatentShape& shape = state.tables->shape;
    const std::int64_t width = config_.width, patch = config_.patch, channels = config_.video_channels, out = final_.out / (patch * patch);
    const std::int64_t tokens = shape.frames * state.tables->tokens, across = shape.width / patch, plane = shape.height * shape.width;
    Floats normed(size_of(state.rows * tokens * width)), patches(size_of(state.rows * tokens * final_.out));
    Floats velocity(size_of(state.rows * channels * shape.frames * plane));
    if (state.rows == 0) return velocity;
    residual_norm({.x = state.x.data(),
                   .branch = nullptr,
                   .gate_table = nullptr,
                   .gate_rows = nullptr,
                   .shift_table = final_table_.data(),
                   .shift_rows = state.modulation.embedding.data(),
                   .scale_table = final_table_.data() + width,
                   .scale_rows = state.modulation.embedding.data(),
                   .y = nullptr,
                   .normed = normed.data(),
                   .rows = state.rows,
                   .frames = shape.frames,
                   .tokens = state.tables->tokens,
                   .width = width,
                   .row_stride = width,
                   .frame_stride = 0,
                   .eps = EPS},
                  threads);
    apply(final_, normed.data(), state.rows * tokens, patches.data(), threads);
    const float* from = patches.data();
    for (std::int64_t r = 0; r < state.rows; ++r) {
        float* const of_row = velocity.data() + r * channels * shape.frames * plane;
        for (std::int64_t token = 0; token < tokens; ++token) {
            const std::int64_t frame = token / state.tables->tokens, s = token % state.tables->tokens;
            for (std::int64_t i = 0; i < patch * patch; ++i, from += out) {
                const std::int64_t place = (s / across * patch + i / patch) * shape.width + s % across * patch + i % patch;
                for (std::int64_t c = 0; c < channels; ++c) of_row[(c * shape.frames + frame) * plane + place] = from[c];
            }
        }
    }
    return velocity;
}

}  // namespace syncflow::engine
