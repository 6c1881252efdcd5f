// The kernels of layers.cpp at one instruction level; a unit is the work of one thread at a time.
#pragma once

#include "syncflow/layers.h"

namespace syncflow {

struct LayerKernels {
    // `block` queries of one head of a sequence or row, with as many floats of memory as attention_memory says.
    void (*self_attention)(const SelfAttention&, std::int64_t unit, std::int64_t block, float* memory);
    void (*cross_attention)(const CrossAttention&, std::int64_t unit, std::int64_t block, float* memory);
    std::int64_t (*attention_memory)(std::int64_t keys, std::int64_t width);
    // Rows [first_row, last_row) of panels [first, last).
    void (*linear)(const Linear&, std::int64_t first_row, std::int64_t last_row, std::int64_t first, std::int64_t last);
    // The tokens of one row and frame; 3 D floats of memory.
    void (*residual_norm)(const ResidualNorm&, std::int64_t group, float* memory);
    void (*guided_step)(const GuidedStep&, std::int64_t request);
    // As many multiply-adds as returned, `rounds` times all that fit the registers; for a roofline.
    std::int64_t (*multiply_adds)(std::int64_t rounds, float* result);
};

namespace baseline {
extern const LayerKernels layer_kernels;
}
namespace v3 {
extern const LayerKernels layer_kernels;
}
namespace v4 {
extern const LayerKernels layer_kernels;
}

}  // namespace syncflow
