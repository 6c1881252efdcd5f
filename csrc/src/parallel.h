// Loops shared among the threads that the process already has.
#pragma once

#include <cstdint>

namespace syncflow {

// Calls body(data, i) for every i below `count`, by up to `threads` threads of the OpenMP runtime that is loaded (in a
// Python process that of PyTorch); by this one alone where there is none.
void parallel_for(std::int64_t count, int threads, void (*body)(void*, std::int64_t), void* data);

}  // namespace syncflow
