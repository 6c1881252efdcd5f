// The loops of layers.h for one set of instructions; a unit is what one thread does at a time.
#pragma once

#include "syncflow/layers.h"

namespace syncflow {

// Queries of a unit of attention: all, whose keys are laid out once, or where there are few heads for the threads an
// even share.
std::int64_t attention_block(std::int64_t queries, std::int64_t heads, int threads);

}  // namespace syncflow

#define SYNCFLOW_DECLARE(level)                                                                                               \
    namespace syncflow::level {                                                                                               \
    /* Floats that a unit of attention needs beside its arguments. */                                                         \
    std::int64_t scratch(std::int64_t keys, std::int64_t width);                                                              \
    /* `block` queries of a head of a sequence, or of a row. */                                                               \
    void self_attention(const SelfAttention&, std::int64_t unit, std::int64_t block, float* memory);                          \
    void cross_attention(const CrossAttention&, std::int64_t unit, std::int64_t block, float* memory);                        \
    /* Rows first to last of panels first to last; PANEL * 8 + 8 * in floats of memory. */                                    \
    void linear(const Linear&, std::int64_t first_row, std::int64_t last_row, std::int64_t first, std::int64_t last,          \
                float* memory);                                                                                               \
    /* The tokens of a row and frame; 3 D floats of memory. */                                                                \
    void residual_norm(const ResidualNorm&, std::int64_t group, float* memory);                                               \
    void guided_step(const GuidedStep&, std::int64_t request);                                                                \
    }

SYNCFLOW_DECLARE(baseline)
SYNCFLOW_DECLARE(v3)
SYNCFLOW_DECLARE(v4)
