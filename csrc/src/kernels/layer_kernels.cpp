// The kernels of layers.h, compiled once per instruction level.
#include "kernels/layer_kernels.h"

#include <cstdint>

#include "kernels/attention.h"
#include "kernels/gemm.h"
#include "kernels/token_ops.h"

namespace syncflow::SYNCFLOW_INSTRUCTIONS {
namespace {

std::int64_t attention_memory(std::int64_t keys, std::int64_t width) {
    const std::int64_t stride = round_up(keys, KEY_ALIGN), wide = round_up(width, KEY_ALIGN);
    return wide * stride + keys * wide + QUERIES * (stride + 2 * wide) + LANES * wide;
}

// Heads whose width is not whole registers have a padded copy of their values.
const float* padded_values(const float* values, std::int64_t& stride, std::int64_t count, std::int64_t width, float* memory) {
    const std::int64_t wide = round_up(width, LANES);
    if (wide == width) return values;
    for (std::int64_t j = 0; j < count; ++j) {
        for (std::int64_t c = 0; c < width; c += LANES) store(memory + j * wide + c, load_partial(values + j * stride + c, width - c));
    }
    stride = wide;
    return memory;
}

void self_attention(const SelfAttention& call, std::int64_t unit, std::int64_t block, float* memory) {
    const std::int64_t width = call.width, wide = round_up(width, LANES), length = call.length, token = call.token_stride;
    const std::int64_t blocks = (length + block - 1) / block;
    const std::int64_t first = unit % blocks * block, head = unit / blocks % call.heads, sequence = unit / blocks / call.heads;
    const std::int64_t last = min(first + block, length), key_stride = round_up(length, KEY_ALIGN);
    const std::int64_t at = sequence / call.inner * call.outer_stride + sequence % call.inner * call.inner_stride;
    const float* const q = call.qkv + at + head * width;
    const float* const k = q + call.heads * width;
    float* const out = call.out + at / 3 + head * width;
    float* const keys = memory;
    float* const values_memory = keys + wide * key_stride;
    float* const scores = values_memory + length * wide;
    float* const queries = scores + QUERIES * key_stride;
    float* const attended = queries + QUERIES * wide;
    float* const tile = attended + QUERIES * wide;

    const float* rope[LANES] = {};
    const auto normalize = [&](const float* from, const float* weight, std::int64_t position, std::int64_t count, float scale, float* to) {
        for (std::int64_t t = 0; t < count && call.rope != nullptr; ++t) rope[t] = call.rope + (position + t) * width;
        const auto norm = wide == width ? rms_norm_and_rotate<true> : rms_norm_and_rotate<false>;
        norm(from + position * token, token, count, weight, rope, call.eps, width, scale, to, wide);
    };
    for (std::int64_t j = 0; j < length; j += LANES) {
        const std::int64_t count = min(length - j, LANES);
        normalize(k, call.k_weight, j, count, 1, tile);
        for (std::int64_t c = 0; c < wide; c += LANES) transpose_tile(tile + c, wide, count, keys + c * key_stride + j, key_stride);
    }
    std::int64_t value_stride = token;
    const float* const values = padded_values(k + call.heads * width, value_stride, length, width, values_memory);
    const float scale = rsqrt(static_cast<float>(width));
    for (std::int64_t i = first; i < last; i += QUERIES) {
        const std::int64_t count = min(last - i, QUERIES);
        for (std::int64_t t = 0; t < count; t += LANES) {
            normalize(q, call.q_weight, i + t, min(count - t, LANES), scale, queries + t * wide);
        }
        float* const to = wide == width ? out + i * (token / 3) : attended;
        attend(queries, wide, count, keys, key_stride, length, width, values, value_stride, wide, to,
               wide == width ? token / 3 : wide, scores, [](std::int64_t, float*) {});
        for (std::int64_t t = 0; t < count && wide != width; ++t) {
            for (std::int64_t c = 0; c < width; c += LANES) {
                store_partial(out + (i + t) * (token / 3) + c, load(attended + t * wide + c), width - c);
            }
        }
    }
}

// Rotates the pairs of one head in place, channels up to whole registers of `x`.
inline void rotate(float* x, const float* rope, std::int64_t width) {
    for (std::int64_t c = 0; c < width; c += LANES) store(x + c, rotate_pairs(load(x + c), load_partial(rope + c, width - c)));
}

void cross_attention(const CrossAttention& call, std::int64_t unit, std::int64_t block, float* memory) {
    const std::int64_t width = call.width, wide = round_up(width, LANES);
    const std::int64_t blocks = (call.queries + block - 1) / block;
    const std::int64_t first = unit % blocks * block, head = unit / blocks % call.heads, row = unit / blocks / call.heads;
    const std::int64_t last = min(first + block, call.queries);
    const std::int64_t context = call.context_of_row == nullptr ? row : call.context_of_row[row];
    const std::int64_t known = context < 0 ? 0 : call.lengths == nullptr ? call.keys : call.lengths[context];
    const std::int64_t count = known + call.tail, key_stride = round_up(count, KEY_ALIGN), out_stride = call.heads * width;
    float* const out = call.out + row * call.queries * out_stride + head * width;
    float* const keys = memory;
    float* const values = keys + wide * key_stride;
    float* const scores = values + count * wide;
    float* const queries = scores + QUERIES * key_stride;
    float* const attended = queries + QUERIES * wide;
    float* const tile = attended + QUERIES * wide;

    // Keys j to j + LANES of the context and then of the tail.
    const auto head_of = [&](const CrossAttention::Tokens& tokens, std::int64_t of_row, std::int64_t j) {
        return tokens.data + of_row * tokens.row + j * tokens.token + head * tokens.head;
    };
    const auto key = [&](std::int64_t j) { return j < known ? head_of(call.k, context, j) : head_of(call.tail_k, row, j - known); };
    const auto value = [&](std::int64_t j) { return j < known ? head_of(call.v, context, j) : head_of(call.tail_v, row, j - known); };
    for (std::int64_t j = 0; j < count; j += LANES) {
        const std::int64_t some = min(count - j, LANES);
        for (std::int64_t t = 0; t < some; ++t) {
            for (std::int64_t c = 0; c < width; c += LANES) store(tile + t * wide + c, load_partial(key(j + t) + c, width - c));
            if (call.k_rope != nullptr && j + t < known) rotate(tile + t * wide, call.k_rope + (j + t) * width, width);
        }
        for (std::int64_t c = 0; c < wide; c += LANES) transpose_tile(tile + c, wide, some, keys + c * key_stride + j, key_stride);
    }
    for (std::int64_t j = 0; j < count; ++j) {
        for (std::int64_t c = 0; c < width; c += LANES) store(values + j * wide + c, load_partial(value(j) + c, width - c));
    }
    const float scale = rsqrt(static_cast<float>(width));
    for (std::int64_t i = first; i < last; i += QUERIES) {
        const std::int64_t some = min(last - i, QUERIES);
        for (std::int64_t t = 0; t < some; ++t) {
            const float* const from = head_of(call.q, row, i + t);
            for (std::int64_t c = 0; c < width; c += LANES) store(queries + t * wide + c, load_partial(from + c, width - c) * scale);
            if (call.q_rope != nullptr) rotate(queries + t * wide, call.q_rope + (i + t) * width, width);
        }
        // Keys of the tail are attended to from everywhere.
        const auto mask = [&](std::int64_t t, float* of_query) {
            for (std::int64_t j = 0; j < known && call.window >= 0; ++j) {
                const float distance = __builtin_fabsf(call.q_positions[i + t] - call.k_positions[j]);
                of_query[j] = distance <= call.window ? of_query[j] : MASKED;
            }
        };
        attend(queries, wide, some, keys, key_stride, count, width, values, wide, wide, attended, wide, scores, mask);
        for (std::int64_t t = 0; t < some; ++t) {
            for (std::int64_t c = 0; c < width; c += LANES) {
                store_partial(out + (i + t) * out_stride + c, load(attended + t * wide + c), width - c);
            }
        }
    }
}

void linear(const Linear& call, std::int64_t first_row, std::int64_t last_row, std::int64_t first, std::int64_t last) {
    for (std::int64_t panel = first; panel < last; ++panel) {
        const std::int64_t column = panel * PANEL, columns = call.out - column;
        float bias[PANEL];
        for (std::int64_t c = 0; c < PANEL; ++c) bias[c] = c < columns ? call.bias[column + c] : 0;
        const PackedMatrix weight = {
            .packed = call.packed + column * call.in, .bias = bias, .out = min(columns, PANEL), .in = call.in, .depth = call.in};
        float* const y = call.y + column;
        const float* const x = call.x + first_row * call.x_stride;
        gemm_packed(weight, x, call.x_stride, last_row - first_row, [&](std::int64_t r, std::int64_t c, const Vector& sums) {
            store_partial(y + (first_row + r) * call.out + c, call.gelu ? gelu(sums) : sums, columns - c);
        });
    }
}

void residual_norm(const ResidualNorm& call, std::int64_t group, float* memory) {
    const std::int64_t width = call.width;
    const std::int64_t modulation = group / call.frames * call.row_stride + group % call.frames * call.frame_stride;
    float* const gate = memory;
    float* const shift = gate + width;
    float* const scale = shift + width;
    const bool adds = call.branch != nullptr, norms = call.shift_table != nullptr;
    for (std::int64_t c = 0; c < width; ++c) {
        gate[c] = call.gate_table == nullptr ? 1 : call.gate_table[c] + call.gate_rows[modulation + c];
    }
    for (std::int64_t c = 0; c < width && norms; ++c) {
        shift[c] = call.shift_table[c] + call.shift_rows[modulation + c];
        scale[c] = 1 + (call.scale_table[c] + call.scale_rows[modulation + c]);
    }
    for (std::int64_t t = 0; t < call.tokens; ++t) {
        const std::int64_t offset = (group * call.tokens + t) * width;
        const float* x = call.x + offset;
        if (adds) {
            float* const y = call.y + offset;
            const float* const branch = call.branch + offset;
            for (std::int64_t c = 0; c < width; ++c) y[c] = x[c] + gate[c] * branch[c];
            x = y;
        }
        if (!norms) continue;
        float* const normed = call.normed + offset;
        if (width % LANES == 0) {
            layer_norm<true>(x, width, call.eps, [&](std::int64_t c, const Vector& values) {
                store(normed + c, values * load(scale + c) + load(shift + c));
            });
        } else {
            layer_norm<false>(x, width, call.eps, [&](std::int64_t c, const Vector& values) {
                const std::int64_t left = width - c;
                store_partial(normed + c, values * load_partial(scale + c, left) + load_partial(shift + c, left), left);
            });
        }
    }
}

void guided_step(const GuidedStep& call, std::int64_t request) {
    const float* const z = call.z + request * call.size;
    float* const out = call.out + request * call.size;
    for (std::int64_t c = 0; c < call.size; ++c) out[c] = 0;
    for (std::int64_t g = request * call.branches; g < (request + 1) * call.branches; ++g) {
        const float weight = call.weights[g];
        if (weight == 0) continue;
        const float* const v = call.v + call.rows[g] * call.v_stride;
        for (std::int64_t c = 0; c < call.size; ++c) out[c] += weight * v[c];
    }
    for (std::int64_t c = 0; c < call.size; ++c) out[c] = z[c] + call.dt[request] * out[c];
}

std::int64_t multiply_adds(std::int64_t rounds, float* result) {
    constexpr int count = 2 * MICRO_ROWS;
    Vector sums[count], factor = broadcast(0.5f), term = broadcast(1.0f);
    for (int i = 0; i < count; ++i) sums[i] = broadcast(static_cast<float>(i));
    for (std::int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
        for (int i = 0; i < count; ++i) sums[i] = sums[i] * factor + term;
    }
    Vector total = {};
    for (int i = 0; i < count; ++i) total += sums[i];
    *result = sum(total);
    return rounds * count * LANES;
}

}  // namespace

const LayerKernels layer_kernels = {.self_attention = self_attention,
                                    .cross_attention = cross_attention,
                                    .attention_memory = attention_memory,
                                    .linear = linear,
                                    .residual_norm = residual_norm,
                                    .guided_step = guided_step,
                                    .multiply_adds = multiply_adds};

}  // namespace syncflow::SYNCFLOW_INSTRUCTIONS
