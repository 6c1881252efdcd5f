// ONNX graphs in ONNX Runtime, on a CPU in float32 (engine/runtime/onnxruntime.py), through its C API.
#include <onnxruntime_c_api.h>

#include <stdexcept>

#include "graphs/graph_runtime.h"

namespace syncflow::engine {
namespace {

constexpr const char* SPIN_US = "50";  // longer than most operators, and short for other threads of the core

const OrtApi& api() {
    static const OrtApi* const found = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    if (found == nullptr) throw std::runtime_error("ONNX Runtime " + std::string(OrtGetApiBase()->GetVersionString()) + " is older than the headers of this build");
    return *found;
}

void check(OrtStatus* status) {
    if (status == nullptr) return;
    const std::string message = api().GetErrorMessage(status);
    api().ReleaseStatus(status);
    throw std::runtime_error(message);
}

template <typename T>
using Owned = std::unique_ptr<T, void (*)(T*)>;

template <typename T, typename Make>
Owned<T> owned(void (*release)(T*), Make make) {
    T* made = nullptr;
    check(make(&made));
    return {made, release};
}

using Value = Owned<OrtValue>;

class OnnxGraph : public Graph {
   public:
    OnnxGraph(Owned<OrtSession> session, const GraphSpec& spec)
        : session_(std::move(session)),
          memory_(owned<OrtMemoryInfo>(api().ReleaseMemoryInfo, [](OrtMemoryInfo** made) { return api().CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, made); })),
          spec_(spec) {
        for (const InputSpec& input : spec_.inputs) input_names_.push_back(input.name.c_str());
        for (const std::string& output : spec_.outputs) output_names_.push_back(output.c_str());
    }

    std::vector<Tensor> run(std::span<const TensorView> inputs) override {
        std::vector<Value> given;
        std::vector<const OrtValue*> in;
        for (const TensorView& input : inputs) {
            given.push_back(view(input));
            in.push_back(given.back().get());
        }
        std::vector<OrtValue*> out(output_names_.size(), nullptr);
        check(api().Run(session_.get(), nullptr, input_names_.data(), in.data(), in.size(), output_names_.data(), out.size(), out.data()));
        std::vector<Value> found;
        for (OrtValue* const value : out) found.emplace_back(value, api().ReleaseValue);
        std::vector<Tensor> outputs;
        for (const Value& value : found) outputs.push_back(copy(*value));
        return outputs;
    }

   private:
    Value view(const TensorView& input) const {
        std::size_t bytes = input.element == Element::float32 ? sizeof(float) : sizeof(std::int64_t);
        for (const std::int64_t side : input.shape) bytes *= static_cast<std::size_t>(side);
        const ONNXTensorElementDataType type = input.element == Element::float32 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT : ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
        return owned<OrtValue>(api().ReleaseValue, [&](OrtValue** made) {
            // It is an input, which ONNX Runtime only reads.
            return api().CreateTensorWithDataAsOrtValue(memory_.get(), const_cast<void*>(input.data), bytes, input.shape.data(), input.shape.size(), type, made);
        });
    }

    static Tensor copy(const OrtValue& value) {
        const auto info = owned<OrtTensorTypeAndShapeInfo>(api().ReleaseTensorTypeAndShapeInfo, [&](OrtTensorTypeAndShapeInfo** made) { return api().GetTensorTypeAndShape(&value, made); });
        std::size_t axes = 0, count = 0;
        check(api().GetDimensionsCount(info.get(), &axes));
        check(api().GetTensorShapeElementCount(info.get(), &count));
        Tensor tensor = {.shape = std::vector<std::int64_t>(axes), .values = {}};
        check(api().GetDimensions(info.get(), tensor.shape.data(), axes));
        void* data = nullptr;
        check(api().GetTensorMutableData(const_cast<OrtValue*>(&value), &data));
        const auto* const values = static_cast<const float*>(data);
        tensor.values.assign(values, values + count);
        return tensor;
    }

    Owned<OrtSession> session_;
    Owned<OrtMemoryInfo> memory_;
    GraphSpec spec_;
    std::vector<const char*> input_names_, output_names_;
};

class OnnxRuntime : public GraphRuntime {
   public:
    explicit OnnxRuntime(int threads)
        : environment_(owned<OrtEnv>(api().ReleaseEnv, [](OrtEnv** made) { return api().CreateEnv(ORT_LOGGING_LEVEL_FATAL, "syncflow", made); })),
          options_(owned<OrtSessionOptions>(api().ReleaseSessionOptions, [](OrtSessionOptions** made) { return api().CreateSessionOptions(made); })) {
        check(api().SetIntraOpNumThreads(options_.get(), threads));
        check(api().AddSessionConfigEntry(options_.get(), "session.intra_op.spin_duration_us", SPIN_US));
        check(api().AddSessionConfigEntry(options_.get(), "session.force_spinning_stop", "1"));  // graphs alternate with other work
    }

    std::unique_ptr<Graph> load(const GraphSpec& spec) override {
        auto session = owned<OrtSession>(api().ReleaseSession, [&](OrtSession** made) { return api().CreateSession(environment_.get(), spec.file.c_str(), options_.get(), made); });
        return std::make_unique<OnnxGraph>(std::move(session), spec);
    }

   private:
    Owned<OrtEnv> environment_;
    Owned<OrtSessionOptions> options_;
};

}  // namespace

std::unique_ptr<GraphRuntime> open_graph_runtime(const ExportOrigin&, int threads) { return std::make_unique<OnnxRuntime>(threads); }

}  // namespace syncflow::engine
