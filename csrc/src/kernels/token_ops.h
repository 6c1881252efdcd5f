// Sums and norms over the channels of a token. As simd.h, internal to the file that includes it.
#pragma once

#include <cstdint>

#include "kernels/simd.h"

namespace syncflow::SYNCFLOW_INSTRUCTIONS {
namespace {

// The sum of the lanes of term(channel) over all registers of a token. Two sums, which do not wait for each other.
template <typename Term>
inline float sum_channels(std::int64_t width, Term term) {
    Vector even = {}, odd = {};
    std::int64_t c = 0;
    for (; c + LANES < width; c += 2 * LANES) {
        even += term(c);
        odd += term(c + LANES);
    }
    if (c < width) even += term(c);
    return sum(even + odd);
}

// each(channel, values) of (x - mean) / sqrt(variance + eps). `whole` if the width is whole registers.
template <bool whole, typename Each>
inline void layer_norm(const float* x, std::int64_t width, float eps, Each each) {
    const float share = 1 / static_cast<float>(width);
    const auto channels = [&](std::int64_t c) { return load_channels<whole>(x + c, width - c); };
    const float mean = share * sum_channels(width, channels);
    const float variance = share * sum_channels(width, [&](std::int64_t c) {
                               const Vector centred = channels(c) - mean;
                               return whole ? centred * centred : first_lanes(centred * centred, width - c, Vector{});
                           });
    const float inverse = rsqrt(variance + eps);
    for (std::int64_t c = 0; c < width; c += LANES) each(c, (channels(c) - mean) * inverse);
}

}  // namespace
}  // namespace syncflow::SYNCFLOW_INSTRUCTIONS
