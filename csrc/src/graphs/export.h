// A folder of exported graphs with its manifest (engine/exports.py): reading and checking.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "graphs/graph_runtime.h"
#include "package/package.h"

namespace syncflow::engine {

struct Export {
    std::filesystem::path path;
    std::map<std::string, GraphSpec> graphs;
    ExportOrigin origin;
};

// The float32 export of a package for a runtime on a CPU: in the package, or under its hash in the cache ($SYNCFLOW_CACHE, or
// ~/.cache/syncflow). `graphs`: those that are needed. Throws Status::not_found where there is none, unsupported for another schema
// and for graphs that `syncflow verify` did not find correct in this runtime, and corrupt for damage; `verify`: also where a file
// does not match its checksum.
Export open_export(const Package& package, const std::string& runtime, const std::vector<std::string>& graphs, bool verify);

}  // namespace syncflow::engine
