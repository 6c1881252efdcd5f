// The C API of syncflow.h for C++20: handles that close themselves, spans, and results that hold a value or an error.
//
//     auto engine = syncflow::Engine::open("path/to/package");
//     if (!engine) return fail(engine.error().message);
//     auto clip = engine->generate({.prompt = "a large red rubber ball bounces on a wooden floor", .seed = 7});
//     if (clip) clip->save("clip.mp4");
//
// Nothing throws but std::bad_alloc and what `value()` throws of a result without a value. Threads: as in syncflow.h.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include "syncflow/syncflow.h"

namespace syncflow {

struct Error {
    syncflow_status status = SYNCFLOW_INTERNAL;
    std::string message;
};

// A value or an error, as std::expected of C++23.
template <typename T>
class [[nodiscard]] Result {
   public:
    Result(T value) : held_(std::in_place_index<0>, std::move(value)) {}
    Result(Error error) : held_(std::in_place_index<1>, std::move(error)) {}

    bool has_value() const noexcept { return held_.index() == 0; }
    explicit operator bool() const noexcept { return has_value(); }
    T& operator*() noexcept { return *std::get_if<0>(&held_); }
    const T& operator*() const noexcept { return *std::get_if<0>(&held_); }
    T* operator->() noexcept { return std::get_if<0>(&held_); }
    const T* operator->() const noexcept { return std::get_if<0>(&held_); }
    const Error& error() const noexcept { return *std::get_if<1>(&held_); }
    T& value() {
        if (!has_value()) throw std::runtime_error(error().message);
        return **this;
    }

   private:
    std::variant<T, Error> held_;
};

using Done = std::monostate;

namespace detail {

inline Error last_error(syncflow_status status) { return {status, syncflow_last_error()}; }

inline Result<Done> done(syncflow_status status) {
    if (status != SYNCFLOW_OK) return last_error(status);
    return Done{};
}

template <typename Handle, syncflow_status (*close)(Handle*)>
struct Close {
    void operator()(Handle* handle) const noexcept { close(handle); }
};

template <typename Params, syncflow_status (*init)(Params*, std::size_t)>
Params initial() {
    Params params;
    init(&params, sizeof params);
    return params;
}

inline double or_default(const std::optional<double>& value) { return value.value_or(SYNCFLOW_DEFAULT); }

}  // namespace detail

// A video with its sound; keeps what it shows alive. A moved or copied clip shares its arrays.
class Clip {
   public:
    Clip(const syncflow_clip& view, std::shared_ptr<const void> owner) : view_(view), owner_(std::move(owner)) {}

    // (num_frames, height, width, 3), RGB.
    std::span<const std::uint8_t> frames() const {
        return {view_.frames, static_cast<std::size_t>(view_.num_frames * view_.height * view_.width * 3)};
    }
    std::int64_t num_frames() const { return view_.num_frames; }
    std::int64_t height() const { return view_.height; }
    std::int64_t width() const { return view_.width; }
    double fps() const { return view_.fps; }
    std::span<const float> waveform() const { return {view_.waveform, static_cast<std::size_t>(view_.num_samples)}; }
    std::int32_t sample_rate() const { return view_.sample_rate; }
    std::string_view provenance() const { return view_.provenance == nullptr ? std::string_view() : view_.provenance; }
    const syncflow_clip& view() const { return view_; }

    Result<Done> save(const std::string& path) const { return detail::done(syncflow_clip_write(&view_, path.c_str())); }

