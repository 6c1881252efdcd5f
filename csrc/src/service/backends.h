// The back ends of this build, by name.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <string>

#include "engine/backend.h"

namespace syncflow::service {

using OpenBackend = std::function<std::unique_ptr<engine::Backend>(const std::filesystem::path& package, const engine::BackendOptions& options)>;

// Adds a back end, or replaces that of the same name.
void register_backend(const std::string& name, OpenBackend open);

// "native, ..."
std::string backend_names();

// Opens the package with the back end `options.name`. Throws Failure for an unknown name, and what the back end throws.
std::unique_ptr<engine::Backend> open_backend(const std::filesystem::path& package, const engine::BackendOptions& options);

}  // namespace syncflow::service
