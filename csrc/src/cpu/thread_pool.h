// Loops shared among threads, and the memory of each.
#pragma once

#include <cstdint>

namespace syncflow {

// body(data, i) for every i below `count`.
struct Loop {
    std::int64_t count;
    void (*body)(void* data, std::int64_t i);
    void* data;
};

// One loop after the other, each by up to `threads` threads: those of the OpenMP runtime that is loaded (in a Python
// process that of PyTorch, whose threads would compete with others; not under ThreadSanitizer), else those of a pool of
// this library. A caller that finds the pool busy runs its loops alone.
void parallel(const Loop* loops, int count, int threads);

// A loop over a callable, which must live as long as it.
template <typename Body>
Loop make_loop(std::int64_t count, Body& body) {
    return {.count = count, .body = [](void* data, std::int64_t i) { (*static_cast<Body*>(data))(i); }, .data = &body};
}

template <typename Body>
void parallel_for(std::int64_t count, int threads, Body body) {
    const Loop loop = make_loop(count, body);
    parallel(&loop, 1, threads);
}

// Memory of the calling thread for its part of a loop: as many floats, until it asks again.
float* thread_memory(std::int64_t floats);

}  // namespace syncflow
