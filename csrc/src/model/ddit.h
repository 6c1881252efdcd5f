// The dual diffusion transformer: both towers, what crosses between them, and their passes (engine/model/ddit.py).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "model/audio_tower.h"
#include "model/denoiser.h"
#include "model/layers.h"
#include "model/shape_tables.h"
#include "model/video_tower.h"

namespace syncflow::engine {

// The native back end: on the blocks of this library, in float32 on a CPU.
class DDiT : public Denoiser {
   public:
    // Throws Status::unsupported for sizes that the blocks do not take, and corrupt for weights that do not fit.
    DDiT(const DDiTConfig& config, Weights& weights);

    const DDiTConfig& config() const override { return config_; }
    ShapeTables tables(const LatentShape& shape, std::span<const double> frame_times) const override;
    std::shared_ptr<const PromptText> condition(const float* states, std::int64_t length, int threads) const override;
    const Floats& null_text() const override { return video_.null_text(); }
    Modulation modulation(std::span<const float> times, float fps, int threads) const override;
    Floats audio_time(std::span<const float> times, int threads) const override;
    Floats style(std::span<const float> reference, int threads) const override;
    Floats video_pass(const VideoInputs& inputs, int threads) const override;
    Floats audio_pass(const AudioInputs& inputs, int threads) const override;
    Velocities joint_pass(const JointInputs& inputs, int threads) const override;

   private:
    struct GlobalLocalLayer {
        CrossAttentionLayers to_video, to_audio, style;
        GlobalLocalLayer(Weights& weights, const std::string& name, std::int64_t width);
    };

    std::vector<const float*> text_tokens(const TextRows& text) const;
    void keep_contexts(const VideoInputs& inputs, const std::vector<Floats>& features, int threads) const;

    DDiTConfig config_;
    VideoTower video_;
    AudioTower audio_;
    std::vector<CrossAttentionLayers> audio_rope_;  // of layer first_block + i
    Floats silence_;                                // the style (1, D) of no reference
    std::vector<GlobalLocalLayer> global_local_;
};

}  // namespace syncflow::engine
