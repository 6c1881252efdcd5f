// The kernels of the codecs, compiled once per instruction level.
#include "kernels/codec_kernels.h"

#include <cstdint>

#include "kernels/gemm.h"
#include "kernels/simd.h"
#include "kernels/token_ops.h"

namespace syncflow::SYNCFLOW_INSTRUCTIONS {
namespace {

// Sums of `rows` positions and some registers of outputs over all segments. Not inlined, as the micro-kernel of gemm.h.
template <int rows, int registers>
[[gnu::noinline]] void convolve_rows(const Convolution& call, const float* const* positions, const float* b, float* sums) {
    Vector totals[rows][registers] = {};
    for (std::int64_t s = 0; s < call.segments; ++s) {
        const float* a[rows];
#pragma GCC unroll 8
        for (int i = 0; i < rows; ++i) a[i] = positions[i] + call.offsets[s];
#pragma GCC unroll 4
        for (std::int64_t c = 0; c < call.depth; ++c, b += PANEL) {
            Vector of_b[registers];
#pragma GCC unroll 2
            for (int v = 0; v < registers; ++v) of_b[v] = load(b + v * LANES);
#pragma GCC unroll 8
            for (int i = 0; i < rows; ++i) {
                const float of_a = a[i][c];
#pragma GCC unroll 2
                for (int v = 0; v < registers; ++v) totals[i][v] += of_a * of_b[v];
            }
        }
    }
#pragma GCC unroll 16
    for (int k = 0; k < rows * registers; ++k) store(sums + k * LANES, totals[k / registers][k % registers]);
}

// Outputs [column, column + registers) of positions [first, last).
template <int registers>
inline void convolve_strip(const Convolution& call, std::int64_t first, std::int64_t last, std::int64_t column) {
    constexpr int most = registers == 1 ? 8 : MICRO_ROWS;
    alignas(Vector) float sums[most * registers * LANES];
    const float* const b = call.packed + column / PANEL * PANEL * call.segments * call.depth + column % PANEL;
    std::int64_t t = first / (call.height * call.width), h = first / call.width % call.height, w = first % call.width;
    for (std::int64_t i = first, some = 0; i < last; i += some) {
        const std::int64_t left = last - i;
        some = left >= most ? most : left >= 4 ? 4 : left >= 2 ? 2 : 1;
        const float* positions[most];
        for (std::int64_t r = 0; r < some; ++r) {
            positions[r] = call.x + t * call.strides[0] + h * call.strides[1] + w * call.strides[2];
            if (++w < call.width) continue;
            w = 0;
            if (++h < call.height) continue;
            h = 0;
            ++t;
        }
        if (some == most) {
            convolve_rows<most, registers>(call, positions, b, sums);
        } else if (some == 4) {
            convolve_rows<4, registers>(call, positions, b, sums);
        } else if (some == 2) {
            convolve_rows<2, registers>(call, positions, b, sums);
        } else {
            convolve_rows<1, registers>(call, positions, b, sums);
        }
        for (std::int64_t r = 0; r < some; ++r) {
#pragma GCC unroll 2
            for (int v = 0; v < registers; ++v) {
                const std::int64_t channel = column + v * LANES, channels = call.out - channel, at = (i + r) * call.out + channel;
                if (channels <= 0) continue;
                Vector y = load(sums + (r * registers + v) * LANES) + load(call.bias + channel);
                if (call.add != nullptr) y += load_partial(call.add + at, channels);
                store_partial(call.y + at, y, channels);
            }
        }
    }
}

void convolve(const Convolution& call, std::int64_t first, std::int64_t last, std::int64_t panel) {
    const std::int64_t end = min((panel + 1) * PANEL, call.out);
    std::int64_t column = panel * PANEL;
    for (; end - column > LANES; column += 2 * LANES) convolve_strip<2>(call, first, last, column);
    if (end > column) convolve_strip<1>(call, first, last, column);
}

void rms_norm_silu(const float* from, std::int64_t rows, std::int64_t width, float eps, float* to) {
    for (std::int64_t r = 0; r < rows; ++r, from += width, to += width) {
        const float squares = sum_channels(width, [&](std::int64_t c) {
            const Vector x = load_partial(from + c, width - c);
            return x * x;
        });
        const float inverse = rsqrt(squares / static_cast<float>(width) + eps);
        for (std::int64_t c = 0; c < width; c += LANES) {
            const Vector x = load_partial(from + c, width - c) * inverse;
            store_partial(to + c, x / (exp_bounded(max(min(-x, broadcast(88.0f)), broadcast(-87.0f))) + 1.0f), width - c);
        }
    }
}

void elu(const float* from, std::int64_t count, float* to) {
    for (std::int64_t i = 0; i < count; i += LANES) {
        const Vector x = load_partial(from + i, count - i), zero = {};
        store_partial(to + i, max(x, zero) + (exp_nonpositive(min(x, zero)) - 1.0f), count - i);
    }
}

}  // namespace

const CodecKernels codec_kernels = {.convolve = convolve, .rms_norm_silu = rms_norm_silu, .elu = elu};

}  // namespace syncflow::SYNCFLOW_INSTRUCTIONS
