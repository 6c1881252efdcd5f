#include "model/layers.h"

#include <cmath>

#include "syncflow/layers.h"

namespace syncflow::engine {
namespace {

constexpr std::int64_t SINUSOID = 256;

// e^x rounded to float once: times reach 1000, where an error in the last place of a frequency would show.
float exp_rounded(float x) { return static_cast<float>(std::exp(static_cast<double>(x))); }

}  // namespace

PackedLinear take_linear(Weights& weights, const std::string& name, std::int64_t out, std::int64_t in, bool biased) {
    const Floats weight = weights.take(name + ".weight", {out, in});
    const Floats bias = biased ? weights.take(name + ".bias", {out}) : Floats(size_of(out));
    return {weight.data(), bias.data(), out, in};
}

void apply(const PackedLinear& layer, const float* x, std::int64_t rows, float* y, int threads, bool gelu) {
    linear({.x = x,
            .packed = layer.weight.data(),
            .bias = layer.bias.data(),
            .y = y,
            .rows = rows,
            .in = layer.in,
            .out = layer.out,
            .x_stride = layer.in,
            .gelu = gelu},
           threads);
}

void silu(std::span<float> x) {
    for (float& value : x) value /= 1 + std::exp(-value);
}

LayerNorm::LayerNorm(Weights& weights, const std::string& name, std::int64_t width, float epsilon)
    : weight(weights.take(name + ".weight", {width})), bias(weights.take(name + ".bias", {width})), eps(epsilon) {}

void LayerNorm::operator()(const float* x, std::int64_t rows, float* y) const {
    const auto width = static_cast<std::int64_t>(weight.size());
    const float share = 1 / static_cast<float>(width);
    for (std::int64_t r = 0; r < rows; ++r, x += width, y += width) {
        float mean = 0, variance = 0;
        for (std::int64_t c = 0; c < width; ++c) mean += x[c];
        mean *= share;
        for (std::int64_t c = 0; c < width; ++c) variance += (x[c] - mean) * (x[c] - mean);
        const float inverse = 1 / std::sqrt(variance * share + eps);
        for (std::int64_t c = 0; c < width; ++c) y[c] = (x[c] - mean) * inverse * weight[size_of(c)] + bias[size_of(c)];
    }
}

ScalarEmbedding::ScalarEmbedding(Weights& weights, const std::string& name, std::int64_t width)
    : first_(take_linear(weights, name + ".mlp.0", width, SINUSOID)), second_(take_linear(weights, name + ".mlp.2", width, width)) {}

Floats ScalarEmbedding::operator()(std::span<const float> x, int threads) const {
    constexpr std::int64_t half = SINUSOID / 2;
    const auto rows = static_cast<std::int64_t>(x.size());
    const float rate = -static_cast<float>(std::log(10'000.0));
    Floats sinusoids(size_of(rows * SINUSOID)), hidden(size_of(rows * first_.out)), embedded(hidden.size());
    for (std::int64_t i = 0; i < half; ++i) {
        const float frequency = exp_rounded(rate * static_cast<float>(i) / static_cast<float>(half));
        for (std::int64_t r = 0; r < rows; ++r) {
            const float angle = x[size_of(r)] * frequency;
            sinusoids[size_of(r * SINUSOID + i)] = std::cos(angle);
            sinusoids[size_of(r * SINUSOID + half + i)] = std::sin(angle);
        }
    }
    apply(first_, sinusoids.data(), rows, hidden.data(), threads);
    silu(hidden);
    apply(second_, hidden.data(), rows, embedded.data(), threads);
    return embedded;
}

CrossAttentionLayers::CrossAttentionLayers(Weights& weights, const std::string& name, std::int64_t width)
    : query(take_linear(weights, name + ".q_linear", width, width)),
      key_value(take_linear(weights, name + ".kv_linear", 2 * width, width)),
      out(take_linear(weights, name + ".proj", width, width)) {}

Floats rope_table(std::span<const float> positions, std::span<const float> frequencies) {
    Floats table;
    table.reserve(2 * positions.size() * frequencies.size());
    for (const float position : positions) {
        for (const float frequency : frequencies) {
            table.push_back(std::cos(position * frequency));
            table.push_back(std::sin(position * frequency));
        }
    }
    return table;
}

Floats rope_frequencies(std::int64_t head_width, double theta) {
    Floats frequencies;
    for (std::int64_t i = 0; i < head_width; i += 2) {
        const float exponent = -(static_cast<float>(i) / static_cast<float>(head_width));
        frequencies.push_back(static_cast<float>(std::pow(theta, static_cast<double>(exponent))));
    }
    return frequencies;
}

}  // namespace syncflow::engine
