// The engine package: a model on disk in the diffusers layout, with checksums (engine/package.py).
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <string_view>

#include "package/json.h"
#include "package/model_config.h"

namespace syncflow::engine {

constexpr std::int64_t PACKAGE_SCHEMA = 1;

// The text of manifest.json: the sha256 of every file by its name, with slashes.
struct Manifest {
    std::map<std::string, std::string, std::less<>> checksums;

    // The model hash of provenance records: the sha256 over all checksums.
    std::string digest() const;
};

// `folder` is what messages call the package. Throws Status::corrupt, or unsupported for another schema.
Manifest parse_manifest(std::string_view text, const std::string& folder = "the package");

// A package on disk whose files are those of its manifest.
struct Package {
    std::filesystem::path path;
    ModelConfig config;
    std::string digest;
};

// Checks a package whole and reads its configuration; `verify`: also the checksum of every file, on so many threads. Throws
// Status::not_found, corrupt or unsupported with a sentence that names the file.
Package open_package(const std::filesystem::path& path, bool verify = true, int threads = 1);

// The object in a JSON file. Throws Status::not_found or corrupt with a sentence that names the file.
Json read_json_object(const std::filesystem::path& file);

}  // namespace syncflow::engine
