// A model in a few lines, whose prompt says where it fails: what the tests of the engine step instead of a d-DiT.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "check.h"
#include "engine/backend.h"
#include "service/backends.h"
#include "syncflow/noise.h"

namespace syncflow::test {

// Latents of (height / 8, width / 8, 4), of which every step keeps nine tenths.
class TestState final : public engine::RequestState {
   public:
    explicit TestState(const engine::Request& request)
        : asked(request), steps_(request.steps.value_or(4)), shape_({request.height.value_or(16) / 8, request.width.value_or(16) / 8, 4}) {
        latents.resize(static_cast<std::size_t>(shape_[0] * shape_[1] * shape_[2]));
        fill_normal({request.seed, 0, 0}, 0, latents.data(), latents.size());
        ++alive;
    }
    ~TestState() override { --alive; }

    std::int64_t step() const override { return done_; }
    std::int64_t num_steps() const override { return steps_; }
    const std::vector<std::int64_t>& shape() const override { return shape_; }
    std::int64_t memory() const override { return static_cast<std::int64_t>(latents.size() * sizeof(float)); }

    void advance() {
        const auto bias = static_cast<float>(asked.prompt.size()) / 1000;
        for (float& value : latents) value = 0.9F * value + bias;
        ++done_;
    }

    const engine::Request asked;
    std::vector<float> latents;
    inline static std::atomic<int> alive{0};

   private:
    std::int64_t steps_, done_ = 0;
    std::vector<std::int64_t> shape_;
};

// What the tests see of all test back ends, and how they hold them up.
struct Observed {
    std::mutex mutex;
    std::vector<std::vector<std::string>> batches;  // the prompts of every step, where `recording`
    bool recording = false;
    std::atomic<bool> held{false};  // a step with the prompt "held" waits while this is set
    std::atomic<int> steps{0};

    static Observed& all() {
        static Observed only;
        return only;
    }
};

class TestBackend final : public engine::Backend {
   public:
    TestBackend() {
        info_.name = "test-model";
        info_.backend = "test";
        info_.bridge = "adaptor";
        info_.fps = 8;
        info_.sample_rate = 8000;
        info_.steps = 4;
        info_.width = info_.height = 16;
    }

    const engine::ModelInfo& info() const override { return info_; }

    std::unique_ptr<engine::RequestState> prepare(const engine::Request& request) override {
        const Alone alone(*this);
        fail_if(request, "fail in prepare", engine::Status::invalid_argument);
        if (request.prompt.empty()) throw engine::Error(engine::Status::invalid_argument, "the prompt is empty");
        for (const std::int64_t side : {request.width.value_or(16), request.height.value_or(16)}) {
            if (side < 8 || side > 64) throw engine::Error(engine::Status::invalid_argument, "the size must be from 8 to 64");
        }
        if (request.steps.value_or(4) < 1 || request.steps.value_or(4) > 1000) throw engine::Error(engine::Status::invalid_argument, "steps must be from 1 to 1000");
        if (request.takes < 1 || request.takes > 64) throw engine::Error(engine::Status::invalid_argument, "takes must be from 1 to 64");
        return std::make_unique<TestState>(request);
    }

    void step(std::span<engine::RequestState* const> requests) override {
        const Alone alone(*this);
        Observed& observed = Observed::all();
        ++observed.steps;
        std::vector<std::string> prompts;
        for (engine::RequestState* request : requests) {
            auto& state = static_cast<TestState&>(*request);
            expect(state.shape() == requests[0]->shape(), "a batch has one shape");
            prompts.push_back(state.asked.prompt);
            while (state.asked.prompt == "held" && observed.held) std::this_thread::yield();
            if (!state.done()) state.advance();
            fail_if(state.asked, "fail in step " + std::to_string(state.step()), engine::Status::internal);
            if (state.asked.prompt.find("slow") != std::string::npos) std::this_thread::sleep_for(std::chrono::milliseconds(2));
        }
        const std::lock_guard lock(observed.mutex);
        if (observed.recording) observed.batches.push_back(std::move(prompts));
    }

    std::vector<engine::Clip> decode(const engine::RequestState& request) override {
        const Alone alone(*this);
        const auto& state = static_cast<const TestState&>(request);
        expect(state.done(), "what is decoded is done");
        fail_if(state.asked, "fail in decode", engine::Status::internal);
        if (state.asked.prompt.find("no memory") != std::string::npos) throw std::bad_alloc();
        engine::Clip clip;
        clip.num_frames = 2;
        clip.height = state.asked.height.value_or(16);
        clip.width = state.asked.width.value_or(16);
        clip.fps = 8;
        clip.sample_rate = 8000;
        for (std::int64_t i = 0; i < clip.num_frames * clip.height * clip.width * 3; ++i) {
            const float value = state.latents[static_cast<std::size_t>(i) % state.latents.size()];
            clip.frames.push_back(static_cast<std::uint8_t>(static_cast<int>(value * 100) & 255));
        }
        clip.waveform = std::vector<float>(2000, state.latents[0] / 10);
        clip.latents = state.latents;
        clip.latent_frames = 1;
        clip.latent_height = state.shape()[0];
        clip.latent_width = state.shape()[1];
        clip.provenance = R"({"model": "test-model"})";
        return std::vector<engine::Clip>(static_cast<std::size_t>(state.asked.takes), clip);
    }

    engine::Preview preview(const engine::RequestState& request, bool frames) override {
        const Alone alone(*this);
        const auto& state = static_cast<const TestState&>(request);
        fail_if(state.asked, "fail in preview", engine::Status::internal);
        engine::Preview preview;
        preview.video = state.latents;
        preview.channels = 4;
        preview.latent_frames = 1;
        preview.latent_height = state.shape()[0];
        preview.latent_width = state.shape()[1];
        preview.video_time = static_cast<double>(state.step()) / static_cast<double>(state.num_steps());
        if (frames) {
            preview.num_frames = 1;
            preview.height = preview.width = 8;
            preview.frames.assign(8 * 8 * 3, 128);
        }
        return preview;
    }

   private:
    // Fails where two threads use one back end at once.
    class Alone {
       public:
        explicit Alone(TestBackend& backend) : busy_(backend.busy_) { expect(!busy_.exchange(true), "one call of a back end at a time"); }
        Alone(const Alone&) = delete;
        Alone& operator=(const Alone&) = delete;
        ~Alone() { busy_ = false; }

       private:
        std::atomic<bool>& busy_;
    };

    static void fail_if(const engine::Request& request, const std::string& words, engine::Status status) {
        if (request.prompt.find(words) != std::string::npos) throw engine::Error(status, "the prompt says " + words);
    }

    engine::ModelInfo info_;
    std::atomic<bool> busy_{false};
};

inline void register_test_backend() {
    service::register_backend("test", [](const std::filesystem::path& package, const engine::BackendOptions&) -> std::unique_ptr<engine::Backend> {
        if (package == "missing") throw engine::Error(engine::Status::not_found, "there is no package missing");
        if (package == "damaged") throw engine::Error(engine::Status::corrupt, "the package is damaged");
        return std::make_unique<TestBackend>();
    });
}

}  // namespace syncflow::test
