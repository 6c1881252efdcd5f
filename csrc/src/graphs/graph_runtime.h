// The border to a library that runs exported graphs. Each is linked into a module of its own, `libsyncflow_<name>`, which is loaded
// when its back end is first opened: a program that uses another starts without the library.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "syncflow/floats.h"

namespace syncflow::engine {

enum class Element { float32, int64 };

// Contiguous values of a caller, valid while a graph runs.
struct TensorView {
    Element element;
    std::vector<std::int64_t> shape;
    const void* data;
};

struct Tensor {
    std::vector<std::int64_t> shape;
    Floats values;
};

// An input of a graph: allowed lengths of each axis, from `least` to `most` in steps of `step`.
struct InputSpec {
    struct Axis {
        std::int64_t least, most, step;
    };
    std::string name;
    Element element;
    std::vector<Axis> axes;
};

struct GraphSpec {
    std::filesystem::path file;
    std::vector<InputSpec> inputs;
    std::vector<std::string> outputs;
};

// What an export was compiled for: versions of libraries by name; the instruction set, or nothing.
struct ExportOrigin {
    std::map<std::string, std::string> versions;
    std::string machine;
};

// A loaded graph. It runs in one thread at a time.
class Graph {
   public:
    virtual ~Graph() = default;

    // Outputs in their order, of inputs in theirs; all outputs are floats.
    virtual std::vector<Tensor> run(std::span<const TensorView> inputs) = 0;
};

class GraphRuntime {
   public:
    virtual ~GraphRuntime() = default;
    virtual std::unique_ptr<Graph> load(const GraphSpec& spec) = 0;
};

// Every module defines this function and exports it as `syncflow_open_graph_runtime`. Like all of a module it throws nothing but
// standard exceptions; of a message, which may go on with a library's stack, the first line counts.
std::unique_ptr<GraphRuntime> open_graph_runtime(const ExportOrigin& origin, int threads);

// The exported function: null where `version` is not that of the module, as classes cross the border.
using OpenGraphRuntime = GraphRuntime* (*)(const char* version, const ExportOrigin* origin, int threads);

}  // namespace syncflow::engine
