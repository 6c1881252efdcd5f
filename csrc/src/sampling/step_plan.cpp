#include "sampling/step_plan.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace syncflow::engine {
namespace {

constexpr double CANCELLED = 1e-9;

template <typename Row>
using RowWeights = std::vector<std::pair<Row, double>>;

// The place of a row, which is added where it is missing.
template <typename Row>
std::int64_t place_of(std::vector<Row>& rows, const Row& row) {
    const auto found = std::find(rows.begin(), rows.end(), row);
    if (found != rows.end()) return found - rows.begin();
    rows.push_back(row);
    return static_cast<std::int64_t>(rows.size()) - 1;
}

// By sample, weights by row. A row whose weights cancel is left out; not the first, to which a plan may rescale.
template <typename Row, typename RowOf>
std::vector<RowWeights<Row>> sums_of(std::span<const SampleWeights> samples, RowOf row_of) {
    std::vector<RowWeights<Row>> found;
    for (std::size_t sample = 0; sample < samples.size(); ++sample) {
        RowWeights<Row> sums;
        for (const auto& [branch, weight] : samples[sample].value_or(BranchWeights())) {
            const Row row = row_of(static_cast<std::int64_t>(sample), branch);
            const auto same = std::find_if(sums.begin(), sums.end(), [&](const auto& pair) { return pair.first == row; });
            if (same == sums.end()) {
                sums.emplace_back(row, weight);
            } else {
                same->second += weight;
            }
        }
        RowWeights<Row> kept;
        for (std::size_t i = 0; i < sums.size(); ++i) {
            if (i == 0 || std::abs(sums[i].second) > CANCELLED) kept.push_back(sums[i]);
        }
        found.push_back(std::move(kept));
    }
    return found;
}

template <typename Row>
Sums indexed(const std::vector<RowWeights<Row>>& sums, std::vector<Row>& rows) {
    Sums found;
    for (const RowWeights<Row>& one : sums) {
        found.emplace_back();
        for (const auto& [row, weight] : one) found.back().emplace_back(place_of(rows, row), weight);
    }
    return found;
}

}  // namespace

StepPlan plan_step(const RowMapping& mapping, std::span<const SampleWeights> leading, std::span<const SampleWeights> following,
                   std::span<const LeadingRow> kept) {
    const bool video_leads = mapping.leader == Modality::video;
    const auto row_of_video = [](std::int64_t sample, const Branch& branch) { return LeadingRow{sample, branch.text, branch.still}; };
    const auto row_of_audio = [&](std::int64_t sample, const Branch& branch) {
        return LeadingRow{sample, branch.text || !mapping.audio_text, branch.muted};
    };
    const auto leading_row = [&](std::int64_t sample, const Branch& branch) {
        return video_leads ? row_of_video(sample, branch) : row_of_audio(sample, branch);
    };
    const auto following_row = [&](std::int64_t sample, const Branch& branch) {
        FollowingRow row = {.row = video_leads ? row_of_audio(sample, branch) : row_of_video(sample, branch), .reads = std::nullopt};
        if (video_leads) row.row.replaced = false;  // a muted sound would change nothing of the video, which reads none
        if (branch.bridge) row.reads = leading_row(mapping.leading_sample[static_cast<std::size_t>(sample)], branch);
        return row;
    };
    StepPlan plan;
    plan.leading_weights = indexed(sums_of<LeadingRow>(leading, leading_row), plan.leading);
    plan.num_outputs = static_cast<std::int64_t>(plan.leading.size());
    plan.following_weights = indexed(sums_of<FollowingRow>(following, following_row), plan.following);
    plan.contexts.assign(kept.begin(), kept.end());
    for (const FollowingRow& row : plan.following) {
        if (!row.reads || std::find(plan.contexts.begin(), plan.contexts.end(), *row.reads) != plan.contexts.end()) continue;
        plan.contexts.push_back(*row.reads);
        plan.context_rows.push_back(*row.reads);
        place_of(plan.leading, *row.reads);
    }
    return plan;
}

JointStepPlan plan_joint_step(std::span<const SampleWeights> video, std::span<const SampleWeights> audio) {
    const auto row_of = [](std::int64_t sample, const Branch& branch) { return JointRow{.sample = sample, .branch = branch}; };
    const auto video_sums = sums_of<JointRow>(video, row_of), audio_sums = sums_of<JointRow>(audio, row_of);
    std::vector<JointRow> of_video, of_audio;
    JointStepPlan plan;
    plan.video_weights = indexed(video_sums, of_video);
    plan.audio_weights = indexed(audio_sums, of_audio);
    for (const bool bridged : {true, false}) {
        for (const std::vector<JointRow>* rows : {&of_video, &of_audio}) {
            for (const JointRow& row : *rows) {
                if (row.branch.bridge == bridged) place_of(plan.rows, row);
            }
        }
        if (bridged) plan.bridged = static_cast<std::int64_t>(plan.rows.size());
    }
    for (const JointRow& row : of_video) plan.video.push_back(place_of(plan.rows, row));
    for (const JointRow& row : of_audio) plan.audio.push_back(place_of(plan.rows, row));
    return plan;
}

}  // namespace syncflow::engine