   private:
    syncflow_clip view_;
    std::shared_ptr<const void> owner_;
};

struct MediaOptions {
    int width = 0, height = 0, sample_rate = 0;
    double fps = 0, start = 0, seconds = 0;
};

inline Result<Clip> read_clip(const std::string& path, const MediaOptions& options = {}) {
    auto params = detail::initial<syncflow_media_params, syncflow_media_params_init>();
    params.width = options.width;
    params.height = options.height;
    params.sample_rate = options.sample_rate;
    params.fps = options.fps;
    params.start = options.start;
    params.seconds = options.seconds;
    syncflow_media* handle = nullptr;
    if (const auto status = syncflow_media_read(path.c_str(), &params, &handle)) return detail::last_error(status);
    const std::shared_ptr<syncflow_media> owner(handle, detail::Close<syncflow_media, syncflow_media_close>());
    syncflow_clip view = {};
    view.struct_size = sizeof view;
    if (const auto status = syncflow_media_clip(handle, &view)) return detail::last_error(status);
    return Clip(view, owner);
}

// See syncflow_request_params; without a value a field takes the model's default.
struct RequestOptions {
    std::string prompt;
    std::optional<std::string> negative_prompt = {};
    std::uint64_t seed = 0;
    std::optional<std::uint64_t> audio_seed = {};
    int takes = 1, steps = 0, width = 0, height = 0, branch_interval = 0;
    std::optional<double> seconds = {}, guidance = {}, shift = {}, video_lead = {}, strength = {};
    std::optional<double> sync_guidance = {}, sync_cfg_audio = {}, sync_cfg_video = {};
    std::optional<double> guidance_from = {}, guidance_until = {}, guidance_rescale = {};
    std::optional<Clip> video = {}, image = {}, extend = {}, audio = {}, reference = {};
    bool sound_only = false;
    int priority = 0;
    std::chrono::milliseconds timeout{0};
    int preview_interval = 0;
    bool preview_frames = false;
    // False stops the request. Called by the thread that steps the engine; an exception ends the request.
    std::function<bool(const syncflow_progress&)> on_progress = {};
    std::function<bool(const syncflow_preview&)> on_preview = {};
    std::function<void(syncflow_status, const char* message)> on_finished = {};
};

// A submitted request. The last one that is destroyed cancels it, if it is not finished.
class Request {
   public:
    // The end of the request; SYNCFLOW_NOT_READY after `timeout`.
    Result<Done> wait(std::optional<std::chrono::milliseconds> timeout = {}) const {
        return detail::done(syncflow_request_wait(handle_.get(), timeout ? timeout->count() : -1));
    }
    void cancel() const { syncflow_request_cancel(handle_.get()); }
    syncflow_progress progress() const {
        syncflow_progress now = {};
        now.struct_size = sizeof now;
        syncflow_request_get_progress(handle_.get(), &now);
        return now;
    }
    Result<Clip> clip(std::int64_t take = 0) const {
        syncflow_clip view = {};
        view.struct_size = sizeof view;
        if (const auto status = syncflow_request_clip(handle_.get(), take, &view)) return detail::last_error(status);
        return Clip(view, handle_);
    }
    syncflow_request* handle() const { return handle_.get(); }

   private:
    friend class Engine;
    explicit Request(syncflow_request* handle) : handle_(handle, detail::Close<syncflow_request, syncflow_request_close>()) {}

    std::shared_ptr<syncflow_request> handle_;
};

struct EngineOptions {
    int threads = 0, max_running = 4, max_queued = 256;
    std::string backend = "native";
    double ageing = 10;
    bool host_steps = false, verify = true;
};

class Engine {
   public:
    static Result<Engine> open(const std::string& package, const EngineOptions& options = {}) {
        auto params = detail::initial<syncflow_engine_params, syncflow_engine_params_init>();
        params.package = package.c_str();
        params.backend = options.backend.c_str();
        params.threads = options.threads;
        params.max_running = options.max_running;
        params.max_queued = options.max_queued;
        params.ageing = options.ageing;
        params.host_steps = options.host_steps ? 1 : 0;
        params.skip_checksums = options.verify ? 0 : 1;
        syncflow_engine* handle = nullptr;
        if (const auto status = syncflow_engine_open(&params, &handle)) return detail::last_error(status);
        return Engine(handle);
    }

    Result<Request> submit(RequestOptions options) const {
        auto call = std::make_unique<RequestOptions>(std::move(options));
        syncflow_request_params params = params_of(*call);
        syncflow_request* handle = nullptr;
        if (const auto status = syncflow_request_submit(handle_.get(), &params, &handle)) return detail::last_error(status);
        static_cast<void>(call.release());  // on_finished, which is always called, deletes it
        return Request(handle);
    }

