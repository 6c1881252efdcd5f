// What executes requests: the border between the engine (queue, worker thread, C API) and a model.
//
//     Request -> prepare -> RequestState -> step, until done -> decode -> a clip for each take
//
// Every function that can fail throws `Error` (error.h), and beside it only std::bad_alloc.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/error.h"
#include "engine/request.h"

namespace syncflow::engine {

// A request that a back end has prepared, between two steps. Belongs to the back end that made it, which must outlive it;
// destroying one at any step is how a request is cancelled.
class RequestState {
   public:
    RequestState() = default;
    RequestState(const RequestState&) = delete;
    RequestState& operator=(const RequestState&) = delete;
    virtual ~RequestState() = default;

    // Steps that are done, and all steps.
    virtual std::int64_t step() const = 0;
    virtual std::int64_t num_steps() const = 0;
    bool done() const { return step() >= num_steps(); }

    // Requests of equal shapes are computed together; those of others can be stepped in one call too, one shape after the other.
    virtual const std::vector<std::int64_t>& shape() const = 0;

    // The bytes that the request keeps until it is destroyed, approximately.
    virtual std::int64_t memory() const = 0;
};

// One model. Its functions may be called from any thread, but only one at a time; `info` at any time.
class Backend {
   public:
    Backend() = default;
    Backend(const Backend&) = delete;
    Backend& operator=(const Backend&) = delete;
    virtual ~Backend() = default;

    virtual const ModelInfo& info() const = 0;

    // Validates the request, derives all lengths once, plans the guidance, encodes text and media, and adds the noise.
    // Throws Status::invalid_argument for what is wrong with the request, with the sentence that Python says.
    virtual std::unique_ptr<RequestState> prepare(const Request& request) = 0;

    // One guided Euler step of each of these, which may be at different steps, and join and leave between calls. What a
    // request becomes does not depend on the others. Those that are done stay as they are. After an exception the states
    // are undefined and can only be destroyed.
    virtual void step(std::span<RequestState* const> requests) = 0;

    // A clip for each take, of a request that is done. Known frames and sounds stay as they were given.
    virtual std::vector<Clip> decode(const RequestState& request) = 0;

    // Where a request is now; `frames`: with the frames that the video is expected to end with, which runs the video's decoder.
    virtual Preview preview(const RequestState& request, bool frames) = 0;
};

inline constexpr const char* NATIVE = "native";

struct BackendOptions {
    std::string name = NATIVE;  // or a runtime of exported graphs
    int threads = 0;  // that compute; 0: one for each processor that the process may use
    bool verify = true;  // whether all files are compared with the checksums of the manifest
};

// "native", and the runtimes of exported graphs of this build.
const std::vector<std::string>& backend_names();

// Reads a package, and for a runtime of exported graphs its export. Throws Status::not_found, corrupt or unsupported with a sentence that names the file.
std::unique_ptr<Backend> open_backend(const std::filesystem::path& package, const BackendOptions& options = {});

}  // namespace syncflow::engine
