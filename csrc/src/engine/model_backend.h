// A model of a package, in float32: its codecs and text encoder in C++, its d-DiT natively or as exported graphs.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "codecs/audio_vae.h"
#include "codecs/text_encoder.h"
#include "codecs/video_vae.h"
#include "engine/backend.h"
#include "engine/known_media.h"
#include "model/denoiser.h"
#include "package/package.h"
#include "sampling/job.h"

namespace syncflow::engine {

// The last values that were made, by key.
template <typename Value>
class RecentValues {
   public:
    explicit RecentValues(std::size_t most) : most_(most) {}

    template <typename Make>
    std::shared_ptr<const Value> operator()(const std::string& key, Make make) {
        for (auto kept = kept_.begin(); kept != kept_.end(); ++kept) {
            if (kept->first != key) continue;
            kept_.splice(kept_.begin(), kept_, kept);
            return kept_.front().second;
        }
        kept_.emplace_front(key, make());
        if (kept_.size() > most_) kept_.pop_back();
        return kept_.front().second;
    }

   private:
    std::size_t most_;
    std::list<std::pair<std::string, std::shared_ptr<const Value>>> kept_;
};

// A request of this back end.
class ModelRequest : public RequestState {
   public:
    std::int64_t step() const override { return job.step(); }
    std::int64_t num_steps() const override { return job.steps(); }
    const std::vector<std::int64_t>& shape() const override { return shape_; }
    std::int64_t memory() const override;

    Request request;  // without its media
    Task task = Task::text_to_audio_video;
    SequenceConfig sequence;
    std::vector<std::uint64_t> audio_seeds;  // of each take
    std::optional<KnownMedia> media;
    Job job;
    std::vector<std::int64_t> shape_;
};

class ModelBackend : public Backend {
   public:
    // `options.name` says who computes the d-DiT: NATIVE or a runtime of exported graphs. Throws Status::not_found, corrupt or
    // unsupported for components or exports that are missing, damaged, foreign or do not go together.
    ModelBackend(const Package& package, const BackendOptions& options);

    const ModelInfo& info() const override { return info_; }
    std::unique_ptr<RequestState> prepare(const Request& request) override;
    void step(std::span<RequestState* const> requests) override;
    std::vector<Clip> decode(const RequestState& request) override;
    Preview preview(const RequestState& request, bool frames) override;

   private:
    struct Components {
        std::int64_t parameters;  // of the d-DiT
        std::unique_ptr<const Denoiser> ddit;
        VideoVae video;
        AudioVae audio;
        TextEncoder text;
    };

    ModelBackend(const Package& package, Components components, const BackendOptions& options);
    static Components read_components(const Package& package, const BackendOptions& options);
    void check_components(const Package& package) const;
    Schedule schedule_of(const Request& request, Task task, const KnownLatents& known) const;
    std::shared_ptr<const PromptText> prompt_text(const std::string& prompt);
    std::shared_ptr<const PromptText> null_text(std::int64_t length);
    void read_texts(const Request& request, Job& job);
    void begin(ModelRequest& made, const KnownLatents& known, const Schedule& schedule);

    std::string hash_;
    ModelConfig config_;
    int threads_;
    std::unique_ptr<const Denoiser> model_;
    VideoVae video_;
    AudioVae audio_;
    TextEncoder text_;
    ModelInfo info_;
    RecentValues<PromptText> prompts_;
    RecentValues<TextEncoder::States> states_;
    RecentValues<Modulation> video_times_;
    RecentValues<Floats> audio_times_;
    RecentValues<ShapeTables> tables_;
};

}  // namespace syncflow::engine
