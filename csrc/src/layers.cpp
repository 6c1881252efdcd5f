#include "syncflow/layers.h"

#include <cstdlib>
#include <cstring>
#include <vector>

#include "layers_loops.h"
#include "parallel.h"

namespace syncflow {
namespace {

constexpr std::int64_t BLOCK = 32;       // rows of a linear layer's unit
constexpr std::int64_t QUERIES = 64;     // of a unit at least, where there are so many
constexpr std::int64_t ALONE = 1 << 15;  // multiply-adds up to which waking another thread takes longer

struct Loops {
    const char* name;
    decltype(&baseline::scratch) scratch;
    decltype(&baseline::self_attention) self_attention;
    decltype(&baseline::cross_attention) cross_attention;
    decltype(&baseline::linear) linear;
    decltype(&baseline::residual_norm) residual_norm;
};

#define SYNCFLOW_LOOPS(name, level) \
    { name, &level::scratch, &level::self_attention, &level::cross_attention, &level::linear, &level::residual_norm }

// The best that the processor has, or less where the environment asks for it.
Loops choose() {
#ifdef SYNCFLOW_X86
    const char* const wanted = std::getenv("SYNCFLOW_INSTRUCTIONS");
    const auto allowed = [wanted](const char* name) { return wanted == nullptr || std::strcmp(wanted, name) == 0; };
    const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (v4 && allowed("x86-64-v4")) return SYNCFLOW_LOOPS("x86-64-v4", v4);
    if (v3 && allowed("x86-64-v3")) return SYNCFLOW_LOOPS("x86-64-v3", v3);
#endif
    return SYNCFLOW_LOOPS("baseline", baseline);
}

const Loops& loops() {
    static const Loops chosen = choose();
    return chosen;
}

float* memory(std::int64_t floats) {
    thread_local std::vector<float> kept;
    if (kept.size() < static_cast<std::size_t>(floats)) kept.resize(static_cast<std::size_t>(floats));
    return kept.data();
}

std::int64_t blocks(std::int64_t queries, std::int64_t block) { return (queries + block - 1) / block; }

// Queries of a unit: all, whose keys are laid out once, or where there are few heads for the threads an even share.
std::int64_t share(std::int64_t queries, std::int64_t heads, int threads) {
    const std::int64_t parts = heads >= 4 * threads ? 1 : (queries + QUERIES - 1) / QUERIES;
    return queries > 0 ? (queries + parts - 1) / parts : 1;
}

template <typename Call>
struct Work {
    const Call& call;
    std::int64_t block, floats;
};

}  // namespace

void self_attention(const SelfAttention& call, int threads) {
    const std::int64_t heads = call.outer * call.inner * call.heads, block = share(call.length, heads, threads);
    const std::int64_t units = heads * blocks(call.length, block);
    Work<SelfAttention> work{call, block, loops().scratch(call.length, call.width)};
    const bool alone = units * block * call.length * call.width <= ALONE;
    parallel_for(units, alone ? 1 : threads, [](void* data, std::int64_t unit) {
        const auto& [its, block, floats] = *static_cast<Work<SelfAttention>*>(data);
        loops().self_attention(its, unit, block, memory(floats));
    }, &work);
}

void cross_attention(const CrossAttention& call, int threads) {
    const std::int64_t heads = call.rows * call.heads, block = share(call.queries, heads, threads);
    const std::int64_t units = heads * blocks(call.queries, block), keys = call.keys + call.tail;
    Work<CrossAttention> work{call, block, loops().scratch(keys, call.width)};
    const bool alone = units * block * keys * call.width <= ALONE;
    parallel_for(units, alone ? 1 : threads, [](void* data, std::int64_t unit) {
        const auto& [its, block, floats] = *static_cast<Work<CrossAttention>*>(data);
        loops().cross_attention(its, unit, block, memory(floats));
    }, &work);
}

std::int64_t packed_size(std::int64_t out, std::int64_t in) { return blocks(out, PANEL) * PANEL * in; }

void pack(const float* weight, std::int64_t out, std::int64_t in, float* packed) {
    for (std::int64_t panel = 0; panel < blocks(out, PANEL); ++panel) {
        for (std::int64_t k = 0; k < in; ++k) {
            for (std::int64_t c = 0; c < PANEL; ++c) {
                const std::int64_t row = panel * PANEL + c;
                *packed++ = row < out ? weight[row * in + k] : 0;
            }
        }
    }
}

void linear(const Linear& call, int threads) {
    constexpr std::int64_t PANELS = 4;  // of a unit: they pass through the cache while its rows stay there
    const std::int64_t panels = blocks(call.out, PANEL), groups = blocks(panels, PANELS);
    struct Share {
        const Linear& call;
        std::int64_t panels, groups;
    } share{call, panels, groups};
    const bool alone = call.rows * call.in * call.out <= ALONE;
    parallel_for(blocks(call.rows, BLOCK) * groups, alone ? 1 : threads, [](void* data, std::int64_t unit) {
        const auto& [its, panels, groups] = *static_cast<Share*>(data);
        const std::int64_t row = unit / groups * BLOCK, first = unit % groups * PANELS;
        const std::int64_t last_row = row + BLOCK < its.rows ? row + BLOCK : its.rows;
        const std::int64_t last = first + PANELS < panels ? first + PANELS : panels;
        loops().linear(its, row, last_row, first, last, memory(8 * PANEL + 8 * its.in));
    }, &share);
}

void residual_norm(const ResidualNorm& call, int threads) {
    const std::int64_t groups = call.rows * call.frames;
    Work<ResidualNorm> work{call, 0, 3 * call.width};
    const bool alone = groups * call.tokens * call.width <= ALONE;
    parallel_for(groups, alone ? 1 : threads, [](void* data, std::int64_t group) {
        const auto& [its, block, floats] = *static_cast<Work<ResidualNorm>*>(data);
        loops().residual_norm(its, group, memory(floats));
    }, &work);
}

const char* instructions() { return loops().name; }

}  // namespace syncflow
