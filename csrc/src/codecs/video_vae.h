// The video codec: frames <-> latents, LTX-Video's autoencoder (engine/codecs/ltx.py, video.py).
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "codecs/convolution.h"
#include "package/json.h"

namespace syncflow::engine {

class VideoVae {
   public:
    // Reads a component folder. Throws Status::unsupported for another class of autoencoder or settings that it leaves out.
    explicit VideoVae(const std::filesystem::path& folder);
    VideoVae(VideoVae&&) noexcept;
    VideoVae& operator=(VideoVae&&) noexcept;
    ~VideoVae();

    std::int64_t channels() const;
    std::int64_t time_factor() const;
    std::int64_t space_factor() const;

    // Normalised latents (C_v, T, H, W) of frames (F, height, width, 3), T = ceil(F / time_factor): padded at the front with the
    // first frame.
    Floats encode(std::span<const std::uint8_t> frames, std::int64_t count, std::int64_t height, std::int64_t width, int threads) const;

    // The last `count` frames (count, height, width, 3) of normalised latents (C_v, T, H, W).
    std::vector<std::uint8_t> decode(const float* latents, std::int64_t frames, std::int64_t height, std::int64_t width, std::int64_t count,
                                     int threads) const;

   private:
    struct Parts;
    std::unique_ptr<const Parts> parts_;
};

}  // namespace syncflow::engine
