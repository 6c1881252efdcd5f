// Floats that begin where a cache line does.
#pragma once

#include <cstddef>
#include <new>
#include <vector>

namespace syncflow {

template <typename T>
struct OnCacheLines {
    using value_type = T;

    OnCacheLines() = default;
    template <typename Other>
    OnCacheLines(const OnCacheLines<Other>&) {}

    T* allocate(std::size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), line)); }
    void deallocate(T* data, std::size_t) { ::operator delete(data, line); }

    friend bool operator==(const OnCacheLines&, const OnCacheLines&) { return true; }
    friend bool operator!=(const OnCacheLines&, const OnCacheLines&) { return false; }

    static constexpr std::align_val_t line{64};
};

using Floats = std::vector<float, OnCacheLines<float>>;

}  // namespace syncflow
