#include "levels.h"

#include <cstdlib>
#include <cstring>
#include <vector>

#include "syncflow/floats.h"

namespace syncflow {
namespace {

Level choose() {
#ifdef SYNCFLOW_X86
    const char* const wanted = std::getenv("SYNCFLOW_INSTRUCTIONS");
    const auto allowed = [wanted](const char* name) { return wanted == nullptr || std::strcmp(wanted, name) == 0; };
    const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (v4 && allowed("x86-64-v4")) return Level::v4;
    if (v3 && allowed("x86-64-v3")) return Level::v3;
#endif
    return Level::baseline;
}

}  // namespace

Level level() {
    static const Level chosen = choose();
    return chosen;
}

const char* instructions() {
    switch (level()) {
        case Level::v4: return "x86-64-v4";
        case Level::v3: return "x86-64-v3";
        default: return "baseline";
    }
}

float* thread_memory(std::int64_t floats) {
    thread_local Floats kept;
    if (kept.size() < static_cast<std::size_t>(floats)) kept.resize(static_cast<std::size_t>(floats));
    return kept.data();
}

}  // namespace syncflow
