// A sentence to a clip:
//     generate PACKAGE "a large red rubber ball bounces on a wooden floor" clip.mp4 [SEED [STEPS]]
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>

#include "syncflow/syncflow.hpp"

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

double processor_seconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

int fail(const syncflow::Error& error) {
    std::fprintf(stderr, "%s\n", error.message.c_str());
    return EXIT_FAILURE;
}

}  // namespace

int main(int count, char** arguments) {
    if (count < 4) {
        std::fprintf(stderr, "usage: generate PACKAGE PROMPT OUTPUT [SEED [STEPS]]\n");
        return 2;
    }
    const auto begin = Clock::now();
    const auto engine = syncflow::Engine::open(arguments[1]);
    if (!engine) return fail(engine.error());

    double first_step = 0, last_step = 0, first_processor = 0, last_processor = 0;
    const auto clip = engine->generate({
        .prompt = arguments[2],
        .seed = count > 4 ? std::strtoull(arguments[4], nullptr, 10) : 0,
        .steps = count > 5 ? std::atoi(arguments[5]) : 0,
        .on_progress = [&](const syncflow_progress& now) {
            last_step = seconds_since(begin);
            last_processor = processor_seconds();
            if (now.step == 1) {
                first_step = last_step;
                first_processor = last_processor;
            }
            std::fprintf(stderr, "\rstep %lld of %lld", static_cast<long long>(now.step), static_cast<long long>(now.num_steps));
            return true;
        },
    });
    std::fputc('\n', stderr);
    if (!clip) return fail(clip.error());
    if (const auto saved = clip->save(arguments[3]); !saved) return fail(saved.error());
    std::printf("%s: %lld frames of %lldx%lld; first step after %.3f s (processor %.3f s), steps %.3f s (processor %.3f s), in all %.3f s\n", arguments[3],
        static_cast<long long>(clip->num_frames()), static_cast<long long>(clip->width()), static_cast<long long>(clip->height()), first_step,
        first_processor, last_step - first_step, last_processor - first_processor, seconds_since(begin));
}
