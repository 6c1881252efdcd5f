// The loops of blocks.h for one set of instructions, on plain structures; a unit is what one thread does at a time.
#pragma once

#include <cstdint>

namespace syncflow {

// Panels and bias of a linear layer, or of some of its inputs: a panel has `depth` of them.
struct Matrix {
    const float* packed;
    const float* bias;
    std::int64_t out, in, depth;
};

// What a row reads: `count` keys and values, folded (keys null where queries are turned), or laid out for products as
// keys (n, d, padded(count)), scaled, and values (count, D).
struct Reading {
    std::int64_t count;
    bool folded;
    Matrix keys, values;
};

constexpr std::int64_t GROUP = 8;   // tokens that a product takes at a time
constexpr std::int64_t TILE = 128;  // tokens of a unit at most: what they need fits the second cache beside a panel

// The tokens of every section in tiles of whole groups, as even as can be.
struct Tiles {
    std::int64_t tokens, groups, count;
};

// Of each set of instructions its own: what the linker may share is not for the loops.
static inline std::int64_t first_of(const Tiles& tiles, std::int64_t tile) { return tile * tiles.groups / tiles.count * GROUP; }

static inline std::int64_t last_of(const Tiles& tiles, std::int64_t tile) {
    return tile + 1 == tiles.count ? tiles.tokens : first_of(tiles, tile + 1);
}

// What rows of so many scores are apart: whole panels, and room for vectors that begin at the last.
static inline std::int64_t score_stride(std::int64_t scores) { return (scores + 31) / 32 * 32 + 32; }

// x through the projection to q, k and v (rows, 3, n, d), and q and k as their products want them: RMS-normalised,
// weighted and rotated, q scaled for the softmax. Row r stands at r / `spread` modulo `length` of the turns.
struct Head {
    const float* x;
    Matrix qkv;
    const float* q_norm;
    const float* k_norm;
    const float* turns;  // (length, d / 2, 2), or null
    float* packed;
    std::int64_t width, heads, spread, length;
    Tiles tiles;
    float eps;
};

// softmax(q k^T) v of every sequence and head of `packed`, with strides as in SelfAttention.
struct Mixing {
    const float* packed;
    float* mixed;
    std::int64_t outer, inner, length, heads, width;
    std::int64_t outer_stride, inner_stride, token_stride;
};

// Everything of an adaptor, for a context.
struct Adapting {
    const float* features;
    const std::int64_t* rows;
    const float* turns;
    const float* q_norm;
    const float* k_norm;
    const float* norm_weight;
    const float* norm_bias;
    Matrix qkv, proj, linear, key_value;
    float* context;
    std::int64_t T, S, width, heads;
    bool pooled;
    float eps, norm_eps;
};

// All of a video block after the mixing of tokens. A section is what shares its modulation: a row, or a frame of it.
struct VideoTail {
    const float* x;
    const float* mixed;
    const float* rows;
    std::int64_t row_stride, frame_stride;
    const float* table;
    const float* next_table;  // null: no `next`
    const Reading* texts;
    const std::int64_t* text_of_row;
    Matrix proj, query, read, up, down;
    float* attended;
    float* y;
    float* next;
    std::int64_t sections_of_row, drawn, width, heads;
    Tiles tiles;
    float eps;
};

// What an audio row reads of its context and its tail: turned keys (n, d, padded(count)), and values, folded or not.
struct AudioKeys {
    const float* context;
    const float* context_turns;
    const std::int64_t* context_of_row;
    const float* tail;
    Matrix key_value;
    const float* read_columns;
    const float* read_bias;
    std::int64_t M, E, width, heads;
    float* keys;        // of all rows, key_stride apart
    float* values;      // of all rows, value_stride apart
    Reading* readings;  // of all rows
    std::int64_t key_stride, value_stride;
    bool folded;
};

struct AudioTail {
    const float* x;
    const float* mixed;
    const float* turns;
    const float* norms;
    const Reading* readings;
    Matrix proj, query, read, up, down;
    float* attended;
    float* y;
    std::int64_t drawn, width, heads;
    Tiles tiles;
    float norm_eps;
};

}  // namespace syncflow

#define SYNCFLOW_DECLARE_BLOCKS(level)                                                                                        \
    namespace syncflow::level {                                                                                               \
    /* Floats that a unit of a tail needs whose rows read so many keys. */                                                    \
    std::int64_t tail_scratch(std::int64_t width, std::int64_t keys, std::int64_t heads);                                     \
    void head(const Head&, std::int64_t unit, float* memory);                                                                 \
    /* `block` queries of a head of a sequence; (GROUP + d) padded(length) + 2 GROUP d floats of memory. */                   \
    void mix(const Mixing&, std::int64_t unit, std::int64_t block, float* memory);                                            \
    /* For M tokens: 6 M D + (GROUP + d) padded(M) + 2 GROUP D floats of memory. */                                           \
    void adapt(const Adapting&, std::int64_t context, float* memory);                                                         \
    void video_tail(const VideoTail&, std::int64_t unit, float* memory);                                                      \
    void audio_tail(const AudioTail&, std::int64_t unit, float* memory);                                                      \
    /* A row's keys and values; (2 E + GROUP + 1) D floats of memory. */                                                      \
    void audio_keys(const AudioKeys&, std::int64_t row, float* memory);                                                       \
    /* Keys (count, n, d), tokens apart by stride, to (n, d, padded(count)), scaled for a softmax. */                         \
    void lay_keys(const float* keys, std::int64_t stride, std::int64_t count, std::int64_t heads, std::int64_t width, float* laid); \
    /* Keys (count, n, d), tokens apart by stride, through rows (D, D) to panels of (n count, D), scaled for a softmax. */    \
    void fold_keys(const float* keys, std::int64_t stride, std::int64_t count, std::int64_t heads, std::int64_t width,        \
                   const float* rows, const float* bias, float* packed, float* packed_bias);                                  \
    /* Values (count, n, d) through columns (D, D) to panels of (D, n count). */                                              \
    void fold_values(const float* values, std::int64_t stride, std::int64_t count, std::int64_t heads, std::int64_t width,    \
                     const float* columns, float* packed);                                                                    \
    }

SYNCFLOW_DECLARE_BLOCKS(baseline)
SYNCFLOW_DECLARE_BLOCKS(v3)
SYNCFLOW_DECLARE_BLOCKS(v4)
