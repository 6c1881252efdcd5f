// Structs of the C API, of this library's size or another's.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

#include "service/failure.h"

namespace syncflow::capi {

constexpr std::size_t MAX_STRUCT = 1 << 12;  // bytes; a larger struct_size was never set

inline void check_size(std::size_t size, std::size_t first, const char* name) {
    if (size >= first && size <= MAX_STRUCT) return;
    throw service::Failure(SYNCFLOW_INVALID_ARGUMENT,
        std::string("struct_size of ") + name + " is " + std::to_string(size) + "; set it to sizeof, at least " + std::to_string(first));
}

template <typename Struct>
void check_not_null(const Struct* given, const char* name) {
    if (given == nullptr) throw service::Failure(SYNCFLOW_INVALID_ARGUMENT, std::string(name) + " is null");
}

// What a program passes in. `values` has the defaults, of fields that a program compiled with an earlier header does not have. A later
// header's fields must be zero, since this library cannot do what they ask for. `first` is the size in the first version.
template <typename Struct>
Struct read_struct(const Struct* given, Struct values, std::size_t first, const char* name) {
    check_not_null(given, name);
    std::uint32_t size = 0;
    std::memcpy(&size, given, sizeof size);
    check_size(size, first, name);
    const auto* bytes = reinterpret_cast<const unsigned char*>(given);
    if (std::any_of(bytes + std::min<std::size_t>(size, sizeof values), bytes + size, [](unsigned char byte) { return byte != 0; })) {
        throw service::Failure(SYNCFLOW_UNSUPPORTED, std::string(name) + " has fields of a later version of the library");
    }
    std::memcpy(&values, given, std::min<std::size_t>(size, sizeof values));
    return values;
}

// What a program gets; fields that this library does not have are zero.
template <typename Struct>
void write_struct(Struct values, Struct* to, std::size_t size, std::size_t first, const char* name) {
    check_not_null(to, name);
    check_size(size, first, name);
    values.struct_size = static_cast<std::uint32_t>(size);
    std::memset(static_cast<void*>(to), 0, size);
    std::memcpy(static_cast<void*>(to), &values, std::min(size, sizeof values));
}

// As above, into a struct whose struct_size the program has set.
template <typename Struct>
void fill_struct(Struct values, Struct* to, std::size_t first, const char* name) {
    check_not_null(to, name);
    std::uint32_t size = 0;
    std::memcpy(&size, to, sizeof size);
    write_struct(values, to, size, first, name);
}

}  // namespace syncflow::capi
