// Layers of a d-DiT on a CPU, in float32: the implementation of the operations of kernels/ there.
//
// Strides count floats. The heads of a token are contiguous, and so are the channels of a head. The order in which an
// output element is summed does not depend on the number of threads or rows.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace syncflow {

// softmax(q k^T / sqrt(d)) v of every sequence and head, where q and k are RMS-normalised, weighted and rotated.
//
// Token t of sequence (i, j) has its q at qkv + i * outer_stride + j * inner_stride + t * token_stride; its k and v
// follow at heads * width floats each. Its output is at the same position of `out`, whose strides are a third of those.
struct SelfAttention {
    const float* qkv;
    const float* q_weight;  // (d)
    const float* k_weight;  // (d)
    const float* rope;      // (length, d / 2, 2) cosines and sines, or null
    float* out;
    std::int64_t outer, inner, length, heads, width;
    std::int64_t outer_stride, inner_stride, token_stride;
    float eps;
};

// softmax(q k^T / sqrt(d)) v of every row and head, over the keys of its context and then those of its own tail.
struct CrossAttention {
    struct Tokens {
        const float* data;
        std::int64_t row, token, head;  // strides
    };
    Tokens q, k, v, tail_k, tail_v;  // tails may be null
    float* out;                      // (rows, queries, heads * width)
    std::int64_t rows, queries, heads, width, keys, tail;
    const std::int64_t* context_of_row;  // (rows), -1 for none; null: a row's own
    const std::int64_t* lengths;         // of every context, or null for `keys`
    const float* q_rope;                 // (queries, d / 2, 2) and (keys, d / 2, 2), or both null
    const float* k_rope;
    const float* q_positions;  // (queries) and (keys), read only with a window of 0 or more
    const float* k_positions;
    float window;
};

// y = x + gate * branch and n = LN(y) * (1 + scale) + shift over D channels of rows x frames x tokens; each optional.
struct ResidualNorm {
    const float* x;           // (rows, frames, tokens, D), dense, like all of these
    const float* branch;      // null: y is x, and is not written
    const float* gate_table;  // (D), or null for a gate of 1
    const float* gate_rows;   // (D) of every row and frame, at the strides below
    const float* shift_table;  // null: no norm
    const float* shift_rows;
    const float* scale_table;
    const float* scale_rows;
    float* y;
    float* normed;
    std::int64_t rows, frames, tokens, width, row_stride, frame_stride;
    float eps;
};

// y = x W^T + b of every row, or its GELU in the tanh form. W is packed: see `pack`.
struct Linear {
    const float* x;  // (rows, in), rows apart by x_stride
    const float* packed;
    const float* bias;  // (out)
    float* y;           // (rows, out)
    std::int64_t rows, in, out, x_stride;
    bool gelu;
};

// z' = z + dt * sum over g of weights[g] * v[rows[g]] of every request; a branch of weight 0 is not read.
struct GuidedStep {
    const float* z;            // (requests, size)
    const float* v;            // (any, size), rows apart by v_stride
    const std::int64_t* rows;  // (requests, branches)
    const float* weights;      // (requests, branches)
    const float* dt;           // (requests)
    float* out;                // (requests, size)
    std::int64_t requests, branches, size, v_stride;
};

// The number of floats of a packed weight (out, in), and the packing: panels of PANEL outputs, each (in, PANEL).
constexpr std::int64_t PANEL = 32;
std::int64_t packed_size(std::int64_t out, std::int64_t in);
void pack(const float* weight, std::int64_t out, std::int64_t in, float* packed);

void linear(const Linear& call, int threads);
void self_attention(const SelfAttention& call, int threads);
void cross_attention(const CrossAttention& call, int threads);
void residual_norm(const ResidualNorm& call, int threads);
void guided_step(const GuidedStep& call, int threads);

// The instruction level that runs: "x86-64-v4", "x86-64-v3" or "baseline"; the best of the processor, unless the
// environment variable SYNCFLOW_INSTRUCTIONS names another. Throws std::invalid_argument where it names none of these.
const char* instructions();

// All levels of this processor, lowest first.
std::vector<std::string> instruction_levels();

// Multiply-adds a second of a loop that does nothing else, on one thread: the upper bound of a layer's rate.
double multiply_add_rate(double seconds);

}  // namespace syncflow
