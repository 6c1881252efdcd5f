// The back end `native`: a model of a package on the blocks of this library, in float32 on a CPU.
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
#include "model/ddit.h"
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
class NativeRequest : public RequestState {
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

class NativeBackend : public Backend {
   public:
    // Throws Status::not_found, corrupt or unsupported for components that are missing, damaged, foreign or do not go together.
    NativeBackend(const Package& package, int threads);

    const ModelInfo& info() const override { return info_; }
    std::unique_ptr<RequestState> prepare(const Request& request) override;
    void step(std::span<RequestState* const> requests) override;
    std::vector<Clip> decode(const RequestState& request) override;
    Preview preview(const RequestState& request, bool frames) override;

    const DDiT& model() const { return model_; }

   private:
    struct Components {
        std::int64_t parameters;  // of the d-DiT
        DDiT ddit;
        VideoVae video;
        AudioVae audio;
        TextEncoder text;
    };

    NativeBackend(const Package& package, Components components, int threads);
    static Components read_components(const Package& package, int threads);
    void check_components(const Package& package) const;
    Schedule schedule_of(const Request& request, Task task, const KnownLatents& known) const;
    std::shared_ptr<const PromptText> prompt_text(const std::string& prompt);
    std::shared_ptr<const PromptText> null_text(std::int64_t length);
    void read_texts(const Request& request, Job& job);
    void begin(NativeRequest& made, const KnownLatents& known, const Schedule& schedule);

    std::string hash_;
    ModelConfig config_;
    int threads_;
    DDiT model_;
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
