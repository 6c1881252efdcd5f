#include "package/mapped_file.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>

#include "engine/error.h"

#if defined(__unix__) || defined(__APPLE__)
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#define SYNCFLOW_MMAP
#endif

namespace syncflow::engine {

#ifdef SYNCFLOW_MMAP
MappedFile::MappedFile(const std::filesystem::path& path) {
    const auto fail = [&] {
        throw Error(Status::not_found, path.string() + " cannot be read (" + std::strerror(errno) + ")");
    };
    const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file < 0) fail();
    struct stat about = {};
    const bool known = ::fstat(file, &about) == 0 && S_ISREG(about.st_mode);
    const auto size = known ? static_cast<std::size_t>(about.st_size) : 0;
    void* const mapped = size == 0 ? nullptr : ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file, 0);
    const int reason = known ? errno : EINVAL;
    ::close(file);
    errno = reason;
    if (!known || mapped == MAP_FAILED) fail();
    bytes_ = {static_cast<const std::byte*>(mapped), size};
}

MappedFile::~MappedFile() {
    if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}
#else
MappedFile::MappedFile(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    const std::vector<char> found{std::istreambuf_iterator<char>(file), {}};
    if (!file.is_open() || file.bad()) throw Error(Status::not_found, path.string() + " cannot be read");
    read_.resize(found.size());
    if (!found.empty()) std::memcpy(read_.data(), found.data(), found.size());
    bytes_ = read_;
}

MappedFile::~MappedFile() = default;
#endif

MappedFile::MappedFile(MappedFile&& other) noexcept : bytes_(other.bytes_), read_(std::move(other.read_)) { other.bytes_ = {}; }

}  // namespace syncflow::engine
