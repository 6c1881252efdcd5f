// What the tests of layers and blocks share: results that hold for any number of threads and any contents of memory, and
// a test that is skipped where the processor lacks the instruction level that it is meant for.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "check.h"
#include "cpu/instruction_level.h"
#include "cpu/thread_pool.h"
#include "syncflow/layers.h"

namespace syncflow::test {

constexpr int SKIPPED = 77;  // SKIP_RETURN_CODE of the tests in CMakeLists.txt

// Fills what this thread's calls work in with NaN: a result that depends on what they find there becomes one.
inline void spoil_thread_memory() {
    constexpr std::int64_t floats = 1 << 18;
    std::fill_n(thread_memory(floats), floats, NOT_WRITTEN);
}

// The outputs, of these sizes, of compute(outputs, threads). Every run is a new thread's and has new outputs; they must
// agree to the last bit for 1, 2 and 3 threads, and after `spoil` has made a thread's memory dirty.
template <typename Compute, typename Spoil>
std::vector<Buffer> outputs_of(const std::vector<std::int64_t>& sizes, Random& random, Compute compute, Spoil spoil) {
    const auto run = [&](int threads, bool spoilt) {
        std::vector<Buffer> outputs;
        for (const std::int64_t size : sizes) outputs.push_back(blank(size, random.coin()));
        on_new_thread([&] {
            if (spoilt) spoil();
            compute(outputs, threads);
        });
        return outputs;
    };
    const std::vector<Buffer> outputs = run(1, false), two = run(2, false), three = run(3, false), dirty = run(1, true);
    for (std::size_t i = 0; i < outputs.size(); ++i) {
        expect_same_bits(two[i], outputs[i], "two threads and one");
        expect_same_bits(three[i], outputs[i], "three threads and one");
        expect_same_bits(dirty[i], outputs[i], "dirty memory and new");
    }
    return outputs;
}

// The same of layers, which have one output: compute(out, threads).
template <typename Compute>
Buffer output_of(std::int64_t size, Random& random, Compute compute) {
    const auto first = [&](std::vector<Buffer>& outputs, int threads) { compute(outputs[0].data(), threads); };
    return outputs_of({size}, random, first, spoil_thread_memory)[0];
}

// Runs all tests at the level that SYNCFLOW_INSTRUCTIONS names, or at the best. -> the exit status.
inline int run_at_level(const char* name, std::initializer_list<void (*)()> tests) {
    const char* const wanted = std::getenv("SYNCFLOW_INSTRUCTIONS");
    const std::vector<std::string> levels = instruction_levels();
    if (wanted != nullptr && *wanted != '\0' && std::find(levels.begin(), levels.end(), wanted) == levels.end()) {
        std::printf("%s: skipped, this processor does not have %s\n", name, wanted);
        return SKIPPED;
    }
    for (const auto test : tests) test();
    std::printf("%s: all checks hold at %s\n", name, instructions());
    return EXIT_SUCCESS;
}

}  // namespace syncflow::test
