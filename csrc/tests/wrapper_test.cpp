// syncflow.hpp on a model of the tests.
#include "syncflow/syncflow.hpp"

#include <filesystem>
#include <string>
#include <vector>

#include "check.h"
#include "test_backend.h"

namespace {

using namespace syncflow::test;

syncflow::Engine open_engine(bool host_steps = false) {
    auto engine = syncflow::Engine::open("anything", {.backend = "test", .host_steps = host_steps});
    expect(engine.has_value(), "an engine opens");
    return std::move(*engine);
}

void a_sentence_becomes_a_clip() {
    const syncflow::Engine engine = open_engine();
    expect(std::string(engine.info().name) == "test-model", "the info is that of the model");
    std::vector<std::int64_t> steps;
    int previews = 0;
    syncflow_status ended = -1;
    auto clip = engine.generate({
        .prompt = "a clip",
        .seed = 3,
        .preview_interval = 1,
        .on_progress = [&](const syncflow_progress& now) { return steps.push_back(now.step), true; },
        .on_preview = [&](const syncflow_preview&) { return ++previews > 0; },
        .on_finished = [&](syncflow_status status, const char*) { ended = status; },
    });
    expect(clip.has_value() && ended == SYNCFLOW_OK && previews == 4, "the request ends well");
    expect(steps == std::vector<std::int64_t>{1, 2, 3, 4}, "every step is reported");
    expect(clip->frames().size() == 2 * 16 * 16 * 3 && clip->waveform().size() == 2000 && clip->fps() == 8, "the clip has frames and sound");
    auto again = engine.generate({.prompt = "another clip", .seed = 3, .video = *clip});
    expect(again.has_value(), "a clip is a medium of a request");
    const auto copy = *clip;
    clip = syncflow::Error{};
    expect(copy.provenance().find("test-model") != std::string_view::npos, "a copy keeps the arrays alive");
}

void failures_are_values() {
    const auto missing = syncflow::Engine::open("missing", {.backend = "test"});
    expect(!missing && missing.error().status == SYNCFLOW_NOT_FOUND && !missing.error().message.empty(), "a missing package");
    const syncflow::Engine engine = open_engine();
    auto failed = engine.generate({.prompt = "fail in decode"});
    expect(!failed && failed.error().status == SYNCFLOW_INTERNAL, "a request that fails");
    try {
        failed.value();
        expect(false, "value() throws");
    } catch (const std::runtime_error& error) {
        expect(error.what() == failed.error().message, "what() is the sentence");
    }
    const auto stopped = engine.generate({.prompt = "stop", .on_progress = [](const syncflow_progress&) { return false; }});
    expect(!stopped && stopped.error().status == SYNCFLOW_CANCELLED, "a callback that stops");
    const auto late = engine.generate({.prompt = "slow", .steps = 1000, .timeout = std::chrono::milliseconds(5)});
    expect(!late && late.error().status == SYNCFLOW_DEADLINE_EXCEEDED, "a deadline");
    expect(!engine.step() && engine.stats().failed == 1, "the engine steps in its own thread");
    const auto refused = engine.submit({.prompt = "\xff"});
    expect(!refused && refused.error().status == SYNCFLOW_INVALID_ARGUMENT, "a prompt that is no UTF-8");
}

void handles_close_themselves() {
    std::optional<syncflow::Clip> clip;
    {
        const syncflow::Engine engine = open_engine(true);
        auto request = engine.submit({.prompt = "own loop"});
        expect(request->wait(std::chrono::milliseconds(0)).error().status == SYNCFLOW_NOT_READY, "nothing has stepped yet");
        while (*engine.step() > 0) {}
        expect(request->wait().has_value() && request->progress().state == SYNCFLOW_FINISHED, "the host has stepped it");
        clip = *request->clip();
        auto dropped = engine.submit({.prompt = "dropped", .steps = 1000});
        expect(engine.step().has_value() && TestState::alive == 1, "it runs");
        dropped = syncflow::Error{};
        expect(*engine.step() == 0 && TestState::alive == 0, "a request whose last handle is gone is cancelled");
    }
    expect(clip->frames()[0] == clip->view().frames[0], "a clip outlives its request and its engine");
}

}  // namespace

int main() {
    register_test_backend();
    a_sentence_becomes_a_clip();
    failures_are_values();
    handles_close_themselves();
    std::puts("wrapper: all checks hold");
}
