#include "syncflow/blocks.h"

#include <algorithm>
#include <utility>

#include "cpu/instruction_level.h"
#include "cpu/thread_pool.h"
#include "cpu/work_units.h"
#include "kernels/block_kernels.h"
#include "kernels/layer_kernels.h"
#include "syncflow/layers.h"

namespace syncflow {
namespace {

const BlockKernels& kernels() { return SYNCFLOW_KERNELS(block_kernels); }

Floats copied(const float* from, std::int64_t count) { return {from, from + count}; }

Floats transposed(const float* from, std::int64_t size) {
    Floats to(static_cast<std::size_t>(size * size));
    for (std::int64_t i = 0; i < size; ++i) {
        for (std::int64_t j = 0; j < size; ++j) to[static_cast<std::size_t>(j * size + i)] = from[i * size + j];
    }
    return to;
}

PackedLinear zeros(std::int64_t out, std::int64_t in) {
    PackedLinear layer;
    layer.out = out;
    layer.in = in;
    layer.weight.resize(static_cast<std::size_t>(packed_size(out, in)));
    layer.bias.resize(static_cast<std::size_t>(packed_size(out, 1)));
    return layer;
}

PackedMatrix view(const PackedLinear& layer) {
    return {.packed = layer.weight.data(), .bias = layer.bias.data(), .out = layer.out, .in = layer.in, .depth = layer.in};
}

// Memory of the calling thread that the threads of its loops share.
float* workspace(std::int64_t floats) {
    thread_local Floats kept;
    if (kept.size() < static_cast<std::size_t>(floats)) kept.resize(static_cast<std::size_t>(floats));
    return kept.data();
}

std::int64_t padded_keys(std::int64_t keys) { return divide_up(keys, KEY_ALIGN) * KEY_ALIGN; }

// As few tiles as keep all threads busy to the end.
TokenTiles make_tiles(std::int64_t sections, std::int64_t tokens, int threads) {
    const std::int64_t groups = divide_up(tokens, GROUP), most = divide_up(groups, 2);
    std::int64_t count = divide_up(groups, TILE / GROUP);
    while (count < most && sections * count < 4 * threads && sections * count % threads != 0) ++count;
    return {.tokens = tokens, .groups = groups, .count = count};
}

// Whether threads get equal shares of so many rows, or nearly: each then takes whole rows, which need no synchronisation
// and stay in its cache. Otherwise the threads share the tokens of all rows.
bool one_thread_per_row(std::int64_t rows, int threads) { return threads > 1 && (rows % threads == 0 || rows >= 4 * threads); }

VideoBlock::Call row_of(const VideoBlock::Call& call, std::int64_t width, std::int64_t r) {
    const std::int64_t offset = r * call.T * call.S * width;
    VideoBlock::Call row = call;
    row.x += offset;
    row.normed += offset;
    row.modulation += r * call.row_stride;
    row.text_of_row += r;
    row.attended = call.attended == nullptr ? nullptr : call.attended + offset;
    row.y += offset;
    row.next = call.next == nullptr ? nullptr : call.next + offset;
    row.R = 1;
    row.num_outputs = r < call.num_outputs ? 1 : 0;
    return row;
}

AudioLayer::Call row_of(const AudioLayer::Call& call, std::int64_t width, std::int64_t r) {
    const std::int64_t offset = r * call.A * width;
    AudioLayer::Call row = call;
    row.x += offset;
    row.context = call.context == nullptr || call.context_of_row != nullptr ? call.context : call.context + r * call.M * 2 * width;
    row.context_of_row = call.context_of_row == nullptr ? nullptr : call.context_of_row + r;
    row.tail += r * call.E * width;
    row.attended = call.attended == nullptr ? nullptr : call.attended + offset;
    row.y += offset;
    row.R = 1;
    row.num_outputs = r < call.num_outputs ? 1 : 0;
    return row;
}

template <typename Step>
void run_steps(const std::vector<Step>& steps, int threads) {
    const std::int64_t rows = steps.empty() ? 0 : steps.front().call.R;
    if (!one_thread_per_row(rows, threads)) {
        for (const Step& step : steps) (*step.block)(step.call, threads);
        return;
    }
    parallel_for(rows, threads, [&](std::int64_t r) {
        for (const Step& step : steps) (*step.block)(row_of(step.call, step.block->width, r), 1);
    });
}

// The self-attention of a block: its projection, a tile at a time, and a share of the queries of a head at a time.
class BlockSelfAttention {
   public:
    BlockSelfAttention(const Block& block, const float* x, const SequenceAttention& attention, float* projected, const float* rope,
                       float eps, int threads)
        : projection_{.x = x,
                      .qkv = view(block.qkv),
                      .q_norm = block.q_norm.data(),
                      .k_norm = block.k_norm.data(),
                      .rope = rope,
                      .projected = projected,
                      .width = block.width,
                      .heads = block.heads,
                      .positions_apart = attention.token_stride / (3 * block.width),
                      .length = attention.length,
                      .tiles = make_tiles(1, attention.outer * attention.inner * attention.length, threads),
                      .eps = eps},
          attention_(attention),
          block_(attention_block(attention.length, attention.outer * attention.inner * attention.heads, threads)),
          memory_(kernels().attend_sequence_memory(attention.length, attention.width)) {}

