// Matrix products on the registers of one instruction level. As simd.h, internal to the file that includes it.
#pragma once

#include <cstdint>

#include "kernels/packed_matrix.h"
#include "kernels/simd.h"

namespace syncflow::SYNCFLOW_INSTRUCTIONS {
namespace {

// Rows of a micro-kernel that computes two registers of columns: the sums take most of the registers, and enough of
// them hide the latency of a multiply-add (4 cycles at 2 a cycle).
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int MICRO_ROWS = 8;  // of 32 registers
#else
constexpr int MICRO_ROWS = 6;  // of 16
#endif

// sums[i, j] = sum over c of a[i, c] b[c, j], in that order, for `rows` rows and some registers of columns. Not inlined:
// what surrounds it would compete for its registers.
template <int rows, int registers>
[[gnu::noinline]] void micro_kernel(const float* a, std::int64_t a_stride, const float* b, std::int64_t b_stride, std::int64_t depth,
                                    float* sums) {
    Vector totals[rows][registers] = {};
#pragma GCC unroll 4  // what is not a multiply-add costs most where another thread shares the core
    for (std::int64_t c = 0; c < depth; ++c) {
        Vector of_b[registers];
#pragma GCC unroll 2
        for (int v = 0; v < registers; ++v) of_b[v] = load(b + c * b_stride + v * LANES);
#pragma GCC unroll 8
        for (int i = 0; i < rows; ++i) {
            const float of_a = a[i * a_stride + c];
#pragma GCC unroll 2
            for (int v = 0; v < registers; ++v) totals[i][v] += of_a * of_b[v];
        }
    }
#pragma GCC unroll 16
    for (int k = 0; k < rows * registers; ++k) store(sums + k * LANES, totals[k / registers][k % registers]);
}

// epilogue(row, column, sums) for a (rows, depth) times b (depth, some registers of columns). `next` is fetched into the
// cache meanwhile: what is multiplied after b, as b laid out, or null.
template <int registers, typename Epilogue>
inline void multiply_strip(const float* a, std::int64_t a_stride, std::int64_t rows, const float* b, std::int64_t b_stride,
                           std::int64_t depth, const float* next, Epilogue epilogue) {
    constexpr int most = registers == 1 ? 8 : MICRO_ROWS;
    alignas(Vector) float sums[most * registers * LANES];
    const std::int64_t ahead = next == nullptr || rows == 0 ? 0 : (depth * most + rows - 1) / rows;  // rows of `next` for some of a
    for (std::int64_t i = 0, some = 0; i < rows; i += some) {
        const float* const from = a + i * a_stride;
        const std::int64_t left = rows - i;
        for (std::int64_t c = 0; c < ahead; ++c) __builtin_prefetch(next + c * b_stride);
        next += ahead * b_stride;
        if (left >= most && (most == 8 || left != 8)) {  // 8 = 4 + 4, not 6 + 2
            micro_kernel<most, registers>(from, a_stride, b, b_stride, depth, sums);
            some = most;
        } else if (left >= 4) {
            micro_kernel<4, registers>(from, a_stride, b, b_stride, depth, sums);
            some = 4;
        } else if (left >= 2) {
            micro_kernel<2, registers>(from, a_stride, b, b_stride, depth, sums);
            some = 2;
        } else {
            micro_kernel<1, registers>(from, a_stride, b, b_stride, depth, sums);
            some = 1;
        }
        for (std::int64_t r = 0; r < some; ++r) {
#pragma GCC unroll 2
            for (int v = 0; v < registers; ++v) epilogue(i + r, v * LANES, load(sums + (r * registers + v) * LANES));
        }
    }
}

// The same for any number of columns, rounded up to whole registers.
template <typename Epilogue>
inline void multiply(const float* a, std::int64_t a_stride, std::int64_t rows, const float* b, std::int64_t b_stride,
                     std::int64_t depth, std::int64_t columns, Epilogue epilogue) {
    std::int64_t j = 0;
    for (; columns - j > LANES; j += 2 * LANES) {
        multiply_strip<2>(a, a_stride, rows, b + j, b_stride, depth, nullptr,
                          [&](std::int64_t r, std::int64_t c, const Vector& x) { epilogue(r, j + c, x); });
    }
    if (columns > j) {
        multiply_strip<1>(a, a_stride, rows, b + j, b_stride, depth, nullptr,
                          [&](std::int64_t r, std::int64_t c, const Vector& x) { epilogue(r, j + c, x); });
    }
}

// epilogue(row, output, values) for x W^T + b of `rows` rows of x. Outputs go on to the end of the last strip. The first
// panel of the matrix that is multiplied `after` is fetched into the cache, unless that is null.
template <typename Epilogue>
inline void gemm_packed(const PackedMatrix& w, const float* x, std::int64_t stride, std::int64_t rows, Epilogue epilogue,
                        const float* after = nullptr) {
    constexpr int strip = 2 * LANES;
    static_assert(PANEL % strip == 0);
    const auto strip_at = [&](std::int64_t column) { return w.packed + column / PANEL * PANEL * w.depth + column % PANEL; };
    for (std::int64_t column = 0; column < w.out; column += strip) {
        const float* const next = column + strip < w.out ? strip_at(column + strip) : after;
        const Vector low = w.bias == nullptr ? Vector{} : load(w.bias + column);
        const Vector high = w.bias == nullptr ? Vector{} : load(w.bias + column + LANES);
        multiply_strip<2>(x, stride, rows, strip_at(column), PANEL, w.in, next,
                          [&](std::int64_t r, std::int64_t c, const Vector& sums) {
                              epilogue(r, column + c, sums + (c == 0 ? low : high));
                          });
    }
}

}  // namespace
}  // namespace syncflow::SYNCFLOW_INSTRUCTIONS
