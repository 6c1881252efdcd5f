// How work is cut into units, each of which one thread computes.
#pragma once

#include <cstdint>

namespace syncflow {

inline std::int64_t divide_up(std::int64_t count, std::int64_t by) { return (count + by - 1) / by; }

// Queries of a unit: all of a head, whose keys are then transposed once, or an even share where there are few heads for
// the threads.
inline std::int64_t attention_block(std::int64_t queries, std::int64_t heads, int threads) {
    constexpr std::int64_t fewest = 64;
    const std::int64_t parts = heads >= 4 * threads ? 1 : divide_up(queries, fewest);
    return queries > 0 ? divide_up(queries, parts) : 1;
}

}  // namespace syncflow
