// The bundled model through the C API: a sentence to a clip, cancelling at every step, eight threads, and damaged packages.
//     bundled_model_test PACKAGE
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "syncflow/syncflow.hpp"

namespace {

using namespace syncflow::test;
namespace fs = std::filesystem;

std::string package;

constexpr int STEPS = 4;

syncflow::RequestOptions options(const char* prompt = "a ball bounces", std::uint64_t seed = 3) {
    return {.prompt = prompt, .seed = seed, .steps = STEPS, .seconds = 0.5};
}

syncflow::Engine open_engine(const syncflow::EngineOptions& settings = {}) {
    auto engine = syncflow::Engine::open(package, settings);
    if (!engine) fail(engine.error().message);
    return std::move(*engine);
}

syncflow::Clip generate(const syncflow::Engine& engine, const syncflow::RequestOptions& asked) {
    auto clip = engine.generate(asked);
    if (!clip) fail(clip.error().message);
    return *clip;
}

void expect_equal(const syncflow::Clip& one, const syncflow::Clip& other, const char* what) {
    expect(std::ranges::equal(one.frames(), other.frames()), what);
    expect(one.waveform().size() == other.waveform().size(), what);
    expect_same_bits(one.waveform().data(), other.waveform().data(), static_cast<std::int64_t>(one.waveform().size()), what);
}

void a_sentence_becomes_a_clip() {
    const syncflow::Engine engine = open_engine();
    const syncflow_model_info model = engine.info();
    expect(std::string(model.name) == "syncflow-tiny" && std::string(model.hash).size() == 64, "the model says what it is");
    std::int64_t previews = 0, steps = 0;
    syncflow::RequestOptions asked = options();
    asked.preview_interval = 2;
    asked.preview_frames = true;
    asked.on_preview = [&](const syncflow_preview& preview) {
        expect(preview.frames != nullptr && preview.width == model.width, "a preview shows frames");
        steps = preview.num_steps;
        return ++previews > 0;
    };
    const syncflow::Clip clip = generate(engine, asked);
    expect(previews > 0 && previews == steps / 2, "every second step has a preview");
    expect(clip.num_frames() == 8 && clip.width() == model.width && clip.fps() == model.fps, "half a second of frames");
    expect(clip.waveform().size() == static_cast<std::size_t>(model.sample_rate / 2), "and of sound");
    expect(clip.provenance().find("\"a ball bounces\"") != std::string_view::npos, "the provenance holds the prompt");
    expect_equal(generate(engine, options()), clip, "previews change nothing");
    expect(!std::ranges::equal(generate(engine, options("a ball bounces", 4)).frames(), clip.frames()), "another seed, another clip");
}

void cancelling_at_every_step_leaves_no_trace() {
    const syncflow::Engine engine = open_engine({.host_steps = true});
    const syncflow::Clip expected = generate(engine, options());
    for (int at = 0; at < STEPS; ++at) {
        auto cancelled = engine.submit(options("another sentence", 9));
        for (int i = 0; i < at; ++i) expect(engine.step().has_value(), "a step");
        cancelled->cancel();
        expect(cancelled->wait().error().status == SYNCFLOW_CANCELLED && cancelled->progress().step == at, "it ends before its next step");
        expect_equal(generate(engine, options()), expected, "the next clip has the same bits");
    }
    expect(engine.stats().cancelled == STEPS, "all were cancelled");
}

void a_clip_does_not_depend_on_its_batch() {
    const syncflow::Engine engine = open_engine({.host_steps = true});
    const syncflow::Clip alone = generate(engine, options());
    auto other = engine.submit(options("a glass falls on a stone floor", 8));
    expect(engine.step().has_value(), "the other is a step ahead");
    const syncflow::Clip shared = generate(engine, options());
    double difference = 0;
    for (std::size_t i = 0; i < alone.frames().size(); ++i) difference += std::pow(alone.frames()[i] - shared.frames()[i], 2);
    const double psnr = 10 * std::log10(255 * 255 / (difference / static_cast<double>(alone.frames().size()) + 1e-9));
    if (!(psnr > 60)) fail("a clip that shares its batch has " + std::to_string(psnr) + " dB");
    expect(other->wait().has_value(), "the other ends, too");
}

void a_video_gets_a_sound() {
    const syncflow::Engine engine = open_engine();
    const syncflow::Clip silent = generate(engine, options());
    syncflow::RequestOptions asked = options("a glass breaks");
    asked.seconds = {};
    asked.video = silent;
    asked.takes = 2;
    auto request = engine.submit(asked);
    expect(request->wait().has_value(), "both takes");
    const auto one = request->clip(0), other = request->clip(1);
    expect(std::ranges::equal(one->frames(), silent.frames()), "the frames are those that were given");
    expect(!std::ranges::equal(one->waveform(), other->waveform()), "two takes sound different");
}

void mistakes_are_told() {
    const syncflow::Engine engine = open_engine();
    const auto refused = [&](const std::function<void(syncflow::RequestOptions&)>& change, const char* what) {
        syncflow::RequestOptions asked = options();
        change(asked);
        const auto clip = engine.generate(asked);
        expect(!clip && clip.error().status == SYNCFLOW_INVALID_ARGUMENT && !clip.error().message.empty(), what);
    };
    refused([](auto& asked) { asked.prompt = ""; }, "an empty prompt");
    refused([](auto& asked) { asked.steps = 100'000; }, "too many steps");
    refused([](auto& asked) { asked.steps = -1; }, "negative steps");
    refused([](auto& asked) { asked.width = 65; }, "a width between");
    refused([](auto& asked) { asked.seconds = -1; }, "negative seconds");
    refused([](auto& asked) { asked.seconds = 1e9; }, "seconds without end");
    refused([](auto& asked) { asked.guidance = std::nan(""); }, "guidance that is no number");
    refused([](auto& asked) { asked.takes = 1000; }, "too many takes");
    refused([](auto& asked) { asked.sound_only = true; }, "what the model cannot do");
    expect(generate(engine, options()).num_frames() == 8, "the engine goes on");
}

void eight_threads_have_an_engine_each() {
    const syncflow::Clip expected = generate(open_engine({.threads = 1}), options());
    std::vector<std::thread> threads;
    for (int t = 0; t < 8; ++t) {
        threads.emplace_back([&] {
            const syncflow::Engine engine = open_engine({.threads = 1});
            expect_equal(generate(engine, options()), expected, "every engine makes the same clip");
            auto running = engine.submit(options());
            expect(running.has_value(), "one more is running when the engine is closed");
        });
    }
    for (std::thread& thread : threads) thread.join();
}

class Copy {
   public:
    Copy() : path_(fs::temp_directory_path() / ("syncflow-package-" + std::to_string(getpid()))) { fs::copy(package, path_, fs::copy_options::recursive); }
    Copy(const Copy&) = delete;
    Copy& operator=(const Copy&) = delete;
    ~Copy() { fs::remove_all(path_); }
    const fs::path& path() const { return path_; }

   private:
    fs::path path_;
};

void damaged_packages_are_refused() {
    expect(syncflow::Engine::open("no/such/folder").error().status == SYNCFLOW_NOT_FOUND, "a missing package");
    const auto changed = [](const char* file, const std::function<std::string(std::string)>& change, bool verify = true) {
        const Copy copy;
        const fs::path path = copy.path() / file;
        std::ifstream from(path, std::ios::binary);
        const std::string bytes = change({std::istreambuf_iterator<char>(from), {}});
        std::ofstream(path, std::ios::binary) << bytes;
        const auto engine = syncflow::Engine::open(copy.path().string(), {.verify = verify});
        if (engine) fail(std::string("a package with a damaged ") + file + " opens");
        expect(!engine.error().message.empty(), "the sentence says why");
        return engine.error().status;
    };
    const auto truncated = [](std::string bytes) { return bytes.substr(0, bytes.size() / 2); };
    const auto flipped = [](std::string bytes) { return bytes[bytes.size() - 5] ^= 1, bytes; };
    for (const char* file : {"manifest.json", "model_index.json", "ddit/config.json", "text_encoder/model.safetensors", "video_vae/config.json"}) {
        expect(changed(file, truncated) == SYNCFLOW_CORRUPT, "a truncated file");
    }
    expect(changed("ddit/diffusion_pytorch_model.safetensors", flipped) == SYNCFLOW_CORRUPT, "a changed weight");
    expect(changed("audio_vae/model.safetensors", truncated, false) == SYNCFLOW_CORRUPT, "a truncated file, without checksums");
    const auto later = [](std::string bytes) { return bytes.replace(bytes.find("\"schema"), 1, "\"x-"); };
    expect(changed("manifest.json", later) != SYNCFLOW_OK, "another manifest");
    const Copy copy;
    fs::remove(copy.path() / "video_vae/config.json");
    expect(!syncflow::Engine::open(copy.path().string()), "a file less");
}

}  // namespace

int main(int count, char** arguments) {
    expect(count == 2, "the package is given");
    package = arguments[1];
    a_sentence_becomes_a_clip();
    cancelling_at_every_step_leaves_no_trace();
    a_clip_does_not_depend_on_its_batch();
    a_video_gets_a_sound();
    mistakes_are_told();
    eight_threads_have_an_engine_each();
    damaged_packages_are_refused();
    std::puts("bundled model: all checks hold");
}
