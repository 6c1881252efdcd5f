// What every fuzz target checks: a parser takes any bytes, and what it refuses it refuses with one sentence.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "engine/error.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace syncflow::fuzz {

inline void expect(bool holds, const char* what) {
    if (holds) return;
    std::fprintf(stderr, "failed: %s\n", what);
    std::abort();
}

template <typename Parse>
void refuses_with_a_sentence(Parse parse) {
    try {
        parse();
    } catch (const engine::Error& error) {
        const std::string_view sentence = error.what();
        expect(!sentence.empty() && sentence.find('\n') == std::string_view::npos, "an error is one sentence");
    }
}

inline std::string_view text(const std::uint8_t* data, std::size_t size) { return {reinterpret_cast<const char*>(data), size}; }

}  // namespace syncflow::fuzz
