// Tensors that Python gives by their addresses; 0 is no tensor.
#pragma once

#include <cstdint>

using Address = std::uintptr_t;

inline const float* floats(Address address) { return reinterpret_cast<const float*>(address); }

inline float* writable(Address address) { return reinterpret_cast<float*>(address); }

inline const std::int64_t* integers(Address address) { return reinterpret_cast<const std::int64_t*>(address); }
