#include "graphs/module.h"

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#endif

#include "engine/error.h"

namespace syncflow::engine {

#if defined(__unix__) || defined(__APPLE__)
namespace {

#if defined(__APPLE__)
constexpr const char* SUFFIX = ".dylib";
#else
constexpr const char* SUFFIX = ".so";
#endif

// The folder of the file that this code was loaded from.
std::filesystem::path own_folder() {
    Dl_info info{};
    if (dladdr(reinterpret_cast<const void*>(&load_graph_runtime), &info) == 0 || info.dli_fname == nullptr) return {};
    std::error_code none;
    return std::filesystem::absolute(info.dli_fname, none).parent_path();
}

}  // namespace

std::unique_ptr<GraphRuntime> load_graph_runtime(const std::string& name, const ExportOrigin& origin, int threads) {
    const std::string file = "libsyncflow_" + name + SUFFIX;
    const std::filesystem::path beside = own_folder() / file;
    std::error_code none;
    void* const module = dlopen(std::filesystem::exists(beside, none) ? beside.c_str() : file.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (module == nullptr) {
        throw Error(Status::unsupported, "the back end " + name + " is not installed: " + file + " and its libraries cannot be loaded (" + dlerror() + ")");
    }
    const auto open = reinterpret_cast<OpenGraphRuntime>(dlsym(module, "syncflow_open_graph_runtime"));
    try {
        if (open != nullptr) {
            if (GraphRuntime* const opened = open(SYNCFLOW_VERSION, &origin, threads)) return std::unique_ptr<GraphRuntime>(opened);
        }
    } catch (const std::exception& error) {
        throw Error(Status::unsupported, "the back end " + name + " cannot be used: " + error.what());
    }
    throw Error(Status::unsupported, file + " is of another version of this library than " SYNCFLOW_VERSION);
}
#else
std::unique_ptr<GraphRuntime> load_graph_runtime(const std::string& name, const ExportOrigin&, int) {
    throw Error(Status::unsupported, "the back end " + name + " is not built for this system");
}
#endif

}  // namespace syncflow::engine
