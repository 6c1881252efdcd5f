// The kernels of the codecs at one instruction level.
#pragma once

#include <cstdint>

#include "kernels/packed_matrix.h"

namespace syncflow {

// A convolution of positions whose channels are contiguous, from an input that holds its padding:
//
//     y[t, h, w] = bias + sum over s of W[s] x[t * strides[0] + h * strides[1] + w * strides[2] + offsets[s] ... + depth]
//
// A segment is a run of taps that are contiguous in the input. The order in which an output is summed does not depend on
// the number of threads.
struct Convolution {
    const float* x;
    std::int64_t frames, height, width;  // of the output
    std::int64_t strides[3];             // floats of the input from one output position to the next
    const std::int64_t* offsets;         // (segments)
    std::int64_t segments, depth;        // floats of a segment
    const float* packed;                 // (out, segments * depth), as `pack` of layers.h makes it
    const float* bias;                   // (out), in whole panels
    const float* add;                    // (positions, out), added to y; may be null
    float* y;                            // (positions, out)
    std::int64_t out;
};

struct CodecKernels {
    // Positions [first, last) of one panel of outputs.
    void (*convolve)(const Convolution&, std::int64_t first, std::int64_t last, std::int64_t panel);
    // x / sqrt(mean(x^2) + eps) of rows of `width` channels, and of that y / (1 + e^-y). `to` may be `from`.
    void (*rms_norm_silu)(const float* from, std::int64_t rows, std::int64_t width, float eps, float* to);
    // x above 0, e^x - 1 below.
    void (*elu)(const float* from, std::int64_t count, float* to);
};

namespace baseline {
extern const CodecKernels codec_kernels;
}
namespace v3 {
extern const CodecKernels codec_kernels;
}
namespace v4 {
extern const CodecKernels codec_kernels;
}

}  // namespace syncflow
