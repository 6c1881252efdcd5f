// Continuous batching: requests wait in a queue, join and leave between steps, and end with a status whatever happens.
//
// A round: end what was cancelled or is overdue, let requests join, step one batch, decode what is done. Requests of one shape are a
// batch; batches take one step each in rotation, and one that appears is last. A batch that fails is broken up: each of its requests
// starts again alone, so that only the one at fault fails.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "engine/backend.h"
#include "service/queue.h"
#include "service/request.h"

namespace syncflow::service {

struct EngineOptions {
    int max_running = 4;
    int max_queued = 256;
    double ageing = 10;       // seconds
    bool host_steps = false;  // the host calls `step`; there is no thread
};

class Engine : public std::enable_shared_from_this<Engine> {
   public:
    Engine(std::unique_ptr<engine::Backend> backend, const EngineOptions& options);
    Engine(const Engine&) = delete;
    Engine& operator=(const Engine&) = delete;
    ~Engine();

    const engine::ModelInfo& info() const { return backend_->info(); }
    syncflow_engine_stats stats() const;

    // Throws Failure where the queue is full or the engine is closed.
    void submit(const std::shared_ptr<Request>& request);

    // A round in the thread of the host; how many requests are left. Throws Failure where that is not allowed.
    std::int64_t step();

    // As `Request::wait`, and rounds in the thread of the host where there is no other.
    std::optional<Outcome> wait(const Request& request, std::optional<Clock::time_point> until);

    // Ends all requests. Throws Failure from within a callback of this engine. Without `notify` on_finished is not called.
    void close(bool notify = true);

   private:
    struct Member {
        std::shared_ptr<Request> request;
        std::uint64_t last_round;  // in which its batch was stepped
    };
    class RoundScope;

    void work();
    void round();
    void end_stopped(Clock::time_point now);
    void admit();
    std::vector<std::shared_ptr<Request>> next_batch();
    void step_batch(const std::vector<std::shared_ptr<Request>>& batch);
    void after_step(const std::shared_ptr<Request>& request);
    bool prepare(const std::shared_ptr<Request>& request);
    void break_up(const std::vector<std::shared_ptr<Request>>& batch, const Outcome& failure);
    void end(std::shared_ptr<Request> request, Outcome outcome, std::vector<engine::Clip> clips = {}, bool notify = true);
    void end_all(bool notify);
    bool in_callback() const noexcept { return stepping_ == std::this_thread::get_id(); }

    const std::unique_ptr<engine::Backend> backend_;
    const EngineOptions options_;

    mutable std::mutex mutex_;  // of the queue, `closing_` and `stats_`; never held during a callback or a call of the back end
    std::condition_variable wake_;
    Queue queue_;
    bool closing_ = false;
    syncflow_engine_stats stats_{};

    std::mutex round_mutex_;  // of a round, and with it the back end and what follows
    std::atomic<std::thread::id> stepping_{};
    std::vector<Member> members_;
    std::uint64_t rounds_ = 0;

    std::mutex close_mutex_;
    std::thread worker_;
};

}  // namespace syncflow::service
