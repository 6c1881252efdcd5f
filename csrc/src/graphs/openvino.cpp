// ONNX graphs in OpenVINO, on a CPU in float32 (engine/runtime/openvino.py).
#include <openvino/op/add.hpp>
#include <openvino/op/constant.hpp>
#include <openvino/runtime/core.hpp>
#include <openvino/runtime/properties.hpp>

#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "graphs/graph_runtime.h"

namespace syncflow::engine {
namespace {

// Adds the smallest normal number before each softmax: docs/export.md says which error of OpenVINO this avoids. It changes no bit.
void guard_softmax(const ov::Model& model) {
    for (const auto& node : model.get_ops()) {
        if (std::string_view(node->get_type_name()) != "Softmax") continue;
        const ov::Output<ov::Node> scores = node->input_value(0);
        if (std::string_view(scores.get_node()->get_type_name()) == "Add") continue;
        const auto tiny = ov::op::v0::Constant::create(ov::element::f32, {}, {0x1p-126f});
        node->input(0).replace_source_output(std::make_shared<ov::op::v1::Add>(scores, tiny));
    }
}

class OpenVinoGraph : public Graph {
   public:
    OpenVinoGraph(ov::CompiledModel compiled, const GraphSpec& spec) : request_(compiled.create_infer_request()), spec_(spec) {}

    std::vector<Tensor> run(std::span<const TensorView> inputs) override {
        for (std::size_t i = 0; i < inputs.size(); ++i) {
            const auto& [element, sides, data] = inputs[i];
            const ov::Shape shape(sides.begin(), sides.end());
            // It is an input, which OpenVINO only reads.
            request_.set_tensor(spec_.inputs[i].name, ov::Tensor(element == Element::float32 ? ov::element::f32 : ov::element::i64, shape, const_cast<void*>(data)));
        }
        request_.infer();
        std::vector<Tensor> outputs;
        for (std::size_t i = 0; i < spec_.outputs.size(); ++i) {
            const ov::Tensor found = request_.get_output_tensor(i);
            const ov::Shape shape = found.get_shape();
            const auto* const values = found.data<const float>();
            outputs.push_back({.shape = {shape.begin(), shape.end()}, .values = {values, values + found.get_size()}});
        }
        return outputs;
    }

   private:
    ov::InferRequest request_;
    GraphSpec spec_;
};

class OpenVino : public GraphRuntime {
   public:
    explicit OpenVino(int threads)
        : settings_{{ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY)},
                    {ov::hint::inference_precision(ov::element::f32)},
                    {ov::inference_num_threads(threads)}} {}

    std::unique_ptr<Graph> load(const GraphSpec& spec) override {
        const std::shared_ptr<ov::Model> model = core_.read_model(spec.file.string());
        guard_softmax(*model);
        return std::make_unique<OpenVinoGraph>(core_.compile_model(model, "CPU", settings_), spec);
    }

   private:
    ov::Core core_;
    ov::AnyMap settings_;
};

}  // namespace

std::unique_ptr<GraphRuntime> open_graph_runtime(const ExportOrigin&, int threads) { return std::make_unique<OpenVino>(threads); }

}  // namespace syncflow::engine
