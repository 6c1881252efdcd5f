#include "sampling/batch.h"

#include <algorithm>

namespace syncflow::engine {

Batch::Batch(const Denoiser& model, std::span<Job* const> jobs, int threads) : model_(model), jobs_(jobs), threads_(threads) {
    for (std::size_t b = 0; b < jobs.size(); ++b) {
        first_take_.push_back(static_cast<std::int64_t>(takes_.size()));
        for (std::size_t take = 0; take < jobs[b]->takes.size(); ++take) takes_.emplace_back(b, take);
    }
}

void Batch::step() {
    if (model_.config().bridge == Bridge::global_local) {
        step_joint();
    } else {
        step_one_way();
    }
    for (Job* const job : jobs_) {
        job->video.advance();
        for (LatentState& take : job->takes) take.advance();
    }
}

Job& Batch::owner(Modality modality, std::int64_t sample) const {
    return *jobs_[size_of(modality == Modality::video ? sample : takes_[size_of(sample)].first)];
}

LatentState& Batch::state(Modality modality, std::int64_t sample) const {
    Job& job = owner(modality, sample);
    return modality == Modality::video ? job.video : job.takes[size_of(takes_[size_of(sample)].second)];
}

std::vector<SampleWeights> Batch::weights_of(Modality modality) const {
    std::vector<SampleWeights> found;
    const std::size_t count = modality == Modality::video ? jobs_.size() : takes_.size();
    for (std::size_t sample = 0; sample < count; ++sample) {
        const auto index = static_cast<std::int64_t>(sample);
        const LatentState& of = state(modality, index);
        if (!of.moves()) {
            found.emplace_back();
            continue;
        }
        BranchWeights weights = owner(modality, index).plan.at(modality, of.time());
        if (of.phase() == CachePhase::reuse) weights = {{weights.front().first, 1.0}};
        found.emplace_back(std::move(weights));
    }
    return found;
}

void Batch::move(Modality modality, const Sums& sums, const Floats& velocity) {
    for (std::size_t sample = 0; sample < sums.size(); ++sample) {
        if (sums[sample].empty()) continue;
        const auto index = static_cast<std::int64_t>(sample);
        LatentState& of = state(modality, index);
        std::vector<std::pair<const float*, double>> velocities;
        for (const auto& [row, weight] : sums[sample]) velocities.emplace_back(velocity.data() + row * static_cast<std::int64_t>(of.latents.size()), weight);
        of.move(velocities, owner(modality, index).plan.settings.rescale);
    }
}

Floats Batch::latents_of(Modality modality, std::span<const Row> rows) const {
    Floats latents;
    for (const Row& row : rows) {
        const LatentState& of = state(modality, row.sample);
        if (!row.replaced) {
            latents.insert(latents.end(), of.latents.begin(), of.latents.end());
        } else if (modality == Modality::video) {
            const Floats picture = of.still_picture();
            latents.insert(latents.end(), picture.begin(), picture.end());
        } else {
            const Floats& silence = owner(modality, row.sample).silence;
            latents.insert(latents.end(), silence.begin(), silence.end());
        }
    }
    return latents;
}

Modulation Batch::modulation_of(std::span<const Row> rows) const {
    const std::int64_t width = model_.config().width;
    Modulation found;
    for (const Row& row : rows) {
        const Job& job = owner(Modality::video, row.sample);
        const std::int64_t at = row.replaced ? job.steps() : job.step();
        const Modulation& times = *job.video_times;
        found.blocks.insert(found.blocks.end(), times.blocks.begin() + at * 6 * width, times.blocks.begin() + (at + 1) * 6 * width);
        found.embedding.insert(found.embedding.end(), times.embedding.begin() + at * width, times.embedding.begin() + (at + 1) * width);
    }
    return found;
}

Floats Batch::time_tokens_of(std::span<const Row> rows) const {
    const std::int64_t width = model_.config().width;
    Floats found;
    for (const Row& row : rows) {
        const Job& job = owner(Modality::audio, row.sample);
        const std::int64_t at = row.replaced ? job.steps() : job.step();
        found.insert(found.end(), job.audio_times->begin() + at * width, job.audio_times->begin() + (at + 1) * width);
    }
    return found;
}

TextRows Batch::texts_of(Modality modality, std::span<const Row> rows) const {
    TextRows texts;
    for (const Row& row : rows) {
        const Job& job = owner(modality, row.sample);
        const std::shared_ptr<const PromptText>& text = row.text ? job.prompt : job.absent;
        const auto found = std::find(texts.prompts.begin(), texts.prompts.end(), text);
        texts.of_row.push_back(found - texts.prompts.begin());
        if (found == texts.prompts.end()) texts.prompts.push_back(text);
    }
    return texts;
}

void Batch::step_joint() {
    const JointStepPlan plan = plan_joint_step(weights_of(Modality::video), weights_of(Modality::audio));
    if (plan.rows.empty()) return;
    std::vector<Row> video_rows, audio_rows;
    std::vector<const Floats*> styles;
    for (const JointRow& row : plan.rows) {
        video_rows.push_back({.sample = row.sample, .text = row.branch.text, .replaced = row.branch.still});
        audio_rows.push_back({.sample = row.sample, .text = row.branch.text, .replaced = row.branch.muted});
        if (row.branch.bridge) styles.push_back(&jobs_[size_of(row.sample)]->style);
    }
    const Floats audio_latents = latents_of(Modality::audio, audio_rows), tokens = time_tokens_of(audio_rows);
    const TextRows texts = texts_of(Modality::video, video_rows);
    const ShapeTables& tables = *jobs_[0]->tables;
    if (plan.bridged == 0 && plan.video.empty()) {  // a sound alone
        const Floats velocity = model_.audio_pass({.latents = audio_latents.data(),
                                                   .time_tokens = tokens,
                                                   .text = &texts,
                                                   .tables = &tables,
                                                   .num_outputs = static_cast<std::int64_t>(plan.rows.size())},
                                                  threads_);
        move(Modality::audio, plan.audio_weights, velocity);
        return;
    }
    const Floats video_latents = latents_of(Modality::video, video_rows);
    const Velocities velocities = model_.joint_pass({.video_latents = video_latents.data(),
                                                     .audio_latents = audio_latents.data(),
                                                     .modulation = modulation_of(video_rows),
                                                     .time_tokens = tokens,
                                                     .text = &texts,
                                                     .tables = &tables,
                                                     .bridged = plan.bridged,
                                                     .styles = styles,
                                                     .video_output_rows = plan.video,
                                                     .audio_output_rows = plan.audio},
                                                    threads_);
    move(Modality::video, plan.video_weights, velocities.video);
    move(Modality::audio, plan.audio_weights, velocities.audio);
}

}  // namespace syncflow::engine
