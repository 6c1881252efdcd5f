#include "codecs/convolution.h"

#include <algorithm>

#include "cpu/instruction_level.h"
#include "cpu/thread_pool.h"
#include "cpu/work_units.h"
#include "engine/error.h"
#include "kernels/codec_kernels.h"
#include "syncflow/layers.h"

namespace syncflow::engine {
namespace {

constexpr std::int64_t POSITIONS = 96;  // of a unit: they pass over a strip of the weight while it stays in the cache
constexpr std::int64_t ELEMENTS = 1 << 14;  // of a unit of an elementwise function
constexpr float RMS_EPS = 1e-8f;

const CodecKernels& kernels() { return SYNCFLOW_KERNELS(codec_kernels); }

std::size_t size_of(std::int64_t count) { return static_cast<std::size_t>(count); }

// x with `before` copies of its first frame, `after` of its last, and `border` zeros around each frame.
Grid padded_frames(const Grid& x, std::int64_t before, std::int64_t after, std::int64_t border, bool normed, int threads) {
    Grid y(x.frames + before + after, x.height + 2 * border, x.width + 2 * border, x.channels);
    const std::int64_t row = x.width * x.channels, wide = y.width * y.channels, frame = y.height * wide;
    parallel_for(x.frames * x.height, threads, [&](std::int64_t i) {
        const float* const from = x.values.data() + i * row;
        float* const to = y.values.data() + (i / x.height + before) * frame + (i % x.height + border) * wide + border * y.channels;
        if (normed) {
            kernels().rms_norm_silu(from, x.width, x.channels, RMS_EPS, to);
        } else {
            std::copy_n(from, row, to);
        }
    });
    float* const first = y.values.data() + before * frame;
    float* const last = first + (x.frames - 1) * frame;
    for (std::int64_t i = 0; i < before; ++i) std::copy_n(first, frame, y.values.data() + i * frame);
    for (std::int64_t i = 1; i <= after; ++i) std::copy_n(last, frame, last + i * frame);
    return y;
}

// Which sample stands at `i`, from -before to length + after - 1; -1 for a zero. A reflection needs more samples than it
// adds: those that are missing are zeros behind the end.
std::int64_t padded_index(std::int64_t i, std::int64_t length, std::int64_t most, PadMode mode) {
    if (i >= 0 && i < length) return i;
    switch (mode) {
        case PadMode::constant: return -1;
        case PadMode::replicate: return i < 0 ? 0 : length - 1;
        case PadMode::circular: return ((i % length) + length) % length;
        case PadMode::reflect: break;
    }
    const std::int64_t extended = std::max(length, most + 1);
    const std::int64_t mirrored = i < 0 ? -i : i >= extended ? 2 * (extended - 1) - i : i;
    return mirrored < length ? mirrored : -1;
}

Grid padded_samples(const Grid& x, std::int64_t before, std::int64_t after, PadMode mode) {
    Grid y(1, 1, x.width + before + after, x.channels);
    const auto copy = [&](std::int64_t from, std::int64_t to) {
        if (from >= 0) std::copy_n(x.values.data() + from * x.channels, x.channels, y.values.data() + to * x.channels);
    };
    std::copy(x.values.begin(), x.values.end(), y.values.begin() + before * x.channels);
    for (std::int64_t i = 0; i < before; ++i) copy(padded_index(i - before, x.width, std::max(before, after), mode), i);
    for (std::int64_t i = x.width; i < x.width + after; ++i) copy(padded_index(i, x.width, std::max(before, after), mode), i + before);
    return y;
}

}  // namespace

Grid::Grid(std::int64_t f, std::int64_t h, std::int64_t w, std::int64_t c) : frames(f), height(h), width(w), channels(c), values(size_of(f * h * w * c)) {}

void ConvolutionWeights::pack_weight(const Floats& ordered) {
    bias_.resize(size_of(packed_size(out, 1)));
    packed_.resize(size_of(packed_size(out, taps * in)));
    pack(ordered.data(), out, taps * in, packed_.data());
}

void ConvolutionWeights::operator()(const float* x, std::span<const std::int64_t, 3> strides, std::span<const std::int64_t> offsets, const Grid* add,
                                    Grid& y, int threads) const {
    const Convolution call = {.x = x,
                              .frames = y.frames,
                              .height = y.height,
                              .width = y.width,
                              .strides = {strides[0], strides[1], strides[2]},
                              .offsets = offsets.data(),
                              .segments = static_cast<std::int64_t>(offsets.size()),
                              .depth = run * in,
                              .packed = packed_.data(),
                              .bias = bias_.data(),
                              .add = add == nullptr ? nullptr : add->values.data(),
                              .y = y.values.data(),
                              .out = out};
    const std::int64_t panels = divide_up(out, PANEL), positions = y.positions();
    parallel_for(divide_up(positions, POSITIONS) * panels, threads, [&](std::int64_t i) {
        const std::int64_t first = i / panels * POSITIONS;
        kernels().convolve(call, first, std::min(first + POSITIONS, positions), i % panels);
    });
}

Conv3d::Conv3d(Weights& weights, const std::string& name, std::int64_t in, std::int64_t out, std::int64_t kernel, std::int64_t stride, bool causal)
    : kernel_(kernel), stride_(stride), before_(causal ? kernel - 1 : kernel / 2), after_(causal ? 0 : kernel / 2) {
    const Floats weight = weights.take(name + ".conv.weight", {out, in, kernel, kernel, kernel});
    const std::int64_t taps = kernel * kernel * kernel;
    weights_ = {out, in, taps, kernel, weights.take(name + ".conv.bias", {out}),
                [&](std::int64_t o, std::int64_t tap, std::int64_t i) { return weight[size_of((o * in + i) * taps + tap)]; }};
}

Grid Conv3d::operator()(const Grid& x, bool normed, const Grid* add, int threads) const {
    const Grid from = padded_frames(x, before_, after_, kernel_ / 2, normed, threads);
    const auto outputs = [&](std::int64_t length) { return (length - kernel_) / stride_ + 1; };
    Grid y(outputs(from.frames), outputs(from.height), outputs(from.width), weights_.out);
    const std::int64_t row = from.width * from.channels, frame = from.height * row;
    std::vector<std::int64_t> offsets;
    for (std::int64_t t = 0; t < kernel_; ++t) {
        for (std::int64_t h = 0; h < kernel_; ++h) offsets.push_back(t * frame + h * row);
    }
    const std::int64_t strides[3] = {stride_ * frame, stride_ * row, stride_ * from.channels};
    weights_(from.values.data(), strides, offsets, add, y, threads);
    return y;
}

Conv1d::Conv1d(Weights& weights, const std::string& name, const Settings& settings) : settings_(settings) {
    const std::int64_t kernel = settings.kernel, total = (kernel - 1) * settings.dilation + 1 - settings.stride;
    if (total < 0) throw Error(Status::unsupported, name + " has a stride of " + std::to_string(settings.stride) + ", beyond its kernel");
    after_ = settings.causal ? 0 : total / 2;
    before_ = total - after_;
    const Floats weight = weights.take(name + ".weight", {settings.out, settings.in, kernel});
    weights_ = {settings.out, settings.in, kernel, settings.dilation == 1 ? kernel : 1, weights.take(name + ".bias", {settings.out}),
                [&](std::int64_t o, std::int64_t tap, std::int64_t i) { return weight[size_of((o * settings.in + i) * kernel + tap)]; }};
}

Grid Conv1d::operator()(const Grid& x, const Grid* add, int threads) const {
    const Grid from = padded_samples(x, before_, after_, settings_.mode);
    const std::int64_t reach = (settings_.kernel - 1) * settings_.dilation + 1;
    Grid y(1, 1, (from.width - reach) / settings_.stride + 1, settings_.out);
    std::vector<std::int64_t> offsets;
    for (std::int64_t tap = 0; tap < settings_.kernel; tap += weights_.run) offsets.push_back(tap * settings_.dilation * from.channels);
    const std::int64_t strides[3] = {0, 0, settings_.stride * from.channels};
    weights_(from.values.data(), strides, offsets, add, y, threads);
    return y;
}

TransposedConv1d::TransposedConv1d(Weights& weights, const std::string& name, std::int64_t in, std::int64_t out, std::int64_t kernel,
                                   std::int64_t stride, std::int64_t after)
    : stride_(stride), before_(kernel - stride - after), after_(after) {
    // Output sample n * stride + j sums taps of x[n - k]: outputs (j, channel) of a convolution over as many samples as the
    // kernel has strides.
    const std::int64_t taps = kernel / stride;
    const Floats weight = weights.take(name + ".weight", {in, out, kernel}), bias = weights.take(name + ".bias", {out});
    Floats biases;
    for (std::int64_t j = 0; j < stride; ++j) biases.insert(biases.end(), bias.begin(), bias.end());
    weights_ = {stride * out, in, taps, taps, std::move(biases), [&](std::int64_t o, std::int64_t tap, std::int64_t i) {
                    return weight[size_of((i * out + o % out) * kernel + (taps - 1 - tap) * stride + o / out)];
                }};
}

Grid TransposedConv1d::operator()(const Grid& x, int threads) const {
    const std::int64_t around = weights_.taps - 1, out = weights_.out / stride_;
    const Grid from = padded_samples(x, around, around, PadMode::constant);
    Grid whole(1, 1, x.width + around, weights_.out);
    const std::int64_t strides[3] = {0, 0, from.channels}, offsets[1] = {0};
    weights_(from.values.data(), strides, offsets, nullptr, whole, threads);
    Grid y(1, 1, whole.width * stride_ - before_ - after_, out);
    std::copy_n(whole.values.data() + before_ * out, y.values.size(), y.values.data());
    return y;
}

Grid elu(const Grid& x, int threads) {
    Grid y(x.frames, x.height, x.width, x.channels);
    const auto count = static_cast<std::int64_t>(x.values.size());
    parallel_for(divide_up(count, ELEMENTS), threads, [&](std::int64_t i) {
        const std::int64_t first = i * ELEMENTS;
        kernels().elu(x.values.data() + first, std::min(ELEMENTS, count - first), y.values.data() + first);
    });
    return y;
}

}  // namespace syncflow::engine
