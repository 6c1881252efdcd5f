// A soundtrack for a given video; needs a libsyncflow with FFmpeg:
//     soundtrack PACKAGE silent.mp4 "a ball bounces" clip.mp4 [STEPS]
#include <cstdio>
#include <cstdlib>

#include "syncflow/syncflow.hpp"

namespace {

int fail(const syncflow::Error& error) {
    std::fprintf(stderr, "%s\n", error.message.c_str());
    return EXIT_FAILURE;
}

}  // namespace

int main(int count, char** arguments) {
    if (count < 5) {
        std::fprintf(stderr, "usage: soundtrack PACKAGE VIDEO PROMPT OUTPUT [STEPS]\n");
        return 2;
    }
    const auto engine = syncflow::Engine::open(arguments[1]);
    if (!engine) return fail(engine.error());
    const syncflow_model_info model = engine->info();
    const auto video = syncflow::read_clip(arguments[2], {.width = model.width, .height = model.height, .sample_rate = model.sample_rate, .fps = model.fps});
    if (!video) return fail(video.error());
    const auto clip = engine->generate({.prompt = arguments[3], .steps = count > 5 ? std::atoi(arguments[5]) : 0, .video = *video});
    if (!clip) return fail(clip.error());
    if (const auto saved = clip->save(arguments[4]); !saved) return fail(saved.error());
    std::printf("%s: %.2f s of sound for %lld frames\n", arguments[4], static_cast<double>(clip->waveform().size()) / clip->sample_rate(),
        static_cast<long long>(clip->num_frames()));
}
