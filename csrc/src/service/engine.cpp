#include "service/engine.h"

#include <algorithm>
#include <string>
#include <utility>

#include "service/log.h"

namespace syncflow::service {
namespace {

Outcome cancelled() { return {SYNCFLOW_CANCELLED, "the request was cancelled"}; }
Outcome overdue() { return {SYNCFLOW_DEADLINE_EXCEEDED, "the deadline passed before the last step was done"}; }
Outcome closed() { return {SYNCFLOW_ENGINE_CLOSED, "the engine was closed before the request was done"}; }

}  // namespace

// One round at a time; marks its thread as the one that calls back.
class Engine::RoundScope {
   public:
    explicit RoundScope(Engine& engine) : lock_(engine.round_mutex_), engine_(engine) { engine_.stepping_ = std::this_thread::get_id(); }
    RoundScope(const RoundScope&) = delete;
    RoundScope& operator=(const RoundScope&) = delete;
    ~RoundScope() { engine_.stepping_ = std::thread::id(); }

   private:
    std::lock_guard<std::mutex> lock_;
    Engine& engine_;
};

Engine::Engine(std::unique_ptr<engine::Backend> backend, const EngineOptions& options)
    : backend_(std::move(backend)), options_(options), queue_(static_cast<std::size_t>(options.max_queued), options.ageing) {
    members_.reserve(static_cast<std::size_t>(options.max_running));
    if (!options_.host_steps) worker_ = std::thread(&Engine::work, this);
}

Engine::~Engine() { close(); }

syncflow_engine_stats Engine::stats() const {
    const std::lock_guard lock(mutex_);
    syncflow_engine_stats now = stats_;
    now.struct_size = sizeof now;
    now.queued = static_cast<std::int32_t>(queue_.size());
    return now;
}

void Engine::submit(const std::shared_ptr<Request>& request) {
    request->engine = weak_from_this();
    {
        const std::lock_guard lock(mutex_);
        if (closing_) throw Failure(SYNCFLOW_ENGINE_CLOSED, "the engine is closed");
        if (!queue_.push(request)) {
            throw Failure(SYNCFLOW_QUEUE_FULL, "the queue is full: " + std::to_string(queue_.size()) + " requests wait; try again later");
        }
        ++stats_.submitted;
    }
    wake_.notify_one();
}

std::int64_t Engine::step() {
    if (!options_.host_steps) throw Failure(SYNCFLOW_INVALID_ARGUMENT, "the engine steps in a thread of its own; open it with host_steps");
    if (in_callback()) throw Failure(SYNCFLOW_INVALID_ARGUMENT, "an engine cannot be stepped from within one of its callbacks");
    const RoundScope scope(*this);
    round();
    const std::lock_guard lock(mutex_);
    if (closing_) throw Failure(SYNCFLOW_ENGINE_CLOSED, "the engine is closed");
    return static_cast<std::int64_t>(queue_.size() + members_.size());
}

std::optional<Outcome> Engine::wait(const Request& request, std::optional<Clock::time_point> until) {
    if (in_callback() && !request.finished()) {
        throw Failure(SYNCFLOW_INVALID_ARGUMENT, "a request cannot be waited for from within a callback of its engine");
    }
    while (options_.host_steps && !request.finished()) {
        if (until && Clock::now() >= *until) return std::nullopt;
        const RoundScope scope(*this);
        if (!request.finished()) round();
    }
    return request.wait(until);
}

void Engine::close(bool notify) {
    if (in_callback()) throw Failure(SYNCFLOW_INVALID_ARGUMENT, "an engine cannot be closed from within one of its callbacks");
    const std::lock_guard closing(close_mutex_);
    {
        const std::lock_guard lock(mutex_);
        closing_ = true;
    }
    wake_.notify_all();
    if (worker_.joinable()) worker_.join();
    const RoundScope scope(*this);
    end_all(notify);
}

void Engine::work() {
    for (;;) {
        {
            std::unique_lock lock(mutex_);
            wake_.wait(lock, [this] { return closing_ || queue_.size() > 0 || stats_.running > 0; });
            if (closing_) return;
        }
        const RoundScope scope(*this);
        round();
    }
}

void Engine::round() {
    try {
        end_stopped(Clock::now());
        admit();
        step_batch(next_batch());
    } catch (...) {  // no memory for a list of requests: those that run make place for the next
        const Outcome failure = current_failure();
        while (!members_.empty()) end(members_.back().request, failure);
    }
}

void Engine::end_stopped(Clock::time_point now) {
    const auto stopped = [now](const Request& request) { return request.cancelled() || request.overdue(now); };
    std::vector<std::shared_ptr<Request>> requests;
    {
        const std::lock_guard lock(mutex_);
        requests = queue_.remove_if(stopped);
    }
    for (const Member& member : members_) {
        if (stopped(*member.request)) requests.push_back(member.request);
    }
    for (const auto& request : requests) end(request, request->cancelled() ? cancelled() : overdue());
}

void Engine::admit() {
    while (members_.size() < static_cast<std::size_t>(options_.max_running)) {
        std::shared_ptr<Request> request;
        {
            const std::lock_guard lock(mutex_);
            if (closing_) return;
            request = queue_.pop();
            if (!request) return;
            members_.push_back({request, rounds_});
            stats_.running = static_cast<std::int32_t>(members_.size());
        }
        if (request->cancelled()) {
            end(request, cancelled());
            continue;
        }
        if (!prepare(request)) continue;
        for (const Member& other : members_) {
            if (other.request != request && other.request->state && other.request->state->shape() == request->state->shape()) {
                members_.back().last_round = other.last_round;
                break;
            }
        }
        if (request->state->done()) after_step(request);
    }
}

// False: it failed, and has ended.
bool Engine::prepare(const std::shared_ptr<Request>& request) {
    try {
        request->state = backend_->prepare(request->submission.request);
        request->advance(SYNCFLOW_RUNNING);
        return true;
    } catch (...) {
        end(request, current_failure());
        return false;
    }
}

// The members of the batch that has waited longest.
std::vector<std::shared_ptr<Request>> Engine::next_batch() {
    std::vector<std::shared_ptr<Request>> batch;
    if (members_.empty()) return batch;
    const auto longest = std::min_element(
        members_.begin(), members_.end(), [](const Member& one, const Member& other) { return one.last_round < other.last_round; });
    const std::shared_ptr<Request> first = longest->request;
    ++rounds_;
    for (Member& member : members_) {
        const bool together = !first->isolated && !member.request->isolated && member.request->state->shape() == first->state->shape();
        if (member.request != first && !together) continue;
        member.last_round = rounds_;
        batch.push_back(member.request);
    }
    return batch;
}

void Engine::step_batch(const std::vector<std::shared_ptr<Request>>& batch) {
    if (batch.empty()) return;
    if (!batch.front()->state && !prepare(batch.front())) return;  // one that starts again, alone
    std::vector<engine::RequestState*> states;
    for (const auto& request : batch) states.push_back(request->state.get());
    try {
        backend_->step(states);
    } catch (...) {
        break_up(batch, current_failure());
        return;
    }
    {
        const std::lock_guard lock(mutex_);
        ++stats_.steps;
    }
    for (const auto& request : batch) after_step(request);
}

void Engine::break_up(const std::vector<std::shared_ptr<Request>>& batch, const Outcome& failure) {
    if (batch.size() == 1) return end(batch.front(), failure);
    log(SYNCFLOW_LOG_WARNING, "a step of " + std::to_string(batch.size()) + " requests failed, each starts again alone: " + failure.message);
    for (const auto& request : batch) {
        request->state.reset();
        request->isolated = true;
        request->advance(SYNCFLOW_RUNNING);
    }
}

void Engine::after_step(const std::shared_ptr<Request>& request) {
    try {
        request->advance(SYNCFLOW_RUNNING);
        if (request->cancelled() || !request->report_progress() || !request->report_preview(*backend_)) return end(request, cancelled());
        if (!request->state->done()) return;
        request->advance(SYNCFLOW_DECODING);
        std::vector<engine::Clip> clips = backend_->decode(*request->state);
        if (request->cancelled()) return end(request, cancelled());
        end(request, {}, std::move(clips));
    } catch (...) {
        end(request, current_failure());
    }
}

void Engine::end(std::shared_ptr<Request> request, Outcome outcome, std::vector<engine::Clip> clips, bool notify) {
    std::erase_if(members_, [&](const Member& member) { return member.request == request; });
    {
        const std::lock_guard lock(mutex_);
        stats_.running = static_cast<std::int32_t>(members_.size());
        switch (outcome.status) {
            case SYNCFLOW_OK: ++stats_.completed; break;
            case SYNCFLOW_CANCELLED:
            case SYNCFLOW_ENGINE_CLOSED: ++stats_.cancelled; break;
            case SYNCFLOW_DEADLINE_EXCEEDED: ++stats_.expired; break;
            default: ++stats_.failed; break;
        }
    }
    if (outcome.status == SYNCFLOW_INTERNAL) log(SYNCFLOW_LOG_ERROR, "a request failed: " + outcome.message);
    request->finish(std::move(outcome), std::move(clips), notify);
}

void Engine::end_all(bool notify) {
    std::vector<std::shared_ptr<Request>> requests;
    {
        const std::lock_guard lock(mutex_);
        requests = queue_.remove_if([](const Request&) { return true; });
    }
    for (const Member& member : members_) requests.push_back(member.request);
    for (const auto& request : requests) end(request, closed(), {}, notify);
}

}  // namespace syncflow::service
