// The functions of syncflow.h: each looks up its handle, calls C++, and turns exceptions into a status and a sentence.
#include <cstring>
#include <memory>
#include <optional>
#include <string>

#include "capi/structs.h"
#include "capi/values.h"
#include "cpu/thread_pool.h"
#include "media/writing.h"
#include "service/backends.h"
#include "service/engine.h"
#include "service/handles.h"
#include "service/log.h"
#if defined(SYNCFLOW_FFMPEG)
#include "media/reading.h"
#endif

using namespace syncflow;
using namespace syncflow::capi;
using service::Failure;

namespace {

template <typename Handle, typename Object>
using Table = service::HandleTable<Handle, Object>;

// Never destroyed, as other threads may call the library until the process ends.
Table<syncflow_engine, service::Engine>& engines() {
    static auto* const table = new Table<syncflow_engine, service::Engine>("engine");
    return *table;
}

Table<syncflow_request, service::Request>& requests() {
    static auto* const table = new Table<syncflow_request, service::Request>("request");
    return *table;
}

#if defined(SYNCFLOW_FFMPEG)
Table<syncflow_media, const engine::Clip>& media_files() {
    static auto* const table = new Table<syncflow_media, const engine::Clip>("media");
    return *table;
}
#endif

// Engines that the program has not closed stop before the threads that they compute with are destroyed. The program's objects may
// be gone by then: nothing is called back.
void stop_engines_at_exit() {
    struct Stop {
        Stop() { parallel_for(2, 2, [](std::int64_t) {}); }  // starts the threads, which are then destroyed after this
        ~Stop() {
            for (const auto& engine : engines().all()) engine->close(false);
        }
    };
    static const Stop stop;
}

std::string& last_error() {
    thread_local std::string sentence;
    return sentence;
}

syncflow_status told(service::Outcome outcome) noexcept {
    if (outcome.status != SYNCFLOW_OK) last_error() = std::move(outcome.message);
    return outcome.status;
}

template <typename Call>
syncflow_status guarded(Call call) noexcept {
    try {
        call();
        return SYNCFLOW_OK;
    } catch (...) {
        try {
            return told(service::current_failure());
        } catch (...) {  // no memory for the sentence
            last_error().clear();
            return SYNCFLOW_OUT_OF_MEMORY;
        }
    }
}

template <typename Object>
void clear_output(Object** output, const char* name) {
    check_not_null(output, name);
    *output = nullptr;
}

}  // namespace

const char* syncflow_status_name(syncflow_status status) {
    constexpr const char* NAMES[] = {"SYNCFLOW_OK", "SYNCFLOW_INVALID_ARGUMENT", "SYNCFLOW_INVALID_HANDLE", "SYNCFLOW_NOT_FOUND", "SYNCFLOW_CORRUPT",
        "SYNCFLOW_UNSUPPORTED", "SYNCFLOW_OUT_OF_MEMORY", "SYNCFLOW_QUEUE_FULL", "SYNCFLOW_CANCELLED", "SYNCFLOW_DEADLINE_EXCEEDED",
        "SYNCFLOW_ENGINE_CLOSED", "SYNCFLOW_NOT_READY", "SYNCFLOW_IO_ERROR", "SYNCFLOW_INTERNAL"};
    return status >= 0 && status < static_cast<syncflow_status>(std::size(NAMES)) ? NAMES[status] : "unknown status";
}

const char* syncflow_last_error() { return last_error().c_str(); }

const char* syncflow_version() { return SYNCFLOW_VERSION; }

const char* syncflow_commit() { return SYNCFLOW_COMMIT; }

const char* syncflow_build_info() {
    static const std::string* const info = new std::string("back ends: " + service::backend_names() + "; writes " + media::written_formats() +
#if defined(SYNCFLOW_FFMPEG)
                                                           "; reads media with FFmpeg");
#else
                                                           "; reads no media files");
#endif
    return info->c_str();
}

syncflow_status syncflow_set_log(syncflow_log_callback callback, void* user_data, int32_t level) {
    return guarded([&] {
        if (level < SYNCFLOW_LOG_ERROR || level > SYNCFLOW_LOG_INFO) throw Failure(SYNCFLOW_INVALID_ARGUMENT, "level must be from 0 (errors) to 2 (all)");
        if (!service::set_log(callback, user_data, level)) {
            throw Failure(SYNCFLOW_INVALID_ARGUMENT, "the log callback cannot be changed from within itself");
        }
    });
}

syncflow_status syncflow_clip_write(const syncflow_clip* clip, const char* path) {
    return guarded([&] { media::write_clip(clip_view(clip, "the clip"), text(path, "path")); });
}

syncflow_status syncflow_media_params_init(syncflow_media_params* params, size_t struct_size) {
    return guarded([&] { write_struct(default_media_params(), params, struct_size, FirstSize::media_params, "the media's params"); });
}

#if defined(SYNCFLOW_FFMPEG)
syncflow_status syncflow_media_read(const char* path, const syncflow_media_params* params, syncflow_media** media) {
    return guarded([&] {
        clear_output(media, "media");
        auto clip = media::read_clip(text(path, "path"), media_params(params));
        syncflow_media* const handle = media_files().reserve();
        media_files().set(handle, std::move(clip));
        *media = handle;
    });
}

