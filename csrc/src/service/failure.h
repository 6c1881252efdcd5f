// What a caller is told when a call or a request fails: a status of the C API and its sentence.
#pragma once

#include <exception>
#include <new>
#include <stdexcept>
#include <string>

#include "engine/error.h"
#include "syncflow/syncflow.h"

namespace syncflow::service {

struct Outcome {
    syncflow_status status = SYNCFLOW_OK;
    std::string message;
};

class Failure : public std::runtime_error {
   public:
    Failure(syncflow_status status, const std::string& sentence) : std::runtime_error(sentence), status_(status) {}

    syncflow_status status() const noexcept { return status_; }

   private:
    syncflow_status status_;
};

inline syncflow_status status_of(engine::Status status) noexcept {
    switch (status) {
        case engine::Status::invalid_argument: return SYNCFLOW_INVALID_ARGUMENT;
        case engine::Status::not_found: return SYNCFLOW_NOT_FOUND;
        case engine::Status::corrupt: return SYNCFLOW_CORRUPT;
        case engine::Status::unsupported: return SYNCFLOW_UNSUPPORTED;
        case engine::Status::out_of_memory: return SYNCFLOW_OUT_OF_MEMORY;
        case engine::Status::internal: return SYNCFLOW_INTERNAL;
    }
    return SYNCFLOW_INTERNAL;
}

// The outcome that stands for the exception being handled.
inline Outcome current_failure() {
    try {
        throw;
    } catch (const Failure& failure) {
        return {failure.status(), failure.what()};
    } catch (const engine::Error& error) {
        return {status_of(error.status()), error.what()};
    } catch (const std::bad_alloc&) {
        return {SYNCFLOW_OUT_OF_MEMORY, "there is not enough memory"};
    } catch (const std::length_error&) {
        return {SYNCFLOW_OUT_OF_MEMORY, "there is not enough memory"};
    } catch (const std::exception& error) {
        return {SYNCFLOW_INTERNAL, error.what()};
    } catch (...) {
        return {SYNCFLOW_INTERNAL, "an exception of an unknown type"};
    }
}

}  // namespace syncflow::service
