// The loops of layers.h, compiled once for each set of instructions. Nothing of the standard library is instantiated
// here: the linker would keep one copy of it, and processors that lack the instructions would run into it.
#include <cstddef>
#include <cstdint>

#include "layers_loops.h"

namespace syncflow::SYNCFLOW_INSTRUCTIONS {
namespace {

constexpr std::int64_t LANES = 16;
#ifdef __AVX512F__
constexpr std::int64_t ROWS = 8;  // queries at a time: with two vectors each they fill the registers
#else
constexpr std::int64_t ROWS = 4;
#endif
constexpr float HIDDEN = -3.0e38f;

typedef float Vector __attribute__((vector_size(64)));
typedef std::int32_t Integers __attribute__((vector_size(64)));

inline Vector load(const float* from) {
    Vector x;
    __builtin_memcpy(&x, from, sizeof x);
    return x;
}

inline void store(float* to, const Vector& x) { __builtin_memcpy(to, &x, sizeof x); }

inline void splat(Vector& x, float value) {
    const Vector none = {};
    x = none + value;
}

// e^x for x <= 0, to 2 units in the last place; 0 below -87, where it is smaller than any normal number.
inline void exponential(Vector& x) {
    Vector low, turns;
    splat(low, -87.0f);
    const Vector given = x, none = {};
    x = x > low ? x : low;
    const Vector n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
    const Vector r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    turns = r * 1.9875691500e-4f + 1.3981999507e-3f;
    turns = turns * r + 8.3334519073e-3f;
    turns = turns * r + 4.1665795894e-2f;
    turns = turns * r + 1.6666665459e-1f;
    turns = turns * r + 5.0000001201e-1f;
    turns = turns * r * r + r + 1.0f;
    const Integers power = (__builtin_convertvector(n, Integers) + 127) << 23;
    Vector scale;
    __builtin_memcpy(&scale, &power, sizeof scale);
    x = given < low ? none : turns * scale;
}

// Lane i of the result is lane lanes[i] of x.
inline Vector shuffled(const Vector& x, const Integers& lanes) {
#ifdef __clang__
    Vector y;
    for (int i = 0; i < LANES; ++i) y[i] = x[lanes[i]];
    return y;
#else
    return __builtin_shuffle(x, lanes);
#endif
}

// The upper half of the first 2 * step lanes brought down to the lower.
template <int step>
inline Vector folded(const Vector& x) {
    const Integers lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return shuffled(x, (lanes + step) & 15);
}

inline float sum(Vector x) {
    x += folded<8>(x);
    x += folded<4>(x);
    x += folded<2>(x);
    return x[0] + x[1];
}

inline float largest(Vector x) {
    Vector y = folded<8>(x);
    x = x > y ? x : y;
    y = folded<4>(x);
    x = x > y ? x : y;
    y = folded<2>(x);
    x = x > y ? x : y;
    return x[0] > x[1] ? x[0] : x[1];
}

inline std::int64_t padded(std::int64_t count) { return (count + LANES - 1) / LANES * LANES; }

// Turns pairs of channels by their angles, whose cosine and sine are given.
inline void rotate(float* x, const float* turns, std::int64_t width) {
    const Integers first = {0, 0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10, 12, 12, 14, 14};
    const Integers other = {1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14};
    const Vector signs = {-1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1};
    const std::int64_t whole = width / LANES * LANES;
    for (std::int64_t c = 0; c < whole; c += LANES) {
        const Vector from = load(x + c), angle = load(turns + c);
        store(x + c, from * shuffled(angle, first) + shuffled(from, other) * (signs * shuffled(angle, first + 1)));
    }
    for (std::int64_t c = whole; c < width; c += 2) {
        const float even = x[c], odd = x[c + 1], cosine = turns[c], sine = turns[c + 1];
        x[c] = even * cosine - odd * sine;
        x[c + 1] = even * sine + odd * cosine;
    }
}

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

// out[i, :] = sum over c of a[i, c] b[c, :] for ROWS rows and COLUMNS vectors of columns.
template <int COLUMNS>
inline void product(const float* a, std::int64_t a_stride, const float* b, std::int64_t b_stride, std::int64_t count, float* out,
                    std::int64_t out_stride) {
    Vector found[ROWS][COLUMNS] = {};
    for (std::int64_t c = 0; c < count; ++c) {
        Vector row[COLUMNS];
        for (int v = 0; v < COLUMNS; ++v) row[v] = load(b + c * b_stride + v * LANES);
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; ++i) {
            for (int v = 0; v < COLUMNS; ++v) found[i][v] += a[i * a_stride + c] * row[v];
        }
    }
    for (int i = 0; i < ROWS; ++i) {
        for (int v = 0; v < COLUMNS; ++v) store(out + i * out_stride + v * LANES, found[i][v]);
    }
}

inline void products(const float* a, std::int64_t a_stride, const float* b, std::int64_t b_stride, std::int64_t count, float* out,
                     std::int64_t out_stride, std::int64_t columns) {
    std::int64_t j = 0;
    for (; j + 2 * LANES <= columns; j += 2 * LANES) product<2>(a, a_stride, b + j, b_stride, count, out + j, out_stride);
    for (; j < columns; j += LANES) product<1>(a, a_stride, b + j, b_stride, count, out + j, out_stride);
}

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

// u (1 + tanh(sqrt(2 / pi) (u + 0.044715 u^3))) / 2, which is u times the logistic function of twice the bracket.
inline void gelu(Vector& u) {
    const Vector t = u * (u * u * 0.0713548162726f + 1.59576912161f), none = {};
    Vector e = t > none ? -t : t;
    exponential(e);
    Vector one;
    splat(one, 1);
    u *= (t > none ? one : e) / (one + e);
}

inline void put_value(const float* from, std::int64_t width, std::int64_t wide, float* to) {
    for (std::int64_t c = 0; c < width; ++c) to[c] = from[c];
    for (std::int64_t c = width; c < wide; ++c) to[c] = 0;
}

}  // namespace

std::int64_t scratch(std::int64_t keys, std::int64_t width) {
    const std::int64_t stride = padded(keys), wide = padded(width);
    return stride * (width + ROWS + 2) + keys * wide + 2 * ROWS * wide + wide;
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

}  // namespace syncflow::SYNCFLOW_INSTRUCTIONS
