#include "syncflow/layers.h"

#include "layers_loops.h"
#include "levels.h"
#include "parallel.h"

namespace syncflow {
namespace {

constexpr std::int64_t BLOCK = 32;       // rows of a linear layer's unit, or up to four times as many where there are plenty
constexpr std::int64_t ALONE = 1 << 15;  // multiply-adds up to which waking another thread takes longer

template <typename Body>
void shared(std::int64_t units, std::int64_t work, int threads, Body body) {
    parallel_for(units, work <= ALONE ? 1 : threads, body);
}

std::int64_t blocks(std::int64_t queries, std::int64_t block) { return (queries + block - 1) / block; }

}  // namespace

std::int64_t attention_block(std::int64_t queries, std::int64_t heads, int threads) {
    constexpr std::int64_t LEAST = 64;
    const std::int64_t parts = heads >= 4 * threads ? 1 : blocks(queries, LEAST);
    return queries > 0 ? blocks(queries, parts) : 1;
}

void self_attention(const SelfAttention& call, int threads) {
    const std::int64_t heads = call.outer * call.inner * call.heads, block = attention_block(call.length, heads, threads);
    const std::int64_t units = heads * blocks(call.length, block);
    const std::int64_t floats = SYNCFLOW_BEST(scratch)(call.length, call.width);
    const auto unit = SYNCFLOW_BEST(self_attention);
    shared(units, units * block * call.length * call.width, threads,
           [&](std::int64_t i) { unit(call, i, block, thread_memory(floats)); });
}

void cross_attention(const CrossAttention& call, int threads) {
    const std::int64_t heads = call.rows * call.heads, block = attention_block(call.queries, heads, threads);
    const std::int64_t units = heads * blocks(call.queries, block), keys = call.keys + call.tail;
    const std::int64_t floats = SYNCFLOW_BEST(scratch)(keys, call.width);
    const auto unit = SYNCFLOW_BEST(cross_attention);
    shared(units, units * block * keys * call.width, threads,
           [&](std::int64_t i) { unit(call, i, block, thread_memory(floats)); });
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
    std::int64_t block = BLOCK;
    while (block < 4 * BLOCK && blocks(call.rows, 2 * block) * groups >= 8 * threads) block *= 2;
    const auto unit = SYNCFLOW_BEST(linear);
    shared(blocks(call.rows, block) * groups, call.rows * call.in * call.out, threads, [&](std::int64_t i) {
        const std::int64_t row = i / groups * block, first = i % groups * PANELS;
        const std::int64_t last_row = row + block < call.rows ? row + block : call.rows;
        const std::int64_t last = first + PANELS < panels ? first + PANELS : panels;
        unit(call, row, last_row, first, last, thread_memory(8 * PANEL + 8 * call.in));
    });
}

void residual_norm(const ResidualNorm& call, int threads) {
    const std::int64_t groups = call.rows * call.frames;
    const auto unit = SYNCFLOW_BEST(residual_norm);
    shared(groups, groups * call.tokens * call.width, threads,
           [&](std::int64_t i) { unit(call, i, thread_memory(3 * call.width)); });
}

void guided_step(const GuidedStep& call, int threads) {
    const auto unit = SYNCFLOW_BEST(guided_step);
    shared(call.requests, call.requests * call.branches * call.size, threads, [&](std::int64_t i) { unit(call, i); });
}

}  // namespace syncflow
