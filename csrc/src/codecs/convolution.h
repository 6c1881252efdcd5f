// Convolutions over clips and sounds whose channels are contiguous, and what stands between them.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "package/safetensors.h"
#include "syncflow/floats.h"

namespace syncflow::engine {

// (frames, height, width, channels). A sound has one row of `width` samples.
struct Grid {
    std::int64_t frames = 0, height = 0, width = 0, channels = 0;
    Floats values;

    Grid() = default;
    Grid(std::int64_t frames, std::int64_t height, std::int64_t width, std::int64_t channels);

    std::int64_t positions() const { return frames * height * width; }
};

// The weight of a convolution in the order in which its input is read, packed, with its bias.
class ConvolutionWeights {
   public:
    ConvolutionWeights() = default;
    // weight(output, tap, input), for taps that lie contiguous in the input in runs of so many.
    template <typename WeightAt>
    ConvolutionWeights(std::int64_t outputs, std::int64_t inputs, std::int64_t of_taps, std::int64_t of_run, Floats bias, WeightAt weight)
        : out(outputs), in(inputs), taps(of_taps), run(of_run), bias_(std::move(bias)) {
        Floats ordered;
        ordered.reserve(static_cast<std::size_t>(out * taps * in));
        for (std::int64_t o = 0; o < out; ++o) {
            for (std::int64_t tap = 0; tap < taps; ++tap) {
                for (std::int64_t i = 0; i < in; ++i) ordered.push_back(weight(o, tap, i));
            }
        }
        pack_weight(ordered);
    }

    // Output positions (y.frames, y.height, y.width), whose inputs are `strides` floats apart; `offsets` of the runs of taps.
    // y = the convolution, plus `add` (as y) unless that is null.
    void operator()(const float* x, std::span<const std::int64_t, 3> strides, std::span<const std::int64_t> offsets, const Grid* add, Grid& y,
                    int threads) const;

    std::int64_t out = 0, in = 0, taps = 0, run = 0;

   private:
    void pack_weight(const Floats& ordered);

    Floats bias_, packed_;
};

// A 3-D convolution whose input repeats its first frame before it, and its last after it unless `causal`; zeros around
// each frame.
class Conv3d {
   public:
    Conv3d(Weights& weights, const std::string& name, std::int64_t in, std::int64_t out, std::int64_t kernel, std::int64_t stride, bool causal);

    // `normed`: of x / rms(x) through SiLU, with an epsilon of 1e-8; plus `add` unless that is null.
    Grid operator()(const Grid& x, bool normed, const Grid* add, int threads) const;

    std::int64_t out() const { return weights_.out; }

   private:
    std::int64_t kernel_, stride_, before_, after_;
    ConvolutionWeights weights_;
};

enum class PadMode { reflect, constant, replicate, circular };

// A 1-D convolution over samples, padded on both sides.
class Conv1d {
   public:
    struct Settings {
        std::int64_t in, out, kernel, stride = 1, dilation = 1;
        PadMode mode = PadMode::reflect;
        bool causal = false;
    };
    Conv1d(Weights& weights, const std::string& name, const Settings& settings);

    Grid operator()(const Grid& x, const Grid* add, int threads) const;

   private:
    Settings settings_;
    std::int64_t before_, after_;
    ConvolutionWeights weights_;
};

// A transposed 1-D convolution whose kernel is some strides long, what overhangs cut off: `before` and `after` samples.
class TransposedConv1d {
   public:
    TransposedConv1d(Weights& weights, const std::string& name, std::int64_t in, std::int64_t out, std::int64_t kernel, std::int64_t stride,
                     std::int64_t after);

    Grid operator()(const Grid& x, int threads) const;

   private:
    std::int64_t stride_, before_, after_;
    ConvolutionWeights weights_;
};

// x above 0, e^x - 1 below.
Grid elu(const Grid& x, int threads);

}  // namespace syncflow::engine
