#include "syncflow/layers.h"

#include <algorithm>
#include <chrono>

#include "cpu/instruction_level.h"
#include "cpu/thread_pool.h"
#include "cpu/work_units.h"
#include "kernels/layer_kernels.h"

namespace syncflow {
namespace {

constexpr std::int64_t BLOCK = 32;           // rows of a linear layer's unit, or up to four times as many
constexpr std::int64_t SERIAL_WORK = 1 << 15;  // multiply-adds that take less time than waking another thread

const LayerKernels& kernels() { return SYNCFLOW_KERNELS(layer_kernels); }

template <typename Body>
void parallel_units(std::int64_t units, std::int64_t work, int threads, Body body) {
    parallel_for(units, work <= SERIAL_WORK ? 1 : threads, body);
}

}  // namespace

void self_attention(const SelfAttention& call, int threads) {
    const std::int64_t heads = call.outer * call.inner * call.heads, block = attention_block(call.length, heads, threads);
    const std::int64_t units = heads * divide_up(call.length, block);
    const std::int64_t floats = kernels().attention_memory(call.length, call.width);
    const auto unit = kernels().self_attention;
    parallel_units(units, units * block * call.length * call.width, threads,
          [&](std::int64_t i) { unit(call, i, block, thread_memory(floats)); });
}

void cross_attention(const CrossAttention& call, int threads) {
    const std::int64_t heads = call.rows * call.heads, block = attention_block(call.queries, heads, threads);
    const std::int64_t units = heads * divide_up(call.queries, block), keys = call.keys + call.tail;
    const std::int64_t floats = kernels().attention_memory(keys, call.width);
    const auto unit = kernels().cross_attention;
    parallel_units(units, units * block * keys * call.width, threads,
          [&](std::int64_t i) { unit(call, i, block, thread_memory(floats)); });
}

std::int64_t packed_size(std::int64_t out, std::int64_t in) { return divide_up(out, PANEL) * PANEL * in; }

void pack(const float* weight, std::int64_t out, std::int64_t in, float* packed) {
    constexpr std::int64_t line = 16;  // floats of a cache line, which is read whole while it is there
    for (std::int64_t first = 0; first < out; first += PANEL, packed += PANEL * in) {
        const std::int64_t rows = std::min(PANEL, out - first);
        for (std::int64_t k = 0; k < in; k += line) {
            const std::int64_t last = std::min(k + line, in);
            for (std::int64_t c = 0; c < rows; ++c) {
                for (std::int64_t i = k; i < last; ++i) packed[i * PANEL + c] = weight[(first + c) * in + i];
            }
            for (std::int64_t i = k; i < last; ++i) std::fill(packed + i * PANEL + rows, packed + (i + 1) * PANEL, 0.0f);
        }
    }
}

void linear(const Linear& call, int threads) {
    constexpr std::int64_t some = 4;  // panels of a unit: they pass through the cache while its rows stay there
    const std::int64_t panels = divide_up(call.out, PANEL), groups = divide_up(panels, some);
    std::int64_t block = BLOCK;
    while (block < 4 * BLOCK && divide_up(call.rows, 2 * block) * groups >= 8 * threads) block *= 2;
    const auto unit = kernels().linear;
    parallel_units(divide_up(call.rows, block) * groups, call.rows * call.in * call.out, threads, [&](std::int64_t i) {
        const std::int64_t row = i / groups * block, first = i % groups * some;
        unit(call, row, std::min(row + block, call.rows), first, std::min(first + some, panels));
    });
}

void residual_norm(const ResidualNorm& call, int threads) {
    const std::int64_t groups = call.rows * call.frames;
    const auto unit = kernels().residual_norm;
    parallel_units(groups, groups * call.tokens * call.width, threads,
          [&](std::int64_t i) { unit(call, i, thread_memory(3 * call.width)); });
}

void guided_step(const GuidedStep& call, int threads) {
    const auto unit = kernels().guided_step;
    parallel_units(call.requests, call.requests * call.branches * call.size, threads, [&](std::int64_t i) { unit(call, i); });
}

double multiply_add_rate(double seconds) {
    using Clock = std::chrono::steady_clock;
    const auto unit = kernels().multiply_adds;
    float result = 0;
    double most = 0;
    for (const auto start = Clock::now(); std::chrono::duration<double>(Clock::now() - start).count() < seconds;) {
        const auto before = Clock::now();
        const std::int64_t count = unit(1 << 14, &result);
        most = std::max(most, static_cast<double>(count) / std::chrono::duration<double>(Clock::now() - before).count());
    }
    return most;
}

}  // namespace syncflow
