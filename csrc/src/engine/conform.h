// A clip in another rate, size or length, by the rules of engine/media/conform.py.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/request.h"
#include "package/model_config.h"

namespace syncflow::engine {

// The first frames of a clip at the rate, size and length of `sequence`: each frame is shown until the next, cut around the
// centre and resized; what lies beyond the end is the last frame and silence. A clip without frames gets none. Provenance
// and latents are kept where the frames are the same.
Clip conform(const Clip& clip, const SequenceConfig& sequence);

// Pixels (height, width, 3) cut around the centre to the shape of the new size and resized to it: averaged where they
// shrink, interpolated (Lanczos) where they grow.
std::vector<std::uint8_t> fit(std::span<const std::uint8_t> pixels, std::int64_t height, std::int64_t width, std::int64_t new_height,
                              std::int64_t new_width);

// A sound at another rate, band-limited, in [-1, 1]; at most `most` samples of it.
std::vector<float> resample(std::span<const float> waveform, std::int64_t rate, std::int64_t new_rate, std::int64_t most);

}  // namespace syncflow::engine
