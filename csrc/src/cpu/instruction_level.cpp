#include "cpu/instruction_level.h"

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

namespace syncflow {
namespace {

constexpr const char* NAMES[] = {"baseline", "x86-64-v3", "x86-64-v4"};

// The levels of this processor, lowest first.
std::vector<Level> supported() {
    std::vector<Level> levels = {Level::baseline};
#ifdef __x86_64__
    const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (v3) levels.push_back(Level::v3);
    if (v4) levels.push_back(Level::v4);
#endif
    return levels;
}

Level choose() {
    const std::vector<Level> levels = supported();
    const char* const wanted = std::getenv("SYNCFLOW_INSTRUCTIONS");
    if (wanted == nullptr || *wanted == '\0') return levels.back();
    std::string names;
    for (const Level level : levels) {
        const std::string name = NAMES[static_cast<int>(level)];
        if (name == wanted) return level;
        names += (names.empty() ? "" : ", ") + name;
    }
    throw std::invalid_argument("SYNCFLOW_INSTRUCTIONS is '" + std::string(wanted) + "'; this processor has " + names);
}

}  // namespace

Level level() {
    static const Level chosen = choose();
    return chosen;
}

const char* instructions() { return NAMES[static_cast<int>(level())]; }

std::vector<std::string> instruction_levels() {
    std::vector<std::string> names;
    for (const Level level : supported()) names.emplace_back(NAMES[static_cast<int>(level)]);
    return names;
}

}  // namespace syncflow
