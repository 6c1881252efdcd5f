// What the towers need of the shape of a clip alone: rotations and positions of all tokens, computed once a shape.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "package/model_config.h"
#include "syncflow/floats.h"

namespace syncflow::engine {

// What requests of a batch share.
struct LatentShape {
    std::int64_t frames, padding, height, width;  // T, padded frames, H, W
    std::int64_t audio_tokens, style_tokens;      // A, A_r: tokens of the reference sound

    LatentShape(const SequenceConfig& sequence, std::int64_t style_tokens);

    bool operator==(const LatentShape&) const = default;
};

// Positions of queries and of what they read, in latent frames, and their rotations.
struct RopePositions {
    Floats queries, context;          // (N), (M)
    Floats query_rope, context_rope;  // (N, d / 2, 2), (M, d / 2, 2)
};

struct ShapeTables {
    ShapeTables(const DDiTConfig& config, const LatentShape& shape, std::span<const double> frame_times,
                std::span<const float> video_frequencies, std::span<const float> audio_frequencies);

    LatentShape shape;
    std::int64_t tokens;  // S of a frame
    Floats positions;     // (S, D): the 2-D embedding of the video tokens
    Floats video_rope;    // (T, d / 2, 2)
    Floats audio_rope;    // (A_r + A, d / 2, 2), the style at the positions before 0
    Floats context_rope;  // (M, d / 2, 2) of the contexts that the audio reads in an `adaptor` model
    std::int64_t context_tokens = 0;  // M
    Floats frame_times;               // (T), the middle of each latent frame in seconds
    Floats context_positions;         // (M) of those contexts, in audio tokens
    RopePositions video_reads_audio;  // in an `audio_rope` or a `global_local` model
    RopePositions audio_reads_video;  // in a `global_local` model

    // Of the audio tokens without the style.
    const float* audio_token_rope() const { return audio_rope.data() + shape.style_tokens * audio_head_width_; }

   private:
    std::int64_t audio_head_width_;
};

}  // namespace syncflow::engine
