// The loops of layers.h, compiled once for each set of instructions.
#include "layers_loops.h"

#include <cstdint>

#include "attention.h"
#include "vectors.h"

namespace syncflow::SYNCFLOW_INSTRUCTIONS {
namespace {

// RMS norm, weight and rotation of one head of one token.
inline void prepare(const float* from, const float* weight, const float* turns, float eps, std::int64_t width, float scale,
                    float* to) {
    Vector squares = {};
    const std::int64_t whole = width / LANES * LANES;
    for (std::int64_t c = 0; c < whole; c += LANES) squares += load(from + c) * load(from + c);
    float square = sum(squares);
    for (std::int64_t c = whole; c < width; ++c) square += from[c] * from[c];
    const float inverse = scale / __builtin_sqrtf(square / static_cast<float>(width) + eps);
    for (std::int64_t c = 0; c < width; ++c) to[c] = from[c] * weight[c] * inverse;
    if (turns != nullptr) rotate(to, turns, width);
}

// What queries read: keys (width, stride) with channels apart, values (count, padded(width)), and per key where it
// stands and how far it is seen from, or null if all see all.
struct Seen {
    const float* keys;
    const float* values;
    const float* positions;
    const float* reach;
    std::int64_t count, stride, width;
};

// ROWS queries at once: their products with all keys, the softmax of each, its product with the values.
inline void attend(const float* queries, const float* positions, const Seen& seen, float* scores, float* mixed) {
    const std::int64_t width = seen.width, stride = seen.stride, wide = padded(width);
    float inverse[ROWS];
    products(queries, wide, seen.keys, stride, width, scores, stride, stride);
    for (std::int64_t i = 0; i < ROWS; ++i) {
        float* const row = scores + i * stride;
        for (std::int64_t j = seen.count; j < stride; ++j) row[j] = HIDDEN;
        if (seen.reach != nullptr) {
            for (std::int64_t j = 0; j < seen.count; ++j) {
                const float distance = __builtin_fabsf(positions[i] - seen.positions[j]);
                row[j] = distance <= seen.reach[j] ? row[j] : HIDDEN;
            }
        }
        Vector top;
        splat(top, HIDDEN);
        for (std::int64_t j = 0; j < stride; j += LANES) {
            const Vector x = load(row + j);
            top = x > top ? x : top;
        }
        const float best = largest(top);
        Vector total = {};
        const Vector none = {};
        for (std::int64_t j = 0; j < stride; j += LANES) {
            const Vector x = load(row + j);
            Vector weight = x - best;
            exponential(weight);
            weight = x > HIDDEN ? weight : none;
            total += weight;
            store(row + j, weight);
        }
        const float whole = sum(total);
        inverse[i] = whole > 0 ? 1 / whole : 0;
    }
    products(scores, stride, seen.values, wide, seen.count, mixed, wide, wide);
    for (std::int64_t i = 0; i < ROWS; ++i) {
        for (std::int64_t c = 0; c < wide; ++c) mixed[i * wide + c] *= inverse[i];
    }
}

inline void put_value(const float* from, std::int64_t width, std::int64_t wide, float* to) {
    for (std::int64_t c = 0; c < width; ++c) to[c] = from[c];
    for (std::int64_t c = width; c < wide; ++c) to[c] = 0;
}

// `self_attention` of queries first to last of a head whose width is whole vectors.
void attend_whole_vectors(const SelfAttention& call, const float* q, std::int64_t first, std::int64_t last, float* out, float* memory) {
    const std::int64_t width = call.width, length = call.length, stride = padded(length), token = call.token_stride;
    const float* const k = q + call.heads * width;
    float* const keys = memory;
    float* const some = keys + width * stride;
    float* const more = some + LANES * width;
    const float* turns[LANES] = {};
    const auto prepare_from = [&](const float* from, const float* weight, std::int64_t at, std::int64_t live, float scale) {
        for (std::int64_t r = 0; r < live && call.turns != nullptr; ++r) turns[r] = call.turns + (at + r) * width;
        prepare_heads(from + at * token, token, live, weight, turns, call.eps, width, scale, some, width);
    };
    for (std::int64_t j = 0; j < length; j += LANES) {
        prepare_from(k, call.k_weight, j, length - j < LANES ? length - j : LANES, 1);
        for (std::int64_t c = 0; c < width; c += LANES) lay_across(some + c, width, length - j, keys + c * stride + j, stride);
    }
    const float scale = 1 / __builtin_sqrtf(static_cast<float>(width));
    for (std::int64_t c = 0; c < LANES * width; ++c) some[c] = 0;
    for (std::int64_t i = first; i < last; i += ROWS) {
        const std::int64_t live = last - i < ROWS ? last - i : ROWS;
        prepare_from(q, call.q_weight, i, live, scale);
        answer(some, width, live, keys, stride, length, width, k + call.heads * width, token, out + i * (token / 3), token / 3, more);
    }
}

}  // namespace

std::int64_t scratch(std::int64_t keys, std::int64_t width) {
    const std::int64_t stride = padded(keys), wide = padded(width);
    return stride * (width + ROWS + 2) + keys * wide + 2 * ROWS * wide + wide + LANES * wide;
}

void self_attention(const SelfAttention& call, std::int64_t unit, std::int64_t block, float* memory) {
    const std::int64_t width = call.width, wide = padded(width), length = call.length, stride = padded(length);
    const std::int64_t blocks = (length + block - 1) / block;
    const std::int64_t first = unit % blocks * block, head = unit / blocks % call.heads;
    const std::int64_t sequence = unit / blocks / call.heads;
    const std::int64_t last = first + block < length ? first + block : length;
    const std::int64_t part = call.heads * width;
    const std::int64_t at = sequence / call.inner * call.outer_stride + sequence % call.inner * call.inner_stride;
    const float* const q = call.qkv + at + head * width;
    const float* const k = q + part;
    const float* const v = k + part;
    float* const out = call.out + at / 3 + head * width;
    if (width % LANES == 0) {
        attend_whole_vectors(call, q, first, last, out, memory);
        return;
    }
    float* const keys = memory;
    float* const values = keys + width * stride;
    float* const scores = values + length * wide;
    float* const queries = scores + ROWS * stride;
    float* const mixed = queries + ROWS * wide;
    float* const one = mixed + ROWS * wide;

    for (std::int64_t j = 0; j < length; ++j) {
        const float* const turns = call.turns == nullptr ? nullptr : call.turns + j * width;
        prepare(k + j * call.token_stride, call.k_weight, turns, call.eps, width, 1, one);
        for (std::int64_t c = 0; c < width; ++c) keys[c * stride + j] = one[c];
        put_value(v + j * call.token_stride, width, wide, values + j * wide);
    }
    for (std::int64_t c = 0; c < width; ++c) {
        for (std::int64_t j = length; j < stride; ++j) keys[c * stride + j] = 0;
    }
    const Seen seen = {keys, values, nullptr, nullptr, length, stride, width};
    const float scale = 1 / __builtin_sqrtf(static_cast<float>(width));
    for (std::int64_t i = first; i < last; i += ROWS) {
        for (std::int64_t r = 0; r < ROWS; ++r) {
            const std::int64_t token = i + r < last ? i + r : last - 1;
            const float* const turns = call.turns == nullptr ? nullptr : call.turns + token * width;
            prepare(q + token * call.token_stride, call.q_weight, turns, call.eps, width, scale, queries + r * wide);
        }
        attend(queries, nullptr, seen, scores, mixed);
        for (std::int64_t r = 0; r < ROWS && i + r < last; ++r) {
            float* const to = out + (i + r) * (call.token_stride / 3);
            for (std::int64_t c = 0; c < width; ++c) to[c] = mixed[r * wide + c];
        }
    }
}

void cross_attention(const CrossAttention& call, std::int64_t unit, std::int64_t block, float* memory) {
    const std::int64_t width = call.width, wide = padded(width), queries_count = call.queries;
    const std::int64_t blocks = (queries_count + block - 1) / block;
    const std::int64_t first = unit % blocks * block, head = unit / blocks % call.heads, row = unit / blocks / call.heads;
    const std::int64_t last = first + block < queries_count ? first + block : queries_count;
    const std::int64_t context = call.context_of_row == nullptr ? row : call.context_of_row[row];
    const std::int64_t known = context < 0 ? 0 : call.lengths == nullptr ? call.keys : call.lengths[context];
    const std::int64_t count = known + call.tail, stride = padded(count);
    float* const out = call.out + row * queries_count * call.heads * width + head * width;
    float* const keys = memory;
    float* const values = keys + width * stride;
    float* const scores = values + count * wide;
    float* const positions = scores + ROWS * stride;
    float* const reach = positions + stride;
    float* const queries = reach + stride;
    float* const mixed = queries + ROWS * wide;
    float* const one = mixed + ROWS * wide;

    const std::int64_t seen_row = context < 0 ? 0 : context;
    const float* const k = call.k.data + seen_row * call.k.row + head * call.k.head;
    const float* const v = call.v.data + seen_row * call.v.row + head * call.v.head;
    for (std::int64_t j = 0; j < known; ++j) {
        put_value(k + j * call.k.token, width, width, one);
        if (call.k_turns != nullptr) rotate(one, call.k_turns + j * width, width);
        for (std::int64_t c = 0; c < width; ++c) keys[c * stride + j] = one[c];
        put_value(v + j * call.v.token, width, wide, values + j * wide);
    }
    const float* const tail_k = call.tail_k.data + row * call.tail_k.row + head * call.tail_k.head;
    const float* const tail_v = call.tail_v.data + row * call.tail_v.row + head * call.tail_v.head;
    for (std::int64_t j = known; j < count; ++j) {
        const float* const key = tail_k + (j - known) * call.tail_k.token;
        for (std::int64_t c = 0; c < width; ++c) keys[c * stride + j] = key[c];
        put_value(tail_v + (j - known) * call.tail_v.token, width, wide, values + j * wide);
    }
    for (std::int64_t c = 0; c < width; ++c) {
        for (std::int64_t j = count; j < stride; ++j) keys[c * stride + j] = 0;
    }
    const bool windowed = call.window >= 0;
    if (windowed) {
        for (std::int64_t j = 0; j < count; ++j) {
            positions[j] = j < known ? call.k_positions[j] : 0;
            reach[j] = j < known ? call.window : __builtin_inff();
        }
    }
    const Seen seen = {keys, values, positions, windowed ? reach : nullptr, count, stride, width};
    const float scale = 1 / __builtin_sqrtf(static_cast<float>(width));
    for (std::int64_t i = first; i < last; i += ROWS) {
        float at[ROWS] = {};
        for (std::int64_t r = 0; r < ROWS; ++r) {
            const std::int64_t token = i + r < last ? i + r : last - 1;
            const float* const from = call.q.data + row * call.q.row + token * call.q.token + head * call.q.head;
            float* const query = queries + r * wide;
            for (std::int64_t c = 0; c < width; ++c) query[c] = from[c] * scale;
            if (call.q_turns != nullptr) rotate(query, call.q_turns + token * width, width);
            if (windowed) at[r] = call.q_positions[token];
        }
        attend(queries, at, seen, scores, mixed);
        for (std::int64_t r = 0; r < ROWS && i + r < last; ++r) {
            float* const to = out + (i + r) * call.heads * width;
            for (std::int64_t c = 0; c < width; ++c) to[c] = mixed[r * wide + c];
        }
    }
}

void linear(const Linear& call, std::int64_t first_row, std::int64_t last_row, std::int64_t first, std::int64_t last, float* memory) {
    float* const found = memory;
    float* const padding = found + ROWS * PANEL;
    for (std::int64_t panel = first; panel < last; ++panel) {
        const float* const weight = call.packed + panel * call.in * PANEL;
        const std::int64_t column = panel * PANEL, left = call.out - column, columns = left < PANEL ? left : PANEL;
        float bias[PANEL];
        for (std::int64_t c = 0; c < PANEL; ++c) bias[c] = c < columns ? call.bias[column + c] : 0;
        for (std::int64_t i = first_row; i < last_row; i += ROWS) {
            const std::int64_t rows = last_row - i < ROWS ? last_row - i : ROWS;
            const float* x = call.x + i * call.x_stride;
            std::int64_t stride = call.x_stride;
            if (rows < ROWS) {
                for (std::int64_t r = 0; r < ROWS; ++r) {
                    for (std::int64_t c = 0; c < call.in; ++c) padding[r * call.in + c] = r < rows ? x[r * stride + c] : 0;
                }
                x = padding;
                stride = call.in;
            }
            product<PANEL / LANES>(x, stride, weight, PANEL, call.in, found, PANEL);
            for (std::int64_t r = 0; r < rows; ++r) {
                float* const y = call.y + (i + r) * call.out + column;
                for (std::int64_t c = 0; c < PANEL; c += LANES) {
                    Vector u = load(found + r * PANEL + c) + load(bias + c);
                    if (call.gelu) gelu(u);
                    if (c + LANES <= columns) {
                        store(y + c, u);
                    } else {
                        store(found + r * PANEL + c, u);
                        for (std::int64_t k = c; k < columns; ++k) y[k] = found[r * PANEL + k];
                    }
                }
            }
        }
    }
}

void residual_norm(const ResidualNorm& call, std::int64_t group, float* memory) {
    const std::int64_t width = call.width;
    const std::int64_t offset = group / call.frames * call.row_stride + group % call.frames * call.frame_stride;
    float* const gate = memory;
    float* const shift = gate + width;
    float* const scale = shift + width;
    const bool adds = call.branch != nullptr, norms = call.shift_table != nullptr;
    for (std::int64_t c = 0; c < width; ++c) {
        gate[c] = call.gate_table == nullptr ? 1 : call.gate_table[c] + call.gate_rows[offset + c];
    }
    if (norms) {
        for (std::int64_t c = 0; c < width; ++c) {
            shift[c] = call.shift_table[c] + call.shift_rows[offset + c];
            scale[c] = 1 + (call.scale_table[c] + call.scale_rows[offset + c]);
        }
    }
    for (std::int64_t t = 0; t < call.tokens; ++t) {
        const std::int64_t place = (group * call.tokens + t) * width;
        const float* x = call.x + place;
        if (adds) {
            float* const y = call.y + place;
            const float* const branch = call.branch + place;
            for (std::int64_t c = 0; c < width; ++c) y[c] = x[c] + gate[c] * branch[c];
            x = y;
        }
        if (!norms) continue;
        Vector sums = {};
        std::int64_t whole = width / LANES * LANES;
        for (std::int64_t c = 0; c < whole; c += LANES) sums += load(x + c);
        float mean = sum(sums);
        for (std::int64_t c = whole; c < width; ++c) mean += x[c];
        mean /= static_cast<float>(width);
        Vector squares = {};
        for (std::int64_t c = 0; c < whole; c += LANES) {
            const Vector apart = load(x + c) - mean;
            squares += apart * apart;
        }
        float variance = sum(squares);
        for (std::int64_t c = whole; c < width; ++c) variance += (x[c] - mean) * (x[c] - mean);
        const float inverse = 1 / __builtin_sqrtf(variance / static_cast<float>(width) + call.eps);
        float* const normed = call.normed + place;
        for (std::int64_t c = 0; c < width; ++c) normed[c] = (x[c] - mean) * inverse * scale[c] + shift[c];
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

}  // namespace syncflow::SYNCFLOW_INSTRUCTIONS
