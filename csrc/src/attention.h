// Attention among the tokens of a sequence, for heads whose width is whole vectors. As vectors.h, internal to the file
// that includes it.
#pragma once

#include <cstdint>

#include "vectors.h"

namespace syncflow::SYNCFLOW_INSTRUCTIONS {
namespace {

// RMS norm, weight and rotation of one head of up to sixteen tokens: x / sqrt(mean(x^2) + eps) * weight * scale, pairs
// of channels turned by turns[r] unless it is null. `to` may be `from`.
inline void prepare_heads(const float* from, std::int64_t stride, std::int64_t live, const float* weight, const float* const* turns,
                          float eps, std::int64_t width, float scale, float* to, std::int64_t to_stride) {
    Vector squares[LANES] = {};
    for (std::int64_t r = 0; r < live; ++r) {
        for (std::int64_t c = 0; c < width; c += LANES) squares[r] += load(from + r * stride + c) * load(from + r * stride + c);
    }
    float scales[LANES];
    store(scales, sums(squares) / static_cast<float>(width) + eps);
    for (int r = 0; r < LANES; ++r) scales[r] = scale / __builtin_sqrtf(scales[r]);
    for (std::int64_t r = 0; r < live; ++r) {
        for (std::int64_t c = 0; c < width; c += LANES) {
            Vector x = load(from + r * stride + c) * load(weight + c) * scales[r];
            if (turns[r] != nullptr) x = turned(x, load(turns[r] + c));
            store(to + r * to_stride + c, x);
        }
    }
}

// The softmax of `count` scores. Lanes behind the last are written too, with 0.
inline void soften(const float* scores, std::int64_t count, float* weights) {
    const Integers lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const Vector none = {};
    Vector top, hidden, total = {};
    splat(hidden, HIDDEN);
    top = hidden;
    for (std::int64_t j = 0; j < count; j += LANES) {
        Vector x = load(scores + j);
        x = lanes < static_cast<std::int32_t>(count - j) ? x : hidden;
        top = x > top ? x : top;
    }
    const float best = largest(top);
    for (std::int64_t j = 0; j < count; j += LANES) {
        Vector weight = load(scores + j) - best;
        exponential(weight);
        weight = lanes < static_cast<std::int32_t>(count - j) ? weight : none;
        total += weight;
        store(weights + j, weight);
    }
    const float inverse = 1 / sum(total);
    for (std::int64_t j = 0; j < count; j += LANES) store(weights + j, load(weights + j) * inverse);
}

// What ROWS queries, of which `live` count, read of `count` keys (width, stride) and values that are `apart`. Needs
// ROWS (stride + width) floats of memory.
inline void answer(const float* queries, std::int64_t queries_apart, std::int64_t live, const float* keys, std::int64_t stride,
                   std::int64_t count, std::int64_t width, const float* values, std::int64_t apart, float* out,
                   std::int64_t out_apart, float* memory) {
    float* const scores = memory;
    float* const mixed = scores + ROWS * stride;
    products(queries, queries_apart, keys, stride, width, scores, stride, stride);
    for (std::int64_t r = 0; r < live; ++r) soften(scores + r * stride, count, scores + r * stride);
    if (live == ROWS) {
        products(scores, stride, values, apart, count, out, out_apart, width);
        return;
    }
    for (std::int64_t r = live; r < ROWS; ++r) {
        for (std::int64_t j = 0; j < stride; j += LANES) store(scores + r * stride + j, Vector{});
    }
    products(scores, stride, values, apart, count, mixed, width, width);
    for (std::int64_t r = 0; r < live; ++r) {
        for (std::int64_t c = 0; c < width; c += LANES) store(out + r * out_apart + c, load(mixed + r * width + c));
    }
}

}  // namespace
}  // namespace syncflow::SYNCFLOW_INSTRUCTIONS
