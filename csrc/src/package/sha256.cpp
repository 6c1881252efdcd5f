#include "package/sha256.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>

#ifdef __x86_64__
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace syncflow::engine {
namespace {

constexpr std::size_t BLOCK = 64;

alignas(16) constexpr std::array<std::uint32_t, 64> ROUNDS = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be,
    0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa,
    0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85,
    0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3,
    0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f,
    0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

using State = std::array<std::uint32_t, 8>;

std::uint32_t big_endian(const std::byte* from) {
    std::uint32_t word = 0;
    for (int i = 0; i < 4; ++i) word = word << 8 | std::to_integer<std::uint32_t>(from[i]);
    return word;
}

void compress_block(State& state, const std::byte* block) {
    std::array<std::uint32_t, 64> words;
    for (std::size_t i = 0; i < 16; ++i) words[i] = big_endian(block + 4 * i);
    for (std::size_t i = 16; i < 64; ++i) {
        const std::uint32_t x = words[i - 15], y = words[i - 2];
        const std::uint32_t s0 = std::rotr(x, 7) ^ std::rotr(x, 18) ^ x >> 3, s1 = std::rotr(y, 17) ^ std::rotr(y, 19) ^ y >> 10;
        words[i] = words[i - 16] + s0 + words[i - 7] + s1;
    }
    auto [a, b, c, d, e, f, g, h] = state;
    for (std::size_t i = 0; i < 64; ++i) {
        const std::uint32_t s1 = std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25), chosen = (e & f) ^ (~e & g);
        const std::uint32_t first = h + s1 + chosen + ROUNDS[i] + words[i];
        const std::uint32_t s0 = std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22), most = (a & b) ^ (a & c) ^ (b & c);
        h = g;
        g = f;
        f = e;
        e = d + first;
        d = c;
        c = b;
        b = a;
        a = first + s0 + most;
    }
    const State change = {a, b, c, d, e, f, g, h};
    for (std::size_t i = 0; i < state.size(); ++i) state[i] += change[i];
}

void compress_portable(State& state, const std::byte* from, std::size_t blocks) {
    for (std::size_t i = 0; i < blocks; ++i) compress_block(state, from + i * BLOCK);
}

#ifdef __x86_64__
// With the SHA extensions of x86, which keep the state as (f, e, b, a) and (h, g, d, c) and do two rounds at a time.
[[gnu::target("sha,sse4.1")]] void compress_x86(State& state, const std::byte* from, std::size_t blocks) {
    const auto load = [](const void* at) __attribute__((target("sha,sse4.1"))) { return _mm_loadu_si128(static_cast<const __m128i*>(at)); };
    const __m128i big_endian_words = _mm_set_epi8(12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3);
    const __m128i badc = _mm_shuffle_epi32(load(&state[0]), 0xB1), hgfe = _mm_shuffle_epi32(load(&state[4]), 0x1B);
    __m128i feba = _mm_alignr_epi8(badc, hgfe, 8), hgdc = _mm_blend_epi16(hgfe, badc, 0xF0);
    for (; blocks > 0; --blocks, from += BLOCK) {
        const __m128i feba_before = feba, hgdc_before = hgdc;
        __m128i words[4];
        for (std::size_t i = 0; i < 4; ++i) words[i] = _mm_shuffle_epi8(load(from + 16 * i), big_endian_words);
#pragma GCC unroll 16
        for (std::size_t i = 0; i < 16; ++i) {
            const __m128i sums = _mm_add_epi32(words[i % 4], load(&ROUNDS[4 * i]));
            hgdc = _mm_sha256rnds2_epu32(hgdc, feba, sums);
            feba = _mm_sha256rnds2_epu32(feba, hgdc, _mm_shuffle_epi32(sums, 0x0E));
            if (i >= 12) continue;
            __m128i& first = words[i % 4];  // becomes the words 16 further on
            const __m128i second = words[(i + 1) % 4], third = words[(i + 2) % 4], last = words[(i + 3) % 4];
            first = _mm_sha256msg2_epu32(_mm_add_epi32(_mm_sha256msg1_epu32(first, second), _mm_alignr_epi8(last, third, 4)), last);
        }
        feba = _mm_add_epi32(feba, feba_before);
        hgdc = _mm_add_epi32(hgdc, hgdc_before);
    }
    const __m128i abef = _mm_shuffle_epi32(feba, 0x1B), dchg = _mm_shuffle_epi32(hgdc, 0xB1);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(&state[0]), _mm_blend_epi16(abef, dchg, 0xF0));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(&state[4]), _mm_alignr_epi8(dchg, abef, 8));
}

bool has_x86_extensions() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (b & bit_SHA) != 0 && __builtin_cpu_supports("sse4.1");
}
#endif

using Compress = void (*)(State& state, const std::byte* from, std::size_t blocks);

Compress fastest() {
#ifdef __x86_64__
    static const Compress found = has_x86_extensions() ? compress_x86 : compress_portable;
    return found;
#else
    return compress_portable;
#endif
}

std::string hash(std::span<const std::byte> bytes, Compress compress) {
    State state = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    const std::size_t whole = bytes.size() / BLOCK * BLOCK, rest = bytes.size() - whole;
    compress(state, bytes.data(), whole / BLOCK);
    std::array<std::byte, 2 * BLOCK> tail{};
    if (rest > 0) std::memcpy(tail.data(), bytes.data() + whole, rest);
    tail[rest] = std::byte{0x80};
    const std::size_t length = rest < BLOCK - 8 ? BLOCK : 2 * BLOCK;
    const std::uint64_t bits = static_cast<std::uint64_t>(bytes.size()) * 8;
    for (std::size_t i = 0; i < 8; ++i) tail[length - 1 - i] = static_cast<std::byte>(bits >> 8 * i & 0xFF);
    compress(state, tail.data(), length / BLOCK);
    static constexpr char digits[] = "0123456789abcdef";
    std::string text;
    for (const std::uint32_t word : state) {
        for (int shift = 28; shift >= 0; shift -= 4) text += digits[word >> shift & 15];
    }
    return text;
}

}  // namespace

std::string sha256(std::span<const std::byte> bytes) { return hash(bytes, fastest()); }

std::string sha256_portable(std::span<const std::byte> bytes) { return hash(bytes, compress_portable); }

bool has_sha256_instructions() { return fastest() != compress_portable; }

}  // namespace syncflow::engine
