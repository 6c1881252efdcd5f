// What blocks do with a tile of tokens: linear layers, norms, MLPs, and reading keys and values that are laid out for
// it. As vectors.h, internal to the file that includes it.
#pragma once

#include <cstdint>

#include "attention.h"
#include "blocks_loops.h"
#include "syncflow/layers.h"
#include "vectors.h"

namespace syncflow::SYNCFLOW_INSTRUCTIONS {
namespace {

constexpr int COLUMNS = PANEL / LANES;
constexpr std::int64_t LINE = 16;    // floats that memory brings at a time
constexpr std::int64_t CHUNK = 128;  // hidden channels of an MLP

// x W^T + b of `rows` rows of x, sixteen outputs at a time: each(row, output, values). Outputs go up to the end of the
// last panel.
template <typename Each>
inline void apply(const Matrix& w, const float* x, std::int64_t stride, std::int64_t rows, float* padding, Each each) {
    const std::int64_t whole = rows / ROWS * ROWS;
    for (std::int64_t r = whole; r < rows; ++r) {
        for (std::int64_t c = 0; c < w.in; ++c) padding[(r - whole) * w.in + c] = x[r * stride + c];
    }
    for (std::int64_t r = rows; whole < rows && r < whole + ROWS; ++r) {
        for (std::int64_t c = 0; c < w.in; ++c) padding[(r - whole) * w.in + c] = 0;
    }
    const std::int64_t groups = (rows + ROWS - 1) / ROWS, ahead = (PANEL * w.in + groups * LINE - 1) / (groups * LINE) * LINE;
    for (std::int64_t column = 0; column < w.out; column += PANEL) {
        const float* const panel = w.packed + column * w.depth;
        const float* next = panel + PANEL * w.depth;  // fetched while this one is multiplied
        Vector bias[COLUMNS];
        for (int v = 0; v < COLUMNS; ++v) bias[v] = w.bias == nullptr ? Vector{} : load(w.bias + column + v * LANES);
        for (std::int64_t i = 0; i < rows; i += ROWS) {
            if (column + PANEL < w.out) {
                for (std::int64_t c = 0; c < ahead; c += LINE) __builtin_prefetch(next + c);
                next += ahead;
            }
            float found[ROWS * PANEL];
            if (i < whole) {
                product<COLUMNS>(x + i * stride, stride, panel, PANEL, w.in, found, PANEL);
            } else {
                product<COLUMNS>(padding, w.in, panel, PANEL, w.in, found, PANEL);
            }
            const std::int64_t live = rows - i < ROWS ? rows - i : ROWS;
            for (std::int64_t r = 0; r < live; ++r) {
                for (int v = 0; v < COLUMNS; ++v) each(i + r, column + v * LANES, load(found + r * PANEL + v * LANES) + bias[v]);
            }
        }
    }
}

// (x - mean) / sqrt(variance + eps) of D channels, sixteen at a time: each(channel, values).
template <typename Each>
inline void normalize(const float* x, std::int64_t width, float eps, Each each) {
    Vector sums = {}, squares = {};
    for (std::int64_t c = 0; c < width; c += LANES) sums += load(x + c);
    const float mean = sum(sums) / static_cast<float>(width);
    for (std::int64_t c = 0; c < width; c += LANES) {
        const Vector apart = load(x + c) - mean;
        squares += apart * apart;
    }
    const float inverse = 1 / __builtin_sqrtf(sum(squares) / static_cast<float>(width) + eps);
    for (std::int64_t c = 0; c < width; c += LANES) each(c, (load(x + c) - mean) * inverse);
}

// Vectors (count, n, d), tokens apart by stride, times rows h d .. (h + 1) d of matrix (D, D) for head h:
// each(head, token, column, values).
template <typename Each>
inline void fold(const float* vectors, std::int64_t stride, std::int64_t count, std::int64_t heads, std::int64_t width,
                 const float* matrix, Each each) {
    const std::int64_t of_head = width / heads;
    for (std::int64_t j = 0; j < count; j += ROWS) {
        const std::int64_t live = count - j < ROWS ? count - j : ROWS;
        const float* from[ROWS];
        for (std::int64_t r = 0; r < ROWS; ++r) from[r] = vectors + (j + (r < live ? r : live - 1)) * stride;
        for (std::int64_t h = 0; h < heads; ++h) {
            for (std::int64_t column = 0; column < width; column += PANEL) {
                Vector found[ROWS][COLUMNS] = {};
                for (std::int64_t i = 0; i < of_head; ++i) {
                    const float* const row = matrix + (h * of_head + i) * width + column;
#pragma GCC unroll 8
                    for (int r = 0; r < ROWS; ++r) {
                        for (int v = 0; v < COLUMNS; ++v) found[r][v] += from[r][h * of_head + i] * load(row + v * LANES);
                    }
                }
#pragma GCC unroll 8
                for (int r = 0; r < ROWS; ++r) {
                    if (r < live) {
                        for (int v = 0; v < COLUMNS; ++v) each(h, j + r, column + v * LANES, found[r][v]);
                    }
                }
            }
        }
    }
}

inline float* taken(float*& memory, std::int64_t floats) {
    float* const given = memory;
    memory += floats;
    return given;
}

inline std::int64_t most(std::int64_t a, std::int64_t b) { return a > b ? a : b; }

// What a tile of tokens x reads, after its projection: each(row, output, values). Queries are turned by turns + r * d
// unless that is null. `tail_scratch` has its memory.
template <typename Each>
inline void read(const Reading& reading, const Matrix& query, const Matrix& project, const float* turns, const float* x,
                 std::int64_t rows, std::int64_t heads, std::int64_t width, float* padding, float* memory, Each each) {
    const std::int64_t of_head = width / heads, count = reading.count, compact = score_stride(heads * count);
    float* const weights = taken(memory, TILE * compact);
    if (reading.folded && reading.keys.out > 0) {
        float* const scores = taken(memory, TILE * compact);
        apply(reading.keys, x, width, rows, padding,
              [&](std::int64_t r, std::int64_t c, const Vector& found) { store(scores + r * compact + c, found); });
        for (std::int64_t r = 0; r < rows; ++r) {
            for (std::int64_t h = 0; h < heads; ++h) soften(scores + r * compact + h * count, count, weights + r * compact + h * count);
        }
        apply(reading.values, weights, compact, rows, padding, each);
        return;
    }
    const std::int64_t stride = padded(count);
    float* const queries = taken(memory, TILE * width);
    float* const mixed = taken(memory, TILE * width);
    float* const scores = taken(memory, ROWS * stride);
    for (std::int64_t c = rows * width; c < TILE * width; ++c) queries[c] = 0;
    apply(query, x, width, rows, padding,
          [&](std::int64_t r, std::int64_t c, const Vector& found) { store(queries + r * width + c, found); });
    for (std::int64_t i = 0; i < rows; i += ROWS) {
        const std::int64_t live = rows - i < ROWS ? rows - i : ROWS;
        for (std::int64_t h = 0; h < heads; ++h) {
            float* const q = queries + i * width + h * of_head;
            for (std::int64_t r = 0; r < live && turns != nullptr; ++r) rotate(q + r * width, turns + (i + r) * of_head, of_head);
            products(q, width, reading.keys.packed + h * of_head * stride, stride, of_head, scores, stride, stride);
            if (reading.folded) {
                for (std::int64_t r = 0; r < live; ++r) soften(scores + r * stride, count, weights + (i + r) * compact + h * count);
                continue;
            }
            for (std::int64_t r = 0; r < ROWS; ++r) soften(scores + r * stride, count, scores + r * stride);
            products(scores, stride, reading.values.packed + h * of_head, width, count, mixed + i * width + h * of_head, width, of_head);
        }
    }
    if (reading.folded) {
        apply(reading.values, weights, compact, rows, padding, each);
    } else {
        apply(project, mixed, width, rows, padding, each);
    }
}

// The MLP of a tile of x, some of its hidden channels at a time, which stay in the cache. -> y. Needs TILE * CHUNK floats
// of memory, and its padding.
inline void feed(const Matrix& up, const Matrix& down, const float* x, std::int64_t rows, float* padding, float* memory, float* y) {
    for (std::int64_t first = 0; first < up.out; first += CHUNK) {
        const std::int64_t some = up.out - first < CHUNK ? up.out - first : CHUNK;
        const Matrix up_part = {up.packed + first * up.depth, up.bias + first, some, up.in, up.depth};
        const Matrix down_part = {down.packed + first * PANEL, down.bias, down.out, some, down.depth};
        apply(up_part, x, up.in, rows, padding, [&](std::int64_t r, std::int64_t c, Vector found) {
            gelu(found);
            store(memory + r * some + c, found);
        });
        if (first == 0) {
            apply(down_part, memory, some, rows, padding,
                  [&](std::int64_t r, std::int64_t c, const Vector& found) { store(y + r * down.out + c, found); });
        } else {
            const Matrix more = {down_part.packed, nullptr, down.out, some, down.depth};
            apply(more, memory, some, rows, padding, [&](std::int64_t r, std::int64_t c, const Vector& found) {
                store(y + r * down.out + c, load(y + r * down.out + c) + found);
            });
        }
    }
}

}  // namespace
}  // namespace syncflow::SYNCFLOW_INSTRUCTIONS
