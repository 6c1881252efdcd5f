// The kernels of blocks.cpp at one instruction level; a unit is the work of one thread at a time.
#pragma once

#include <cstdint>

#include "kernels/packed_matrix.h"

namespace syncflow {

constexpr std::int64_t GROUP = 8;   // tokens: tiles are whole groups, as far as there are any
constexpr std::int64_t TILE = 128;  // tokens of a unit at most: what they need fits the second cache beside a panel

// The tokens of a section (tokens that share their modulation) in tiles of whole groups of nearly equal size.
struct TokenTiles {
    std::int64_t tokens, groups, count;
};

// static: each instruction level needs its own copy, and the linker would keep one for all of them.
static inline std::int64_t first_token(const TokenTiles& tiles, std::int64_t tile) { return tile * tiles.groups / tiles.count * GROUP; }

static inline std::int64_t end_token(const TokenTiles& tiles, std::int64_t tile) {
    return tile + 1 == tiles.count ? tiles.tokens : first_token(tiles, tile + 1);
}

// The stride of rows of so many scores: whole panels, and padding for a register that begins at the last score.
static inline std::int64_t score_stride(std::int64_t scores) { return (scores + PANEL - 1) / PANEL * PANEL + PANEL; }

// The `count` keys and values that a row's cross-attention reads. Folded (see blocks.h), both are linear layers over
// the width of the tower; rotated keys cannot be folded, and `keys.out` is then 0. Otherwise keys are (n, d, count
// rounded up to KEY_ALIGN), scaled for the softmax, and values (count, D).
struct CrossContext {
    std::int64_t count;
    bool folded;
    PackedMatrix keys, values;
};

// x through the projection to q, k and v (rows, 3, n, d); q and k RMS-normalised, weighted and rotated, q scaled for
// the softmax. Row r has position r / positions_apart modulo `length`.
struct QkvProjection {
    const float* x;
    PackedMatrix qkv;
    const float* q_norm;
    const float* k_norm;
    const float* rope;  // (length, d / 2, 2), or null
    float* projected;
    std::int64_t width, heads, positions_apart, length;
    TokenTiles tiles;
    float eps;
};

// softmax(q k^T) v of every sequence and head of `projected`, with strides as in SelfAttention.
struct SequenceAttention {
    const float* projected;
    float* attended;
    std::int64_t outer, inner, length, heads, width;
    std::int64_t outer_stride, inner_stride, token_stride;
};

// An adaptor as a whole, a context at a time.
struct AdaptorCall {
    const float* features;
    const std::int64_t* rows;
    const float* rope;
    const float* q_norm;
    const float* k_norm;
    const float* norm_weight;
    const float* norm_bias;
    PackedMatrix qkv, proj, linear, key_value;
    float* context;
    std::int64_t T, S, width, heads;
    bool pooled;
    float eps, norm_eps;
};

// A video block from the output projection of its self-attention on. A section is what shares its modulation: a row, or
// a frame of it.
struct VideoBlockTail {
    const float* x;
    const float* attention;
    const float* modulation;
    std::int64_t row_stride, frame_stride;
    const float* table;
    const float* next_table;  // null: no `next`
    const CrossContext* texts;
    const std::int64_t* text_of_row;
    PackedMatrix proj, cross_query, cross_out, up, down;
    float* attended;
    float* y;
    float* next;
    std::int64_t sections_of_row, num_outputs, width, heads;
    TokenTiles tiles;
    float eps;
};

// The keys and values of an audio row, of its context and then of its tail: rotated keys (n, d, count in whole
// KEY_ALIGN), and values, folded or not.
struct AudioContext {
    const float* context;
    const float* context_rope;
    const std::int64_t* context_of_row;
    const float* tail;
    PackedMatrix key_value;
    const float* cross_out_transposed;
    const float* cross_out_bias;
    std::int64_t M, E, width, heads;
    float* keys;             // of all rows, key_stride apart
    float* values;           // of all rows, value_stride apart
    CrossContext* contexts;  // of all rows
    std::int64_t key_stride, value_stride;
    bool folded;
};

// An audio layer from the output projection of its self-attention on.
struct AudioLayerTail {
    const float* x;
    const float* attention;
    const float* rope;
    const float* norms;
    const CrossContext* contexts;
    PackedMatrix proj, cross_query, cross_out, up, down;
    float* attended;
    float* y;
    std::int64_t num_outputs, width, heads;
    TokenTiles tiles;
    float norm_eps;
};

struct BlockKernels {
    void (*project_qkv)(const QkvProjection&, std::int64_t unit);
    // `block` queries of one head of a sequence.
    void (*attend_sequence)(const SequenceAttention&, std::int64_t unit, std::int64_t block, float* memory);
    std::int64_t (*attend_sequence_memory)(std::int64_t length, std::int64_t width);
    void (*run_adaptor)(const AdaptorCall&, std::int64_t context, float* memory);
    std::int64_t (*run_adaptor_memory)(std::int64_t tokens, std::int64_t width, std::int64_t heads);
    void (*video_block_tail)(const VideoBlockTail&, std::int64_t unit, float* memory);
    void (*audio_layer_tail)(const AudioLayerTail&, std::int64_t unit, float* memory);
    // Floats that a unit of a tail needs whose rows read so many keys.
    std::int64_t (*tail_memory)(std::int64_t width, std::int64_t keys, std::int64_t heads);
    // The keys and values of one row.
    void (*prepare_audio_context)(const AudioContext&, std::int64_t row, float* memory);
    std::int64_t (*audio_context_memory)(std::int64_t E, std::int64_t width);
    // Keys (count, n, d), `stride` floats apart, to (n, d, count in whole KEY_ALIGN), scaled for the softmax.
    void (*transpose_scaled_keys)(const float* keys, std::int64_t stride, std::int64_t count, std::int64_t heads, std::int64_t width, float* to);
    // Keys (count, n, d) times query_weight (D, D): a packed layer (n count, D), scaled for the softmax.
    void (*fold_keys)(const float* keys, std::int64_t stride, std::int64_t count, std::int64_t heads, std::int64_t width,
                      const float* query_weight, const float* query_bias, float* packed, float* packed_bias);
    // Values (count, n, d) times out_transposed (D, D): a packed layer (D, n count).
    void (*fold_values)(const float* values, std::int64_t stride, std::int64_t count, std::int64_t heads, std::int64_t width,
                        const float* out_transposed, float* packed);
};

namespace baseline {
extern const BlockKernels block_kernels;
}
namespace v3 {
extern const BlockKernels block_kernels;
}
namespace v4 {
extern const BlockKernels block_kernels;
}

}  // namespace syncflow
