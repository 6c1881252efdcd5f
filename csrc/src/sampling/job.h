// A request made ready for sampling: its latents on their way from noise to data, and what the loop needs to know of it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "model/denoiser.h"
#include "model/layers.h"
#include "sampling/guidance.h"
#include "sampling/schedule.h"
#include "syncflow/floats.h"

namespace syncflow::engine {

// Latents of one modality that are given, clean: where the mask (frames or tokens) holds, or everywhere without one. They
// stand at the modality's own flow time, noised with the request's noise, or at time 1 if they are `clean`. With `start` they
// hold nowhere: sampling begins with them at that flow time.
struct Known {
    Floats latents;
    std::vector<bool> mask = {};
    bool clean = false;
    std::optional<double> start = {};
};

// One modality of one request, or one take of its sound: (C_v, T, H, W) or (A, C_a).
class LatentState {
   public:
    LatentState() = default;
    // `axis`: how many frames or tokens a mask has, behind `outer` others (channels of a video) and before `inner` floats.
    // `grid`: K + 1 flow times.
    LatentState(Floats noise, std::vector<double> grid, std::int64_t outer, std::int64_t axis, const Known* known, std::vector<CachePhase> phases);

    bool moves() const { return step + 1 < grid.size() && grid[step + 1] > grid[step]; }
    double time() const { return grid[std::min(step, grid.size() - 1)]; }
    CachePhase phase() const { return step < phases_.size() ? phases_[step] : CachePhase::none; }

    // The step of a modality that moves: z + dt * sum of weight * velocity, with known latents put back. `rescale` brings the
    // deviation of the guided velocity back to that of the first.
    void move(std::span<const std::pair<const float*, double>> velocities, double rescale);

    // The time after the step; latents at their end stay there.
    void advance() { step = std::min(step + 1, grid.size() - 1); }

    // The first frame of the known, finished or estimated video, repeated.
    Floats still_picture() const;

    Floats latents;
    Floats estimate;  // of the clean latents, by the last step that moved them; at first their mean
    std::vector<double> grid;
    std::size_t step = 0;

   private:
    void put_known_back(Floats& stepped, float time) const;

    std::int64_t outer_ = 1, axis_ = 1, inner_ = 1;
    Floats noise_, known_;  // where latents are known
    std::vector<bool> mask_;
    bool clean_ = false;
    std::vector<CachePhase> phases_;
    Floats difference_;  // that guidance makes, where it is reused
};

// The contexts of a leading row of a request whose leading modality stands still, by layer.
struct KeptContext {
    bool text, replaced;
    std::vector<Floats> layers;
};

struct Job {
    GuidancePlan plan;
    std::shared_ptr<const ShapeTables> tables;
    std::shared_ptr<const PromptText> prompt, absent;  // what branches with and without text read
    std::shared_ptr<const Modulation> video_times;     // of all steps, and of time 1 at the end
    std::shared_ptr<const Floats> audio_times;
    LatentState video;
    std::vector<LatentState> takes;
    Floats silence;  // (A, C_a) clean latents of no sound, where a branch is muted
    Floats style;    // (A_r, D) of a `global_local` model
    std::vector<KeptContext> contexts;

    std::int64_t steps() const { return static_cast<std::int64_t>(video.grid.size()) - 1; }
    std::int64_t step() const { return static_cast<std::int64_t>(video.step); }
};

}  // namespace syncflow::engine
