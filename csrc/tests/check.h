// What the tests share: checks that end the process at the first failure, and random cases whose buffers are as large as
// promised to the byte, so that a sanitizer reports any access beyond them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <vector>

namespace syncflow::test {

// The name, number and sizes of the random case that runs; empty outside of these.
inline std::string current_case;

[[noreturn]] inline void fail(const std::string& what) {
    std::fprintf(stderr, "failed: %s%s%s\n", current_case.c_str(), current_case.empty() ? "" : ": ", what.c_str());
    std::fflush(nullptr);
    std::_Exit(EXIT_FAILURE);
}

inline void expect(bool holds, const char* what) {
    if (!holds) fail(what);
}

// `size` floats. Where they are unaligned, they begin 4 bytes after a boundary of 16; they always end where their
// allocation does.
class Buffer {
   public:
    Buffer(std::int64_t size, bool unaligned) : offset_(unaligned ? 1 : 0), values_(static_cast<std::size_t>(size + offset_)) {}

    float* data() { return values_.data() + offset_; }
    const float* data() const { return values_.data() + offset_; }
    std::int64_t size() const { return static_cast<std::int64_t>(values_.size()) - offset_; }

   private:
    std::int64_t offset_;
    std::vector<float> values_;
};

// The source of one random case: what it returns depends on nothing but its seed.
class Random {
   public:
    explicit Random(int seed) : generator_(static_cast<std::uint32_t>(seed)) {}

    // 0, 1, ..., count - 1.
    std::int64_t below(std::int64_t count) { return static_cast<std::int64_t>(generator_()) % count; }

    bool coin() { return below(2) == 1; }

    std::int64_t pick(std::initializer_list<std::int64_t> choices) {
        return choices.begin()[below(static_cast<std::int64_t>(choices.size()))];
    }

    // Integers from `first` to `last`.
    std::vector<std::int64_t> integers(std::int64_t count, std::int64_t first, std::int64_t last) {
        std::vector<std::int64_t> drawn;
        for (std::int64_t i = 0; i < count; ++i) drawn.push_back(first + below(last - first + 1));
        return drawn;
    }

    // Normally distributed floats, aligned or not.
    Buffer normal(std::int64_t count, double deviation = 1, double mean = 0) {
        Buffer floats(count, coin());
        std::normal_distribution<double> distribution(mean, deviation);
        for (std::int64_t i = 0; i < count; ++i) floats.data()[i] = static_cast<float>(distribution(generator_));
        return floats;
    }

    // Cosine and sine of `count` random angles.
    Buffer rotations(std::int64_t count) {
        Buffer floats(2 * count, coin());
        std::uniform_real_distribution<double> angles(-3, 3);
        for (std::int64_t i = 0; i < count; ++i) {
            const double angle = angles(generator_);
            floats.data()[2 * i] = static_cast<float>(std::cos(angle));
            floats.data()[2 * i + 1] = static_cast<float>(std::sin(angle));
        }
        return floats;
    }

   private:
    std::mt19937 generator_;
};

constexpr float NOT_WRITTEN = std::numeric_limits<float>::quiet_NaN();

// An output that nothing has been written to.
inline Buffer blank(std::int64_t size, bool unaligned) {
    Buffer floats(size, unaligned);
    for (std::int64_t i = 0; i < size; ++i) floats.data()[i] = NOT_WRITTEN;
    return floats;
}

inline void begin_case(const char* name, int number, std::initializer_list<std::pair<const char*, std::int64_t>> sizes) {
    current_case = std::string(name) + ", case " + std::to_string(number);
    for (const auto& [what, size] : sizes) current_case += std::string(", ") + what + " " + std::to_string(size);
}

// The memory that a new thread asks the library for has the size that the call asks for, and no more.
template <typename Work>
void on_new_thread(Work work) {
    std::thread(work).join();
}

inline void expect_same_bits(const float* result, const float* other, std::int64_t size, const char* what) {
    const bool same = size == 0 || std::memcmp(result, other, static_cast<std::size_t>(size) * sizeof(float)) == 0;
    if (!same) fail(std::string(what) + ": the bits differ");
}

inline void expect_same_bits(const Buffer& result, const Buffer& other, const char* what) {
    expect(result.size() == other.size(), "results of one size are compared");
    expect_same_bits(result.data(), other.data(), result.size(), what);
}

// Holds a result to one in double precision, in which NaN stands for what must not be written.
//
// A sum of n float32 products errs by about sqrt(n) / 2^24 of its terms, 1e-6 for n = 256; a block has seven of them and
// three norms in a row. 2e-5 of the largest value is several times what is measured, and far below what a wrong
// index, mask or rotation does.
inline void expect_close(const Buffer& result, const std::vector<double>& expected, const char* what) {
    constexpr double tolerance = 2e-5;
    expect(result.size() == static_cast<std::int64_t>(expected.size()), "results of one size are compared");
    double largest = 1;
    for (const double value : expected) largest = std::fmax(largest, std::fabs(value));
    for (std::int64_t i = 0; i < result.size(); ++i) {
        const double found = result.data()[i], wanted = expected[static_cast<std::size_t>(i)];
        const bool holds = std::isnan(wanted) ? std::isnan(found) : std::fabs(found - wanted) <= tolerance * largest;
        if (holds) continue;
        fail(std::string(what) + "[" + std::to_string(i) + "] is " + std::to_string(found) + ", not " + std::to_string(wanted));
    }
}

}  // namespace syncflow::test
