// The audio codec: waveform <-> latents, EnCodec's encoder and decoder (engine/codecs/audio.py, seanet.py).
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <vector>

#include "syncflow/floats.h"

namespace syncflow::engine {

class AudioVae {
   public:
    // Reads a component folder. Throws Status::unsupported for another class of codec or settings that it leaves out.
    explicit AudioVae(const std::filesystem::path& folder);
    AudioVae(AudioVae&&) noexcept;
    AudioVae& operator=(AudioVae&&) noexcept;
    ~AudioVae();

    std::int64_t channels() const;
    std::int64_t hop() const;
    std::int64_t sample_rate() const;

    // Normalised latents (A, C_a) of a waveform (M), A = ceil(M / hop): silence after its end.
    Floats encode(std::span<const float> waveform, int threads) const;

    // The first `samples` of normalised latents (A, C_a), in [-1, 1].
    std::vector<float> decode(const float* latents, std::int64_t tokens, std::int64_t samples, int threads) const;

   private:
    struct Parts;
    std::unique_ptr<const Parts> parts_;
};

}  // namespace syncflow::engine
