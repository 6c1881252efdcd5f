// Loops shared among the threads that the process already has.
#pragma once

#include <cstdint>

namespace syncflow {

// body(data, i) for every i below `count`.
struct Loop {
    std::int64_t count;
    void (*body)(void* data, std::int64_t i);
    void* data;
};

// One loop after the other, each by up to `threads` threads of the OpenMP runtime that is loaded (in a Python process
// that of PyTorch); by this thread alone where there is none.
void parallel(const Loop* loops, int count, int threads);

// A loop over a callable, which must live as long as it.
template <typename Body>
Loop loop_of(std::int64_t count, Body& body) {
    return {count, [](void* data, std::int64_t i) { (*static_cast<Body*>(data))(i); }, &body};
}

template <typename Body>
void parallel_for(std::int64_t count, int threads, Body body) {
    const Loop loop = loop_of(count, body);
    parallel(&loop, 1, threads);
}

}  // namespace syncflow
