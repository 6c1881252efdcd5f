#include "service/request.h"

#include <utility>

#include "service/log.h"

namespace syncflow::service {
namespace {

template <typename Values>
auto data_or_null(const Values& values) {
    return values.empty() ? nullptr : values.data();
}

// Calls a function of the host, which may be C++ and throw.
template <typename Call>
bool proceeds(const char* name, Call call) {
    try {
        return call() == 0;
    } catch (...) {
        throw Failure(SYNCFLOW_INTERNAL, std::string("the callback ") + name + " threw an exception");
    }
}

}  // namespace

Request::Request(Submission given, syncflow_request* own_handle) : submission(std::move(given)), handle(own_handle) {
    if (submission.timeout.count() > 0) deadline_ = submitted + submission.timeout;
}

bool Request::finished() const {
    const std::lock_guard lock(mutex_);
    return has_ended();
}

bool Request::has_ended() const {
    return phase_ == SYNCFLOW_FINISHED || finishing_ == std::this_thread::get_id();
}

std::optional<Outcome> Request::wait(std::optional<Clock::time_point> until) const {
    std::unique_lock lock(mutex_);
    const auto done = [this] { return has_ended(); };
    if (!until) {
        changed_.wait(lock, done);
    } else if (!changed_.wait_until(lock, *until, done)) {
        return std::nullopt;
    }
    return outcome_;
}

syncflow_progress Request::progress() const {
    const std::lock_guard lock(mutex_);
    const bool ended = has_ended();
    const auto end = ended ? ended_ : Clock::now();
    return {
        .struct_size = sizeof(syncflow_progress),
        .state = ended ? std::int32_t{SYNCFLOW_FINISHED} : phase_,
        .status = ended ? outcome_.status : syncflow_status{SYNCFLOW_OK},
        .reserved = 0,
        .step = step_,
        .num_steps = num_steps_,
        .elapsed = std::chrono::duration<double>(end - submitted).count(),
    };
}

const engine::Clip& Request::clip(std::int64_t take) const {
    const std::lock_guard lock(mutex_);
    if (!has_ended()) throw Failure(SYNCFLOW_NOT_READY, "the request is not finished yet");
    if (outcome_.status != SYNCFLOW_OK) throw Failure(outcome_.status, outcome_.message);
    const auto count = static_cast<std::int64_t>(clips_.size());
    if (take < 0 || take >= count) {
        const std::string takes = count == 0 ? "its clips were released" : "it has takes 0 to " + std::to_string(count - 1);
        throw Failure(SYNCFLOW_INVALID_ARGUMENT, "the request has no take " + std::to_string(take) + "; " + takes);
    }
    return clips_[static_cast<std::size_t>(take)];
}

void Request::advance(std::int32_t phase) {
    const std::lock_guard lock(mutex_);
    phase_ = phase;
    step_ = state ? state->step() : 0;
    num_steps_ = state ? state->num_steps() : 0;
}

bool Request::report_progress() {
    if (submission.on_progress == nullptr) return true;
    const syncflow_progress now = progress();
    return proceeds("on_progress", [&] { return submission.on_progress(handle, &now, submission.user_data); });
}

bool Request::report_preview(engine::Backend& backend) {
    if (submission.on_preview == nullptr || submission.preview_interval <= 0) return true;
    if (state->step() % submission.preview_interval != 0 && !state->done()) return true;
    const engine::Preview found = backend.preview(*state, submission.preview_frames);
    const syncflow_preview preview = {
        .struct_size = sizeof(syncflow_preview),
        .reserved = 0,
        .step = state->step(),
        .num_steps = state->num_steps(),
        .video = data_or_null(found.video),
        .channels = found.channels,
        .latent_frames = found.latent_frames,
        .latent_height = found.latent_height,
        .latent_width = found.latent_width,
        .audio = data_or_null(found.audio),
        .audio_tokens = found.audio_tokens,
        .audio_channels = found.audio_channels,
        .video_time = found.video_time,
        .audio_time = found.audio_time,
        .frames = data_or_null(found.frames),
        .num_frames = found.num_frames,
        .height = found.height,
        .width = found.width,
    };
    return proceeds("on_preview", [&] { return submission.on_preview(handle, &preview, submission.user_data); });
}

void Request::finish(Outcome outcome, std::vector<engine::Clip> clips, bool notify) noexcept {
    state.reset();
    {
        const std::lock_guard lock(mutex_);
        outcome_ = std::move(outcome);
        clips_ = std::move(clips);
        ended_ = Clock::now();
        finishing_ = std::this_thread::get_id();
    }
    bool keeps_clips = true;
    if (notify && submission.on_finished != nullptr) {
        try {
            keeps_clips = proceeds("on_finished", [this] {
                return submission.on_finished(handle, outcome_.status, outcome_.message.c_str(), submission.user_data);
            });
        } catch (const Failure& failure) {
            log(SYNCFLOW_LOG_ERROR, failure.what());
        }
    }
    {
        const std::lock_guard lock(mutex_);
        if (!keeps_clips) clips_ = {};
        phase_ = SYNCFLOW_FINISHED;
        finishing_ = {};
    }
    changed_.notify_all();
}

}  // namespace syncflow::service
