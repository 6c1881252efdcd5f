// Cross-attention and MLP of a tile of tokens. As simd.h, internal to the file that includes it.
#pragma once

#include <cstdint>

#include "kernels/attention.h"
#include "kernels/block_kernels.h"
#include "kernels/gemm.h"
#include "kernels/token_ops.h"

namespace syncflow::SYNCFLOW_INSTRUCTIONS {
namespace {

constexpr std::int64_t CHUNK = 128;  // hidden channels of an MLP at a time

inline float* bump_allocate(float*& memory, std::int64_t floats) {
    float* const allocated = memory;
    memory += floats;
    return allocated;
}

// Floats a token.
inline std::int64_t cross_attend_memory(std::int64_t width, std::int64_t keys, std::int64_t heads) {
    return 2 * score_stride(heads * keys) + 2 * width;
}

// Cross-attention of a tile of tokens x: epilogue(row, channel, values) after its output projection. Queries are rotated
// by rope + row * d unless that is null.
template <typename Epilogue>
inline void cross_attend(const CrossContext& context, const PackedMatrix& query, const PackedMatrix& out, const float* rope,
                         const float* x, std::int64_t rows, std::int64_t heads, std::int64_t width, float* memory, Epilogue epilogue) {
    const std::int64_t head_width = width / heads, count = context.count, all_keys = score_stride(heads * count);
    float* const weights = bump_allocate(memory, TILE * all_keys);
    float* const scores = bump_allocate(memory, TILE * all_keys);
    if (context.folded && context.keys.out > 0) {
        gemm_packed(context.keys, x, width, rows,
                    [&](std::int64_t r, std::int64_t c, const Vector& values) { store(scores + r * all_keys + c, values); });
        for (std::int64_t r = 0; r < rows; ++r) {
            for (std::int64_t key = 0; key < heads * count; key += count) {
                softmax(scores + r * all_keys + key, count, weights + r * all_keys + key);
            }
        }
        gemm_packed(context.values, weights, all_keys, rows, epilogue);
        return;
    }
    const std::int64_t key_stride = round_up(count, KEY_ALIGN);
    float* const queries = bump_allocate(memory, TILE * width);
    float* const attended = bump_allocate(memory, TILE * width);
    gemm_packed(query, x, width, rows,
                [&](std::int64_t r, std::int64_t c, const Vector& values) { store(queries + r * width + c, values); });
    for (std::int64_t r = 0; r < rows && rope != nullptr; ++r) {
        for (std::int64_t c = 0; c < width; c += LANES) {
            float* const q = queries + r * width + c;
            store(q, rotate_pairs(load(q), load(rope + r * head_width + c % head_width)));
        }
    }
    for (std::int64_t i = 0; i < rows; i += QUERIES) {
        const std::int64_t some = min(rows - i, QUERIES);
        for (std::int64_t h = 0; h < heads; ++h) {
            const float* const q = queries + i * width + h * head_width;
            const float* const keys = context.keys.packed + h * head_width * key_stride;
            if (!context.folded) {
                attend(q, width, some, keys, key_stride, count, head_width, context.values.packed + h * head_width, width, head_width,
                       attended + i * width + h * head_width, width, scores, [](std::int64_t, float*) {});
                continue;
            }
            multiply(q, width, some, keys, key_stride, head_width, count,
                     [&](std::int64_t r, std::int64_t j, const Vector& values) { store(scores + r * key_stride + j, values); });
            for (std::int64_t r = 0; r < some; ++r) softmax(scores + r * key_stride, count, weights + (i + r) * all_keys + h * count);
        }
    }
    if (context.folded) {
        gemm_packed(context.values, weights, all_keys, rows, epilogue);
    } else {
        gemm_packed(out, attended, width, rows, epilogue);
    }
}

// The MLP of a tile of x, CHUNK hidden channels at a time, which stay in the cache. -> y. TILE * CHUNK floats of memory.
inline void mlp(const PackedMatrix& up, const PackedMatrix& down, const float* x, std::int64_t rows, float* memory, float* y) {
    for (std::int64_t first = 0; first < up.out; first += CHUNK) {
        const std::int64_t hidden = min(up.out - first, CHUNK);
        const PackedMatrix up_part = {
            .packed = up.packed + first * up.depth, .bias = up.bias + first, .out = hidden, .in = up.in, .depth = up.depth};
        const PackedMatrix down_part = {.packed = down.packed + first * PANEL,
                                        .bias = first == 0 ? down.bias : nullptr,
                                        .out = down.out,
                                        .in = hidden,
                                        .depth = down.depth};
        gemm_packed(up_part, x, up.in, rows,
                    [&](std::int64_t r, std::int64_t c, const Vector& values) { store(memory + r * hidden + c, gelu(values)); },
                    down_part.packed);
        const float* const after = first + hidden < up.out ? up_part.packed + hidden * up.depth : nullptr;
        gemm_packed(down_part, memory, hidden, rows, [&](std::int64_t r, std::int64_t c, const Vector& values) {
            float* const to = y + r * down.out + c;
            store(to, first == 0 ? values : load(to) + values);
        }, after);
    }
}

// Vectors (count, n, d), `stride` floats apart, each head times its rows of matrix (D, D): rows h d to (h + 1) d.
// epilogue(head, vector, channel, values).
template <typename Epilogue>
inline void multiply_heads(const float* vectors, std::int64_t stride, std::int64_t count, std::int64_t heads, std::int64_t width,
                           const float* matrix, Epilogue epilogue) {
    const std::int64_t head_width = width / heads;
    for (std::int64_t h = 0; h < heads; ++h) {
        multiply(vectors + h * head_width, stride, count, matrix + h * head_width * width, width, head_width, width,
                 [&](std::int64_t r, std::int64_t c, const Vector& values) { epilogue(h, r, c, values); });
    }
}

}  // namespace
}  // namespace syncflow::SYNCFLOW_INSTRUCTIONS
