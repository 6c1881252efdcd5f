// Arithmetic on one register of floats. Included by files that are compiled once per instruction level
// (SYNCFLOW_INSTRUCTIONS). Everything here has internal linkage and instantiates nothing of the standard library, of
// which the linker would keep a single copy, compiled for one level, for all processors.
//
// A vector is exactly as wide as a register. GCC lowers wider ones through memory, a lane at a time, which is ten times
// slower than scalar code.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace syncflow::SYNCFLOW_INSTRUCTIONS {
namespace {

#if defined(SYNCFLOW_LANES)  // any power of two: results do not depend on it, speed does
constexpr int LANES = SYNCFLOW_LANES;
#elif defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;  // SSE2, NEON
#endif

constexpr float MASKED = -3.0e38f;  // the score of a key that a query does not attend to

typedef float Vector __attribute__((vector_size(LANES * sizeof(float))));
typedef std::int32_t Integers __attribute__((vector_size(LANES * sizeof(float))));

inline Vector load(const float* from) {
    Vector x;
    __builtin_memcpy(&x, from, sizeof x);
    return x;
}

inline void store(float* to, const Vector& x) { __builtin_memcpy(to, &x, sizeof x); }

inline Vector broadcast(float value) { return Vector{} + value; }

// x < y ? x : y, and x > y ? x : y. Of these GCC makes a comparison and a blend where the processor has one instruction.
#if defined(SYNCFLOW_LANES) || defined(__AVX512F__) || !defined(__x86_64__)
inline Vector min(const Vector& x, const Vector& y) { return x < y ? x : y; }
inline Vector max(const Vector& x, const Vector& y) { return x > y ? x : y; }
#elif defined(__AVX__)
inline Vector min(const Vector& x, const Vector& y) { return _mm256_min_ps(x, y); }
inline Vector max(const Vector& x, const Vector& y) { return _mm256_max_ps(x, y); }
#else
inline Vector min(const Vector& x, const Vector& y) { return _mm_min_ps(x, y); }
inline Vector max(const Vector& x, const Vector& y) { return _mm_max_ps(x, y); }
#endif

inline std::int64_t min(std::int64_t x, std::int64_t y) { return x < y ? x : y; }

inline std::int64_t max(std::int64_t x, std::int64_t y) { return x > y ? x : y; }

// LANES floats, of which the last may be missing: 0.
inline Vector load_partial(const float* from, std::int64_t count) {
    if (count >= LANES) return load(from);
    float floats[LANES] = {};
    for (std::int64_t c = 0; c < count; ++c) floats[c] = from[c];
    return load(floats);
}

template <bool whole>
inline Vector load_channels(const float* from, std::int64_t count) {
    if constexpr (whole) {
        return load(from);
    } else {
        return load_partial(from, count);
    }
}

inline void store_partial(float* to, const Vector& x, std::int64_t count) {
    if (count >= LANES) return store(to, x);
    float floats[LANES];
    store(floats, x);
    for (std::int64_t c = 0; c < count; ++c) to[c] = floats[c];
}

// 0, 1, 2, ...
inline Integers lane_indices() {
    static constexpr std::int32_t indices[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    static_assert(LANES <= 16);
    Integers lanes;
    __builtin_memcpy(&lanes, indices, sizeof lanes);
    return lanes;
}

// The first `count` lanes of x; `otherwise` in the lanes behind them.
inline Vector first_lanes(const Vector& x, std::int64_t count, const Vector& otherwise) {
    return lane_indices() < static_cast<std::int32_t>(count) ? x : otherwise;
}

// Lane i of the result is lane from[i] of x.
inline Vector permute(const Vector& x, const Integers& from) {
#ifdef __clang__
    Vector y;
    for (int i = 0; i < LANES; ++i) y[i] = x[from[i]];
    return y;
#else
    return __builtin_shuffle(x, from);
#endif
}

// Lane i of the result is lane from[i] of x and y one after the other.
inline Vector permute(const Vector& x, const Vector& y, const Integers& from) {
#ifdef __clang__
    Vector z;
    for (int i = 0; i < LANES; ++i) z[i] = from[i] < LANES ? x[from[i]] : y[from[i] - LANES];
    return z;
#else
    return __builtin_shuffle(x, y, from);
#endif
}

// Lane i of the result is lane i + distance of x, cyclically.
template <int distance>
inline Vector rotate_lanes(const Vector& x) {
    return permute(x, (lane_indices() + distance) & (LANES - 1));
}

inline float sum(Vector x) {
    if constexpr (LANES > 8) x += rotate_lanes<8 % LANES>(x);
    if constexpr (LANES > 4) x += rotate_lanes<4 % LANES>(x);
    x += rotate_lanes<2>(x);
    return x[0] + x[1];
}

inline float max(Vector x) {
    if constexpr (LANES > 8) x = max(x, rotate_lanes<8 % LANES>(x));
    if constexpr (LANES > 4) x = max(x, rotate_lanes<4 % LANES>(x));
    x = max(x, rotate_lanes<2>(x));
    return x[0] > x[1] ? x[0] : x[1];
}

// In a square of which x and y are rows `step` apart: exchanges the lanes of x whose index has this bit with the lanes
// of y whose index has not.
template <int step>
inline void exchange(Vector& x, Vector& y) {
    const Integers lanes = lane_indices(), bit = (lanes & step) != 0;  // -1 where it is set
    const Vector before = x;
    x = permute(before, y, lanes + (bit & (LANES - step)));
    y = permute(before, y, lanes + (~bit & step) + (bit & LANES));
}

template <int step>
inline void exchange_all(Vector* rows) {
    if constexpr (step < LANES) {
#pragma GCC unroll 16
        for (int i = 0; i < LANES; ++i) {
            if ((i & step) == 0) exchange<step>(rows[i], rows[i + step]);
        }
    }
}

// Transposes a square of LANES rows.
inline void transpose(Vector* rows) {
    exchange_all<8>(rows);
    exchange_all<4>(rows);
    exchange_all<2>(rows);
    exchange_all<1>(rows);
}

// Lane i of the result is the sum of the lanes of rows[i]; overwrites `rows`.
inline Vector horizontal_sums(Vector* rows) {
    transpose(rows);
#pragma GCC unroll 4
    for (int step = LANES / 2; step > 0; step /= 2) {
#pragma GCC unroll 8
        for (int i = 0; i < step; ++i) rows[i] += rows[i + step];
    }
    return rows[0];
}

// to[c, j] = from[j, c] for LANES channels of `count` tokens; 0 for the tokens from `count` to LANES.
inline void transpose_tile(const float* from, std::int64_t from_stride, std::int64_t count, float* to, std::int64_t to_stride) {
    Vector rows[LANES] = {};
    if (count >= LANES) {
#pragma GCC unroll 16
        for (int j = 0; j < LANES; ++j) rows[j] = load(from + j * from_stride);
    } else {
#pragma GCC unroll 16
        for (int j = 0; j < LANES; ++j) {
            if (j < count) rows[j] = load(from + j * from_stride);
        }
    }
    transpose(rows);
#pragma GCC unroll 16
    for (int c = 0; c < LANES; ++c) store(to + c * to_stride, rows[c]);
}

// e^x for -88 <= x <= 89, to 2 units in the last place; 0 below -87.7, infinite from 88.5 on.
inline Vector exp_bounded(const Vector& x) {
    constexpr float shift = 12582912.0f + 127.0f;  // leaves the exponent of 2^n in the lowest bits
    const Vector shifted = x * 1.44269504f + shift, n = shifted - shift;
    const Vector r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Vector p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + (r + 1.0f);
    Integers bits;
    __builtin_memcpy(&bits, &shifted, sizeof bits);
    bits <<= 23;
    Vector scale;
    __builtin_memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}

// e^x for x <= 0.
inline Vector exp_nonpositive(const Vector& x) { return exp_bounded(max(x, broadcast(-88.0f))); }

// GELU in the tanh form: x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2, which is x times the logistic function of
// twice the argument of tanh.
inline Vector gelu(const Vector& x) {
    const Vector e = x * (x * x * -0.0713548162726f - 1.59576912161f);
    return x / (exp_bounded(max(min(e, broadcast(89.0f)), broadcast(-88.0f))) + 1.0f);
}

// Rotates pairs of lanes by angles given as cosine and sine in turn.
inline Vector rotate_pairs(const Vector& x, const Vector& rope) {
    const Integers lanes = lane_indices(), odd = (lanes & 1) != 0;
    const Vector sine = permute(rope, lanes | 1);
    return x * permute(rope, lanes & ~1) + permute(x, lanes ^ 1) * (odd ? sine : -sine);
}

inline std::int64_t round_up(std::int64_t count, std::int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

inline float rsqrt(float x) { return 1 / __builtin_sqrtf(x); }

}  // namespace
}  // namespace syncflow::SYNCFLOW_INSTRUCTIONS
