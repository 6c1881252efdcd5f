#include "sampling/guidance.h"

#include <algorithm>
#include <cstddef>

namespace syncflow::engine {

BranchWeights GuidancePlan::at(Modality modality, double time) const {
    const bool guides = settings.interval.first <= time && time < settings.interval.second;
    if (!guides && std::find(branches.begin(), branches.end(), full) != branches.end()) return {{full, 1.0}};
    const std::vector<double>& weights = modality == Modality::video ? video : audio;
    BranchWeights found;
    for (std::size_t i = 0; i < branches.size(); ++i) {
        if (weights[i] != 0) found.emplace_back(branches[i], weights[i]);
    }
    return found;
}

bool GuidancePlan::any(bool Branch::*condition) const {
    return std::any_of(branches.begin(), branches.end(), [&](const Branch& branch) { return branch.*condition; });
}

GuidancePlan combine(std::span<const Direction> directions, const GuidanceSettings& settings) {
    struct Weighted {
        Branch branch;
        double video, audio;
    };
    std::vector<Weighted> weights = {{.branch = {}, .video = 1, .audio = 1}};
    for (const Direction& direction : directions) {
        auto found = std::find_if(weights.begin(), weights.end(), [&](const Weighted& one) { return one.branch == direction.branch; });
        if (found == weights.end()) found = weights.insert(found, {.branch = direction.branch, .video = 0, .audio = 0});
        found->video -= direction.video;
        found->audio -= direction.audio;
        weights.front().video += direction.video;
        weights.front().audio += direction.audio;
    }
    GuidancePlan plan;
    plan.settings = settings;
    for (const Weighted& one : weights) {
        if (one.video == 0 && one.audio == 0) continue;
        plan.branches.push_back(one.branch);
        plan.video.push_back(one.video);
        plan.audio.push_back(one.audio);
    }
    return plan;
}

GuidancePlan unbridged(GuidancePlan plan) {
    for (Branch& branch : plan.branches) branch.bridge = false;
    plan.full.bridge = false;
    return plan;
}

std::pair<std::vector<CachePhase>, std::vector<CachePhase>> cache_phases(const GuidancePlan& plan, const std::vector<double>& video,
                                                                         const std::vector<double>& audio) {
    std::pair<std::vector<CachePhase>, std::vector<CachePhase>> found;
    if (plan.settings.branch_interval == 1) return found;
    bool video_kept = false, audio_kept = false;
    std::int64_t age = 0;
    for (std::size_t k = 0; k + 1 < video.size(); ++k) {
        const bool video_guided = video[k + 1] > video[k] && plan.at(Modality::video, video[k]).size() > 1;
        const bool audio_guided = audio[k + 1] > audio[k] && plan.at(Modality::audio, audio[k]).size() > 1;
        const bool renews = age >= plan.settings.branch_interval || (video_guided && !video_kept) || (audio_guided && !audio_kept);
        if ((video_guided || audio_guided) && renews) {
            video_kept = video_guided;
            audio_kept = audio_guided;
            age = 0;
        }
        ++age;
        const auto phase = [&](bool guided) { return !guided ? CachePhase::none : renews ? CachePhase::renew : CachePhase::reuse; };
        found.first.push_back(phase(video_guided));
        found.second.push_back(phase(audio_guided));
    }
    return found;
}

}  // namespace syncflow::engine
