// What every module of a graph runtime exports.
#include <string_view>

#include "graphs/graph_runtime.h"

extern "C" __attribute__((visibility("default"))) syncflow::engine::GraphRuntime* syncflow_open_graph_runtime(
    const char* version, const syncflow::engine::ExportOrigin* origin, int threads) {
    return std::string_view(version) == SYNCFLOW_VERSION ? syncflow::engine::open_graph_runtime(*origin, threads).release() : nullptr;
}
