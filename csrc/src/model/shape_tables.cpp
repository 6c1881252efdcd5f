#include "model/shape_tables.h"

#include <cmath>

#include "model/layers.h"

namespace syncflow::engine {
namespace {

// 0, 1, ... from `first` on, times a factor.
Floats counted(std::int64_t first, std::int64_t end, float factor = 1) {
    Floats values;
    for (std::int64_t i = first; i < end; ++i) values.push_back(static_cast<float>(i) * factor);
    return values;
}

// The times of the frames times a rate, each `tokens` times.
Floats repeated(std::span<const double> times, double rate, std::int64_t tokens) {
    Floats values;
    for (const double time : times) values.insert(values.end(), size_of(tokens), static_cast<float>(time) * static_cast<float>(rate));
    return values;
}

// A 2-D sin-cos embedding (height * width, D), scaled so that a new resolution keeps the positions of the base
// resolution; columns fill the first half of D, as in Open-Sora.
Floats position_embedding(const DDiTConfig& config, std::int64_t height, std::int64_t width) {
    const std::int64_t half = config.width / 2;
    const double side = std::sqrt(static_cast<double>(height * width));
    const double scale = side * static_cast<double>(config.patch * 8) / static_cast<double>(config.base_size);
    const double base = std::nearbyint(side);
    const Floats ladder = rope_frequencies(half, 10'000);
    const auto encode = [&](std::int64_t count) {
        Floats encoded(size_of(count * half));
        for (std::int64_t i = 0; i < count; ++i) {
            const float position = static_cast<float>(i) / static_cast<float>(scale) * static_cast<float>(base / static_cast<double>(count));
            for (std::int64_t k = 0; k < half / 2; ++k) {
                const float angle = position * ladder[size_of(k)];
                encoded[size_of(i * half + k)] = std::sin(angle);
                encoded[size_of(i * half + half / 2 + k)] = std::cos(angle);
            }
        }
        return encoded;
    };
    const Floats columns = encode(width), rows = encode(height);
    Floats embedding;
    for (std::int64_t y = 0; y < height; ++y) {
        for (std::int64_t x = 0; x < width; ++x) {
            embedding.insert(embedding.end(), columns.begin() + x * half, columns.begin() + (x + 1) * half);
            embedding.insert(embedding.end(), rows.begin() + y * half, rows.begin() + (y + 1) * half);
        }
    }
    return embedding;
}

RopePositions rope_positions(Floats queries, Floats context, std::span<const float> frequencies) {
    Floats query_rope = rope_table(queries, frequencies), context_rope = rope_table(context, frequencies);
    return {.queries = std::move(queries), .context = std::move(context), .query_rope = std::move(query_rope), .context_rope = std::move(context_rope)};
}

}  // namespace

LatentShape::LatentShape(const SequenceConfig& sequence, std::int64_t style)
    : frames(sequence.latent_frames()),
      padding(sequence.padding()),
      height(sequence.latent_height()),
      width(sequence.latent_width()),
      audio_tokens(sequence.audio_tokens()),
      style_tokens(style) {}

ShapeTables::ShapeTables(const DDiTConfig& config, const LatentShape& of, std::span<const double> seconds,
                         std::span<const float> video_frequencies, std::span<const float> audio_frequencies)
    : shape(of),
      tokens((of.height / config.patch) * (of.width / config.patch)),
      positions(position_embedding(config, of.height / config.patch, of.width / config.patch)),
      video_rope(rope_table(counted(0, of.frames), video_frequencies)),
      audio_rope(rope_table(counted(-of.style_tokens, of.audio_tokens), audio_frequencies)),
      frame_times(repeated(seconds, 1, 1)),
      audio_head_width_(config.audio_head_width()) {
    if (config.bridge == Bridge::adaptor) {
        context_positions = repeated(seconds, config.audio_rate, config.adaptor_tokens == AdaptorTokens::frame ? 1 : tokens);
        context_tokens = static_cast<std::int64_t>(context_positions.size());
        context_rope = rope_table(context_positions, audio_frequencies);
        return;
    }
    const Floats frames = repeated(seconds, config.latent_fps, tokens);
    const Floats audio = counted(0, of.audio_tokens, static_cast<float>(config.latent_fps / config.audio_rate));
    video_reads_audio = rope_positions(frames, audio, video_frequencies);
    if (config.bridge == Bridge::global_local) {
        Floats frequencies(audio_frequencies.begin(), audio_frequencies.end());
        for (float& frequency : frequencies) frequency *= static_cast<float>(config.audio_rate / config.latent_fps);
        audio_reads_video = rope_positions(audio, frames, frequencies);
    }
}

}  // namespace syncflow::engine