    std::int64_t tiles() const { return projection_.tiles.count; }
    std::int64_t units() const {
        return attention_.outer * attention_.inner * attention_.heads * divide_up(attention_.length, block_);
    }

    void project(std::int64_t tile) const { kernels().project_qkv(projection_, tile); }
    void attend(std::int64_t unit) const { kernels().attend_sequence(attention_, unit, block_, thread_memory(memory_)); }

   private:
    QkvProjection projection_;
    SequenceAttention attention_;
    std::int64_t block_, memory_;
};

}  // namespace

PackedLinear::PackedLinear(const float* weight_values, const float* bias_values, std::int64_t outputs, std::int64_t inputs) {
    *this = zeros(outputs, inputs);
    pack(weight_values, outputs, inputs, weight.data());
    std::copy(bias_values, bias_values + outputs, bias.begin());
}

bool Block::supports(std::int64_t width, std::int64_t heads, std::int64_t hidden) {
    return width % PANEL == 0 && hidden % PANEL == 0 && heads > 0 && width % (KEY_ALIGN * heads) == 0;
}

Block::Block(const BlockWeights& w)
    : width(w.width),
      heads(w.heads),
      hidden(w.hidden),
      qkv(w.qkv.weight, w.qkv.bias, 3 * w.width, w.width),
      proj(w.proj.weight, w.proj.bias, w.width, w.width),
      cross_query(w.cross_query.weight, w.cross_query.bias, w.width, w.width),
      cross_key_value(w.cross_key_value.weight, w.cross_key_value.bias, 2 * w.width, w.width),
      cross_out(w.cross_out.weight, w.cross_out.bias, w.width, w.width),
      up(w.up.weight, w.up.bias, w.hidden, w.width),
      down(w.down.weight, w.down.bias, w.width, w.hidden),
      q_norm(copied(w.q_norm, w.width / w.heads)),
      k_norm(copied(w.k_norm, w.width / w.heads)),
      query_weight(copied(w.cross_query.weight, w.width * w.width)),
      query_bias(copied(w.cross_query.bias, w.width)),
      cross_out_transposed(transposed(w.cross_out.weight, w.width)) {}

Adaptor::Adaptor(const Parts& p) : Adaptor(p, {p.key_value.weight, p.key_value.bias, 2 * p.width, p.width}) {}

Adaptor::Adaptor(const Parts& p, PackedLinear packed_key_value)
    : width(p.width),
      heads(p.heads),
      qkv(p.qkv.weight, p.qkv.bias, 3 * p.width, p.width),
      proj(p.proj.weight, p.proj.bias, p.width, p.width),
      linear(p.linear.weight, p.linear.bias, p.width, p.width),
      key_value(std::move(packed_key_value)),
      q_norm(copied(p.q_norm, p.width / p.heads)),
      k_norm(copied(p.k_norm, p.width / p.heads)),
      norm_weight(copied(p.norm.weight, p.width)),
      norm_bias(copied(p.norm.bias, p.width)),
      norm_eps(p.norm_eps) {}

void Adaptor::operator()(const Call& call, int threads) const {
    const AdaptorCall adaptation = {.features = call.features,
                                   .rows = call.rows,
                                   .rope = call.rope,
                                   .q_norm = q_norm.data(),
                                   .k_norm = k_norm.data(),
                                   .norm_weight = norm_weight.data(),
                                   .norm_bias = norm_bias.data(),
                                   .qkv = view(qkv),
                                   .proj = view(proj),
                                   .linear = view(linear),
                                   .key_value = view(key_value),
                                   .context = call.context,
                                   .T = call.T,
                                   .S = call.S,
                                   .width = width,
                                   .heads = heads,
                                   .pooled = call.pooled,
                                   .eps = call.eps,
                                   .norm_eps = norm_eps};
    const std::int64_t floats = kernels().run_adaptor_memory(call.pooled ? call.T : call.T * call.S, width, heads);
    parallel_for(call.C, threads, [&](std::int64_t i) { kernels().run_adaptor(adaptation, i, thread_memory(floats)); });
}

VideoBlock::VideoBlock(const BlockWeights& weights, const float* table_values)
    : Block(weights), table(copied(table_values, 6 * weights.width)) {}

Text VideoBlock::prepare_text(const float* keys, const float* values, std::int64_t prompt_stride, std::int64_t token_stride,
                      const std::int64_t* lengths, std::int64_t prompts) const {
    Text text;
    for (std::int64_t p = 0; p < prompts; ++p) {
        const float *const k = keys + p * prompt_stride, *const v = values + p * prompt_stride;
        const std::int64_t count = lengths[p];
        Text::Prompt prompt = {.count = count, .folded = folds(count), .keys = {}, .values = {}};
        if (prompt.folded) {
            prompt.keys = zeros(heads * count, width);
            prompt.values = zeros(width, heads * count);
            kernels().fold_keys(k, token_stride, count, heads, width, query_weight.data(), query_bias.data(), prompt.keys.weight.data(),
                                prompt.keys.bias.data());
            kernels().fold_values(v, token_stride, count, heads, width, cross_out_transposed.data(), prompt.values.weight.data());
            prompt.values.bias = cross_out.bias;
        } else {
            prompt.keys.weight.resize(static_cast<std::size_t>(width * padded_keys(count)));
            kernels().transpose_scaled_keys(k, token_stride, count, heads, width, prompt.keys.weight.data());
            for (std::int64_t j = 0; j < count; ++j) {
                prompt.values.weight.insert(prompt.values.weight.end(), v + j * token_stride, v + j * token_stride + width);
            }
        }
        text.prompts.push_back(std::make_shared<const Text::Prompt>(std::move(prompt)));
    }
    return text;
}

void VideoBlock::operator()(const Call& call, int threads) const {
    const std::int64_t frame = call.S * width, tokens = call.R * call.T * call.S;
    float* const projected = workspace(tokens * 4 * width);
    float* const attended = projected + tokens * 3 * width;
    const bool temporal = call.rope != nullptr;
    const SequenceAttention sequences = {.projected = projected,
                                         .attended = attended,
                                         .outer = temporal ? call.R : call.R * call.T,
                                         .inner = temporal ? call.S : 1,
                                         .length = temporal ? call.T : call.S,
                                         .heads = heads,
                                         .width = width / heads,
                                         .outer_stride = 3 * frame * (temporal ? call.T : 1),
                                         .inner_stride = temporal ? 3 * width : 0,
                                         .token_stride = 3 * (temporal ? frame : width)};
    std::vector<CrossContext> texts;
    std::int64_t most_keys = 0;
    for (const auto& prompt : call.text->prompts) {
        texts.push_back({.count = prompt->count, .folded = prompt->folded, .keys = view(prompt->keys), .values = view(prompt->values)});
        most_keys = std::max(most_keys, prompt->count);
    }
    const std::int64_t sections = call.frame_stride == 0 ? 1 : call.T;
    const VideoBlockTail tail = {.x = call.x,
                                 .attention = attended,
                                 .modulation = call.modulation,
                                 .row_stride = call.row_stride,
                                 .frame_stride = call.frame_stride,
                                 .table = table.data(),
                                 .next_table = call.following == nullptr ? nullptr : call.following->table.data(),
                                 .texts = texts.data(),
                                 .text_of_row = call.text_of_row,
                                 .proj = view(proj),
                                 .cross_query = view(cross_query),
                                 .cross_out = view(cross_out),
                                 .up = view(up),
                                 .down = view(down),
                                 .attended = call.attended,
                                 .y = call.y,
                                 .next = call.next,
                                 .sections_of_row = sections,
                                 .num_outputs = call.num_outputs,
                                 .width = width,
                                 .heads = heads,
                                 .tiles = make_tiles(call.R * sections, call.T * call.S / sections, threads),
                                 .eps = call.eps};
    const std::int64_t floats = kernels().tail_memory(width, most_keys, heads);
    const BlockSelfAttention attention(*this, call.normed, sequences, projected, call.rope, call.eps, threads);
    auto project = [&](std::int64_t i) { attention.project(i); };
    auto attend = [&](std::int64_t i) { attention.attend(i); };
    auto finish = [&](std::int64_t i) { kernels().video_block_tail(tail, i, thread_memory(floats)); };
    const std::int64_t rows = call.attended == nullptr ? call.num_outputs : call.R;
    const Loop loops[] = {make_loop(attention.tiles(), project), make_loop(attention.units(), attend),
                          make_loop(rows * sections * tail.tiles.count, finish)};
    parallel(loops, 3, threads);
}

AudioLayer::AudioLayer(const BlockWeights& weights, const float* norm_values, float eps)
    : Block(weights), norms(copied(norm_values, 6 * weights.width)), norm_eps(eps) {}

void AudioLayer::operator()(const Call& call, int threads) const {
    const std::int64_t tokens = call.R * call.A;
    const std::int64_t keys = call.E + (call.context == nullptr ? 0 : call.M);
    const bool folded = folds(keys);
    const std::int64_t key_stride = width * padded_keys(keys), value_stride = width * keys * (folded ? heads : 1);
    float* const projected = workspace(tokens * 4 * width + call.R * (key_stride + value_stride));
    float* const attended = projected + tokens * 3 * width;
    float* const context_keys = attended + tokens * width;
    std::vector<CrossContext> contexts(static_cast<std::size_t>(call.R));
    const SequenceAttention sequences = {.projected = projected,
                                         .attended = attended,
                                         .outer = call.R,
                                         .inner = 1,
                                         .length = call.A,
                                         .heads = heads,
                                         .width = width / heads,
                                         .outer_stride = 3 * call.A * width,
                                         .inner_stride = 0,
                                         .token_stride = 3 * width};
    const AudioContext context = {.context = call.context,
                                  .context_rope = call.context_rope,
                                  .context_of_row = call.context_of_row,
                                  .tail = call.tail,
                                  .key_value = view(cross_key_value),
                                  .cross_out_transposed = cross_out_transposed.data(),
                                  .cross_out_bias = cross_out.bias.data(),
                                  .M = call.M,
                                  .E = call.E,
                                  .width = width,
                                  .heads = heads,
                                  .keys = context_keys,
                                  .values = context_keys + call.R * key_stride,
                                  .contexts = contexts.data(),
                                  .key_stride = key_stride,
                                  .value_stride = value_stride,
                                  .folded = folded};
    const AudioLayerTail tail = {.x = call.x,
                                 .attention = attended,
                                 .rope = call.rope,
                                 .norms = norms.data(),
                                 .contexts = contexts.data(),
                                 .proj = view(proj),
                                 .cross_query = view(cross_query),
                                 .cross_out = view(cross_out),
                                 .up = view(up),
                                 .down = view(down),
                                 .attended = call.attended,
                                 .y = call.y,
                                 .num_outputs = call.num_outputs,
                                 .width = width,
                                 .heads = heads,
                                 .tiles = make_tiles(call.R, call.A, threads),
                                 .norm_eps = norm_eps};
    const std::int64_t context_memory = kernels().audio_context_memory(call.E, width);
    const std::int64_t floats = kernels().tail_memory(width, keys, heads);
    const BlockSelfAttention attention(*this, call.x, sequences, projected, call.rope, call.eps, threads);
    auto project = [&](std::int64_t i) {
        if (i < call.num_outputs) {
            kernels().prepare_audio_context(context, i, thread_memory(context_memory));
        } else {
            attention.project(i - call.num_outputs);
        }
    };
    auto attend = [&](std::int64_t i) { attention.attend(i); };
    auto finish = [&](std::int64_t i) { kernels().audio_layer_tail(tail, i, thread_memory(floats)); };
    const std::int64_t rows = call.attended == nullptr ? call.num_outputs : call.R;
    const Loop loops[] = {make_loop(call.num_outputs + attention.tiles(), project), make_loop(attention.units(), attend),
                          make_loop(rows * tail.tiles.count, finish)};
    parallel(loops, 3, threads);
}

void run(const std::vector<VideoStep>& steps, int threads) { run_steps(steps, threads); }

void run(const std::vector<AudioStep>& steps, int threads) { run_steps(steps, threads); }

}  // namespace syncflow
