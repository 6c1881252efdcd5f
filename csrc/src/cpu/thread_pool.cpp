#include "cpu/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#include <pthread.h>
#endif

#include "syncflow/floats.h"

// ThreadSanitizer does not see how an OpenMP runtime synchronises, which is compiled without it, and takes each loop for a race.
#if defined(__SANITIZE_THREAD__)
#define SYNCFLOW_TSAN
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define SYNCFLOW_TSAN
#endif
#endif

namespace syncflow {
namespace {

constexpr int MAX_LOOPS = 8;    // of a call
constexpr int SPINS = 3 << 10;  // loads of a flag before a waiting thread sleeps

void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Waits until `value` is no longer `old`: spins for some microseconds, in which most waits end, and then sleeps, so that
// other processes get the core.
template <typename T>
T wait_for_change(const std::atomic<T>& value, T old) {
    for (int spin = 0; spin < SPINS; ++spin) {
        const T now = value.load(std::memory_order_acquire);
        if (now != old) return now;
        pause();
    }
    value.wait(old, std::memory_order_acquire);
    return value.load(std::memory_order_acquire);
}

struct LoopSequence {
    const Loop* loops;
    int count;
    std::atomic<std::int64_t> next[MAX_LOOPS] = {};
    std::atomic<int> done[MAX_LOOPS] = {};
};

// The share of one of `team` threads.
void run(LoopSequence& shared, int team) {
    for (int k = 0; k < shared.count; ++k) {
        const Loop& loop = shared.loops[k];
        const std::int64_t chunk = 1 + (loop.count - 1) / (8 * team);
        for (;;) {
            const std::int64_t first = shared.next[k].fetch_add(chunk, std::memory_order_relaxed);
            if (first >= loop.count) break;
            const std::int64_t last = std::min(first + chunk, loop.count);
            for (std::int64_t i = first; i < last; ++i) loop.body(loop.data, i);
        }
        if (k + 1 == shared.count || team == 1) continue;
        int done = shared.done[k].fetch_add(1, std::memory_order_acq_rel) + 1;
        if (done == team) shared.done[k].notify_all();
        while (done < team) done = wait_for_change(shared.done[k], done);
    }
}

// GNU's OpenMP runtime as compilers call it: work(data) by every thread of a team, and how many these are.
struct OpenMp {
    void (*parallel)(void (*work)(void*), void* data, unsigned threads, unsigned flags) = nullptr;
    int (*num_threads)() = nullptr;

    bool loaded() const { return parallel != nullptr && num_threads != nullptr; }
};

const OpenMp& openmp() {
    static const OpenMp found = [] {
        OpenMp runtime;
#if (defined(__unix__) || defined(__APPLE__)) && !defined(SYNCFLOW_TSAN)
        runtime.parallel = reinterpret_cast<decltype(OpenMp::parallel)>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
        runtime.num_threads = reinterpret_cast<decltype(OpenMp::num_threads)>(dlsym(RTLD_DEFAULT, "omp_get_num_threads"));
#endif
        return runtime;
    }();
    return found;
}

// Threads that sleep while there is nothing to do; one caller at a time has them.
class ThreadPool {
   public:
    ThreadPool() = default;
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    ~ThreadPool() {
        stopping_ = true;
        start_round();
        for (std::thread& worker : workers_) worker.join();
    }

    // Runs a sequence with `team` threads, of which the caller is one; false if another caller has them.
    bool try_run(LoopSequence& shared, int team) {
        const std::unique_lock<std::mutex> lock(busy_, std::try_to_lock);
        if (!lock.owns_lock()) return false;
        while (workers_.size() + 1 < static_cast<std::size_t>(team)) {
            workers_.emplace_back(&ThreadPool::work, this, static_cast<int>(workers_.size()) + 1, round_.load());
        }
        shared_ = &shared;
        team_ = team;
        working_.store(static_cast<std::uint32_t>(workers_.size()), std::memory_order_relaxed);
        start_round();
        run(shared, team);
        for (std::uint32_t left = working_.load(std::memory_order_acquire); left != 0;) left = wait_for_change(working_, left);
        return true;
    }

   private:
    void start_round() {
        round_.fetch_add(1, std::memory_order_release);
        round_.notify_all();
    }

    void work(int index, std::uint32_t round) {
        for (;;) {
            round = wait_for_change(round_, round);
            if (stopping_) return;
            if (index < team_) run(*shared_, team_);
            if (working_.fetch_sub(1, std::memory_order_acq_rel) == 1) working_.notify_one();
        }
    }

    std::mutex busy_;
    std::vector<std::thread> workers_;
    std::atomic<std::uint32_t> round_{0}, working_{0};
    std::atomic<bool> stopping_{false};
    LoopSequence* shared_ = nullptr;  // of this round, like team_
    int team_ = 1;
};

std::unique_ptr<ThreadPool>& pool() {
    static std::unique_ptr<ThreadPool> only = [] {
#if defined(__unix__) || defined(__APPLE__)
        // A forked child has none of the threads: it gets a pool of its own, and the copy of the old one is abandoned.
        pthread_atfork(nullptr, nullptr, [] {
            static_cast<void>(pool().release());
            pool() = std::make_unique<ThreadPool>();
        });
#endif
        return std::make_unique<ThreadPool>();
    }();
    return only;
}

}  // namespace

void parallel(const Loop* loops, int count, int threads) {
    std::int64_t most = 1;
    for (int k = 0; k < count; ++k) most = std::max(most, loops[k].count);
    const int team = static_cast<int>(std::min<std::int64_t>(threads, most));
    LoopSequence shared{loops, count};
    if (team > 1 && openmp().loaded()) {
        const auto work = [](void* data) { run(*static_cast<LoopSequence*>(data), openmp().num_threads()); };
        openmp().parallel(work, &shared, static_cast<unsigned>(team), 0);
        return;
    }
    if (team > 1 && pool()->try_run(shared, team)) return;
    run(shared, 1);
}

float* thread_memory(std::int64_t floats) {
    thread_local Floats kept;
    if (kept.size() < static_cast<std::size_t>(floats)) kept.resize(static_cast<std::size_t>(floats));
    return kept.data();
}

}  // namespace syncflow
