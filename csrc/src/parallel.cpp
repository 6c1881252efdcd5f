#include "parallel.h"

#include <atomic>
#include <thread>

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#endif

namespace syncflow {
namespace {

constexpr int MOST = 8;           // loops of a call
constexpr int PATIENCE = 1 << 12; // looks at the others before a waiting thread lets another run

void* found(const char* name) {
#if defined(__unix__) || defined(__APPLE__)
    return dlsym(RTLD_DEFAULT, name);
#else
    return nullptr;
#endif
}

// GNU's OpenMP runtime, as compilers call it: `work(data)` by every thread of a team, and how many these are.
struct OpenMp {
    void (*parallel)(void (*work)(void*), void* data, unsigned threads, unsigned flags);
    int (*threads)();
};

const OpenMp& openmp() {
    static const OpenMp loaded = {reinterpret_cast<decltype(OpenMp::parallel)>(found("GOMP_parallel")),
                                  reinterpret_cast<decltype(OpenMp::threads)>(found("omp_get_num_threads"))};
    return loaded;
}

struct Shared {
    const Loop* loops;
    int count;
    std::atomic<std::int64_t> next[MOST] = {};
    std::atomic<int> done[MOST] = {};
};

void run(void* argument) {
    Shared& shared = *static_cast<Shared*>(argument);
    const int team = openmp().threads == nullptr ? 1 : openmp().threads();
    for (int k = 0; k < shared.count; ++k) {
        const Loop& loop = shared.loops[k];
        const std::int64_t share = 1 + (loop.count - 1) / (8 * team);
        for (;;) {
            const std::int64_t first = shared.next[k].fetch_add(share, std::memory_order_relaxed);
            if (first >= loop.count) break;
            const std::int64_t last = first + share < loop.count ? first + share : loop.count;
            for (std::int64_t i = first; i < last; ++i) loop.body(loop.data, i);
        }
        if (k + 1 == shared.count || team == 1) continue;
        shared.done[k].fetch_add(1, std::memory_order_acq_rel);
        for (int looked = 0; shared.done[k].load(std::memory_order_acquire) < team; ++looked) {
            if (looked >= PATIENCE) std::this_thread::yield();
        }
    }
}

}  // namespace

void parallel(const Loop* loops, int count, int threads) {
    std::int64_t most = 1;
    for (int k = 0; k < count; ++k) most = loops[k].count > most ? loops[k].count : most;
    const std::int64_t many = threads < most ? threads : most;
    if (many > 1 && openmp().parallel != nullptr && openmp().threads != nullptr) {
        Shared shared{loops, count};
        openmp().parallel(&run, &shared, static_cast<unsigned>(many), 0);
        return;
    }
    for (int k = 0; k < count; ++k) {
        for (std::int64_t i = 0; i < loops[k].count; ++i) loops[k].body(loops[k].data, i);
    }
}

}  // namespace syncflow
