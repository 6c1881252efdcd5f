// SHA-256 (FIPS 180-4).
#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace syncflow::engine {

// In hexadecimal.
std::string sha256(std::span<const std::byte> bytes);

}  // namespace syncflow::engine
