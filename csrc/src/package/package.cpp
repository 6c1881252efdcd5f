#include "package/package.h"

#include <algorithm>
#include <array>
#include <vector>

#include "cpu/thread_pool.h"
#include "package/mapped_file.h"
#include "package/sha256.h"

namespace syncflow::engine {
namespace {

namespace fs = std::filesystem;

constexpr const char *INDEX = "model_index.json", *MANIFEST = "manifest.json", *EXPORTS = "exports";
constexpr std::array<const char*, 4> COMPONENTS = {"ddit", "video_vae", "audio_vae", "text_encoder"};
// What file managers leave behind, beside names that begin with a dot.
constexpr std::array<std::string_view, 5> LEFT_BEHIND = {"Thumbs.db", "ehthumbs.db", "desktop.ini", "Icon\r", "__MACOSX"};

[[noreturn]] void damaged(const std::string& sentence) { throw Error(Status::corrupt, sentence); }

// Whether a relative name, with slashes, stays in its folder, on every system.
bool is_inside(std::string_view name) {
    if (name.find_first_of(std::string_view("\\:\0", 3)) != std::string_view::npos) return false;
    for (std::size_t first = 0;;) {
        const std::size_t end = std::min(name.find('/', first), name.size());
        const std::string_view part = name.substr(first, end - first);
        if (part.empty() || part == "." || part == "..") return false;
        if (end == name.size()) return true;
        first = end + 1;
    }
}

bool foreign(const fs::path& relative) {
    return std::any_of(relative.begin(), relative.end(), [](const fs::path& part) {
        const std::string name = part.string();
        return name.starts_with('.') || std::find(LEFT_BEHIND.begin(), LEFT_BEHIND.end(), name) != LEFT_BEHIND.end();
    });
}

// Whether every file in a folder of the package is in the manifest.
void require_listed(const fs::path& path, const Manifest& manifest) {
    std::error_code error;
    for (fs::recursive_directory_iterator file(path, error), end; !error && file != end; file.increment(error)) {
        const fs::path place = file->path().lexically_relative(path);
        std::error_code none;
        if (!file->is_regular_file(none) || place.begin() == --place.end() || *place.begin() == EXPORTS || foreign(place)) continue;
        if (!manifest.checksums.contains(place.generic_string())) {
            damaged(file->path().string() + " is not listed in " + MANIFEST + "; the package was changed");
        }
    }
    if (error) throw Error(Status::not_found, path.string() + " cannot be read (" + error.message() + ")");
}

void require_matching(const fs::path& path, const Manifest& manifest, int threads) {
    struct File {
        fs::path path;
        const std::string* expected;
        bool matches = false;
        std::string error;
    };
    std::vector<File> files;
    for (const auto& [name, expected] : manifest.checksums) files.push_back({.path = path / name, .expected = &expected, .matches = false, .error = {}});
    parallel_for(static_cast<std::int64_t>(files.size()), threads, [&](std::int64_t i) {
        File& file = files[static_cast<std::size_t>(i)];
        try {
            file.matches = sha256(MappedFile(file.path).bytes()) == *file.expected;
        } catch (const std::exception& error) {
            file.error = error.what();
        }
    });
    for (const File& file : files) {
        if (!file.error.empty()) throw Error(Status::not_found, file.error);
        if (!file.matches) damaged(file.path.string() + " does not match its checksum; the package is damaged");
    }
}

}  // namespace

std::string Manifest::digest() const {
    Json::Object members;
    for (const auto& [name, checksum] : checksums) members.emplace_back(name, Json(checksum));
    const std::string text = to_json(Json(std::move(members)));
    return sha256(std::as_bytes(std::span(text)));
}

Manifest parse_manifest(std::string_view text, const std::string& folder) {
    const std::string file = folder + "/" + MANIFEST;
    Json json;
    try {
        json = parse_json(text);
    } catch (const Error& error) {
        throw Error(error.status(), file + " cannot be read as JSON (" + error.what() + ")");
    }
    if (json.object() == nullptr) damaged(file + " must hold a JSON object");
    const Json* const schema = json.find("schema");
    const auto* const number = schema == nullptr ? nullptr : std::get_if<std::int64_t>(&schema->value());
    if (number == nullptr || *number != PACKAGE_SCHEMA) {
        throw Error(Status::unsupported, folder + " has package schema " + (schema == nullptr ? "None" : shown(*schema)) +
                                             "; this version reads schema " + std::to_string(PACKAGE_SCHEMA));
    }
    const Json* const checksums = json.find("sha256");
    if (checksums == nullptr || checksums->object() == nullptr || checksums->find(INDEX) == nullptr) {
        damaged(file + " lists no checksums; the package is damaged");
    }
    Manifest manifest;
    for (const auto& [name, checksum] : *checksums->object()) {
        if (!is_inside(name)) damaged(file + " lists " + shown(std::string_view(name)) + "; it must list files of its own folder");
        if (checksum.string() == nullptr) damaged(file + " gives " + shown(std::string_view(name)) + " no checksum; the package is damaged");
        manifest.checksums[name] = *checksum.string();
    }
    for (const char* const component : COMPONENTS) {
        const std::string config = std::string(component) + "/config.json";
        if (!manifest.checksums.contains(config)) damaged(file + " lists no " + config + "; the package is incomplete");
    }
    return manifest;
}

Json read_json_object(const fs::path& file) {
    const MappedFile mapped(file);
    Json json;
    try {
        json = parse_json(mapped.text());
    } catch (const Error& error) {
        throw Error(error.status(), file.string() + " cannot be read as JSON (" + error.what() + ")");
    }
    if (json.object() == nullptr) damaged(file.string() + " must hold a JSON object");
    return json;
}

Package open_package(const fs::path& path, bool verify, int threads) {
    std::error_code none;
    if (!fs::is_directory(path, none)) throw Error(Status::not_found, "there is no model folder " + path.string());
    for (const char* const name : {MANIFEST, INDEX}) {
        if (!fs::is_regular_file(path / name, none)) {
            throw Error(Status::not_found, path.string() + " is no model package: it has no " + name);
        }
    }
    const Manifest manifest = parse_manifest(MappedFile(path / MANIFEST).text(), path.string());
    require_listed(path, manifest);
    for (const auto& [name, checksum] : manifest.checksums) {
        if (!fs::is_regular_file(path / name, none)) damaged(path.string() + " lacks " + name + "; the package is incomplete");
    }
    if (verify) require_matching(path, manifest, threads);
    const fs::path index = path / INDEX;
    const Json json = read_json_object(index);
    const Json* const settings = json.find("syncflow");
    if (settings == nullptr || settings->object() == nullptr) damaged(index.string() + " holds no syncflow configuration");
    try {
        return {.path = path, .config = read_model_config(*settings), .digest = manifest.digest()};
    } catch (const Error& error) {
        const bool unsupported = error.status() == Status::unsupported;
        throw Error(unsupported ? Status::unsupported : Status::corrupt,
                    index.string() + (unsupported ? " describes another model: " : " describes no model: ") + error.what());
    }
}

}  // namespace syncflow::engine
