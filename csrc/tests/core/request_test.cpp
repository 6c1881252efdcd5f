// Requests at the border of the engine: the sentences for mistakes, sizes and durations, known media, and that what a request
// becomes depends on nothing but itself.
#include <cstdio>
#include <cstdlib>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "engine/backend.h"
#include "engine/conform.h"
#include "package/json.h"

using namespace syncflow::engine;
using syncflow::test::expect;
using syncflow::test::fail;
using syncflow::test::Random;

namespace {

constexpr double NOT_A_NUMBER = std::numeric_limits<double>::quiet_NaN();

Request ball(std::uint64_t seed = 7, std::int64_t steps = 2) {
    Request request;
    request.prompt = "a large red rubber ball bounces on a wooden floor";
    request.seed = seed;
    request.steps = steps;
    return request;
}

std::shared_ptr<Clip> random_clip(std::int64_t frames, std::int64_t height, std::int64_t width, double fps, std::int64_t samples, std::int64_t rate) {
    Random random(3);
    auto clip = std::make_shared<Clip>();
    clip->num_frames = frames;
    clip->height = height;
    clip->width = width;
    clip->fps = fps;
    clip->sample_rate = rate;
    for (std::int64_t i = 0; i < frames * height * width * 3; ++i) clip->frames.push_back(static_cast<std::uint8_t>(random.below(256)));
    const auto noise = random.normal(samples, 0.1);
    clip->waveform.assign(noise.data(), noise.data() + samples);
    return clip;
}

void expect_refused(Backend& backend, const std::string& sentence, const std::function<void(Request&)>& change) {
    Request request = ball();
    change(request);
    try {
        backend.prepare(request);
    } catch (const Error& error) {
        const std::string found = error.what();
        if (error.status() != Status::invalid_argument) fail("another status for: " + found);
        if (found.find(sentence) == std::string::npos) fail(found + ": lacks: " + sentence);
        return;
    }
    fail("nothing was refused where '" + sentence + "' was expected");
}

void refuses_mistakes(Backend& backend) {
    const auto refuse = [&](const char* sentence, const std::function<void(Request&)>& change) { expect_refused(backend, sentence, change); };
    refuse("the prompt is empty; say in a sentence what the clip shows", [](Request& r) { r.prompt = std::string(" \n\u3000"); });
    refuse("prompt is not UTF-8", [](Request& r) { r.prompt = std::string("\xff"); });
    refuse("steps is 0; it must be a whole number from 1 to 1000", [](Request& r) { r.steps = 0; });
    refuse("steps is 1001; it must be a whole number from 1 to 1000", [](Request& r) { r.steps = 1001; });
    refuse("guidance is nan; it must be a finite number from -100 to 100", [](Request& r) { r.guidance = NOT_A_NUMBER; });
    refuse("guidance is 100.5; it must be a finite number from -100 to 100", [](Request& r) { r.guidance = 100.5; });
    refuse("shift is 0.0; it must be above 0 and at most 100", [](Request& r) { r.shift = 0; });
    refuse("video_lead is 1.5; it must be from 0 to 1", [](Request& r) { r.video_lead = 1.5; });
    refuse("seconds is 0.0; it must be above 0 and at most 60", [](Request& r) { r.seconds = 0; });
    refuse("seconds is nan", [](Request& r) { r.seconds = NOT_A_NUMBER; });
    refuse("seconds is 61.0; it must be above 0 and at most 60", [](Request& r) { r.seconds = 61; });
    refuse("seconds is 0.02, shorter than half a frame; at 16 fps it must be above 0.03125", [](Request& r) { r.seconds = 0.02; });
    refuse("width is 65; it must be a multiple of 16 from 16 to 2048", [](Request& r) { r.width = 65; });
    refuse("height is -16; it must be a multiple of 16 from 16 to 2048", [](Request& r) { r.height = -16; });
    refuse("guidance_interval is 0.5 to 0.5; it must be two rising times from 0 to 1", [](Request& r) { r.guidance_interval = {0.5, 0.5}; });
    refuse("guidance_rescale is -0.1; it must be from 0 to 1", [](Request& r) { r.guidance_rescale = -0.1; });
    refuse("branch_interval is 0; it must be a whole number from 1 to 1000", [](Request& r) { r.branch_interval = 0; });
    refuse("takes is 65; it must be a whole number from 1 to 64", [](Request& r) { r.takes = 65; });
    refuse("strength says how far to move away from a video; there is none", [](Request& r) { r.strength = 0.5; });
    refuse("the negative prompt is empty", [](Request& r) { r.negative_prompt = std::string(); });
    refuse("sync_cfg_video needs a model whose video reads the audio; this one has adaptor", [](Request& r) { r.sync_cfg_video = 2; });
    refuse("audio-to-video needs a model whose video reads the audio", [](Request& r) { r.audio = random_clip(0, 0, 0, 0, 48'000, 48'000); });
    refuse("a reference sound needs a model with the bridge global_local", [](Request& r) { r.reference = random_clip(0, 0, 0, 0, 48'000, 48'000); });
    refuse("a sound without a video needs a model whose audio reads the text", [](Request& r) { r.sound_only = true; });
    refuse("sound_only draws a sound without a video; it goes without width", [](Request& r) { r.sound_only = true, r.width = 64; });
    refuse("video and image are given; a clip is made from one of them", [](Request& r) { r.video = r.image = random_clip(1, 4, 4, 16, 0, 0); });
    refuse("the clip has no frames; it is a sound alone", [](Request& r) { r.video = random_clip(0, 0, 0, 0, 4800, 48'000); });
    refuse("video is no clip: it has 0 bytes of frames, and its sizes ask for 48", [](Request& r) {
        auto clip = random_clip(1, 4, 4, 16, 0, 0);
        clip->frames.clear();
        r.video = clip;
    });
    refuse("its fps are 0.0", [](Request& r) { r.video = random_clip(1, 4, 4, 0, 0, 0); });
    refuse("its sample rate is 0", [](Request& r) { r.video = random_clip(1, 4, 4, 16, 10, 0); });
    refuse("its sizes must not be negative", [](Request& r) {
        auto clip = random_clip(1, 4, 4, 16, 0, 0);
        clip->height = -4;
        r.video = clip;
    });
    refuse("its sound holds NaN or infinity", [](Request& r) {
        auto clip = random_clip(1, 4, 4, 16, 10, 48'000);
        clip->waveform[3] = static_cast<float>(NOT_A_NUMBER);
        r.video = clip;
    });
    refuse("the clip to continue has 2 s and the result 1 s; ask for more seconds", [](Request& r) { r.extend = random_clip(32, 16, 16, 16, 0, 0), r.seconds = 1; });
    refuse("the clip to continue has 0.125 s; it must have at least 0.25 s", [](Request& r) { r.extend = random_clip(2, 16, 16, 16, 0, 0), r.seconds = 1; });
}

// All steps, and the clips.
std::vector<Clip> run(Backend& backend, const Request& request) {
    const std::unique_ptr<RequestState> state = backend.prepare(request);
    RequestState* const one = state.get();
    while (!one->done()) backend.step(std::span(&one, 1));
    backend.step(std::span(&one, 1));  // one that is done stays as it is
    return backend.decode(*one);
}

void expect_same(const Clip& one, const Clip& other, const char* what) {
    expect(one.frames == other.frames && one.waveform == other.waveform && one.latents == other.latents && one.provenance == other.provenance, what);
}

// Requests that join and leave between steps have the bits of requests alone.
void requests_do_not_depend_on_others(Backend& backend) {
    std::vector<Request> requests = {ball(1, 2), ball(2, 3), ball(3, 2), ball(4, 2)};
    requests[1].guidance = 1;
    requests[2].sync_guidance = 2;
    requests[2].takes = 2;
    requests[2].video_lead = 0;
    requests[3].seconds = 1;
    std::vector<std::vector<Clip>> alone;
    for (const Request& request : requests) alone.push_back(run(backend, request));
    std::vector<std::unique_ptr<RequestState>> states;
    std::vector<std::vector<Clip>> together(requests.size());
    for (std::size_t step = 0;; ++step) {
        if (step < requests.size()) states.push_back(backend.prepare(requests[step]));
        std::vector<RequestState*> running;
        for (const auto& state : states) {
            if (!state->done()) running.push_back(state.get());
        }
        if (running.empty() && states.size() == requests.size()) break;
        backend.step(running);
    }
    for (std::size_t i = 0; i < requests.size(); ++i) {
        together[i] = backend.decode(*states[i]);
        expect(together[i].size() == alone[i].size(), "a clip for each take");
        for (std::size_t take = 0; take < alone[i].size(); ++take) expect_same(together[i][take], alone[i][take], "a request among others has the bits of one alone");
    }
    expect(alone[2][0].frames == alone[2][1].frames && alone[2][0].waveform != alone[2][1].waveform, "takes are sounds of one video");
}

// A request that is given up at any step changes nothing of the next one.
void cancelled_requests_leave_nothing(Backend& backend) {
    const std::vector<Clip> expected = run(backend, ball());
    for (std::int64_t steps = 0; steps <= 4; ++steps) {
        const std::unique_ptr<RequestState> state = backend.prepare(ball(9, 4));
        RequestState* const one = state.get();
        for (std::int64_t i = 0; i < steps; ++i) backend.step(std::span(&one, 1));
        const Preview preview = backend.preview(*one, steps == 2);
        expect(preview.frames.size() == (steps == 2 ? 32u * 64 * 64 * 3 : 0u), "a preview has frames where they are asked for");
        expect(one->step() == steps && one->num_steps() == 8 && one->memory() > 0, "progress is counted");
        try {
            backend.decode(*one);
            fail("a request is decoded before its last step");
        } catch (const Error& error) {
            expect(error.status() == Status::invalid_argument, "a request is not decoded before its last step");
        }
    }
    expect_same(run(backend, ball())[0], expected[0], "the same clip after cancelled requests");
}

void known_media_stay(Backend& backend) {
    const auto given = random_clip(20, 48, 80, 10, 44'100, 22'050);
    Request request = ball();
    request.prompt.clear();
    request.video = given;
    request.takes = 2;
    std::vector<Clip> clips = run(backend, request);
    expect(clips.size() == 2 && clips[0].num_frames == 32 && clips[0].frames == conform(*given, {.width = 64, .height = 64}).frames, "a known video stays");
    expect(clips[0].waveform.size() == 96'000 && clips[0].provenance.find("video-to-audio") != std::string::npos, "its sound is made");
    // With the latents that come along nothing is encoded, and the sound is the same.
    auto again = std::make_shared<Clip>(clips[0]);
    request.video = again;
    expect(run(backend, request)[0].waveform == clips[0].waveform, "a retake of the same seed is the same sound");
    request = ball();
    request.image = given;
    expect(run(backend, request)[0].num_frames == 32, "a picture begins a clip");
    request = ball();
    request.extend = again;
    request.seconds = 2.5;
    const Clip longer = run(backend, request)[0];
    expect(longer.num_frames == 40 && std::equal(again->frames.begin(), again->frames.end(), longer.frames.begin()), "a continuation begins with the clip");
    expect(std::equal(again->waveform.begin(), again->waveform.begin() + 90'000, longer.waveform.begin()), "and with its sound");
    request = ball();
    request.video = given;
    request.strength = 0.5;
    expect(run(backend, request)[0].provenance.find("\"strength\": 0.5") != std::string::npos, "a variation is made");
}

// Durations that the codec pads, and sizes that the model was not trained at.
void sizes_at_the_border(Backend& backend) {
    for (const double seconds : {1.0 / 16, 0.5, 29.0 / 16}) {
        Request request = ball();
        request.seconds = seconds;
        request.width = 16;
        request.height = 48;
        request.branch_interval = 2;
        request.guidance_rescale = 0.5;
        const Clip clip = run(backend, request)[0];
        expect(clip.num_frames == static_cast<std::int64_t>(seconds * 16) && clip.height == 48 && clip.width == 16, "frames of the size that was asked for");
        expect(static_cast<std::int64_t>(clip.waveform.size()) == static_cast<std::int64_t>(seconds * 48'000), "a sound as long as the frames");
    }
}

void fits_and_resamples() {
    const auto clip = random_clip(1, 10, 30, 1, 0, 0);
    expect(fit(clip->frames, 10, 30, 10, 30) == clip->frames, "a picture of the right size stays");
    const std::vector<std::uint8_t> grey(10 * 30 * 3, 77);
    for (const auto& [height, width] : {std::pair(5, 5), std::pair(40, 20), std::pair(1, 1)}) {
        const auto fitted = fit(grey, 10, 30, height, width);
        expect(fitted == std::vector<std::uint8_t>(static_cast<std::size_t>(height * width * 3), 77), "a plain picture stays plain");
    }
    std::vector<float> tone, expected;
    for (int i = 0; i < 4410; ++i) tone.push_back(0.5f * static_cast<float>(std::sin(i * 2 * 3.14159265358979 * 440 / 44'100)));
    for (int i = 0; i < 4800; ++i) expected.push_back(0.5f * static_cast<float>(std::sin(i * 2 * 3.14159265358979 * 440 / 48'000)));
    const std::vector<float> resampled = resample(tone, 44'100, 48'000, 10'000);
    expect(resampled.size() == 4800, "a sound keeps its duration");
    for (std::size_t i = 100; i + 100 < resampled.size(); ++i) expect(std::fabs(resampled[i] - expected[i]) < 1e-3f, "a tone keeps its frequency");
    expect(resample(tone, 44'100, 48'000, 7).size() == 7, "no more samples than asked for");
}

}  // namespace

int main(int, char** arguments) {
    fits_and_resamples();
    const std::unique_ptr<Backend> backend = open_backend(arguments[1]);
    refuses_mistakes(*backend);
    requests_do_not_depend_on_others(*backend);
    cancelled_requests_leave_nothing(*backend);
    known_media_stay(*backend);
    sizes_at_the_border(*backend);
    std::printf("request: all checks hold\n");
    return EXIT_SUCCESS;
}
