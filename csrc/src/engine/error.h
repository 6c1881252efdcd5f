// What goes wrong, as one sentence and the kind of mistake.
#pragma once

#include <stdexcept>
#include <string>

namespace syncflow::engine {

enum class Status {
    invalid_argument,  // a setting, or media, that the model cannot take; the sentence says what is allowed
    not_found,         // a missing file or folder
    corrupt,           // a package that is damaged, incomplete or changed
    unsupported,       // another schema version, or a component that this library does not compute
    out_of_memory,
    internal,
};

// The message is one sentence without a line break: what was wrong, what is allowed.
class Error : public std::runtime_error {
   public:
    Error(Status status, const std::string& sentence) : std::runtime_error(sentence), status_(status) {}

    Status status() const noexcept { return status_; }

   private:
    Status status_;
};

}  // namespace syncflow::engine
