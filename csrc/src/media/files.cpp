#include "media/files.h"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <string>
#include <system_error>

#include "service/failure.h"

namespace syncflow::media {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail(const fs::path& path, const std::string& why) {
    throw service::Failure(SYNCFLOW_IO_ERROR, "cannot write " + path.string() + ": " + why);
}

std::string sentence_of(int error) { return std::generic_category().message(error); }

}  // namespace

PendingFile::PendingFile(const fs::path& destination) {
    std::error_code error;
    if (!destination.has_filename()) fail(destination, "it names no file");
    fs::create_directories(destination.parent_path(), error);
    if (error && destination.has_parent_path()) fail(destination, error.message());
    destination_ = fs::weakly_canonical(destination, error);
    if (error) fail(destination, error.message());
    const fs::file_status found = fs::status(destination_, error);
    if (fs::exists(found) && !fs::is_regular_file(found)) fail(destination, "it is no regular file");

    // A name of its own; open() gives it the permissions of a new file.
    static std::atomic<unsigned> serial{0};
    const std::string suffix = destination.extension().string().substr(0, 8);
    int descriptor = -1;
    do {
        const std::string name = ".syncflow-" + std::to_string(getpid()) + "-" + std::to_string(serial++) + suffix;
        temporary_ = destination_.parent_path() / name;
        descriptor = ::open(temporary_.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0666);
    } while (descriptor < 0 && errno == EEXIST);
    if (descriptor < 0) {
        const int reason = errno;
        temporary_.clear();
        fail(destination, sentence_of(reason));
    }
    file_.reset(fdopen(descriptor, "wb"));
    if (!file_) {
        const int reason = errno;
        ::close(descriptor);
        ::unlink(temporary_.c_str());
        fail(destination, sentence_of(reason));
    }
}

PendingFile::~PendingFile() {
    if (temporary_.empty()) return;
    file_.reset();
    ::unlink(temporary_.c_str());
}

void PendingFile::write(const void* data, std::size_t size) {
    if (size > 0 && std::fwrite(data, 1, size, file_.get()) != size) fail(destination_, sentence_of(errno));
}

void PendingFile::commit() {
    if (std::fclose(file_.release()) != 0) fail(destination_, sentence_of(errno));
    if (std::rename(temporary_.c_str(), destination_.c_str()) != 0) fail(destination_, sentence_of(errno));
    temporary_.clear();
}

}  // namespace syncflow::media
