#include "syncflow/blocks.h"

#include <algorithm>

#include "blocks_loops.h"
#include "layers_loops.h"
#include "levels.h"
#include "parallel.h"
#include "syncflow/layers.h"

namespace syncflow {
namespace {

Floats copied(const float* from, std::int64_t count) { return {from, from + count}; }

Floats transposed(const float* from, std::int64_t size) {
    Floats to(static_cast<std::size_t>(size * size));
    for (std::int64_t i = 0; i < size; ++i) {
        for (std::int64_t j = 0; j < size; ++j) to[static_cast<std::size_t>(j * size + i)] = from[i * size + j];
    }
    return to;
}

std::int64_t whole_panels(std::int64_t count) { return (count + PANEL - 1) / PANEL * PANEL; }

Panels blank(std::int64_t out, std::int64_t in) {
    Panels made;
    made.out = out;
    made.in = in;
    made.weight.resize(static_cast<std::size_t>(packed_size(out, in)));
    made.bias.resize(static_cast<std::size_t>(whole_panels(out)));
    return made;
}

Matrix view(const Panels& panels) { return {panels.weight.data(), panels.bias.data(), panels.out, panels.in, panels.in}; }

// Memory of the calling thread that its threads fill for each other.
float* workspace(std::int64_t floats) {
    thread_local Floats kept;
    if (kept.size() < static_cast<std::size_t>(floats)) kept.resize(static_cast<std::size_t>(floats));
    return kept.data();
}

std::int64_t shares(std::int64_t count, std::int64_t share) { return (count + share - 1) / share; }

// As few tiles as keep all threads busy to the end.
Tiles tiles_of(std::int64_t sections, std::int64_t tokens, int threads) {
    const std::int64_t groups = shares(tokens, GROUP), most = shares(groups, 2);
    std::int64_t count = shares(groups, TILE / GROUP);
    while (count < most && sections * count < 4 * threads && sections * count % threads != 0) ++count;
    return {tokens, groups, count};
}

// Whether every thread gets as many of so many rows, or nearly: then each takes whole rows, which wait for nothing and
// stay in its own cache. Otherwise they share the tokens of all rows.
bool apart(std::int64_t rows, int threads) { return threads > 1 && (rows % threads == 0 || rows >= 4 * threads); }

// The self-attention of a block: its projection, a tile at a time, and a share of the queries of a head at a time.
class SelfAttending {
   public:
    SelfAttending(const Block& block, const float* x, const Mixing& mixing, float* packed, const float* turns, float eps, int threads)
        : head_{x, view(block.qkv), block.q_norm.data(), block.k_norm.data(), turns, packed, block.width, block.heads,
                mixing.token_stride / (3 * block.width), mixing.length,
                tiles_of(1, mixing.outer * mixing.inner * mixing.length, threads), eps},
          mixing_(mixing),
          block_(attention_block(mixing.length, mixing.outer * mixing.inner * mixing.heads, threads)) {}

    std::int64_t tiles() const { return head_.tiles.count; }
    std::int64_t units() const { return mixing_.outer * mixing_.inner * mixing_.heads * shares(mixing_.length, block_); }

    void project(std::int64_t tile) const { head_loop_(head_, tile, thread_memory(GROUP * head_.width)); }
    void mix(std::int64_t unit) const {
        const std::int64_t padded = shares(mixing_.length, 16) * 16, width = mixing_.width;
        mix_loop_(mixing_, unit, block_, thread_memory((GROUP + width) * padded + 2 * GROUP * width));
    }