    // Submits, waits, and returns the first take.
    Result<Clip> generate(RequestOptions options) const {
        const Result<Request> request = submit(std::move(options));
        if (!request) return request.error();
        if (const auto ended = request->wait(); !ended) return ended.error();
        return request->clip();
    }

    // In an engine with host_steps; how many requests are left.
    Result<std::int64_t> step() const {
        std::int64_t unfinished = 0;
        if (const auto status = syncflow_engine_step(handle_.get(), &unfinished)) return detail::last_error(status);
        return unfinished;
    }

    syncflow_model_info info() const {
        syncflow_model_info values = {};
        values.struct_size = sizeof values;
        syncflow_engine_info(handle_.get(), &values);
        return values;
    }

    syncflow_engine_stats stats() const {
        syncflow_engine_stats values = {};
        values.struct_size = sizeof values;
        syncflow_engine_get_stats(handle_.get(), &values);
        return values;
    }

    syncflow_engine* handle() const { return handle_.get(); }

   private:
    explicit Engine(syncflow_engine* handle) : handle_(handle) {}

    static syncflow_request_params params_of(RequestOptions& options) {
        auto params = detail::initial<syncflow_request_params, syncflow_request_params_init>();
        const auto view = [](const std::optional<Clip>& clip) { return clip ? &clip->view() : nullptr; };
        params.prompt = options.prompt.c_str();
        params.negative_prompt = options.negative_prompt ? options.negative_prompt->c_str() : nullptr;
        params.seed = options.seed;
        params.audio_seed = options.audio_seed.value_or(0);
        params.has_audio_seed = options.audio_seed ? 1 : 0;
        params.takes = options.takes;
        params.steps = options.steps;
        params.width = options.width;
        params.height = options.height;
        params.branch_interval = options.branch_interval;
        params.seconds = detail::or_default(options.seconds);
        params.guidance = detail::or_default(options.guidance);
        params.shift = detail::or_default(options.shift);
        params.video_lead = detail::or_default(options.video_lead);
        params.strength = detail::or_default(options.strength);
        params.sync_guidance = detail::or_default(options.sync_guidance);
        params.sync_cfg_audio = detail::or_default(options.sync_cfg_audio);
        params.sync_cfg_video = detail::or_default(options.sync_cfg_video);
        params.guidance_from = detail::or_default(options.guidance_from);
        params.guidance_until = detail::or_default(options.guidance_until);
        params.guidance_rescale = detail::or_default(options.guidance_rescale);
        params.video = view(options.video);
        params.image = view(options.image);
        params.extend = view(options.extend);
        params.audio = view(options.audio);
        params.reference = view(options.reference);
        params.sound_only = options.sound_only ? 1 : 0;
        params.priority = options.priority;
        params.timeout_ms = options.timeout.count();
        params.preview_interval = options.preview_interval;
        params.preview_frames = options.preview_frames ? 1 : 0;
        params.user_data = &options;
        if (options.on_progress) {
            params.on_progress = [](syncflow_request*, const syncflow_progress* now, void* data) -> std::int32_t {
                return static_cast<RequestOptions*>(data)->on_progress(*now) ? 0 : 1;
            };
        }
        if (options.on_preview) {
            params.on_preview = [](syncflow_request*, const syncflow_preview* now, void* data) -> std::int32_t {
                return static_cast<RequestOptions*>(data)->on_preview(*now) ? 0 : 1;
            };
        }
        params.on_finished = [](syncflow_request*, syncflow_status status, const char* message, void* data) -> std::int32_t {
            const std::unique_ptr<RequestOptions> call(static_cast<RequestOptions*>(data));
            if (call->on_finished) call->on_finished(status, message);
            return 0;
        };
        return params;
    }

    std::unique_ptr<syncflow_engine, detail::Close<syncflow_engine, syncflow_engine_close>> handle_;
};

}  // namespace syncflow
