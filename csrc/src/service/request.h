// A submitted request, as the threads that wait for it and the one that steps it share it.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "engine/backend.h"
#include "service/failure.h"

namespace syncflow::service {

class Engine;
using Clock = std::chrono::steady_clock;

// What the engine, not the model, needs to know of a request.
struct Submission {
    engine::Request request;
    int priority = 0;
    std::chrono::milliseconds timeout{0};  // 0: none
    int preview_interval = 0;              // 0: none
    bool preview_frames = false;
    syncflow_progress_callback on_progress = nullptr;
    syncflow_preview_callback on_preview = nullptr;
    syncflow_finished_callback on_finished = nullptr;
    void* user_data = nullptr;
};

class Request {
   public:
    Request(Submission submission, syncflow_request* handle);

    const Submission submission;
    syncflow_request* const handle;
    const Clock::time_point submitted = Clock::now();
    std::weak_ptr<Engine> engine;  // set before the request is known to others

    // ---- Any thread ----

    void cancel() noexcept { cancelled_ = true; }
    bool cancelled() const noexcept { return cancelled_; }
    bool overdue(Clock::time_point now) const noexcept { return deadline_ && *deadline_ <= now; }
    std::optional<Clock::time_point> deadline() const noexcept { return deadline_; }

    bool finished() const;
    // The outcome of a finished request; nothing after `until` has passed. Without `until` it waits as long as it takes.
    std::optional<Outcome> wait(std::optional<Clock::time_point> until) const;
    syncflow_progress progress() const;
    // A clip of a finished request, which lives as long as the request. Throws Failure.
    const engine::Clip& clip(std::int64_t take) const;

    // ---- The thread that steps ----

    std::unique_ptr<engine::RequestState> state;  // while it runs
    bool isolated = false;                        // it steps alone, after a batch that it was in has failed

    void advance(std::int32_t phase);
    // Callbacks; false: the host wants the request to stop. Throws Failure for a callback that throws.
    bool report_progress();
    bool report_preview(engine::Backend& backend);
    // Stores how the request ended and calls `on_finished`, before which no other thread sees the end. Once for a request.
    void finish(Outcome outcome, std::vector<engine::Clip> clips = {}, bool notify = true) noexcept;

   private:
    bool has_ended() const;  // as this thread sees it; needs the mutex

    std::atomic<bool> cancelled_{false};
    std::optional<Clock::time_point> deadline_;

    mutable std::mutex mutex_;
    mutable std::condition_variable changed_;
    std::int32_t phase_ = SYNCFLOW_QUEUED;
    std::int64_t step_ = 0, num_steps_ = 0;
    Outcome outcome_;
    std::vector<engine::Clip> clips_;
    Clock::time_point ended_;
    std::thread::id finishing_;  // the thread that calls on_finished
};

}  // namespace syncflow::service