   private:
    Head head_;
    Mixing mixing_;
    std::int64_t block_;
    decltype(&baseline::head) head_loop_ = SYNCFLOW_BEST(head);
    decltype(&baseline::mix) mix_loop_ = SYNCFLOW_BEST(mix);
};

}  // namespace

Panels::Panels(const float* weight_rows, const float* bias_row, std::int64_t out, std::int64_t in) {
    *this = blank(out, in);
    pack(weight_rows, out, in, weight.data());
    std::copy(bias_row, bias_row + out, bias.begin());
}

bool Block::suits(std::int64_t width, std::int64_t heads, std::int64_t hidden) {
    return width % PANEL == 0 && hidden % PANEL == 0 && heads > 0 && width % (16 * heads) == 0;
}

Block::Block(const BlockWeights& w)
    : width(w.width),
      heads(w.heads),
      hidden(w.hidden),
      qkv(w.qkv.weight, w.qkv.bias, 3 * w.width, w.width),
      proj(w.proj.weight, w.proj.bias, w.width, w.width),
      query(w.query.weight, w.query.bias, w.width, w.width),
      key_value(w.key_value.weight, w.key_value.bias, 2 * w.width, w.width),
      read(w.read.weight, w.read.bias, w.width, w.width),
      up(w.up.weight, w.up.bias, w.hidden, w.width),
      down(w.down.weight, w.down.bias, w.width, w.hidden),
      q_norm(copied(w.q_norm, w.width / w.heads)),
      k_norm(copied(w.k_norm, w.width / w.heads)),
      query_rows(copied(w.query.weight, w.width * w.width)),
      query_bias(copied(w.query.bias, w.width)),
      read_columns(transposed(w.read.weight, w.width)) {}

Adaptor::Adaptor(const Parts& p)
    : width(p.width),
      heads(p.heads),
      qkv(p.qkv.weight, p.qkv.bias, 3 * p.width, p.width),
      proj(p.proj.weight, p.proj.bias, p.width, p.width),
      linear(p.linear.weight, p.linear.bias, p.width, p.width),
      key_value(p.key_value.weight, p.key_value.bias, 2 * p.width, p.width),
      q_norm(copied(p.q_norm, p.width / p.heads)),
      k_norm(copied(p.k_norm, p.width / p.heads)),
      norm_weight(copied(p.norm.weight, p.width)),
      norm_bias(copied(p.norm.bias, p.width)),
      norm_eps(p.norm_eps) {}

void Adaptor::operator()(const Call& call, int threads) const {
    const std::int64_t count = call.pooled ? call.T : call.T * call.S, padded = shares(count, 16) * 16;
    const std::int64_t floats = 6 * count * width + (GROUP + width / heads) * padded + 2 * GROUP * width;
    const Adapting adapting = {call.features, call.rows, call.turns, q_norm.data(), k_norm.data(), norm_weight.data(), norm_bias.data(),
                               view(qkv), view(proj), view(linear), view(key_value), call.context, call.T, call.S, width, heads,
                               call.pooled, call.eps, norm_eps};
    const auto unit = SYNCFLOW_BEST(adapt);
    parallel_for(call.C, threads, [&](std::int64_t i) { unit(adapting, i, thread_memory(floats)); });
}

VideoBlock::VideoBlock(const BlockWeights& weights, const float* given) : Block(weights), table(copied(given, 6 * weights.width)) {}

Text VideoBlock::fold(const float* keys, const float* values, std::int64_t prompt_stride, std::int64_t token_stride,
                      const std::int64_t* lengths, std::int64_t prompts) const {
    Text text;
    for (std::int64_t p = 0; p < prompts; ++p) {
        const float *const k = keys + p * prompt_stride, *const v = values + p * prompt_stride;
        const std::int64_t count = lengths[p];
        Text::Prompt prompt = {count, folds(count), {}, {}};
        if (prompt.folded) {
            prompt.keys = blank(heads * count, width);
            prompt.values = blank(width, heads * count);
            SYNCFLOW_BEST(fold_keys)(k, token_stride, count, heads, width, query_rows.data(), query_bias.data(),
                                     prompt.keys.weight.data(), prompt.keys.bias.data());
            SYNCFLOW_BEST(fold_values)(v, token_stride, count, heads, width, read_columns.data(), prompt.values.weight.data());
            prompt.values.bias = read.bias;
        } else {
            prompt.keys.weight.resize(static_cast<std::size_t>(width * shares(count, 16) * 16));
            SYNCFLOW_BEST(lay_keys)(k, token_stride, count, heads, width, prompt.keys.weight.data());
            for (std::int64_t j = 0; j < count; ++j) {
                prompt.values.weight.insert(prompt.values.weight.end(), v + j * token_stride, v + j * token_stride + width);
            }
        }
        text.prompts.push_back(std::move(prompt));
    }
    return text;
}

void VideoBlock::operator()(const Call& call, int threads) const {
    const std::int64_t frame = call.S * width, tokens = call.R * call.T * call.S;
    if (apart(call.R, threads)) {
        parallel_for(call.R, threads, [&](std::int64_t r) {
            const std::int64_t place = r * call.T * frame;
            Call one = call;
            one.x += place;
            one.normed += place;
            one.rows += r * call.row_stride;
            one.text_of_row += r;
            one.attended = call.attended == nullptr ? nullptr : call.attended + place;
            one.y += place;
            one.next = call.next == nullptr ? nullptr : call.next + place;
            one.R = 1;
            one.drawn = r < call.drawn ? 1 : 0;
            (*this)(one, 1);
        });
        return;
    }
    float* const packed = workspace(tokens * 4 * width);
    float* const mixed = packed + tokens * 3 * width;
    const bool temporal = call.turns != nullptr;
    const std::int64_t outer = temporal ? call.R : call.R * call.T, length = temporal ? call.T : call.S;
    const Mixing mixing = {packed, mixed, outer, temporal ? call.S : 1, length, heads, width / heads,
                           3 * frame * (temporal ? call.T : 1), temporal ? 3 * width : 0, 3 * (temporal ? frame : width)};
    std::vector<Reading> texts;
    std::int64_t most = 0;
    for (const Text::Prompt& prompt : call.text->prompts) {
        texts.push_back({prompt.count, prompt.folded, view(prompt.keys), view(prompt.values)});
        most = std::max(most, prompt.count);
    }
    const std::int64_t sections = call.frame_stride == 0 ? 1 : call.T;
    const VideoTail tail = {call.x, mixed, call.rows, call.row_stride, call.frame_stride, table.data(),
                            call.following == nullptr ? nullptr : call.following->table.data(),
                            texts.data(), call.text_of_row, view(proj), view(query), view(read), view(up), view(down),
                            call.attended, call.y, call.next, sections, call.drawn, width, heads,
                            tiles_of(call.R * sections, call.T * call.S / sections, threads), call.eps};
    const std::int64_t floats = SYNCFLOW_BEST(tail_scratch)(width, most, heads);
    const auto unit = SYNCFLOW_BEST(video_tail);
    const SelfAttending attention(*this, call.normed, mixing, packed, call.turns, call.eps, threads);
    auto begin = [&](std::int64_t i) { attention.project(i); };
    auto mix = [&](std::int64_t i) { attention.mix(i); };
    auto end = [&](std::int64_t i) { unit(tail, i, thread_memory(floats)); };
    const std::int64_t rows = call.attended == nullptr ? call.drawn : call.R;
    const Loop loops[] = {loop_of(attention.tiles(), begin), loop_of(attention.units(), mix),
                          loop_of(rows * sections * tail.tiles.count, end)};
    parallel(loops, 3, threads);
}

AudioLayer::AudioLayer(const BlockWeights& weights, const float* given, float given_eps)
    : Block(weights), norms(copied(given, 6 * weights.width)), norm_eps(given_eps) {}

void AudioLayer::operator()(const Call& call, int threads) const {
    const std::int64_t tokens = call.R * call.A;
    if (apart(call.R, threads)) {
        parallel_for(call.R, threads, [&](std::int64_t r) {
            const std::int64_t place = r * call.A * width;
            Call one = call;
            one.x += place;
            one.context = call.context == nullptr || call.context_of_row != nullptr ? call.context : call.context + r * call.M * 2 * width;
            one.context_of_row = call.context_of_row == nullptr ? nullptr : call.context_of_row + r;
            one.tail += r * call.E * width;
            one.attended = call.attended == nullptr ? nullptr : call.attended + place;
            one.y += place;
            one.R = 1;
            one.drawn = r < call.drawn ? 1 : 0;
            (*this)(one, 1);
        });
        return;
    }
    const std::int64_t keys = call.E + (call.context == nullptr ? 0 : call.M);
    const bool folded = folds(keys);
    const std::int64_t key_stride = width * shares(keys, 16) * 16, value_stride = width * keys * (folded ? heads : 1);
    float* const packed = workspace(tokens * 4 * width + call.R * (key_stride + value_stride));
    float* const mixed = packed + tokens * 3 * width;
    float* const laid_keys = mixed + tokens * width;
    std::vector<Reading> readings(static_cast<std::size_t>(call.R));
    const Mixing mixing = {packed, mixed, call.R, 1, call.A, heads, width / heads, 3 * call.A * width, 0, 3 * width};
    const AudioKeys laid = {call.context, call.context_turns, call.context_of_row, call.tail, view(key_value), read_columns.data(),
                            read.bias.data(), call.M, call.E, width, heads, laid_keys, laid_keys + call.R * key_stride,
                            readings.data(), key_stride, value_stride, folded};
    const AudioTail tail = {call.x, mixed, call.turns, norms.data(), readings.data(), view(proj), view(query), view(read), view(up),
                            view(down), call.attended, call.y, call.drawn, width, heads, tiles_of(call.R, call.A, threads), norm_eps};
    const std::int64_t floats = SYNCFLOW_BEST(tail_scratch)(width, keys, heads);
    const auto lay_out = SYNCFLOW_BEST(audio_keys);
    const auto unit = SYNCFLOW_BEST(audio_tail);
    const SelfAttending attention(*this, call.x, mixing, packed, call.turns, call.eps, threads);
    auto begin = [&](std::int64_t i) {
        if (i < call.drawn) {
            lay_out(laid, i, thread_memory(2 * call.E * width + GROUP * width + width));
        } else {
            attention.project(i - call.drawn);
        }
    };
    auto mix = [&](std::int64_t i) { attention.mix(i); };
    auto end = [&](std::int64_t i) { unit(tail, i, thread_memory(floats)); };
    const std::int64_t rows = call.attended == nullptr ? call.drawn : call.R;
    const Loop loops[] = {loop_of(call.drawn + attention.tiles(), begin), loop_of(attention.units(), mix),
                          loop_of(rows * tail.tiles.count, end)};
    parallel(loops, 3, threads);
}

}  // namespace syncflow
