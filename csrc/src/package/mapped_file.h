// A whole file as bytes in memory: mapped where the system can, otherwise read.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string_view>
#include <vector>

namespace syncflow::engine {

class MappedFile {
   public:
    // Throws Status::not_found for a file that is missing or cannot be read, with a sentence that names it.
    explicit MappedFile(const std::filesystem::path& path);
    MappedFile(MappedFile&& other) noexcept;
    MappedFile& operator=(MappedFile&&) = delete;
    ~MappedFile();

    std::span<const std::byte> bytes() const { return bytes_; }
    std::string_view text() const { return {reinterpret_cast<const char*>(bytes_.data()), bytes_.size()}; }

   private:
    std::span<const std::byte> bytes_;
    std::vector<std::byte> read_;  // where it is not mapped
};

}  // namespace syncflow::engine
