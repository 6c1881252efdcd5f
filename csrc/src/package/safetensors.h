// The safetensors format: a JSON header of names, types, shapes and places, and the tensors behind it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <initializer_list>
#include <map>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "package/mapped_file.h"
#include "syncflow/floats.h"

namespace syncflow::engine {

using Shape = std::vector<std::int64_t>;

// "(2, 3)".
std::string shown(const Shape& shape);

struct SafetensorsHeader {
    struct Tensor {
        std::string dtype;  // as the format names it: "F16", "BF16", "F32", "F64" and others
        Shape shape;
        std::size_t begin, end;  // in the file
    };
    std::map<std::string, Tensor, std::less<>> tensors;
};

// Checks that the tensors fill the file without a gap or an overlap, each as long as its shape. Throws Status::corrupt.
SafetensorsHeader parse_safetensors(std::span<const std::byte> file);

// The tensors of one file, each taken once under its name.
class Weights {
   public:
    // Throws Status::not_found or corrupt with a sentence that names the file.
    explicit Weights(const std::filesystem::path& path);

    bool has(std::string_view name) const { return header_.tensors.contains(name); }
    std::size_t count() const { return header_.tensors.size(); }
    std::int64_t elements() const;

    // A tensor in half, single or double precision as floats. Throws Status::corrupt where it is missing, has another shape
    // or type, or holds a number that is not finite.
    Floats take(std::string_view name, const Shape& shape);

    // Throws Status::corrupt where a tensor has not been taken.
    void finish() const;

   private:
    [[noreturn]] void fail(const std::string& reason) const;

    std::filesystem::path path_;
    MappedFile file_;
    SafetensorsHeader header_;
    std::set<std::string, std::less<>> taken_;
};

}  // namespace syncflow::engine
