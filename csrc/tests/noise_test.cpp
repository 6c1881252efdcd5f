// Known answers of the noise source: Random123's kat_vectors for Philox4x32-10 and values of the Python specification.
#include "syncflow/noise.h"

#include <cmath>
#include <cstdio>
#include <vector>

#include "check.h"

namespace {

using syncflow::test::expect;

void philox_gives_the_published_vectors() {
    using syncflow::philox4x32;
    using syncflow::PhiloxCounter;
    expect(philox4x32({0, 0, 0, 0}, {0, 0}) == PhiloxCounter{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}, "philox of zeros");
    expect(philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}) ==
               PhiloxCounter{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd},
           "philox of ones");
    expect(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
               PhiloxCounter{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1},
           "philox of the digits of pi");
}

void words_map_to_normals() {
    using syncflow::normal_from_word;
    expect(normal_from_word(0) == -0x1.95a11ap+2f, "the lowest word");
    expect(normal_from_word(0xffffffff) == 0x1.95a11ap+2f, "the highest word");
    expect(std::fabs(normal_from_word(0x40000000) + 0.67448975f) < 1e-6f, "the lower quartile");
    expect(normal_from_word(0x7fffffff) == -normal_from_word(0x80000000), "odd symmetry");
}

void a_stream_matches_the_specification() {
    std::vector<float> draw(4);
    syncflow::fill_normal({0x0123456789abcdef, 1, 2}, 0, draw.data(), draw.size());
    expect(draw == std::vector<float>{-0x1.8c5bd4p-1f, -0x1.54e12ep-2f, -0x1.f2517ep+0f, -0x1.fa0de2p-3f}, "values of the specification");
}

void a_part_of_a_stream_equals_the_whole() {
    const syncflow::NoiseStream stream{0x0123456789abcdef, 1, 2};
    std::vector<float> whole(23);
    syncflow::fill_normal(stream, 0, whole.data(), whole.size());
    for (std::size_t offset = 0; offset <= whole.size(); ++offset) {
        std::vector<float> part(whole.size() - offset);
        syncflow::fill_normal(stream, offset, part.data(), part.size());
        for (std::size_t i = 0; i < part.size(); ++i) expect(part[i] == whole[offset + i], "a part of a stream");
    }
}

void streams_differ() {
    std::vector<std::vector<float>> draws;
    for (const syncflow::NoiseStream stream : {syncflow::NoiseStream{1, 0, 0}, {2, 0, 0}, {1, 1, 0}, {1, 0, 1}, {1ull << 32, 0, 0}}) {
        std::vector<float> draw(8);
        syncflow::fill_normal(stream, 0, draw.data(), draw.size());
        for (const auto& other : draws) expect(draw != other, "streams differ");
        draws.push_back(draw);
    }
}

}  // namespace

int main() {
    philox_gives_the_published_vectors();
    words_map_to_normals();
    a_stream_matches_the_specification();
    a_part_of_a_stream_equals_the_whole();
    streams_differ();
    std::puts("noise: all checks hold");
}
