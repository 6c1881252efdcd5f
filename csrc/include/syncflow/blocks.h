// Blocks of a d-DiT on a CPU, in float32: one call a block, which keeps a tile of tokens in the cache from the attention
// to the residual of the MLP.
//
// A cross-attention over few keys folds its projections into the keys and values instead of applying them to the tokens.
// With q = Wq x + b and y = Wo p v + c,
//
//     q . k = x . (Wq^T k) + b . k,        y = p (v Wo^T) + c,
//
// so a token is multiplied by n M keys and values of width D instead of by two square matrices and M keys and values of
// width d: less work while M (n - 1) < D. The order in which an output element is summed does not depend on the number
// of threads or rows.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "syncflow/floats.h"

namespace syncflow {

// Weight (out, in) of a linear layer in panels of outputs (`pack` in layers.h), and its bias.
struct PackedLinear {
    PackedLinear() = default;
    PackedLinear(const float* weight, const float* bias, std::int64_t out, std::int64_t in);

    std::int64_t out = 0, in = 0;
    Floats weight, bias;
};

// Weights in the layout of torch.nn.Linear: (out, in) and (out).
struct LinearWeights {
    const float* weight;
    const float* bias;
};

// The weights of both kinds of block: D channels in n heads of d, an MLP of H.
struct BlockWeights {
    std::int64_t width, heads, hidden;
    LinearWeights qkv, proj;  // of the self-attention: (3 D, D), (D, D)
    const float* q_norm;      // (d)
    const float* k_norm;      // (d)
    LinearWeights cross_query, cross_key_value, cross_out;  // of the cross-attention: (D, D), (2 D, D), (D, D)
    LinearWeights up, down;                                 // of the MLP: (H, D), (D, H)
};

class Block {
   public:
    explicit Block(const BlockWeights& weights);

    // Whether a block can have these sizes: whole panels, and heads of whole registers.
    static bool supports(std::int64_t width, std::int64_t heads, std::int64_t hidden);

    // Whether folding the projections into so many keys saves work.
    bool folds(std::int64_t keys) const { return keys * (heads - 1) < width; }

    std::int64_t width, heads, hidden;
    PackedLinear qkv, proj, cross_query, cross_key_value, cross_out, up, down;
    Floats q_norm, k_norm;
    Floats query_weight, query_bias;  // Wq as it is: (D, D)
    Floats cross_out_transposed;      // Wo transposed: (D, D)
};

// A modality adaptor (self-attention, LayerNorm, linear) and the keys and values that an audio layer makes of it.
class Adaptor {
   public:
    struct Parts {
        std::int64_t width, heads;
        LinearWeights qkv, proj;
        const float* q_norm;
        const float* k_norm;
        LinearWeights norm, linear, key_value;
        float norm_eps;
    };
    explicit Adaptor(const Parts& parts);
    // With keys and values that are packed already; those of the parts are not read.
    Adaptor(const Parts& parts, PackedLinear key_value);

    struct Call {
        const float* features;     // (R, T, S, D)
        const std::int64_t* rows;  // (C)
        bool pooled;               // the mean of each frame's tokens, or all of them
        const float* rope;         // (M, d / 2, 2) for M = T or T S
        float* context;            // (C, M, 2, n, d)
        std::int64_t C, T, S;
        float eps;
    };
    void operator()(const Call& call, int threads) const;

    std::int64_t width, heads;
    PackedLinear qkv, proj, linear, key_value;
    Floats q_norm, k_norm, norm_weight, norm_bias;
    float norm_eps;
};

// The keys and values of P texts, for the cross-attention of one block.
struct Text {
    struct Prompt {
        std::int64_t count;
        bool folded;
        PackedLinear keys;    // folded (n M, D), or only the weight: (n, d, M in whole registers), scaled
        PackedLinear values;  // folded (D, n M), or only the weight: (M, D)
    };
    std::vector<std::shared_ptr<const Prompt>> prompts;
};

// A spatial or temporal block of STDiT: `table` (6, D) is its scale_shift_table.
class VideoBlock : public Block {
   public:
    VideoBlock(const BlockWeights& weights, const float* table);

    // keys and values (P, M, n, d) at strides for the first two axes; lengths (P).
    Text prepare_text(const float* keys, const float* values, std::int64_t prompt_stride, std::int64_t token_stride,
              const std::int64_t* lengths, std::int64_t prompts) const;

    struct Call {
        const float* x;           // (R, T, S, D), contiguous, as all of these
        const float* normed;      // the modulated norm of x, which the self-attention projects
        const float* modulation;  // (R, T or 1, 6, D) at the strides below
        std::int64_t row_stride, frame_stride;  // the latter 0 for 1
        const Text* text;
        const std::int64_t* text_of_row;  // (R)
        const float* rope;                // (T, d / 2, 2) of a temporal block, null in a spatial one
        const VideoBlock* following;      // the block that `next` is normed for; may be null
        float* attended;                  // x after the self-attention, of all R rows; may be null
        float* y;                         // x after the block, of the first `num_outputs` rows; may be x
        float* next;                      // the modulated norm of y for the following block; may be `normed`
        std::int64_t R, T, S, num_outputs;
        float eps;
    };
    void operator()(const Call& call, int threads) const;

    Floats table;
};

// A block of a tower and its call.
struct VideoStep {
    const VideoBlock* block;
    VideoBlock::Call call;
};

// Runs blocks one after the other over the same rows. Where there are enough rows, each thread takes whole rows through
// all blocks without waiting for the others.
void run(const std::vector<VideoStep>& steps, int threads);

// A layer of the audio tower: `norms` (3, 2, D) are weight and bias of its LayerNorms, whose epsilon is `norm_eps`.
class AudioLayer : public Block {
   public:
    AudioLayer(const BlockWeights& weights, const float* norms, float norm_eps);

    struct Call {
        const float* x;                      // (R, A, D)
        const float* rope;                   // (A, d / 2, 2)
        const float* context;                // (C, M, 2, n, d) keys and values of C contexts, or null
        const float* context_rope;           // (M, d / 2, 2)
        const std::int64_t* context_of_row;  // (R), -1 for none; null: a row's own
        const float* tail;                   // (R, E, D): tokens that follow the context of a row
        float* attended;                     // x after the self-attention, of all R rows; may be null
        float* y;                            // x after the layer, of the first `num_outputs` rows; may be x
        std::int64_t R, A, M, E, num_outputs;
        float eps;
    };
    void operator()(const Call& call, int threads) const;

    Floats norms;
    float norm_eps;
};

// The same for the layers of an audio tower.
struct AudioStep {
    const AudioLayer* block;
    AudioLayer::Call call;
};
void run(const std::vector<AudioStep>& steps, int threads);

}  // namespace syncflow
