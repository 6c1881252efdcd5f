// Vectors of floats aligned to cache lines.
#pragma once

#include <cstddef>
#include <new>
#include <vector>

namespace syncflow {

template <typename T>
struct CacheAlignedAllocator {
    using value_type = T;

    CacheAlignedAllocator() = default;
    template <typename Other>
    CacheAlignedAllocator(const CacheAlignedAllocator<Other>&) {}

    T* allocate(std::size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), line)); }
    void deallocate(T* data, std::size_t) { ::operator delete(data, line); }

    friend bool operator==(const CacheAlignedAllocator&, const CacheAlignedAllocator&) { return true; }
    friend bool operator!=(const CacheAlignedAllocator&, const CacheAlignedAllocator&) { return false; }

    static constexpr std::align_val_t line{64};
};

using Floats = std::vector<float, CacheAlignedAllocator<float>>;

}  // namespace syncflow
