// Which rows the towers compute: the branches of all requests, each thing once (engine/sampling/step_plan.py).
#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "sampling/guidance.h"

namespace syncflow::engine {

// Weights of the branches of one sample; none while it does not move.
using SampleWeights = std::optional<BranchWeights>;

// By sample the rows that its step adds up: (index, weight) pairs.
using Sums = std::vector<std::vector<std::pair<std::int64_t, double>>>;

// A row of the leading tower: a sample of its modality, with the text or the absence of it; `replaced`: a still picture or
// silence, clean, stands in place of the latents.
struct LeadingRow {
    std::int64_t sample;
    bool text, replaced;

    auto operator<=>(const LeadingRow&) const = default;
};

// A row of the following tower, and the row that it reads.
struct FollowingRow {
    LeadingRow row;
    std::optional<LeadingRow> reads;

    bool operator==(const FollowingRow&) const = default;
};

// Rows of one step of a one-way model: leading ones, of which the first `num_outputs` have weights and `context_rows` give
// contexts; `contexts`: the rows whose contexts are there after the leading pass, those that were kept first.
struct StepPlan {
    std::vector<LeadingRow> leading;
    std::int64_t num_outputs = 0;
    std::vector<LeadingRow> context_rows;
    std::vector<FollowingRow> following;
    std::vector<LeadingRow> contexts;
    Sums leading_weights, following_weights;
};

// Which tower leads a one-way model, and of which leading sample each following sample is.
struct RowMapping {
    Modality leader;
    std::vector<std::int64_t> leading_sample;  // by following sample
    bool audio_text;                           // whether the audio tower reads the text
};

StepPlan plan_step(const RowMapping& mapping, std::span<const SampleWeights> leading, std::span<const SampleWeights> following,
                   std::span<const LeadingRow> kept);

// A branch of a request through both towers at once.
struct JointRow {
    std::int64_t sample;
    Branch branch;

    bool operator==(const JointRow&) const = default;
};

// Rows of a pass through both towers, bridged ones first. Weights count within the rows of their modality.
struct JointStepPlan {
    std::vector<JointRow> rows;
    std::int64_t bridged = 0;
    std::vector<std::int64_t> video, audio;  // the rows that have a velocity
    Sums video_weights, audio_weights;
};

JointStepPlan plan_joint_step(std::span<const SampleWeights> video, std::span<const SampleWeights> audio);

}  // namespace syncflow::engine
