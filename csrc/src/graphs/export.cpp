#include "graphs/export.h"

#include <cstdlib>
#include <optional>

#include "package/mapped_file.h"
#include "package/sha256.h"

namespace syncflow::engine {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t SCHEMA = 2;
constexpr const char *MANIFEST = "manifest.json", *AOTI = "aoti";

std::string folder_name(const std::string& runtime) { return runtime == AOTI ? "aoti/cpu" : "onnx"; }

std::optional<fs::path> cache_folder() {
    if (const char* const cache = std::getenv("SYNCFLOW_CACHE"); cache != nullptr && *cache != '\0') return cache;
    if (const char* const home = std::getenv("HOME"); home != nullptr && *home != '\0') return fs::path(home) / ".cache" / "syncflow";
    return std::nullopt;
}

fs::path find_export(const Package& package, const std::string& runtime) {
    std::vector<fs::path> folders = {package.path / "exports" / folder_name(runtime)};
    if (const auto cache = cache_folder()) folders.push_back(*cache / package.digest / folder_name(runtime));
    std::error_code none;
    for (const fs::path& folder : folders) {
        if (fs::is_regular_file(folder / MANIFEST, none)) return folder;
    }
    const std::string places = folders.front().string() + (folders.size() > 1 ? " or " + folders.back().string() : "");
    throw Error(Status::not_found, "the back end " + runtime + " needs graphs of this model, and there are none in " + places + "; `syncflow export " +
                                       package.path.string() + " --to " + (runtime == AOTI ? "aoti" : "onnx") + "` makes them");
}

// Members of a manifest, each of the kind that it must have.
const Json& member(const Json& json, std::string_view name) {
    const Json* const found = json.find(name);
    if (found == nullptr) throw Error(Status::corrupt, "it has no " + std::string(name));
    return *found;
}

const std::string& text(const Json& json, std::string_view name) {
    const std::string* const found = member(json, name).string();
    if (found == nullptr) throw Error(Status::corrupt, std::string(name) + " is no text");
    return *found;
}

const Json::Object& object(const Json& json, std::string_view name) {
    const Json::Object* const found = member(json, name).object();
    if (found == nullptr) throw Error(Status::corrupt, std::string(name) + " is no object");
    return *found;
}

std::int64_t whole(const Json& json) {
    const auto* const found = std::get_if<std::int64_t>(&json.value());
    if (found == nullptr) throw Error(Status::corrupt, shown(json) + " is no whole number");
    return *found;
}

// A length, or the name of a dynamic axis.
InputSpec::Axis read_axis(const Json& stated, const Json& axes) {
    const std::string* const name = stated.string();
    if (name == nullptr) return {.least = whole(stated), .most = whole(stated), .step = 1};
    const Json& axis = member(axes, *name);
    const Json& most = member(axis, "most");
    const InputSpec::Axis read = {.least = whole(member(axis, "least")), .most = most.null() ? INT64_MAX : whole(most), .step = whole(member(axis, "step"))};
    if (read.step < 1) throw Error(Status::corrupt, "the axis " + *name + " has a step of " + std::to_string(read.step));
    return read;
}

GraphSpec read_graph(const fs::path& folder, const Json& json) {
    GraphSpec graph = {.file = folder / text(json, "file"), .inputs = {}, .outputs = {}};
    for (const auto& [name, spec] : object(json, "inputs")) {
        const std::string& dtype = text(spec, "dtype");
        if (dtype != "float32" && dtype != "int64") throw Error(Status::unsupported, "the input " + name + " is of the type " + dtype);
        InputSpec input = {.name = name, .element = dtype == "int64" ? Element::int64 : Element::float32, .axes = {}};
        const Json::Array* const shape = member(spec, "shape").array();
        if (shape == nullptr) throw Error(Status::corrupt, "the shape of " + name + " is no list");
        for (const Json& stated : *shape) input.axes.push_back(read_axis(stated, member(json, "axes")));
        graph.inputs.push_back(std::move(input));
    }
    for (const auto& [name, spec] : object(json, "outputs")) {
        if (text(spec, "dtype") != "float32") throw Error(Status::unsupported, "the output " + name + " is of the type " + text(spec, "dtype"));
        graph.outputs.push_back(name);
    }
    return graph;
}

// Whether `syncflow verify` found all these graphs correct in the runtime, wherever it did.
void require_verified(const Json& manifest, const std::string& runtime, const std::vector<std::string>& graphs) {
    const Json::Array* const results = member(manifest, "proofs").array();
    if (results == nullptr) throw Error(Status::corrupt, "proofs is no list");
    bool verified = false;
    for (const Json& result : *results) {
        if (text(result, "runtime") != runtime || text(result, "device") != "cpu" || text(result, "precision") != "float32") continue;
        const Json& bound = member(result, "bound");
        for (const std::string& graph : graphs) {
            const Json* const error = member(result, "errors").find(graph);
            if (error != nullptr && error->number() && bound.number() && error->as_double() <= bound.as_double()) continue;
            throw Error(Status::unsupported, "`syncflow verify` found " + graph + " wrong in " + runtime + " on " + text(result, "processor"));
        }
        verified = true;
    }
    if (!verified) throw Error(Status::unsupported, "its graphs were not verified in " + runtime + "; run `syncflow verify`");
}

void require_matching(const Export& read, const Json& checksums, const std::vector<fs::path>& files, bool verify) {
    std::error_code none;
    for (const fs::path& file : files) {
        const std::string name = file.filename().string();
        if (file.parent_path() != read.path || name.empty() || name.front() == '.') throw Error(Status::corrupt, "it names a file of another folder");
        const std::string& expected = text(checksums, name);
        if (!fs::is_regular_file(file, none)) throw Error(Status::corrupt, "the file " + name + " is missing");
        if (verify && sha256(MappedFile(file).bytes()) != expected) throw Error(Status::corrupt, name + " does not match its checksum; the export is damaged");
    }
}

Export read_export(const fs::path& path, const Package& package, const std::string& runtime, const std::vector<std::string>& graphs, bool verify) {
    const Json manifest = read_json_object(path / MANIFEST);
    if (const Json* const schema = manifest.find("schema"); schema == nullptr || !schema->whole() || schema->as_double() != SCHEMA) {
        throw Error(Status::unsupported, "it has export schema " + (schema == nullptr ? "None" : shown(*schema)) + ", and this version reads schema " +
                                             std::to_string(SCHEMA) + "; export the model again");
    }
    if (text(manifest, "model") != package.digest) throw Error(Status::unsupported, "it belongs to another model; export this one with `syncflow export`");
    if (text(manifest, "precision") != "float32") throw Error(Status::unsupported, "its precision is " + text(manifest, "precision"));
    require_verified(manifest, runtime, graphs);
    Export read = {.path = path, .graphs = {}, .origin = {.versions = {}, .machine = text(manifest, "machine")}};
    for (const auto& [library, version] : object(manifest, "versions")) {
        if (version.string() != nullptr) read.origin.versions[library] = *version.string();
    }
    std::vector<fs::path> files = {path / "constants.safetensors"};
    for (const std::string& name : graphs) {
        read.graphs[name] = read_graph(path, member(member(manifest, "graphs"), name));
        files.push_back(read.graphs[name].file);
    }
    // The weights of a large graph are in a file beside it.
    for (const auto& [name, checksum] : object(manifest, "sha256")) {
        const fs::path file = path / name;
        if (file.extension() == ".data") files.push_back(file);
    }
    require_matching(read, member(manifest, "sha256"), files, verify);
    return read;
}

}  // namespace

Export open_export(const Package& package, const std::string& runtime, const std::vector<std::string>& graphs, bool verify) {
    const fs::path path = find_export(package, runtime);
    try {
        return read_export(path, package, runtime, graphs, verify);
    } catch (const Error& error) {
        throw Error(error.status(), "the export " + path.string() + " cannot be used: " + error.what());
    }
}

}  // namespace syncflow::engine
