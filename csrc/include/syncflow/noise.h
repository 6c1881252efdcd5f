// Counter-based Gaussian noise: the same bits as syncflow/engine/sampling/noise.py, which is the specification.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace syncflow {

using PhiloxCounter = std::array<std::uint32_t, 4>;
using PhiloxKey = std::array<std::uint32_t, 2>;

/// Philox4x32-10 (Salmon et al. 2011): four random words for one counter and key.
PhiloxCounter philox4x32(PhiloxCounter counter, PhiloxKey key) noexcept;

/// The standard normal that one random word stands for; odd about the middle of the word's range, at most 6.34 in magnitude.
float normal_from_word(std::uint32_t word) noexcept;

/// A stream of standard normals: `seed` belongs to a request, `stream` to a modality (0 video, 1 audio).
struct NoiseStream {
    std::uint64_t seed = 0;
    std::uint32_t stream = 0;
    std::uint32_t substream = 0;
};

/// Writes elements `offset`, `offset + 1`, ... of `stream` into `out[0 .. count)`. Element i never depends on offset or count.
void fill_normal(const NoiseStream& stream, std::uint64_t offset, float* out, std::size_t count) noexcept;

}  // namespace syncflow
