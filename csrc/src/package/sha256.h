// SHA-256 (FIPS 180-4).
#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace syncflow::engine {

// In hexadecimal, with the processor's own instructions for it where it has them.
std::string sha256(std::span<const std::byte> bytes);

// The same without them.
std::string sha256_portable(std::span<const std::byte> bytes);

bool has_sha256_instructions();

}  // namespace syncflow::engine
