// Guidance as data: branches and weights (engine/sampling/guidance.py, caching.py).
#pragma once

#include <compare>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "sampling/schedule.h"

namespace syncflow::engine {

enum class Modality { video, audio };

// Conditions of one forward: the prompt or what stands for its absence; the layers between the towers; silence, clean, in
// place of the audio; a still picture, clean, in place of the video.
struct Branch {
    bool text = true, bridge = true, muted = false, still = false;

    auto operator<=>(const Branch&) const = default;
};

// Branches of one sample with their weights, the full one first.
using BranchWeights = std::vector<std::pair<Branch, double>>;

// Away from a branch: v_full + strength (v_full - v_branch), per modality.
struct Direction {
    Branch branch;
    double video, audio;
};

struct GuidanceSettings {
    std::pair<double, double> interval = {0, 1};  // flow times between which guidance holds
    double rescale = 0;
    std::int64_t branch_interval = 1;
};

struct GuidancePlan {
    std::vector<Branch> branches;
    std::vector<double> video, audio;  // weights, which sum to 1
    GuidanceSettings settings;
    Branch full;

    // Weights at a flow time; those of 0 are left out.
    BranchWeights at(Modality modality, double time) const;

    bool any(bool Branch::*condition) const;
};

// The plan of the full branch and any directions; those without a strength are left out.
GuidancePlan combine(std::span<const Direction> directions, const GuidanceSettings& settings);

// The plan of towers that do not read each other, as for a sound alone.
GuidancePlan unbridged(GuidancePlan plan);

// What becomes of the difference that guidance makes at a step, where a plan reuses it (`branch_interval`).
enum class CachePhase { none, renew, reuse };

// The phases of the video and of the audio at each of K steps; empty for a branch interval of 1.
std::pair<std::vector<CachePhase>, std::vector<CachePhase>> cache_phases(const GuidancePlan& plan, const std::vector<double>& video,
                                                                         const std::vector<double>& audio);

}  // namespace syncflow::engine
