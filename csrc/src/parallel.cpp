#include "parallel.h"

#include <atomic>

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#endif

namespace syncflow {
namespace {

// The entry of GNU's OpenMP runtime that compilers call: `work(data)` by every thread of a team.
using Team = void (*)(void (*work)(void*), void* data, unsigned threads, unsigned flags);

Team team() {
#if defined(__unix__) || defined(__APPLE__)
    static const Team found = reinterpret_cast<Team>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    return found;
#else
    return nullptr;
#endif
}

struct Loop {
    void (*body)(void*, std::int64_t);
    void* data;
    std::int64_t count, share;
    std::atomic<std::int64_t> next{0};
};

void run(void* argument) {
    Loop& loop = *static_cast<Loop*>(argument);
    for (;;) {
        const std::int64_t first = loop.next.fetch_add(loop.share, std::memory_order_relaxed);
        if (first >= loop.count) return;
        const std::int64_t last = first + loop.share < loop.count ? first + loop.share : loop.count;
        for (std::int64_t i = first; i < last; ++i) loop.body(loop.data, i);
    }
}

}  // namespace

void parallel_for(std::int64_t count, int threads, void (*body)(void*, std::int64_t), void* data) {
    const std::int64_t many = threads < count ? threads : count;
    const Team start = many > 1 ? team() : nullptr;
    Loop loop{body, data, count, start == nullptr ? count : 1 + (count - 1) / (8 * many)};
    if (start == nullptr) {
        run(&loop);
    } else {
        start(&run, &loop, static_cast<unsigned>(many), 0);
    }
}

}  // namespace syncflow
