// The kernels of blocks.h, compiled once per instruction level.
#include "kernels/block_kernels.h"

#include <cstdint>

#include "kernels/tile_ops.h"

namespace syncflow::SYNCFLOW_INSTRUCTIONS {
namespace {

std::int64_t tail_memory(std::int64_t width, std::int64_t keys, std::int64_t heads) {
    return 6 * width + TILE * (2 * width + max(cross_attend_memory(width, keys, heads), width + CHUNK));
}

void project_qkv(const QkvProjection& call, std::int64_t unit) {
    const std::int64_t width = call.width, heads = call.heads, head_width = width / heads, token = 3 * width;
    const std::int64_t first = first_token(call.tiles, unit), rows = end_token(call.tiles, unit) - first;
    float* const projected = call.projected + first * token;
    gemm_packed(call.qkv, call.x + first * width, width, rows,
                [&](std::int64_t r, std::int64_t c, const Vector& values) { store(projected + r * token + c, values); });

    const float scale = rsqrt(static_cast<float>(head_width));
    for (std::int64_t r = 0; r < rows; r += LANES) {
        const std::int64_t count = min(rows - r, LANES);
        const float* rope[LANES] = {};
        for (std::int64_t i = 0; i < count && call.rope != nullptr; ++i) {
            rope[i] = call.rope + (first + r + i) / call.positions_apart % call.length * head_width;
        }
        for (std::int64_t h = 0; h < heads; ++h) {
            float* const q = projected + r * token + h * head_width;
            float* const k = q + width;
            rms_norm_and_rotate<true>(q, token, count, call.q_norm, rope, call.eps, head_width, scale, q, token);
            rms_norm_and_rotate<true>(k, token, count, call.k_norm, rope, call.eps, head_width, 1, k, token);
        }
    }
}

std::int64_t attend_sequence_memory(std::int64_t length, std::int64_t width) { return (QUERIES + 2 * width) * round_up(length, KEY_ALIGN); }

void attend_sequence(const SequenceAttention& call, std::int64_t unit, std::int64_t block, float* memory) {
    const std::int64_t width = call.width, length = call.length, token = call.token_stride, key_stride = round_up(length, KEY_ALIGN);
    const std::int64_t blocks = (length + block - 1) / block, part = call.heads * width;
    const std::int64_t first = unit % blocks * block, last = min(first + block, length);
    const auto sequence_at = [&](std::int64_t i) { return i / call.inner * call.outer_stride + i % call.inner * call.inner_stride; };
    const std::int64_t head = unit / blocks % call.heads, at = sequence_at(unit / blocks / call.heads);
    const float *const q = call.projected + at + head * width, *const k = q + part, *const v = k + part;
    float* const out = call.attended + at / 3 + head * width;

    const std::int64_t next = unit / blocks + 1;  // is most often computed next: no prefetcher finds its short rows
    if (last == length && next < call.outer * call.inner * call.heads) {
        const float* const next_q = call.projected + sequence_at(next / call.heads) + next % call.heads * width;
        for (std::int64_t t = 0; t < length; ++t) {
            for (std::int64_t c = 0; c < width; c += 16) {
                for (int i = 0; i < 3; ++i) __builtin_prefetch(next_q + t * token + i * part + c);
            }
        }
    }

    float* const keys = memory;
    float* const values = keys + width * key_stride;  // dense: at the strides of the tokens, a few lines of the cache take all
    float* const scores = values + width * key_stride;
    transpose_keys(k, token, length, width, keys, key_stride);
    for (std::int64_t j = 0; j < length; ++j) {
        for (std::int64_t c = 0; c < width; c += LANES) store(values + j * width + c, load(v + j * token + c));
    }
    for (std::int64_t i = first; i < last; i += QUERIES) {
        attend(q + i * token, token, min(last - i, QUERIES), keys, key_stride, length, width, values, width, width,
               out + i * (token / 3), token / 3, scores, [](std::int64_t, float*) {});
    }
}

std::int64_t run_adaptor_memory(std::int64_t tokens, std::int64_t width, std::int64_t heads) {
    return 6 * tokens * width + attend_sequence_memory(tokens, width / heads);
}

void run_adaptor(const AdaptorCall& call, std::int64_t context, float* memory) {
    const std::int64_t width = call.width, count = call.pooled ? call.T : call.T * call.S;
    const float* const features = call.features + call.rows[context] * call.T * call.S * width;
    float* const x = bump_allocate(memory, count * width);
    float* const projected = bump_allocate(memory, 3 * count * width);
    float* const attended = bump_allocate(memory, count * width);
    float* const y = bump_allocate(memory, count * width);
    const auto into_y = [&](std::int64_t r, std::int64_t c, const Vector& values) { store(y + r * width + c, values); };
    if (call.pooled) {
        const float share = 1 / static_cast<float>(call.S);
        for (std::int64_t t = 0; t < count; ++t) {
            for (std::int64_t c = 0; c < width; c += LANES) {
                Vector total = {};
                for (std::int64_t s = 0; s < call.S; ++s) total += load(features + (t * call.S + s) * width + c);
                store(x + t * width + c, total * share);
            }
        }
    }
    project_qkv({.x = call.pooled ? x : features,
                 .qkv = call.qkv,
                 .q_norm = call.q_norm,
                 .k_norm = call.k_norm,
                 .rope = call.rope,
                 .projected = projected,
                 .width = width,
                 .heads = call.heads,
                 .positions_apart = 1,
                 .length = count,
                 .tiles = {.tokens = count, .groups = (count + GROUP - 1) / GROUP, .count = 1},
                 .eps = call.eps},
                0);
    const SequenceAttention attention = {.projected = projected,
                                         .attended = attended,
                                         .outer = 1,
                                         .inner = 1,
                                         .length = count,
                                         .heads = call.heads,
                                         .width = width / call.heads,
                                         .outer_stride = 0,
                                         .inner_stride = 0,
                                         .token_stride = 3 * width};
    for (std::int64_t h = 0; h < call.heads; ++h) attend_sequence(attention, h, count, memory);
    gemm_packed(call.proj, attended, width, count, into_y);
    for (std::int64_t r = 0; r < count; ++r) {
        layer_norm<true>(y + r * width, width, call.norm_eps, [&](std::int64_t c, const Vector& values) {
            store(x + r * width + c, values * load(call.norm_weight + c) + load(call.norm_bias + c));
        });
    }
    gemm_packed(call.linear, x, width, count, into_y);
    float* const out = call.context + context * count * 2 * width;
    gemm_packed(call.key_value, y, width, count,
                [&](std::int64_t r, std::int64_t c, const Vector& values) { store(out + r * 2 * width + c, values); });
}

void video_block_tail(const VideoBlockTail& call, std::int64_t unit, float* memory) {
    const std::int64_t width = call.width, section = unit / call.tiles.count, tile = unit % call.tiles.count;
    const std::int64_t row = section / call.sections_of_row, frame = section % call.sections_of_row;
    const std::int64_t first = first_token(call.tiles, tile), rows = end_token(call.tiles, tile) - first;
    const std::int64_t offset = (section * call.tiles.tokens + first) * width;

    float* const modulation = bump_allocate(memory, 6 * width);
    const float* const section_modulation = call.modulation + row * call.row_stride + frame * call.frame_stride;
    for (std::int64_t c = 0; c < 6 * width; ++c) modulation[c] = call.table[c] + section_modulation[c];
    const float *const gate = modulation + 2 * width, *const shift = modulation + 3 * width;
    const float *const scale = modulation + 4 * width, *const gate_mlp = modulation + 5 * width;

    float* const x = bump_allocate(memory, TILE * width);
    const float* const before = call.x + offset;
    gemm_packed(call.proj, call.attention + offset, width, rows, [&](std::int64_t r, std::int64_t c, const Vector& values) {
        store(x + r * width + c, load(before + r * width + c) + load(gate + c) * values);
    });
    if (call.attended != nullptr) {
        for (std::int64_t c = 0; c < rows * width; c += LANES) store(call.attended + offset + c, load(x + c));
    }
    if (row >= call.num_outputs) return;

    cross_attend(call.texts[call.text_of_row[row]], call.cross_query, call.cross_out, nullptr, x, rows, call.heads, width, memory,
                 [&](std::int64_t r, std::int64_t c, const Vector& values) { store(x + r * width + c, load(x + r * width + c) + values); });
    float* const normed = bump_allocate(memory, TILE * width);
    for (std::int64_t r = 0; r < rows; ++r) {
        layer_norm<true>(x + r * width, width, call.eps, [&](std::int64_t c, const Vector& values) {
            store(normed + r * width + c, values * (load(scale + c) + 1.0f) + load(shift + c));
        });
    }
    float* const branch = bump_allocate(memory, TILE * width);
    mlp(call.up, call.down, normed, rows, memory, branch);
    float* const y = call.y + offset;
    for (std::int64_t r = 0; r < rows; ++r) {
        for (std::int64_t c = r * width; c < (r + 1) * width; c += LANES) {
            store(y + c, load(x + c) + load(gate_mlp + c - r * width) * load(branch + c));
        }
    }
    if (call.next_table == nullptr) return;
    for (std::int64_t c = 0; c < 2 * width; ++c) modulation[c] = call.next_table[c] + section_modulation[c];
    for (std::int64_t r = 0; r < rows; ++r) {
        layer_norm<true>(y + r * width, width, call.eps, [&](std::int64_t c, const Vector& values) {
            store(call.next + offset + r * width + c, values * (load(modulation + width + c) + 1.0f) + load(modulation + c));
        });
    }
}

std::int64_t audio_context_memory(std::int64_t E, std::int64_t width) { return 2 * E * width + width; }

void prepare_audio_context(const AudioContext& call, std::int64_t row, float* memory) {
    const std::int64_t width = call.width, heads = call.heads, head_width = width / heads;
    const std::int64_t context = call.context == nullptr ? -1 : call.context_of_row == nullptr ? row : call.context_of_row[row];
    const std::int64_t known = context < 0 ? 0 : call.M, count = known + call.E, key_stride = round_up(count, KEY_ALIGN);
    float* const keys = call.keys + row * call.key_stride;
    float* const values = call.values + row * call.value_stride;
    float* const tail = bump_allocate(memory, call.E * 2 * width);
    float* const key = bump_allocate(memory, head_width);
    const std::int64_t all_keys = heads * count;
    call.contexts[row] = {.count = count,
                          .folded = call.folded,
                          .keys = {.packed = keys, .bias = nullptr, .out = 0, .in = 0, .depth = 0},
                          .values = {.packed = values, .bias = call.cross_out_bias, .out = width, .in = all_keys, .depth = all_keys}};

    gemm_packed(call.key_value, call.tail + row * call.E * width, width, call.E,
                [&](std::int64_t r, std::int64_t c, const Vector& found) { store(tail + r * 2 * width + c, found); });
    const float* const of_context = known == 0 ? tail : call.context + context * call.M * 2 * width;
    const auto token = [&](std::int64_t j) { return j < known ? of_context + j * 2 * width : tail + (j - known) * 2 * width; };
    const float scale = rsqrt(static_cast<float>(head_width));
    for (std::int64_t c = 0; c < width * key_stride; ++c) keys[c] = 0;
    for (std::int64_t j = 0; j < count; ++j) {
        for (std::int64_t h = 0; h < heads; ++h) {
            for (std::int64_t c = 0; c < head_width; c += LANES) {
                const Vector x = load(token(j) + h * head_width + c) * scale;
                store(key + c, j < known ? rotate_pairs(x, load(call.context_rope + j * head_width + c)) : x);
            }
            for (std::int64_t c = 0; c < head_width; ++c) keys[(h * head_width + c) * key_stride + j] = key[c];
        }
    }
    if (!call.folded) {
        for (std::int64_t j = 0; j < count; ++j) {
            for (std::int64_t c = 0; c < width; c += LANES) store(values + j * width + c, load(token(j) + width + c));
        }
        return;
    }
    const auto fold = [&](const float* from, std::int64_t some, std::int64_t offset) {
        multiply_heads(from + width, 2 * width, some, heads, width, call.cross_out_transposed,
                       [&](std::int64_t h, std::int64_t j, std::int64_t c, const Vector& found) {
                           store(values + c / PANEL * heads * count * PANEL + (h * count + offset + j) * PANEL + c % PANEL, found);
                       });
    };
    fold(of_context, known, 0);
    fold(tail, call.E, known);
}

void audio_layer_tail(const AudioLayerTail& call, std::int64_t unit, float* memory) {
    const std::int64_t width = call.width, row = unit / call.tiles.count, tile = unit % call.tiles.count;
    const std::int64_t first = first_token(call.tiles, tile), rows = end_token(call.tiles, tile) - first;
    const std::int64_t offset = (row * call.tiles.tokens + first) * width;

    float* const x = bump_allocate(memory, TILE * width);
    float* const y = bump_allocate(memory, TILE * width);
    const auto into_y = [&](std::int64_t r, std::int64_t c, const Vector& values) { store(y + r * width + c, values); };
    // to = from + LN(y)
    const auto add_norm = [&](const float* from, std::int64_t index, float* to) {
        const float *const weight = call.norms + 2 * index * width, *const bias = weight + width;
        for (std::int64_t r = 0; r < rows; ++r) {
            layer_norm<true>(y + r * width, width, call.norm_eps, [&](std::int64_t c, const Vector& values) {
                store(to + r * width + c, load(from + r * width + c) + (values * load(weight + c) + load(bias + c)));
            });
        }
    };
    gemm_packed(call.proj, call.attention + offset, width, rows, into_y);
    add_norm(call.x + offset, 0, x);
    if (call.attended != nullptr) {
        for (std::int64_t c = 0; c < rows * width; c += LANES) store(call.attended + offset + c, load(x + c));
    }
    if (row >= call.num_outputs) return;

    const float* const rope = call.rope + first * (width / call.heads);
    cross_attend(call.contexts[row], call.cross_query, call.cross_out, rope, x, rows, call.heads, width, memory, into_y);
    add_norm(x, 1, x);

    mlp(call.up, call.down, x, rows, memory, y);
    add_norm(x, 2, call.y + offset);
}

void transpose_scaled_keys(const float* keys, std::int64_t stride, std::int64_t count, std::int64_t heads, std::int64_t width, float* to) {
    const std::int64_t key_stride = round_up(count, KEY_ALIGN);
    const float scale = rsqrt(static_cast<float>(width / heads));
    for (std::int64_t c = 0; c < width * key_stride; ++c) to[c] = 0;
    for (std::int64_t j = 0; j < count; ++j) {
        for (std::int64_t c = 0; c < width; ++c) to[c * key_stride + j] = keys[j * stride + c] * scale;
    }
}

void fold_keys(const float* keys, std::int64_t stride, std::int64_t count, std::int64_t heads, std::int64_t width,
               const float* query_weight, const float* query_bias, float* packed, float* packed_bias) {
    const std::int64_t head_width = width / heads, out = round_up(heads * count, PANEL);
    const float scale = rsqrt(static_cast<float>(head_width));
    for (std::int64_t c = 0; c < out * width; ++c) packed[c] = 0;
    for (std::int64_t c = 0; c < out; ++c) packed_bias[c] = 0;
    multiply_heads(keys, stride, count, heads, width, query_weight, [&](std::int64_t h, std::int64_t j, std::int64_t c, const Vector& found) {
        const std::int64_t key = h * count + j;
        float* const to = packed + key / PANEL * PANEL * width + key % PANEL;
        float scaled[LANES];
        store(scaled, found * scale);
        for (int v = 0; v < LANES; ++v) to[(c + v) * PANEL] = scaled[v];
    });
    for (std::int64_t h = 0; h < heads; ++h) {
        for (std::int64_t j = 0; j < count; ++j) {
            float product = 0;
            for (std::int64_t c = h * head_width; c < (h + 1) * head_width; ++c) product += query_bias[c] * keys[j * stride + c];
            packed_bias[h * count + j] = product * scale;
        }
    }
}

void fold_values(const float* values, std::int64_t stride, std::int64_t count, std::int64_t heads, std::int64_t width,
                 const float* out_transposed, float* packed) {
    multiply_heads(values, stride, count, heads, width, out_transposed,
                   [&](std::int64_t h, std::int64_t j, std::int64_t c, const Vector& found) {
                       store(packed + c / PANEL * heads * count * PANEL + (h * count + j) * PANEL + c % PANEL, found);
                   });
}

}  // namespace

const BlockKernels block_kernels = {.project_qkv = project_qkv,
                                    .attend_sequence = attend_sequence,
                                    .attend_sequence_memory = attend_sequence_memory,
                                    .run_adaptor = run_adaptor,
                                    .run_adaptor_memory = run_adaptor_memory,
                                    .video_block_tail = video_block_tail,
                                    .audio_layer_tail = audio_layer_tail,
                                    .tail_memory = tail_memory,
                                    .prepare_audio_context = prepare_audio_context,
                                    .audio_context_memory = audio_context_memory,
                                    .transpose_scaled_keys = transpose_scaled_keys,
                                    .fold_keys = fold_keys,
                                    .fold_values = fold_values};

}  // namespace syncflow::SYNCFLOW_INSTRUCTIONS
