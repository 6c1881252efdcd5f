// Finds and loads the modules of the graph runtimes.
#pragma once

#include <memory>
#include <string>

#include "graphs/graph_runtime.h"

namespace syncflow::engine {

// `libsyncflow_<name>` from the folder of this library (or of the program that it is linked into), or where the system finds
// libraries. A module stays loaded. Throws Status::unsupported with a sentence where it cannot be loaded or refuses the export.
std::unique_ptr<GraphRuntime> load_graph_runtime(const std::string& name, const ExportOrigin& origin, int threads);

}  // namespace syncflow::engine
