// The library's own threads, which run its loops in a process without OpenMP, such as this one.
#include "cpu/thread_pool.h"

#include <dlfcn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <ctime>
#include <memory>
#include <numeric>
#include <thread>
#include <vector>

#include "check.h"

namespace {

using namespace syncflow;
using namespace syncflow::test;

// Waits for what another thread is about to make true; fails after a minute.
template <typename Condition>
void wait_until(Condition condition, const char* what) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::minutes(1);
    while (!condition()) {
        expect(std::chrono::steady_clock::now() < end, what);
        std::this_thread::yield();
    }
}

void there_is_no_openmp_here() {
    expect(dlsym(RTLD_DEFAULT, "GOMP_parallel") == nullptr, "this test needs a process without OpenMP");
}

void a_loop_visits_every_index_once() {
    for (const std::int64_t count : {0, 1, 2, 3, 7, 64, 1000}) {
        for (const int threads : {1, 2, 3, 8}) {
            const auto visits = std::make_unique<std::atomic<int>[]>(static_cast<std::size_t>(count));
            parallel_for(count, threads, [&](std::int64_t i) { ++visits[static_cast<std::size_t>(i)]; });
            for (std::int64_t i = 0; i < count; ++i) expect(visits[static_cast<std::size_t>(i)] == 1, "an index is visited once");
        }
    }
}

// One value of a row, from all values of the row before.
struct RowSum {
    const std::array<std::int64_t, 37>* before;
    std::array<std::int64_t, 37>* row;

    void operator()(std::int64_t i) const {
        (*row)[static_cast<std::size_t>(i)] = std::accumulate(before->begin(), before->end(), std::int64_t{1});
    }
};

void a_loop_begins_when_the_one_before_has_ended() {
    for (int round = 0; round < 200; ++round) {
        std::array<std::array<std::int64_t, 37>, 9> rows = {};  // not atomic: a sanitizer reports a loop that begins early
        std::array<RowSum, 8> sums;
        std::array<Loop, 8> loops;
        for (std::size_t k = 0; k < loops.size(); ++k) {
            sums[k] = {&rows[k], &rows[k + 1]};
            loops[k] = make_loop(37, sums[k]);
        }
        parallel(loops.data(), 8, 3);
        std::int64_t expected = 0;
        for (const auto& row : rows) {
            for (const std::int64_t value : row) expect(value == expected, "a loop sees all of the one before");
            expected = 1 + 37 * expected;
        }
    }
}

// Both indices of a loop wait for each other, which takes two threads.
void expect_two_threads() {
    std::atomic<int> arrived{0};
    parallel_for(2, 2, [&](std::int64_t) {
        ++arrived;
        wait_until([&] { return arrived == 2; }, "a loop has two threads");
    });
}

void many_callers_get_right_sums() {
    std::vector<std::thread> callers;
    for (std::int64_t caller = 0; caller < 5; ++caller) {
        callers.emplace_back([caller] {
            for (std::int64_t round = 0; round < 300; ++round) {
                const std::int64_t count = 1 + (caller * 300 + round) % 97;
                std::atomic<std::int64_t> total{0};
                parallel_for(count, 2 + static_cast<int>(round % 3), [&](std::int64_t i) { total += i * i; });
                expect(total == (count - 1) * count * (2 * count - 1) / 6, "a sum among those of other callers");
            }
        });
    }
    for (std::thread& caller : callers) caller.join();
}

// Keeps the pool busy until it is released.
class BusyPool {
   public:
    BusyPool()
        : caller_([this] {
              parallel_for(2, 2, [this](std::int64_t) {
                  ++started_;
                  wait_until([this] { return released_.load(); }, "the pool is released");
              });
          }) {
        wait_until([this] { return started_ == 2; }, "the pool is busy");
    }

    ~BusyPool() {
        released_ = true;
        caller_.join();
    }

   private:
    std::atomic<int> started_{0};
    std::atomic<bool> released_{false};
    std::thread caller_;
};

void a_caller_that_finds_the_pool_busy_runs_alone() {
    const BusyPool busy;
    const std::thread::id self = std::this_thread::get_id();
    std::int64_t total = 0;  // of one thread, so not atomic
    parallel_for(1000, 4, [&](std::int64_t i) {
        expect(std::this_thread::get_id() == self, "a busy pool gives no thread to another caller");
        total += i;
    });
    expect(total == 1000 * 999 / 2, "the sum of a caller that runs alone");
}

void expect_a_forked_child_has_threads() {
    const pid_t child = fork();
    expect(child >= 0, "the process can be forked");
    if (child == 0) {
        for (int round = 0; round < 10; ++round) expect_two_threads();
        _exit(EXIT_SUCCESS);
    }
    int status = 0;
    expect(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == EXIT_SUCCESS, "a forked child runs loops");
    expect_two_threads();
}

void a_forked_child_has_threads_of_its_own() {
    expect_two_threads();
    expect_a_forked_child_has_threads();
}

void a_child_forked_while_the_pool_is_busy_has_threads_of_its_own() {
    pid_t child = -1;
    int status = 0;
    {
        const BusyPool busy;
        child = fork();
        if (child == 0) {
            expect_two_threads();
            _exit(EXIT_SUCCESS);
        }
        waitpid(child, &status, 0);
    }
    expect(child > 0 && WIFEXITED(status) && WEXITSTATUS(status) == EXIT_SUCCESS, "a child forked from a busy process runs loops");
}

void idle_threads_sleep() {
    parallel_for(1000, 4, [](std::int64_t) {});
    const std::clock_t before = std::clock();  // of all threads
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    const double used = static_cast<double>(std::clock() - before) / CLOCKS_PER_SEC;
    expect(used < 0.1, "threads that have nothing to do use no time");
}

}  // namespace

int main() {
    there_is_no_openmp_here();
    a_loop_visits_every_index_once();
    a_loop_begins_when_the_one_before_has_ended();
    expect_two_threads();
    many_callers_get_right_sums();
    a_caller_that_finds_the_pool_busy_runs_alone();
    a_forked_child_has_threads_of_its_own();
    a_child_forked_while_the_pool_is_busy_has_threads_of_its_own();
    idle_threads_sleep();
    std::puts("thread pool: all checks hold");
}
