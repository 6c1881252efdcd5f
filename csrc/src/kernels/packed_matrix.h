// The weight of a linear layer as matrix products read it.
#pragma once

#include <cstdint>

#include "syncflow/layers.h"

namespace syncflow {

constexpr std::int64_t KEY_ALIGN = 16;  // keys (d, count) have rows of whole registers of every level

// A weight (out, in) in panels of PANEL outputs (`pack` in layers.h) and its bias, in whole panels too, or null. Of a
// part of the inputs: `in` of the `depth` of a panel.
struct PackedMatrix {
    const float* packed;
    const float* bias;
    std::int64_t out, in, depth;
};

}  // namespace syncflow
