#include "codecs/audio_vae.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <variant>

#include "codecs/convolution.h"
#include "model/layers.h"
#include "package/package.h"
#include "package/settings.h"

namespace syncflow::engine {
namespace {

constexpr const char* CLASS_NAME = "AudioCodec";
constexpr std::array<const char*, 4> PAD_MODES = {"reflect", "constant", "replicate", "circular"};

struct SeanetConfig {
    std::int64_t sampling_rate = 24'000, hidden_size = 128, num_filters = 32, num_residual_layers = 1;
    std::vector<std::int64_t> upsampling_ratios = {8, 5, 4, 2};
    std::int64_t kernel_size = 7, last_kernel_size = 7, residual_kernel_size = 3, dilation_growth_rate = 2, compress = 2, num_lstm_layers = 2;
    bool use_causal_conv = true, use_conv_shortcut = true;
    PadMode pad_mode = PadMode::reflect;
    double trim_right_ratio = 1;
    std::int64_t latent_channels = 0;
    std::vector<double> mean, std;

    std::int64_t hop() const {
        std::int64_t product = 1;
        for (const std::int64_t ratio : upsampling_ratios) product *= ratio;
        return product;
    }
};

SeanetConfig read_config(const std::filesystem::path& folder) {
    const Json json = read_json_object(folder / "config.json");
    const Settings settings(json, "the audio codec");
    std::string name, norm = "weight_norm", mode = PAD_MODES[0];
    settings.read("_class_name", name);
    settings.read("norm_type", norm);
    settings.read("pad_mode", mode);
    if (name != CLASS_NAME || norm != "weight_norm") {
        throw Error(Status::unsupported, folder.string() + " holds an audio codec of the class " + shown(std::string_view(name)) + " with the norm " +
                                             shown(std::string_view(norm)) + ", which the back end native does not compute");
    }
    SeanetConfig config;
    settings.read("sampling_rate", config.sampling_rate);
    settings.read("hidden_size", config.hidden_size);
    settings.read("num_filters", config.num_filters);
    settings.read("num_residual_layers", config.num_residual_layers);
    settings.read("upsampling_ratios", config.upsampling_ratios);
    settings.read("kernel_size", config.kernel_size);
    settings.read("last_kernel_size", config.last_kernel_size);
    settings.read("residual_kernel_size", config.residual_kernel_size);
    settings.read("dilation_growth_rate", config.dilation_growth_rate);
    settings.read("compress", config.compress);
    settings.read("num_lstm_layers", config.num_lstm_layers);
    settings.read("use_causal_conv", config.use_causal_conv);
    settings.read("use_conv_shortcut", config.use_conv_shortcut);
    settings.read("trim_right_ratio", config.trim_right_ratio);
    settings.read("latent_channels", config.latent_channels);
    settings.read("latents_mean", config.mean);
    settings.read("latents_std", config.std);
    require_whole("sampling_rate", config.sampling_rate, 1, 384'000);
    require_whole("hidden_size", config.hidden_size, 1, 65'536);
    require_whole("num_filters", config.num_filters, 1, 65'536);
    require_whole("num_residual_layers", config.num_residual_layers, 0, 64);
    require_whole("kernel_size", config.kernel_size, 1, 1024);
    require_whole("last_kernel_size", config.last_kernel_size, 1, 1024);
    require_whole("residual_kernel_size", config.residual_kernel_size, 1, 1024);
    require_whole("dilation_growth_rate", config.dilation_growth_rate, 1, 16);
    require_whole("compress", config.compress, 1, 1024);
    require_whole("num_lstm_layers", config.num_lstm_layers, 0, 64);
    require_whole("latent_channels", config.latent_channels, 1, 4096);
    require_number("trim_right_ratio", config.trim_right_ratio, 0, 1);
    require_whole("the number of upsampling_ratios", static_cast<std::int64_t>(config.upsampling_ratios.size()), 1, 8);
    for (const std::int64_t ratio : config.upsampling_ratios) require_whole("a stride in upsampling_ratios", ratio, 1, 1000);
    const auto found = std::find(PAD_MODES.begin(), PAD_MODES.end(), mode);
    if (found == PAD_MODES.end()) refuse("pad_mode", shown(std::string_view(mode)), "one of reflect, constant, replicate, circular");
    config.pad_mode = static_cast<PadMode>(found - PAD_MODES.begin());
    return config;
}

// An LSTM over time beside its input.
class Lstm {
   public:
    Lstm(Weights& weights, const std::string& name, std::int64_t width, std::int64_t layers) : width_(width) {
        for (std::int64_t i = 0; i < layers; ++i) {
            const auto take = [&](const char* part) {
                const std::string suffix = std::string(part) + "_l" + std::to_string(i);
                const Floats weight = weights.take(name + ".weight_" + suffix, {4 * width, width}), bias = weights.take(name + ".bias_" + suffix, {4 * width});
                return PackedLinear(weight.data(), bias.data(), 4 * width, width);
            };
            layers_.push_back({.input = take("ih"), .hidden = take("hh")});
        }
    }

    Grid operator()(const Grid& x, int threads) const {
        Grid y = x;
        Floats gates(size_of(4 * width_)), projected(size_of(x.width * 4 * width_));
        for (const Layer& layer : layers_) {
            apply(layer.input, y.values.data(), x.width, projected.data(), threads);
            Floats hidden(size_of(width_)), cell(size_of(width_));
            for (std::int64_t n = 0; n < x.width; ++n) {
                apply(layer.hidden, hidden.data(), 1, gates.data(), 1);
                const float* const of_input = projected.data() + n * 4 * width_;
                for (std::int64_t c = 0; c < width_; ++c) {  // input, forget, cell and output gate
                    const auto gate = [&](std::int64_t i) { return gates[size_of(i * width_ + c)] + of_input[i * width_ + c]; };
                    float& kept = cell[size_of(c)];
                    kept = sigmoid(gate(1)) * kept + sigmoid(gate(0)) * std::tanh(gate(2));
                    hidden[size_of(c)] = sigmoid(gate(3)) * std::tanh(kept);
                }
                std::copy(hidden.begin(), hidden.end(), y.values.begin() + n * width_);
            }
        }
        for (std::size_t i = 0; i < y.values.size(); ++i) y.values[i] += x.values[i];
        return y;
    }

   private:
    struct Layer {
        PackedLinear input, hidden;
    };

    static float sigmoid(float x) { return 1 / (1 + std::exp(-x)); }

    std::int64_t width_;
    std::vector<Layer> layers_;
};

// Two convolutions through fewer channels, beside the input or its projection.
class ResBlock {
   public:
    ResBlock(Weights& weights, const SeanetConfig& config, const std::string& name, std::int64_t width, std::int64_t dilation)
        : first_(weights, name + ".block.1.conv", settings(config, width, width / config.compress, config.residual_kernel_size, dilation)),
          second_(weights, name + ".block.3.conv", settings(config, width / config.compress, width, 1, 1)) {
        if (config.use_conv_shortcut) shortcut_.emplace(weights, name + ".shortcut.conv", settings(config, width, width, 1, 1));
    }

    Grid operator()(const Grid& x, int threads) const {
        const Grid y = elu(first_(elu(x, threads), nullptr, threads), threads);
        if (!shortcut_) return second_(y, &x, threads);
        const Grid beside = (*shortcut_)(x, nullptr, threads);
        return second_(y, &beside, threads);
    }

    static Conv1d::Settings settings(const SeanetConfig& config, std::int64_t in, std::int64_t out, std::int64_t kernel, std::int64_t dilation,
                                     std::int64_t stride = 1) {
        return {.in = in, .out = out, .kernel = kernel, .stride = stride, .dilation = dilation, .mode = config.pad_mode, .causal = config.use_causal_conv};
    }

   private:
    Conv1d first_, second_;
    std::optional<Conv1d> shortcut_;
};

struct Elu {};
using Layer = std::variant<Conv1d, TransposedConv1d, Lstm, ResBlock, Elu>;

// Layers one after the other, numbered as in PyTorch's ModuleList.
class Layers {
   public:
    Layers(Weights& weights, const SeanetConfig& config, const char* name) : weights_(weights), config_(config), name_(name) {}

    std::string next() const { return name_ + ".layers." + std::to_string(layers_.size()); }

    void conv(std::int64_t in, std::int64_t out, std::int64_t kernel, std::int64_t stride = 1) {
        layers_.emplace_back(Conv1d(weights_, next() + ".conv", ResBlock::settings(config_, in, out, kernel, 1, stride)));
    }

    void transposed(std::int64_t in, std::int64_t out, std::int64_t stride) {
        const double trimmed = std::ceil(static_cast<double>(stride) * config_.trim_right_ratio);
        const std::int64_t after = config_.use_causal_conv ? static_cast<std::int64_t>(trimmed) : stride / 2;
        layers_.emplace_back(TransposedConv1d(weights_, next() + ".conv", in, out, 2 * stride, stride, after));
    }

    void lstm(std::int64_t width) { layers_.emplace_back(Lstm(weights_, next() + ".lstm", width, config_.num_lstm_layers)); }

    void elu() { layers_.emplace_back(Elu()); }

    void residual(std::int64_t width) {
        std::int64_t dilation = 1;
        for (std::int64_t i = 0; i < config_.num_residual_layers; ++i, dilation = std::min<std::int64_t>(dilation * config_.dilation_growth_rate, 1 << 20)) {
            layers_.emplace_back(ResBlock(weights_, config_, next(), width, dilation));
        }
    }

    std::vector<Layer> finish() { return std::move(layers_); }

   private:
    Weights& weights_;
    const SeanetConfig& config_;
    std::string name_;
    std::vector<Layer> layers_;
};

struct Run {
    const Grid& x;
    int threads;
    Grid operator()(const Conv1d& layer) const { return layer(x, nullptr, threads); }
    Grid operator()(const Elu&) const { return elu(x, threads); }
    template <typename Other>
    Grid operator()(const Other& layer) const {
        return layer(x, threads);
    }
};

std::vector<Layer> make_encoder(Weights& weights, const SeanetConfig& config) {
    Layers layers(weights, config, "encoder");
    std::int64_t width = config.num_filters;
    layers.conv(1, width, config.kernel_size);
    for (auto ratio = config.upsampling_ratios.rbegin(); ratio != config.upsampling_ratios.rend(); ++ratio) {
        layers.residual(width);
        layers.elu();
        layers.conv(width, 2 * width, 2 * *ratio, *ratio);
        width *= 2;
    }
    layers.lstm(width);
    layers.elu();
    layers.conv(width, config.hidden_size, config.last_kernel_size);
    return layers.finish();
}

std::vector<Layer> make_decoder(Weights& weights, const SeanetConfig& config) {
    Layers layers(weights, config, "decoder");
    std::int64_t width = config.num_filters << config.upsampling_ratios.size();
    layers.conv(config.hidden_size, width, config.kernel_size);
    layers.lstm(width);
    for (const std::int64_t ratio : config.upsampling_ratios) {
        layers.elu();
        layers.transposed(width, width / 2, ratio);
        width /= 2;
        layers.residual(width);
    }
    layers.elu();
    layers.conv(width, 1, config.last_kernel_size);
    return layers.finish();
}

Grid run(const std::vector<Layer>& layers, Grid x, int threads) {
    for (const Layer& layer : layers) x = std::visit(Run{.x = x, .threads = threads}, layer);
    return x;
}

}  // namespace

struct AudioVae::Parts {
    SeanetConfig config;
    std::vector<Layer> encoder, decoder;
    std::optional<Conv1d> to_moments, from_latents;
    std::vector<float> mean, std;

    Parts(const std::filesystem::path& folder) : config(read_config(folder)) {
        Weights weights(folder / "model.safetensors");
        encoder = make_encoder(weights, config);
        decoder = make_decoder(weights, config);
        to_moments.emplace(weights, "to_moments", ResBlock::settings(config, config.hidden_size, 2 * config.latent_channels, 1, 1));
        from_latents.emplace(weights, "from_latents", ResBlock::settings(config, config.latent_channels, config.hidden_size, 1, 1));
        weights.finish();
        const auto channels = static_cast<std::size_t>(config.latent_channels);
        mean.assign(config.mean.begin(), config.mean.end());
        std.assign(config.std.begin(), config.std.end());
        if (config.mean.empty()) {
            mean.assign(channels, 0);
            std.assign(channels, 1);
        }
        const auto bad = [](float value) { return !std::isfinite(value); };
        if (mean.size() != channels || std.size() != channels || std::any_of(mean.begin(), mean.end(), bad) ||
            std::any_of(std.begin(), std.end(), [&](float one) { return bad(one) || one == 0; })) {
            throw Error(Status::corrupt, (folder / "config.json").string() + " gives means or deviations of latents that do not fit, are not finite or are 0");
        }
    }
};

AudioVae::AudioVae(const std::filesystem::path& folder) : parts_(std::make_unique<const Parts>(folder)) {}
AudioVae::AudioVae(AudioVae&&) noexcept = default;
AudioVae& AudioVae::operator=(AudioVae&&) noexcept = default;
AudioVae::~AudioVae() = default;

std::int64_t AudioVae::channels() const { return parts_->config.latent_channels; }
std::int64_t AudioVae::hop() const { return parts_->config.hop(); }
std::int64_t AudioVae::sample_rate() const { return parts_->config.sampling_rate; }

Floats AudioVae::encode(std::span<const float> waveform, int threads) const {
    const std::int64_t tokens = (static_cast<std::int64_t>(waveform.size()) + hop() - 1) / hop(), count = channels();
    Grid x(1, 1, tokens * hop(), 1);
    std::copy(waveform.begin(), waveform.end(), x.values.begin());
    const Grid moments = (*parts_->to_moments)(run(parts_->encoder, std::move(x), threads), nullptr, threads);
    Floats latents(size_of(tokens * count));
    for (std::int64_t i = 0; i < tokens * count; ++i) {
        const auto channel = size_of(i % count);
        latents[size_of(i)] = (moments.values[size_of(i / count * 2 * count) + channel] - parts_->mean[channel]) / parts_->std[channel];
    }
    return latents;
}

std::vector<float> AudioVae::decode(const float* latents, std::int64_t tokens, std::int64_t samples, int threads) const {
    Grid x(1, 1, tokens, channels());
    for (std::size_t i = 0; i < x.values.size(); ++i) {
        const std::size_t channel = i % parts_->mean.size();
        x.values[i] = latents[i] * parts_->std[channel] + parts_->mean[channel];
    }
    const Grid y = run(parts_->decoder, (*parts_->from_latents)(x, nullptr, threads), threads);
    std::vector<float> waveform(y.values.begin(), y.values.begin() + std::min(samples, y.width));
    for (float& sample : waveform) sample = std::clamp(sample, -1.0f, 1.0f);
    return waveform;
}

}  // namespace syncflow::engine
