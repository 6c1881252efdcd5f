// Graphs that AOTInductor compiled to machine code, through libtorch (engine/runtime/aoti.py).
#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/InferenceMode.h>
#include <sys/utsname.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/headeronly/version.h>

#include <stdexcept>

#include "graphs/graph_runtime.h"

namespace syncflow::engine {
namespace {

class AotiGraph : public Graph {
   public:
    explicit AotiGraph(const GraphSpec& spec) : loader_(spec.file.string()), spec_(spec) {}

    std::vector<Tensor> run(std::span<const TensorView> inputs) override {
        const c10::InferenceMode guard;
        std::vector<at::Tensor> given;
        for (const auto& [element, shape, data] : inputs) {
            // They are inputs, which the code only reads.
            given.push_back(at::from_blob(const_cast<void*>(data), shape, element == Element::float32 ? at::kFloat : at::kLong));
        }
        std::vector<Tensor> outputs;
        for (const at::Tensor& found : loader_.run(given)) {
            const at::Tensor output = found.contiguous();
            const auto* const values = output.const_data_ptr<float>();
            outputs.push_back({.shape = output.sizes().vec(), .values = {values, values + output.numel()}});
        }
        if (outputs.size() != spec_.outputs.size()) throw std::runtime_error(spec_.file.string() + " has other outputs than its manifest says");
        return outputs;
    }

   private:
    torch::inductor::AOTIModelPackageLoader loader_;
    GraphSpec spec_;
};

class Aoti : public GraphRuntime {
   public:
    explicit Aoti(int threads) { at::set_num_threads(threads); }

    std::unique_ptr<Graph> load(const GraphSpec& spec) override { return std::make_unique<AotiGraph>(spec); }
};

// "x86_64 AVX2".
std::string machine() {
    utsname system{};
    uname(&system);
    return std::string(system.machine) + " " + at::get_cpu_capability();
}

// "2.13.0" of "2.13.0+cpu".
std::string release(const std::string& version) { return version.substr(0, version.find('+')); }

}  // namespace

std::unique_ptr<GraphRuntime> open_graph_runtime(const ExportOrigin& origin, int threads) {
    const auto torch = origin.versions.find("torch");
    const std::string made_with = torch == origin.versions.end() ? "no torch" : torch->second;
    if (release(made_with) != release(TORCH_VERSION)) {
        throw std::runtime_error("the export was compiled by torch " + made_with + ", and this is " + TORCH_VERSION + "; export it anew");
    }
    if (origin.machine != machine()) throw std::runtime_error("the export was compiled for " + origin.machine + ", and this is " + machine());
    return std::make_unique<Aoti>(threads);
}

}  // namespace syncflow::engine