syncflow_status syncflow_media_clip(syncflow_media* media, syncflow_clip* clip) {
    return guarded([&] { fill_struct(view_of(*media_files().get(media)), clip, FirstSize::clip, "the clip"); });
}

syncflow_status syncflow_media_close(syncflow_media* media) {
    return guarded([&] { media_files().take(media); });
}
#else
syncflow_status syncflow_media_read(const char*, const syncflow_media_params*, syncflow_media** media) {
    return guarded([&] {
        clear_output(media, "media");
        throw Failure(SYNCFLOW_UNSUPPORTED, "this build reads no media files: it was configured without FFmpeg");
    });
}

syncflow_status syncflow_media_clip(syncflow_media*, syncflow_clip*) {
    return guarded([] { throw Failure(SYNCFLOW_INVALID_HANDLE, "the handle stands for no media"); });
}

syncflow_status syncflow_media_close(syncflow_media*) {
    return guarded([] { throw Failure(SYNCFLOW_INVALID_HANDLE, "the handle stands for no media"); });
}
#endif

syncflow_status syncflow_engine_params_init(syncflow_engine_params* params, size_t struct_size) {
    return guarded([&] { write_struct(default_engine_params(), params, struct_size, FirstSize::engine_params, "the engine's params"); });
}

syncflow_status syncflow_engine_open(const syncflow_engine_params* params, syncflow_engine** engine) {
    return guarded([&] {
        clear_output(engine, "engine");
        const EngineSettings settings = engine_settings(params);
        stop_engines_at_exit();
        const auto begin = service::Clock::now();
        auto backend = service::open_backend(settings.package, settings.backend);
        const std::chrono::duration<double, std::milli> took = service::Clock::now() - begin;
        service::log(SYNCFLOW_LOG_INFO,
            backend->info().name + " opened in " + std::to_string(static_cast<long>(took.count())) + " ms with the back end " + backend->info().backend);
        syncflow_engine* const handle = engines().reserve();
        engines().set(handle, std::make_shared<service::Engine>(std::move(backend), settings.engine));
        *engine = handle;
    });
}

syncflow_status syncflow_engine_close(syncflow_engine* engine) {
    return guarded([&] {
        engines().get(engine)->close();
        engines().take(engine);
    });
}

syncflow_status syncflow_engine_info(syncflow_engine* engine, syncflow_model_info* info) {
    return guarded([&] { fill_struct(info_of(engines().get(engine)->info()), info, FirstSize::model_info, "the model's info"); });
}

syncflow_status syncflow_engine_get_stats(syncflow_engine* engine, syncflow_engine_stats* stats) {
    return guarded([&] { fill_struct(engines().get(engine)->stats(), stats, FirstSize::engine_stats, "the engine's stats"); });
}

syncflow_status syncflow_engine_step(syncflow_engine* engine, int64_t* unfinished) {
    return guarded([&] {
        const std::int64_t left = engines().get(engine)->step();
        if (unfinished != nullptr) *unfinished = left;
    });
}

syncflow_status syncflow_request_params_init(syncflow_request_params* params, size_t struct_size) {
    return guarded([&] { write_struct(default_request_params(), params, struct_size, FirstSize::request_params, "the request's params"); });
}

syncflow_status syncflow_request_submit(syncflow_engine* engine, const syncflow_request_params* params, syncflow_request** request) {
    return guarded([&] {
        clear_output(request, "request");
        const auto target = engines().get(engine);
        syncflow_request* const handle = requests().reserve();
        const auto submitted = std::make_shared<service::Request>(submission(params), handle);
        requests().set(handle, submitted);
        *request = handle;  // before a callback can be called
        try {
            target->submit(submitted);
        } catch (...) {
            *request = nullptr;
            requests().take(handle);
            throw;
        }
    });
}

syncflow_status syncflow_request_wait(syncflow_request* request, int64_t timeout_ms) {
    service::Outcome outcome;
    const syncflow_status status = guarded([&] {
        const auto waited = requests().get(request);
        std::optional<service::Clock::time_point> until;
        if (timeout_ms >= 0) until = service::Clock::now() + std::chrono::milliseconds(std::min<std::int64_t>(timeout_ms, std::int64_t{1} << 40));
        const auto engine = waited->engine.lock();
        const auto ended = engine ? engine->wait(*waited, until) : waited->wait(until);
        if (!ended) throw Failure(SYNCFLOW_NOT_READY, "the request is not finished yet");
        outcome = *ended;
    });
    return status == SYNCFLOW_OK ? told(std::move(outcome)) : status;
}

syncflow_status syncflow_request_cancel(syncflow_request* request) {
    return guarded([&] { requests().get(request)->cancel(); });
}

syncflow_status syncflow_request_get_progress(syncflow_request* request, syncflow_progress* progress) {
    return guarded([&] { fill_struct(requests().get(request)->progress(), progress, FirstSize::progress, "the progress"); });
}

syncflow_status syncflow_request_clip(syncflow_request* request, int64_t take, syncflow_clip* clip) {
    return guarded([&] { fill_struct(view_of(requests().get(request)->clip(take)), clip, FirstSize::clip, "the clip"); });
}

syncflow_status syncflow_request_close(syncflow_request* request) {
    return guarded([&] { requests().take(request)->cancel(); });
}
