// The C API as a program meets it: what each function answers to wrong arguments, and the life of handles.
#include <chrono>
#include <functional>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "syncflow/syncflow.h"
#include "test_backend.h"

namespace {

using namespace syncflow::test;

void expect_status(syncflow_status status, syncflow_status expected, const std::string& what) {
    if (status == expected) {
        if (status != SYNCFLOW_OK) expect(*syncflow_last_error() != 0, "a failure has a sentence");
        return;
    }
    fail(what + ": " + syncflow_status_name(status) + " instead of " + syncflow_status_name(expected) + ", " + syncflow_last_error());
}

syncflow_engine_params engine_params() {
    syncflow_engine_params params;
    expect_status(syncflow_engine_params_init(&params, sizeof params), SYNCFLOW_OK, "init");
    params.package = "anything";
    params.backend = "test";
    return params;
}

syncflow_request_params request_params(const char* prompt) {
    syncflow_request_params params;
    expect_status(syncflow_request_params_init(&params, sizeof params), SYNCFLOW_OK, "init");
    params.prompt = prompt;
    return params;
}

syncflow_engine* open_engine() {
    const syncflow_engine_params params = engine_params();
    syncflow_engine* engine = nullptr;
    expect_status(syncflow_engine_open(&params, &engine), SYNCFLOW_OK, "open");
    return engine;
}

syncflow_request* submit(syncflow_engine* engine, const syncflow_request_params& params) {
    syncflow_request* request = nullptr;
    expect_status(syncflow_request_submit(engine, &params, &request), SYNCFLOW_OK, "submit");
    return request;
}

template <typename Struct>
Struct sized() {
    Struct values = {};
    values.struct_size = sizeof values;
    return values;
}

void a_request_becomes_a_clip() {
    syncflow_engine* engine = open_engine();
    auto info = sized<syncflow_model_info>();
    expect_status(syncflow_engine_info(engine, &info), SYNCFLOW_OK, "info");
    expect(std::string(info.name) == "test-model" && info.sample_rate == 8000, "the info is that of the model");
    syncflow_request_params params = request_params("a clip");
    params.takes = 2;
    syncflow_request* request = submit(engine, params);
    expect_status(syncflow_request_wait(request, -1), SYNCFLOW_OK, "wait");
    auto clip = sized<syncflow_clip>();
    expect_status(syncflow_request_clip(request, 1, &clip), SYNCFLOW_OK, "clip");
    expect(clip.num_frames == 2 && clip.width == 16 && clip.num_samples == 2000 && clip.frames != nullptr, "the clip has frames and sound");
    expect_status(syncflow_request_clip(request, 2, &clip), SYNCFLOW_INVALID_ARGUMENT, "a third take");
    auto progress = sized<syncflow_progress>();
    expect_status(syncflow_request_get_progress(request, &progress), SYNCFLOW_OK, "progress");
    expect(progress.state == SYNCFLOW_FINISHED && progress.status == SYNCFLOW_OK, "it is finished");
    expect_status(syncflow_engine_close(engine), SYNCFLOW_OK, "close");
    expect_status(syncflow_request_clip(request, 0, &clip), SYNCFLOW_OK, "the clip of a closed engine");
    expect(clip.waveform[1999] == clip.waveform[0], "its arrays are there");
    expect_status(syncflow_request_close(request), SYNCFLOW_OK, "close");
}

void every_function_takes_null() {
    auto clip = sized<syncflow_clip>();
    auto info = sized<syncflow_model_info>();
    auto stats = sized<syncflow_engine_stats>();
    auto progress = sized<syncflow_progress>();
    const syncflow_engine_params engine_values = engine_params();
    const syncflow_request_params request_values = request_params("null");
    syncflow_request* request = nullptr;
    syncflow_engine* engine = open_engine();
    const auto handle = [](syncflow_status status, const char* what) { expect_status(status, SYNCFLOW_INVALID_HANDLE, what); };
    const auto argument = [](syncflow_status status, const char* what) { expect_status(status, SYNCFLOW_INVALID_ARGUMENT, what); };
    handle(syncflow_engine_close(nullptr), "engine_close");
    handle(syncflow_engine_info(nullptr, &info), "engine_info");
    handle(syncflow_engine_get_stats(nullptr, &stats), "engine_get_stats");
    handle(syncflow_engine_step(nullptr, nullptr), "engine_step");
    handle(syncflow_request_submit(nullptr, &request_values, &request), "request_submit");
    handle(syncflow_request_wait(nullptr, 0), "request_wait");
    handle(syncflow_request_cancel(nullptr), "request_cancel");
    handle(syncflow_request_get_progress(nullptr, &progress), "request_get_progress");
    handle(syncflow_request_clip(nullptr, 0, &clip), "request_clip");
    handle(syncflow_request_close(nullptr), "request_close");
    handle(syncflow_media_clip(nullptr, &clip), "media_clip");
    handle(syncflow_media_close(nullptr), "media_close");
    argument(syncflow_engine_params_init(nullptr, 48), "engine_params_init");
    argument(syncflow_request_params_init(nullptr, 248), "request_params_init");
    argument(syncflow_media_params_init(nullptr, 40), "media_params_init");
    argument(syncflow_engine_open(nullptr, &engine), "engine_open without params");
    expect(engine == nullptr, "a failure leaves a null handle");
    argument(syncflow_engine_open(&engine_values, nullptr), "engine_open without a result");
    engine = open_engine();
    argument(syncflow_engine_info(engine, nullptr), "engine_info without a result");
    argument(syncflow_request_submit(engine, nullptr, &request), "request_submit without params");
    argument(syncflow_request_submit(engine, &request_values, nullptr), "request_submit without a result");
    argument(syncflow_clip_write(nullptr, "clip.wav"), "clip_write without a clip");
    argument(syncflow_clip_write(&clip, nullptr), "clip_write without a path");
    expect_status(syncflow_engine_step(engine, nullptr), SYNCFLOW_INVALID_ARGUMENT, "engine_step beside the engine's thread");
    expect(std::string(syncflow_status_name(-1)) == syncflow_status_name(99), "an unknown status has a name");
    expect_status(syncflow_engine_close(engine), SYNCFLOW_OK, "close");
}

void closed_and_foreign_handles_are_recognised() {
    syncflow_engine* engine = open_engine();
    syncflow_request* request = submit(engine, request_params("closed"));
    auto* const as_request = reinterpret_cast<syncflow_request*>(engine);
    auto* const as_engine = reinterpret_cast<syncflow_engine*>(request);
    expect_status(syncflow_request_cancel(as_request), SYNCFLOW_INVALID_HANDLE, "an engine as a request");
    expect_status(syncflow_engine_close(as_engine), SYNCFLOW_INVALID_HANDLE, "a request as an engine");
    expect_status(syncflow_request_close(request), SYNCFLOW_OK, "close");
    expect_status(syncflow_request_close(request), SYNCFLOW_INVALID_HANDLE, "close again");
    expect_status(syncflow_request_wait(request, 0), SYNCFLOW_INVALID_HANDLE, "wait after close");
    expect_status(syncflow_engine_close(engine), SYNCFLOW_OK, "close");
    expect_status(syncflow_engine_close(engine), SYNCFLOW_INVALID_HANDLE, "close again");
    const syncflow_request_params params = request_params("late");
    expect_status(syncflow_request_submit(engine, &params, &request), SYNCFLOW_INVALID_HANDLE, "submit after close");
    expect(request == nullptr, "a failure leaves a null handle");
}

void struct_sizes_are_checked() {
    syncflow_engine* engine = open_engine();
    syncflow_request* request = nullptr;
    for (const std::uint32_t size : {0U, 4U, 247U, 100'000U}) {
        syncflow_request_params params = request_params("size");
        params.struct_size = size;
        expect_status(syncflow_request_submit(engine, &params, &request), SYNCFLOW_INVALID_ARGUMENT, "a wrong struct_size");
        auto clip = sized<syncflow_clip>();
        clip.struct_size = size == 247 ? 111 : size;
        expect_status(syncflow_clip_write(&clip, "clip.wav"), SYNCFLOW_INVALID_ARGUMENT, "a wrong struct_size");
        syncflow_request_params initial;
        expect_status(syncflow_request_params_init(&initial, size), SYNCFLOW_INVALID_ARGUMENT, "a wrong size");
    }
    struct Later {  // what a header of a later version declares
        syncflow_request_params params;
        std::int64_t more;
    } later = {};
    expect_status(syncflow_request_params_init(&later.params, sizeof later), SYNCFLOW_OK, "init of a later header");
    expect(later.more == 0 && later.params.struct_size == sizeof later, "what this library does not know is zero");
    later.params.prompt = "later";
    syncflow_request* accepted = submit(engine, later.params);
    expect_status(syncflow_request_wait(accepted, -1), SYNCFLOW_OK, "a request of a later header");
    later.more = 1;
    expect_status(syncflow_request_submit(engine, &later.params, &request), SYNCFLOW_UNSUPPORTED, "a setting of a later header");
    syncflow_engine_close(engine);
}

void wrong_settings_are_refused() {
    syncflow_engine* engine = nullptr;
    const auto open = [&](const std::function<void(syncflow_engine_params&)>& change, syncflow_status expected, const char* what) {
        syncflow_engine_params params = engine_params();
        change(params);
        expect_status(syncflow_engine_open(&params, &engine), expected, what);
    };
    open([](auto& p) { p.package = nullptr; }, SYNCFLOW_INVALID_ARGUMENT, "no package");
    open([](auto& p) { p.package = "missing"; }, SYNCFLOW_NOT_FOUND, "a missing package");
    open([](auto& p) { p.package = "damaged"; }, SYNCFLOW_CORRUPT, "a damaged package");
    open([](auto& p) { p.backend = "none"; }, SYNCFLOW_UNSUPPORTED, "an unknown back end");
    open([](auto& p) { p.threads = -1; }, SYNCFLOW_INVALID_ARGUMENT, "threads");
    open([](auto& p) { p.max_running = 0; }, SYNCFLOW_INVALID_ARGUMENT, "max_running");
    open([](auto& p) { p.max_queued = 0; }, SYNCFLOW_INVALID_ARGUMENT, "max_queued");
    open([](auto& p) { p.ageing = std::numeric_limits<double>::quiet_NaN(); }, SYNCFLOW_INVALID_ARGUMENT, "ageing");

    engine = open_engine();
    syncflow_request* request = nullptr;
    const auto refused = [&](const std::function<void(syncflow_request_params&)>& change, const char* what) {
        syncflow_request_params params = request_params("refused");
        change(params);
        expect_status(syncflow_request_submit(engine, &params, &request), SYNCFLOW_INVALID_ARGUMENT, what);
    };
    const std::vector<float> sound(100, std::numeric_limits<float>::infinity());
    const std::vector<std::uint8_t> picture(8 * 8 * 3);
    auto clip = sized<syncflow_clip>();
    refused([](auto& p) { p.prompt = "\xff"; }, "no UTF-8");
    refused([](auto& p) { p.prompt = "\xed\xa0\x80"; }, "a surrogate");
    refused([](auto& p) { p.negative_prompt = "\xc0\x80"; }, "an overlong character");
    refused([](auto& p) { p.timeout_ms = -1; }, "timeout");
    refused([](auto& p) { p.preview_interval = -1; }, "preview_interval");
    refused([](auto& p) { p.sound_only = 2; }, "sound_only");
    const auto refused_clip = [&](const syncflow_clip& given, const char* what) { refused([&](auto& p) { p.video = &given; }, what); };
    clip.num_frames = 1;
    refused_clip(clip, "frames that are null");
    clip.frames = picture.data();
    clip.height = clip.width = 8;
    refused_clip(clip, "no frame rate");
    clip.fps = 8;
    clip.num_samples = 100;
    refused_clip(clip, "a waveform that is null");
    clip.waveform = sound.data();
    clip.sample_rate = 8000;
    refused_clip(clip, "infinite samples");
    clip.num_samples = 0;
    clip.width = std::numeric_limits<std::int64_t>::max() / 2;
    refused_clip(clip, "frames of too many bytes");
    clip.width = -8;
    refused_clip(clip, "a negative width");
    clip.width = 8;
    clip.latents = sound.data();
    clip.num_latents = 7;
    clip.latent_frames = clip.latent_height = 2;
    clip.latent_width = 1;
    refused_clip(clip, "latents that do not fill their frames");
    clip.num_latents = 8;
    syncflow_request_params params = request_params("accepted");
    params.video = &clip;
    request = submit(engine, params);
    expect_status(syncflow_request_wait(request, -1), SYNCFLOW_OK, "a valid clip");
    params = request_params("steps");
    params.steps = -3;
    request = submit(engine, params);
    expect_status(syncflow_request_wait(request, -1), SYNCFLOW_INVALID_ARGUMENT, "what the model refuses");
    expect(std::string(syncflow_last_error()).find("steps") != std::string::npos, "the sentence of the model is that of the wait");
    syncflow_engine_close(engine);
}

void waiting_times_out_and_cancelling_works_from_any_thread() {
    syncflow_engine* engine = open_engine();
    Observed::all().held = true;
    syncflow_request* request = submit(engine, request_params("held"));
    expect_status(syncflow_request_wait(request, 5), SYNCFLOW_NOT_READY, "wait of 5 ms");
    auto clip = sized<syncflow_clip>();
    expect_status(syncflow_request_clip(request, 0, &clip), SYNCFLOW_NOT_READY, "a clip before the end");
    std::thread([request] { expect_status(syncflow_request_cancel(request), SYNCFLOW_OK, "cancel"); }).join();
    Observed::all().held = false;
    expect_status(syncflow_request_wait(request, -1), SYNCFLOW_CANCELLED, "wait");
    expect_status(syncflow_request_clip(request, 0, &clip), SYNCFLOW_CANCELLED, "a clip of a cancelled request");
    expect_status(syncflow_request_cancel(request), SYNCFLOW_OK, "cancel again");
    syncflow_engine_close(engine);
}

void a_closed_request_still_calls_back() {
    syncflow_engine* engine = open_engine();
    std::atomic<int> status{-1};
    syncflow_request_params params = request_params("slow");
    params.steps = 1000;
    params.user_data = &status;
    params.on_finished = [](syncflow_request* request, syncflow_status ended, const char*, void* data) -> std::int32_t {
        expect(syncflow_request_close(request) == SYNCFLOW_INVALID_HANDLE, "the handle is closed");
        *static_cast<std::atomic<int>*>(data) = ended;
        return 0;
    };
    expect_status(syncflow_request_close(submit(engine, params)), SYNCFLOW_OK, "close");
    expect_status(syncflow_engine_close(engine), SYNCFLOW_OK, "close");
    expect(status == SYNCFLOW_CANCELLED || status == SYNCFLOW_ENGINE_CLOSED, "a closed request is cancelled");
}

void a_request_is_closed_by_its_last_callback() {
    syncflow_engine* engine = open_engine();
    syncflow_request_params params = request_params("own end");
    std::atomic<bool> closed{false};
    params.user_data = &closed;
    params.on_finished = [](syncflow_request* request, syncflow_status, const char*, void* data) -> std::int32_t {
        auto clip = sized<syncflow_clip>();
        expect_status(syncflow_request_clip(request, 0, &clip), SYNCFLOW_OK, "the clip, in the last callback");
        expect_status(syncflow_request_close(request), SYNCFLOW_OK, "close in the last callback");
        *static_cast<std::atomic<bool>*>(data) = true;
        return 0;
    };
    submit(engine, params);
    while (!closed) std::this_thread::yield();
    expect_status(syncflow_engine_close(engine), SYNCFLOW_OK, "close");
}

void a_host_steps_in_its_own_loop() {
    syncflow_engine_params params = engine_params();
    params.host_steps = 1;
    syncflow_engine* engine = nullptr;
    expect_status(syncflow_engine_open(&params, &engine), SYNCFLOW_OK, "open");
    syncflow_request* one = submit(engine, request_params("one"));
    std::int64_t unfinished = -1;
    int rounds = 0;
    do {
        expect_status(syncflow_engine_step(engine, &unfinished), SYNCFLOW_OK, "step");
        ++rounds;
    } while (unfinished > 0);
    expect(rounds == 4, "four steps are four rounds");
    expect_status(syncflow_request_wait(one, 0), SYNCFLOW_OK, "the end");
    syncflow_request* other = submit(engine, request_params("other"));
    expect_status(syncflow_request_wait(other, -1), SYNCFLOW_OK, "a wait that steps");
    expect_status(syncflow_engine_close(engine), SYNCFLOW_OK, "close");
}

void the_log_is_the_programs() {
    std::vector<std::string> messages;
    const auto record = [](std::int32_t, const char* message, void* data) {
        static_cast<std::vector<std::string>*>(data)->push_back(message);
        expect(syncflow_set_log(nullptr, nullptr, 0) == SYNCFLOW_INVALID_ARGUMENT, "the log is not changed from within");
    };
    expect_status(syncflow_set_log(record, &messages, SYNCFLOW_LOG_INFO), SYNCFLOW_OK, "set_log");
    syncflow_engine_close(open_engine());
    expect_status(syncflow_set_log(record, &messages, 7), SYNCFLOW_INVALID_ARGUMENT, "a level that there is not");
    expect_status(syncflow_set_log(nullptr, nullptr, 0), SYNCFLOW_OK, "no log");
    syncflow_engine_close(open_engine());
    expect(messages.size() == 1 && messages[0].starts_with("test-model opened in"), "one engine was opened while there was a log");
}

// Left open: the engine stops when the process ends, without a call of the program's functions.
void an_engine_may_be_left_open() {
    syncflow_engine* engine = open_engine();
    syncflow_request_params params = request_params("slow");
    params.steps = 1000;
    params.on_finished = [](syncflow_request*, syncflow_status, const char*, void*) -> std::int32_t { fail("nothing is called back at the end"); };
    submit(engine, params);
}

}  // namespace

int main() {
    register_test_backend();
    a_request_becomes_a_clip();
    every_function_takes_null();
    closed_and_foreign_handles_are_recognised();
    struct_sizes_are_checked();
    wrong_settings_are_refused();
    waiting_times_out_and_cancelling_works_from_any_thread();
    a_closed_request_still_calls_back();
    a_request_is_closed_by_its_last_callback();
    a_host_steps_in_its_own_loop();
    the_log_is_the_programs();
    an_engine_may_be_left_open();
    std::puts("c api: all checks hold");
}
