// One guided Euler step of jobs of one latent shape, each at a step of its own (engine/sampling/batch.py, oneway.py, joint.py).
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "model/denoiser.h"
#include "model/layers.h"
#include "sampling/job.h"
#include "sampling/step_plan.h"

namespace syncflow::engine {

class Batch {
   public:
    Batch(const Denoiser& model, std::span<Job* const> jobs, int threads);

    void step();

   private:
    // A row of a pass: a sample of a modality, and what stands in place of its latents.
    struct Row {
        std::int64_t sample;
        bool text, replaced;
    };

    void step_one_way();
    void step_joint();

    std::vector<SampleWeights> weights_of(Modality modality) const;
    void move(Modality modality, const Sums& sums, const Floats& velocity);

    Job& owner(Modality modality, std::int64_t sample) const;
    LatentState& state(Modality modality, std::int64_t sample) const;
    // Latents of rows, a still picture or silence where they are replaced.
    Floats latents_of(Modality modality, std::span<const Row> rows) const;
    Modulation modulation_of(std::span<const Row> rows) const;
    Floats time_tokens_of(std::span<const Row> rows) const;
    TextRows texts_of(Modality modality, std::span<const Row> rows) const;

    std::vector<LeadingRow> kept_rows(Modality leader) const;
    Context gather_contexts(const StepPlan& plan) const;
    void keep_contexts(const StepPlan& plan, Modality leader, std::span<const SampleWeights> leading, const Context& context) const;
    Floats lead(const StepPlan& plan, Modality leader, Context& context) const;
    Floats follow(const StepPlan& plan, Modality leader, const Context& context) const;

    const Denoiser& model_;
    std::span<Job* const> jobs_;
    std::vector<std::pair<std::int64_t, std::int64_t>> takes_;  // the job and the take of every sound
    std::vector<std::int64_t> first_take_;                      // of every job
    int threads_;
};

}  // namespace syncflow::engine
