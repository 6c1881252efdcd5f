#include "service/backends.h"

#include <map>
#include <mutex>
#include <utility>

#include "service/failure.h"

namespace syncflow::service {
namespace {

struct Backends {
    std::mutex mutex;
    std::map<std::string, OpenBackend> by_name;

    Backends() {
        for (const std::string& name : engine::backend_names()) by_name[name] = engine::open_backend;
    }
};

Backends& backends() {
    static Backends* const only = new Backends;  // never destroyed, as other threads may open engines until the process ends
    return *only;
}

}  // namespace

void register_backend(const std::string& name, OpenBackend open) {
    const std::lock_guard lock(backends().mutex);
    backends().by_name[name] = std::move(open);
}

std::string backend_names() {
    const std::lock_guard lock(backends().mutex);
    std::string names;
    for (const auto& [name, open] : backends().by_name) names += (names.empty() ? "" : ", ") + name;
    return names;
}

std::unique_ptr<engine::Backend> open_backend(const std::filesystem::path& package, const engine::BackendOptions& options) {
    OpenBackend open;
    {
        const std::lock_guard lock(backends().mutex);
        const auto found = backends().by_name.find(options.name);
        if (found != backends().by_name.end()) open = found->second;
    }
    if (!open) throw Failure(SYNCFLOW_UNSUPPORTED, "there is no back end " + options.name + "; this build has " + backend_names());
    return open(package, options);
}

}  // namespace syncflow::service
