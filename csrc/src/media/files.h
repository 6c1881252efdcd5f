// Files that are written beside their destination and then renamed, so that no half of one is ever seen.
#pragma once

#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <memory>

namespace syncflow::media {

// A temporary file in the folder of its destination, removed unless it is committed. A link is followed, missing folders are made.
// Every function throws service::Failure with SYNCFLOW_IO_ERROR.
class PendingFile {
   public:
    explicit PendingFile(const std::filesystem::path& destination);
    PendingFile(const PendingFile&) = delete;
    PendingFile& operator=(const PendingFile&) = delete;
    ~PendingFile();

    // Where to write; for libraries that open files themselves.
    const std::filesystem::path& path() const { return temporary_; }

    void write(const void* data, std::size_t size);
    void commit();

   private:
    struct Close {
        void operator()(std::FILE* file) const { std::fclose(file); }
    };

    std::filesystem::path destination_, temporary_;
    std::unique_ptr<std::FILE, Close> file_;
};

}  // namespace syncflow::media
