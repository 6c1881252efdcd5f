// Attention of one head: norms and rotations of queries and keys, the softmax, and the two products around it. As
// simd.h, internal to the file that includes it.
#pragma once

#include <cstdint>

#include "kernels/gemm.h"
#include "kernels/simd.h"

namespace syncflow::SYNCFLOW_INSTRUCTIONS {
namespace {

constexpr std::int64_t QUERIES = 24;  // of a tile: their scores stay in the L1 cache

// One head of up to LANES tokens: x / sqrt(mean(x^2) + eps) * weight * scale, rotated by rope[token] (d / 2, 2) unless
// that is null. `whole` if the width is whole registers; else channels up to those are written too, as 0, and `to` must
// not be `from`.
template <bool whole>
inline void rms_norm_and_rotate(const float* from, std::int64_t stride, std::int64_t tokens, const float* weight,
                                const float* const* rope, float eps, std::int64_t width, float scale, float* to,
                                std::int64_t to_stride) {
    Vector squares[LANES] = {};
    for (std::int64_t t = 0; t < tokens; ++t) {
        for (std::int64_t c = 0; c < width; c += LANES) {
            const Vector x = load_channels<whole>(from + t * stride + c, width - c);
            squares[t] += x * x;
        }
    }
    float factors[LANES];
    store(factors, horizontal_sums(squares) / static_cast<float>(width) + eps);
    for (int t = 0; t < LANES; ++t) factors[t] = scale * rsqrt(factors[t]);
    for (std::int64_t t = 0; t < tokens; ++t) {
        for (std::int64_t c = 0; c < width; c += LANES) {
            const std::int64_t left = width - c;
            Vector x = load_channels<whole>(from + t * stride + c, left) * load_channels<whole>(weight + c, left) * factors[t];
            if (rope[t] != nullptr) x = rotate_pairs(x, load_channels<whole>(rope[t] + c, left));
            store(to + t * to_stride + c, x);
        }
    }
}

// weights[j] = exp(scores[j] - max(scores)) for `count` scores, 0 where a score is MASKED and in the rest of the last
// register. -> the factor that normalises them: 1 / their sum, or 0 where all are masked.
inline float unnormalized_softmax(const float* scores, std::int64_t count, float* weights) {
    const Vector masked = broadcast(MASKED);
    const std::int64_t whole = count / LANES * LANES, rest = count - whole;
    Vector top = rest == 0 ? masked : first_lanes(load(scores + whole), rest, masked);
    for (std::int64_t j = 0; j < whole; j += LANES) top = max(top, load(scores + j));
    const float largest = max(top);
    Vector total = {};
    for (std::int64_t j = 0; j < whole; j += LANES) {
        const Vector weight = exp_nonpositive(load(scores + j) - largest);
        total += weight;
        store(weights + j, weight);
    }
    if (rest != 0) {
        const Vector weight = first_lanes(exp_nonpositive(load(scores + whole) - largest), rest, Vector{});
        total += weight;
        store(weights + whole, weight);
    }
    return largest > MASKED ? 1 / sum(total) : 0;
}

inline void softmax(const float* scores, std::int64_t count, float* weights) {
    const float inverse = unnormalized_softmax(scores, count, weights);
    for (std::int64_t j = 0; j < count; j += LANES) store(weights + j, load(weights + j) * inverse);
}

// softmax(q k^T) v of up to QUERIES queries (d) and `count` keys (d, key_stride), of which mask(query, scores) may mask
// some, and values (count, d). Widths are whole registers. Needs queries * key_stride floats of memory.
template <typename Mask>
inline void attend(const float* q, std::int64_t q_stride, std::int64_t queries, const float* keys, std::int64_t key_stride,
                   std::int64_t count, std::int64_t depth, const float* values, std::int64_t value_stride, std::int64_t width,
                   float* out, std::int64_t out_stride, float* scores, Mask mask) {
    multiply(q, q_stride, queries, keys, key_stride, depth, count,
             [&](std::int64_t r, std::int64_t j, const Vector& x) { store(scores + r * key_stride + j, x); });
    float inverse[QUERIES];
    for (std::int64_t r = 0; r < queries; ++r) {
        mask(r, scores + r * key_stride);
        inverse[r] = unnormalized_softmax(scores + r * key_stride, count, scores + r * key_stride);
    }
    multiply(scores, key_stride, queries, values, value_stride, count, width,
             [&](std::int64_t r, std::int64_t c, const Vector& x) { store(out + r * out_stride + c, x * inverse[r]); });
}

// Keys (count, width) to (width, key_stride), whole registers of them.
inline void transpose_keys(const float* keys, std::int64_t stride, std::int64_t count, std::int64_t width, float* to,
                           std::int64_t key_stride) {
    for (std::int64_t j = 0; j < count; j += LANES) {
        for (std::int64_t c = 0; c < width; c += LANES) {
            transpose_tile(keys + j * stride + c, stride, count - j, to + c * key_stride + j, key_stride);
        }
    }
}

}  // namespace
}  // namespace syncflow::SYNCFLOW_INSTRUCTIONS
