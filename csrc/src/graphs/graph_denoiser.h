// A d-DiT as exported graphs that a library runs (engine/runtime/exported.py): every pass is one call of a graph.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/backend.h"
#include "graphs/export.h"
#include "model/denoiser.h"

namespace syncflow::engine {

// Inputs of a graph by name; those that it holds itself live as long as it.
class NamedTensors {
   public:
    void view(const std::string& name, std::vector<std::int64_t> shape, const float* values);
    void keep(const std::string& name, std::vector<std::int64_t> shape, Floats values);
    void keep(const std::string& name, std::vector<std::int64_t> values);  // of one axis

    const TensorView* find(const std::string& name) const;

   private:
    std::map<std::string, TensorView> views_;
    std::deque<Floats> floats_;
    std::deque<std::vector<std::int64_t>> wholes_;
};

class GraphDenoiser : public Denoiser {
   public:
    GraphDenoiser(const DDiTConfig& config, Export exported, std::unique_ptr<GraphRuntime> runtime);

    const DDiTConfig& config() const override { return config_; }
    ShapeTables tables(const LatentShape& shape, std::span<const double> frame_times) const override;
    std::shared_ptr<const PromptText> condition(const float* states, std::int64_t length, int threads) const override;
    const Floats& null_text() const override { return null_text_; }
    Modulation modulation(std::span<const float> times, float fps, int threads) const override;
    Floats audio_time(std::span<const float> times, int threads) const override;
    Floats style(std::span<const float> reference, int threads) const override;
    Floats video_pass(const VideoInputs& inputs, int threads) const override;
    Floats audio_pass(const AudioInputs& inputs, int threads) const override;
    Velocities joint_pass(const JointInputs& inputs, int threads) const override;

   private:
    // Outputs in the order of the manifest. A graph is loaded when it first runs.
    std::vector<Tensor> run(const std::string& name, const NamedTensors& inputs) const;
    std::vector<Tensor> run_times(std::span<const float> times, float fps) const;

    void add_video(NamedTensors& inputs, const std::string& name, const float* latents, const Modulation& modulation, const TextRows& text,
                   const ShapeTables& tables) const;
    void add_audio(NamedTensors& inputs, const std::string& name, const float* latents, std::span<const float> time_tokens, const TextRows& text,
                   const ShapeTables& tables) const;
    void add_contexts(NamedTensors& inputs, const std::string& name, const Context* context, std::int64_t tokens, std::int64_t heads) const;
    void gather_text(const TextRows& text) const;

    DDiTConfig config_;
    Export export_;
    std::unique_ptr<GraphRuntime> runtime_;
    Floats null_text_, silence_;
    mutable std::map<std::string, std::unique_ptr<Graph>> loaded_;
    // Keys and values (blocks, P, L, n, d) of the prompts of the last pass.
    mutable std::vector<std::shared_ptr<const PromptText>> prompts_;
    mutable Floats keys_, values_;
};

// Throws as `open_export` and `load_graph_runtime` do. `options.name`: the runtime.
std::unique_ptr<const Denoiser> open_graph_denoiser(const Package& package, const DDiTConfig& config, const BackendOptions& options);

}  // namespace syncflow::engine
