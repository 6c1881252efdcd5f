// Steps of a one-way model: the tower that reads nothing leads, the other follows. What the following rows read of a leading
// modality that stands still is kept with its request.
#include <algorithm>

#include "sampling/batch.h"

namespace syncflow::engine {
namespace {

template <typename T>
std::int64_t place_of(const std::vector<T>& rows, const T& row) {
    return std::find(rows.begin(), rows.end(), row) - rows.begin();
}

std::vector<std::int64_t> places_of(const std::vector<LeadingRow>& rows, const std::vector<LeadingRow>& among) {
    std::vector<std::int64_t> places;
    for (const LeadingRow& row : rows) places.push_back(place_of(among, row));
    return places;
}

}  // namespace

void Batch::step_one_way() {
    const Modality leader = model_.config().bridge == Bridge::adaptor ? Modality::video : Modality::audio;
    const Modality follower = leader == Modality::video ? Modality::audio : Modality::video;
    RowMapping mapping = {.leader = leader, .leading_sample = first_take_, .audio_text = model_.config().audio_text};
    if (leader == Modality::video) {
        mapping.leading_sample.clear();
        for (const auto& [job, take] : takes_) mapping.leading_sample.push_back(job);
    }
    const std::vector<SampleWeights> leading = weights_of(leader), following = weights_of(follower);
    const StepPlan plan = plan_step(mapping, leading, following, kept_rows(leader));
    Context context = gather_contexts(plan);
    const Floats of_leader = lead(plan, leader, context), of_follower = follow(plan, leader, context);
    keep_contexts(plan, leader, leading, context);
    move(leader, plan.leading_weights, of_leader);
    move(follower, plan.following_weights, of_follower);
}

std::vector<LeadingRow> Batch::kept_rows(Modality leader) const {
    std::vector<LeadingRow> rows;
    for (std::size_t b = 0; b < jobs_.size(); ++b) {
        const std::int64_t sample = leader == Modality::video ? static_cast<std::int64_t>(b) : first_take_[b];
        for (const KeptContext& kept : jobs_[b]->contexts) rows.push_back({.sample = sample, .text = kept.text, .replaced = kept.replaced});
    }
    return rows;
}

Context Batch::gather_contexts(const StepPlan& plan) const {
    Context context = {.count = static_cast<std::int64_t>(plan.contexts.size()), .layers = std::vector<Floats>(size_of(model_.context_layers()))};
    if (context.count == 0) return context;
    const std::int64_t size = model_.context_size(*jobs_[0]->tables);
    for (std::size_t i = 0; i < context.layers.size(); ++i) {
        Floats& layer = context.layers[i];
        layer.resize(size_of(context.count * size));
        auto to = layer.begin();
        for (Job* const job : jobs_) {
            for (const KeptContext& kept : job->contexts) to = std::copy(kept.layers[i].begin(), kept.layers[i].end(), to);
        }
    }
    return context;
}

void Batch::keep_contexts(const StepPlan& plan, Modality leader, std::span<const SampleWeights> leading, const Context& context) const {
    const std::int64_t size = model_.context_size(*jobs_[0]->tables);
    for (std::size_t sample = 0; sample < leading.size(); ++sample) {
        if (leading[sample]) owner(leader, static_cast<std::int64_t>(sample)).contexts.clear();
    }
    for (const LeadingRow& row : plan.context_rows) {
        if (leading[size_of(row.sample)]) continue;  // it moves: the next step computes another
        const std::int64_t place = place_of(plan.contexts, row);
        KeptContext kept = {.text = row.text, .replaced = row.replaced, .layers = {}};
        for (const Floats& layer : context.layers) kept.layers.emplace_back(layer.begin() + place * size, layer.begin() + (place + 1) * size);
        owner(leader, row.sample).contexts.push_back(std::move(kept));
    }
}

Floats Batch::lead(const StepPlan& plan, Modality leader, Context& context) const {
    if (plan.leading.empty()) return {};
    std::vector<Row> rows;
    for (const LeadingRow& row : plan.leading) rows.push_back({.sample = row.sample, .text = row.text, .replaced = row.replaced});
    const std::vector<std::int64_t> context_rows = places_of(plan.context_rows, plan.leading);
    const auto kept = static_cast<std::int64_t>(plan.contexts.size() - plan.context_rows.size());
    const Floats latents = latents_of(leader, rows);
    const TextRows texts = texts_of(leader, rows);
    const ShapeTables& tables = *jobs_[0]->tables;
    if (leader == Modality::video) {
        return model_.video_pass({.latents = latents.data(),
                                  .modulation = modulation_of(rows),
                                  .text = &texts,
                                  .tables = &tables,
                                  .num_outputs = plan.num_outputs,
                                  .context_rows = context_rows,
                                  .context = &context,
                                  .kept = kept},
                                 threads_);
    }
    const Floats tokens = time_tokens_of(rows);
    return model_.audio_pass({.latents = latents.data(),
                              .time_tokens = tokens,
                              .text = &texts,
                              .tables = &tables,
                              .num_outputs = plan.num_outputs,
                              .context_rows = context_rows,
                              .context = &context,
                              .kept = kept},
                             threads_);
}

Floats Batch::follow(const StepPlan& plan, Modality leader, const Context& context) const {
    if (plan.following.empty()) return {};
    const Modality follower = leader == Modality::video ? Modality::audio : Modality::video;
    // Rows that differ in what they read alone share the layers before the first bridge of the video tower.
    std::vector<LeadingRow> begins;
    std::vector<std::int64_t> reads, prefixes;
    bool any = false;
    for (const FollowingRow& row : plan.following) {
        reads.push_back(row.reads ? place_of(plan.contexts, *row.reads) : -1);
        any = any || row.reads.has_value();
        if (leader == Modality::video || std::find(begins.begin(), begins.end(), row.row) == begins.end()) begins.push_back(row.row);
        prefixes.push_back(place_of(begins, row.row));
    }
    if (begins.size() == plan.following.size()) prefixes.clear();
    std::vector<Row> rows;
    for (const LeadingRow& row : begins) rows.push_back({.sample = row.sample, .text = row.text, .replaced = row.replaced});
    const Floats latents = latents_of(follower, rows);
    const TextRows texts = texts_of(follower, rows);
    const ShapeTables& tables = *jobs_[0]->tables;
    const auto count = static_cast<std::int64_t>(plan.following.size());
    if (follower == Modality::audio) {
        const Floats tokens = time_tokens_of(rows);
        return model_.audio_pass({.latents = latents.data(),
                                  .time_tokens = tokens,
                                  .text = &texts,
                                  .tables = &tables,
                                  .num_outputs = count,
                                  .video_context = any ? &context : nullptr,
                                  .context_of_row = reads},
                                 threads_);
    }
    return model_.video_pass({.latents = latents.data(),
                              .modulation = modulation_of(rows),
                              .text = &texts,
                              .tables = &tables,
                              .num_outputs = count,
                              .audio_context = any ? &context : nullptr,
                              .audio_context_of_row = reads,
                              .prefix_of_row = prefixes},
                             threads_);
}

}  // namespace syncflow::engine
