// Arithmetic on sixteen floats at a time, for the loops. Included by a file that is compiled for one set of instructions
// (SYNCFLOW_INSTRUCTIONS): all of it is internal to that file, and none of it instantiates the standard library, of
// which the linker would keep one copy for all processors.
#pragma once

#include <cstdint>

namespace syncflow::SYNCFLOW_INSTRUCTIONS {
namespace {

constexpr std::int64_t LANES = 16;
#ifdef __AVX512F__
constexpr std::int64_t ROWS = 8;  // queries at a time: with two vectors each they fill the registers
#else
constexpr std::int64_t ROWS = 4;
#endif
constexpr float HIDDEN = -3.0e38f;

typedef float Vector __attribute__((vector_size(64)));
typedef std::int32_t Integers __attribute__((vector_size(64)));

inline Vector load(const float* from) {
    Vector x;
    __builtin_memcpy(&x, from, sizeof x);
    return x;
}

inline void store(float* to, const Vector& x) { __builtin_memcpy(to, &x, sizeof x); }

inline void splat(Vector& x, float value) {
    const Vector none = {};
    x = none + value;
}

// e^x for -87 <= x <= 89, to 2 units in the last place; infinite from 88.5 on.
inline void power(Vector& x) {
    constexpr float shift = 12582912.0f + 127.0f;  // leaves the exponent of 2^n in the lowest bits
    const Vector shifted = x * 1.44269504f + shift, n = shifted - shift;
    const Vector r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Vector turns = r * 1.9875691500e-4f + 1.3981999507e-3f, scale;
    turns = turns * r + 8.3334519073e-3f;
    turns = turns * r + 4.1665795894e-2f;
    turns = turns * r + 1.6666665459e-1f;
    turns = turns * r + 5.0000001201e-1f;
    turns = turns * (r * r) + (r + 1.0f);
    Integers bits;
    __builtin_memcpy(&bits, &shifted, sizeof bits);
    bits <<= 23;
    __builtin_memcpy(&scale, &bits, sizeof scale);
    x = turns * scale;
}

// e^x for x <= 0; 0 below -87, where it is smaller than any normal number.
inline void exponential(Vector& x) {
    Vector low;
    splat(low, -87.0f);
    const Vector given = x, none = {};
    x = x > low ? x : low;
    power(x);
    x = given < low ? none : x;
}

// Lane i of the result is lane lanes[i] of x.
inline Vector shuffled(const Vector& x, const Integers& lanes) {
#ifdef __clang__
    Vector y;
    for (int i = 0; i < LANES; ++i) y[i] = x[lanes[i]];
    return y;
#else
    return __builtin_shuffle(x, lanes);
#endif
}

// The upper half of the first 2 * step lanes brought down to the lower.
template <int step>
inline Vector folded(const Vector& x) {
    const Integers lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return shuffled(x, (lanes + step) & 15);
}

inline float sum(Vector x) {
    x += folded<8>(x);
    x += folded<4>(x);
    x += folded<2>(x);
    return x[0] + x[1];
}

inline float largest(Vector x) {
    Vector y = folded<8>(x);
    x = x > y ? x : y;
    y = folded<4>(x);
    x = x > y ? x : y;
    y = folded<2>(x);
    x = x > y ? x : y;
    return x[0] > x[1] ? x[0] : x[1];
}

#ifdef __AVX512F__
// Lane i of the result is lane lanes[i] of x, or lanes[i] - 16 of y.
inline Vector chosen(const Vector& x, const Vector& y, const Integers& lanes) {
#ifdef __clang__
    Vector z;
    for (int i = 0; i < LANES; ++i) z[i] = lanes[i] < LANES ? x[lanes[i]] : y[lanes[i] - LANES];
    return z;
#else
    return __builtin_shuffle(x, y, lanes);
#endif
}

// Swaps, in a square of which x and y are rows `step` apart, the columns of x that have this bit with those of y that
// have not.
template <int step>
inline void swap_corners(Vector& x, Vector& y) {
    const Integers lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const Integers bit = (lanes & step) != 0;  // -1 where it is set
    const Integers first = lanes + (bit & (16 - step)), second = lanes + (~bit & step) + (bit & 16);
    const Vector before = x;
    x = chosen(before, y, first);
    y = chosen(before, y, second);
}

template <int step>
inline void swap_all(Vector* rows) {
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i) {
        if ((i & step) == 0) swap_corners<step>(rows[i], rows[i + step]);
    }
}

inline void transpose(Vector* rows) {
    swap_all<8>(rows);
    swap_all<4>(rows);
    swap_all<2>(rows);
    swap_all<1>(rows);
}

// Lane i is the sum of rows[i], which are used up.
inline Vector sums(Vector* rows) {
    transpose(rows);
    for (int step = LANES / 2; step > 0; step /= 2) {
        for (int i = 0; i < step; ++i) rows[i] += rows[i + step];
    }
    return rows[0];
}

// to[c, j] = from[j, c] for sixteen channels of `live` tokens, 0 for the rest of sixteen.
inline void lay_across(const float* from, std::int64_t from_stride, std::int64_t live, float* to, std::int64_t to_stride) {
    Vector rows[LANES] = {};
    if (live >= LANES) {
#pragma GCC unroll 16
        for (int j = 0; j < LANES; ++j) rows[j] = load(from + j * from_stride);
    } else {
#pragma GCC unroll 16
        for (int j = 0; j < LANES; ++j) {
            if (j < live) rows[j] = load(from + j * from_stride);
        }
    }
    transpose(rows);
#pragma GCC unroll 16
    for (int c = 0; c < LANES; ++c) store(to + c * to_stride, rows[c]);
}
#else
inline Vector sums(Vector* rows) {
    Vector found = {};
    for (int i = 0; i < LANES; ++i) found[i] = sum(rows[i]);
    return found;
}

inline void lay_across(const float* from, std::int64_t from_stride, std::int64_t live, float* to, std::int64_t to_stride) {
    for (std::int64_t c = 0; c < LANES; ++c) {
        for (std::int64_t j = 0; j < LANES; ++j) to[c * to_stride + j] = j < live ? from[j * from_stride + c] : 0;
    }
}
#endif

inline std::int64_t padded(std::int64_t count) { return (count + LANES - 1) / LANES * LANES; }

// Pairs of lanes turned by their angles, whose cosine and sine are given.
inline Vector turned(const Vector& x, const Vector& angle) {
    const Integers first = {0, 0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10, 12, 12, 14, 14};
    const Integers other = {1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14};
    const Vector signs = {-1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1};
    return x * shuffled(angle, first) + shuffled(x, other) * (signs * shuffled(angle, first + 1));
}

// The same of all channels, in place.
inline void rotate(float* x, const float* turns, std::int64_t width) {
    const std::int64_t whole = width / LANES * LANES;
    for (std::int64_t c = 0; c < whole; c += LANES) store(x + c, turned(load(x + c), load(turns + c)));
    for (std::int64_t c = whole; c < width; c += 2) {
        const float even = x[c], odd = x[c + 1], cosine = turns[c], sine = turns[c + 1];
        x[c] = even * cosine - odd * sine;
        x[c + 1] = even * sine + odd * cosine;
    }
}

// out[i, :] = sum over c of a[i, c] b[c, :] for ROWS rows and COLUMNS vectors of columns.
template <int COLUMNS>
inline void product(const float* a, std::int64_t a_stride, const float* b, std::int64_t b_stride, std::int64_t count, float* out,
                    std::int64_t out_stride) {
    Vector found[ROWS][COLUMNS] = {};
    for (std::int64_t c = 0; c < count; ++c) {
        Vector row[COLUMNS];
        for (int v = 0; v < COLUMNS; ++v) row[v] = load(b + c * b_stride + v * LANES);
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; ++i) {
            for (int v = 0; v < COLUMNS; ++v) found[i][v] += a[i * a_stride + c] * row[v];
        }
    }
    for (int i = 0; i < ROWS; ++i) {
        for (int v = 0; v < COLUMNS; ++v) store(out + i * out_stride + v * LANES, found[i][v]);
    }
}

inline void products(const float* a, std::int64_t a_stride, const float* b, std::int64_t b_stride, std::int64_t count, float* out,
                     std::int64_t out_stride, std::int64_t columns) {
    std::int64_t j = 0;
    for (; j + 2 * LANES <= columns; j += 2 * LANES) product<2>(a, a_stride, b + j, b_stride, count, out + j, out_stride);
    for (; j < columns; j += LANES) product<1>(a, a_stride, b + j, b_stride, count, out + j, out_stride);
}

// u (1 + tanh(sqrt(2 / pi) (u + 0.044715 u^3))) / 2, which is u times the logistic function of twice the bracket.
inline void gelu(Vector& u) {
    Vector e = u * (u * u * -0.0713548162726f - 1.59576912161f), most, least;
    splat(most, 89);
    splat(least, -87);
    e = e < most ? e : most;
    e = e > least ? e : least;
    power(e);
    u /= e + 1.0f;
}

}  // namespace
}  // namespace syncflow::SYNCFLOW_INSTRUCTIONS
