#include "codecs/video_vae.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "cpu/thread_pool.h"
#include "model/layers.h"
#include "package/package.h"
#include "package/settings.h"

namespace syncflow::engine {
namespace {

constexpr const char* CLASS_NAME = "AutoencoderKLLTXVideo";
constexpr std::int64_t RGB = 3;

struct VideoVaeConfig {
    std::int64_t in_channels = 3, out_channels = 3, latent_channels = 128;
    std::vector<std::int64_t> widths = {128, 256, 512, 512}, decoder_widths = {128, 256, 512, 512};
    std::vector<std::int64_t> layers = {4, 3, 3, 3, 4}, decoder_layers = {4, 3, 3, 3, 4};
    std::vector<bool> scaling = {true, true, true, false}, decoder_scaling = {true, true, true, false};
    std::int64_t patch = 4, patch_time = 1;
    double norm_eps = 1e-6, scaling_factor = 1;
    bool encoder_causal = true, decoder_causal = false;
    std::vector<double> mean, std;
};

[[noreturn]] void unsupported(const std::filesystem::path& folder, const std::string& what) {
    throw Error(Status::unsupported, folder.string() + " holds " + what + ", which the back end native does not compute");
}

VideoVaeConfig read_config(const std::filesystem::path& folder) {
    const Json json = read_json_object(folder / "config.json");
    const Settings settings(json, "the video codec");
    std::string name;
    settings.read("_class_name", name);
    if (name != CLASS_NAME) unsupported(folder, "a video codec of the class " + shown(std::string_view(name)));
    bool conditioned = false;
    std::vector<bool> noise, residual;
    std::vector<std::int64_t> factors;
    settings.read("timestep_conditioning", conditioned);
    settings.read("decoder_inject_noise", noise);
    settings.read("upsample_residual", residual);
    settings.read("upsample_factor", factors);
    const auto on = [](bool one) { return one; };
    if (conditioned || std::any_of(noise.begin(), noise.end(), on) || std::any_of(residual.begin(), residual.end(), on) ||
        std::any_of(factors.begin(), factors.end(), [](std::int64_t factor) { return factor != 1; })) {
        unsupported(folder, "a video codec with time conditioning, injected noise or residual upsampling");
    }
    VideoVaeConfig config;
    settings.read("in_channels", config.in_channels);
    settings.read("out_channels", config.out_channels);
    settings.read("latent_channels", config.latent_channels);
    settings.read("block_out_channels", config.widths);
    settings.read("decoder_block_out_channels", config.decoder_widths);
    settings.read("layers_per_block", config.layers);
    settings.read("decoder_layers_per_block", config.decoder_layers);
    settings.read("spatio_temporal_scaling", config.scaling);
    settings.read("decoder_spatio_temporal_scaling", config.decoder_scaling);
    settings.read("patch_size", config.patch);
    settings.read("patch_size_t", config.patch_time);
    settings.read("resnet_norm_eps", config.norm_eps);
    settings.read("scaling_factor", config.scaling_factor);
    settings.read("encoder_causal", config.encoder_causal);
    settings.read("decoder_causal", config.decoder_causal);
    settings.read("latents_mean", config.mean);
    settings.read("latents_std", config.std);
    require_whole("latent_channels", config.latent_channels, 1, 4096);
    require_whole("patch_size", config.patch, 1, 64);
    require_whole("patch_size_t", config.patch_time, 1, 64);
    for (const std::int64_t channels : {config.in_channels, config.out_channels}) {
        if (channels != RGB * config.patch_time) unsupported(folder, "a video codec of " + std::to_string(channels) + " channels");
    }
    const auto fits = [](const std::vector<std::int64_t>& widths, const std::vector<std::int64_t>& layers, const std::vector<bool>& scaling) {
        const auto positive = [](std::int64_t width) { return width >= 1 && width <= 65'536; };
        return !widths.empty() && widths.size() <= 8 && layers.size() == widths.size() + 1 && scaling.size() == widths.size() &&
               std::all_of(widths.begin(), widths.end(), positive) && std::all_of(layers.begin(), layers.end(), [](std::int64_t n) { return n >= 0; });
    };
    if (!fits(config.widths, config.layers, config.scaling) || !fits(config.decoder_widths, config.decoder_layers, config.decoder_scaling)) {
        throw Error(Status::corrupt, (folder / "config.json").string() + " describes no video codec: its lists do not fit each other");
    }
    if (std::count(config.scaling.begin(), config.scaling.end(), true) != std::count(config.decoder_scaling.begin(), config.decoder_scaling.end(), true)) {
        throw Error(Status::corrupt, (folder / "config.json").string() + " describes an encoder and a decoder of other factors");
    }
    return config;
}

// Norm, SiLU and convolution twice, beside the input or, where the channels change, its norm and projection.
class ResBlock {
   public:
    ResBlock(Weights& weights, const std::string& name, std::int64_t in, std::int64_t out, bool causal, float eps)
        : first_(weights, name + ".conv1", in, out, 3, 1, causal), second_(weights, name + ".conv2", out, out, 3, 1, causal) {
        if (in == out) return;
        norm_.emplace(weights, name + ".norm3", in, eps);
        shortcut_.emplace(weights, name + ".conv_shortcut", in, out, 1, 1, causal);
    }

    Grid operator()(const Grid& x, int threads) const {
        const Grid y = first_(x, true, nullptr, threads);
        if (!norm_) return second_(y, true, &x, threads);
        Grid beside = x;
        (*norm_)(x.values.data(), x.positions(), beside.values.data());
        beside = (*shortcut_)(beside, false, nullptr, threads);
        return second_(y, true, &beside, threads);
    }

   private:
    Conv3d first_, second_;
    std::optional<LayerNorm> norm_;
    std::optional<Conv3d> shortcut_;
};

// Residual blocks, one resampling before or after them, and a residual block that changes the channels.
struct Stage {
    std::optional<ResBlock> change;
    std::optional<Conv3d> resample;
    std::vector<ResBlock> blocks;
};

std::vector<ResBlock> make_blocks(Weights& weights, const std::string& name, std::int64_t width, std::int64_t count, bool causal, float eps) {
    std::vector<ResBlock> blocks;
    for (std::int64_t i = 0; i < count; ++i) blocks.emplace_back(weights, name + ".resnets." + std::to_string(i), width, width, causal, eps);
    return blocks;
}

// Twice as many frames, less the first, of twice the size: channels (c, 2, 2, 2) unfolded.
Grid unfold(const Grid& x) {
    const std::int64_t channels = x.channels / 8;
    Grid y(2 * x.frames - 1, 2 * x.height, 2 * x.width, channels);
    for (std::int64_t t = 1; t < 2 * x.frames; ++t) {
        for (std::int64_t h = 0; h < y.height; ++h) {
            for (std::int64_t w = 0; w < y.width; ++w) {
                const float* const from = x.values.data() + ((t / 2 * x.height + h / 2) * x.width + w / 2) * x.channels;
                float* const to = y.values.data() + (((t - 1) * y.height + h) * y.width + w) * channels;
                for (std::int64_t c = 0; c < channels; ++c) to[c] = from[((c * 2 + t % 2) * 2 + h % 2) * 2 + w % 2];
            }
        }
    }
    return y;
}

std::vector<float> floats_of(const std::vector<double>& values) { return {values.begin(), values.end()}; }

}  // namespace

struct VideoVae::Parts {
    VideoVaeConfig config;
    std::vector<float> mean, std;
    std::optional<Conv3d> encoder_in, encoder_out, decoder_in, decoder_out;
    std::vector<Stage> down, up;
    std::vector<ResBlock> encoder_middle, decoder_middle;

    Parts(const std::filesystem::path& folder) : config(read_config(folder)) {
        Weights weights(folder / "diffusion_pytorch_model.safetensors");
        make_encoder(weights);
        make_decoder(weights);
        take_statistics(weights, folder);
        weights.finish();
    }

    void make_encoder(Weights& weights) {
        const VideoVaeConfig& c = config;
        const auto eps = static_cast<float>(c.norm_eps);
        encoder_in.emplace(weights, "encoder.conv_in", c.in_channels * c.patch * c.patch, c.widths[0], 3, 1, c.encoder_causal);
        for (std::size_t i = 0; i < c.widths.size(); ++i) {
            const std::string name = "encoder.down_blocks." + std::to_string(i);
            const std::int64_t width = c.widths[i], following = c.widths[std::min(i + 1, c.widths.size() - 1)];
            Stage stage;
            stage.blocks = make_blocks(weights, name, width, c.layers[i], c.encoder_causal, eps);
            if (c.scaling[i]) stage.resample.emplace(weights, name + ".downsamplers.0", width, width, 3, 2, c.encoder_causal);
            if (following != width) stage.change.emplace(weights, name + ".conv_out", width, following, c.encoder_causal, eps);
            down.push_back(std::move(stage));
        }
        encoder_middle = make_blocks(weights, "encoder.mid_block", c.widths.back(), c.layers.back(), c.encoder_causal, eps);
        encoder_out.emplace(weights, "encoder.conv_out", c.widths.back(), c.latent_channels + 1, 3, 1, c.encoder_causal);
    }

    void make_decoder(Weights& weights) {
        const VideoVaeConfig& c = config;
        const auto eps = static_cast<float>(c.norm_eps);
        std::int64_t width = c.decoder_widths.back();
        decoder_in.emplace(weights, "decoder.conv_in", c.latent_channels, width, 3, 1, c.decoder_causal);
        decoder_middle = make_blocks(weights, "decoder.mid_block", width, c.decoder_layers.back(), c.decoder_causal, eps);
        for (std::size_t i = 0; i < c.decoder_widths.size(); ++i) {
            const std::size_t from_end = c.decoder_widths.size() - 1 - i;
            const std::string name = "decoder.up_blocks." + std::to_string(i);
            const std::int64_t before = width;
            width = c.decoder_widths[from_end];
            Stage stage;
            if (before != width) stage.change.emplace(weights, name + ".conv_in", before, width, c.decoder_causal, eps);
            if (c.decoder_scaling[from_end]) stage.resample.emplace(weights, name + ".upsamplers.0.conv", width, 8 * width, 3, 1, c.decoder_causal);
            stage.blocks = make_blocks(weights, name, width, c.decoder_layers[from_end], c.decoder_causal, eps);
            up.push_back(std::move(stage));
        }
        decoder_out.emplace(weights, "decoder.conv_out", width, c.out_channels * c.patch * c.patch, 3, 1, c.decoder_causal);
    }

    // Mean and deviation of the latents over data: those of the configuration, or of the weights.
    void take_statistics(Weights& weights, const std::filesystem::path& folder) {
        const Floats own_mean = weights.take("latents_mean", {config.latent_channels}), own_std = weights.take("latents_std", {config.latent_channels});
        if (!config.mean.empty() && !config.std.empty()) {
            mean = floats_of(config.mean);
            std = floats_of(config.std);
        } else {
            mean.assign(own_mean.begin(), own_mean.end());
            for (const float deviation : own_std) std.push_back(deviation / static_cast<float>(config.scaling_factor));
        }
        const auto channels = static_cast<std::size_t>(config.latent_channels);
        const std::string file = (folder / "config.json").string();
        if (mean.size() != channels || std.size() != channels) {
            throw Error(Status::corrupt, file + " gives " + std::to_string(mean.size()) + " means and " + std::to_string(std.size()) +
                                             " deviations for " + std::to_string(channels) + " latent channels");
        }
        const auto bad = [](float value) { return !std::isfinite(value); };
        if (std::any_of(mean.begin(), mean.end(), bad) || std::any_of(std.begin(), std.end(), [&](float one) { return bad(one) || one == 0; })) {
            throw Error(Status::corrupt, file + " gives means or deviations of latents that are not finite or are 0");
        }
    }

    std::int64_t doublings(const std::vector<bool>& scaling) const { return std::int64_t{1} << std::count(scaling.begin(), scaling.end(), true); }
    std::int64_t time_factor() const { return config.patch_time * doublings(config.scaling); }
    std::int64_t space_factor() const { return config.patch * doublings(config.scaling); }
    // How many frames fewer than T times the time factor T latents are decoded to.
    std::int64_t cropped_frames() const { return config.patch_time * (doublings(config.decoder_scaling) - 1); }
};

VideoVae::VideoVae(const std::filesystem::path& folder) : parts_(std::make_unique<const Parts>(folder)) {}
VideoVae::VideoVae(VideoVae&&) noexcept = default;
VideoVae& VideoVae::operator=(VideoVae&&) noexcept = default;
VideoVae::~VideoVae() = default;

std::int64_t VideoVae::channels() const { return parts_->config.latent_channels; }
std::int64_t VideoVae::time_factor() const { return parts_->time_factor(); }
std::int64_t VideoVae::space_factor() const { return parts_->space_factor(); }

Floats VideoVae::encode(std::span<const std::uint8_t> frames, std::int64_t count, std::int64_t height, std::int64_t width, int threads) const {
    const VideoVaeConfig& c = parts_->config;
    const std::int64_t time = parts_->time_factor(), latent_frames = (count + time - 1) / time, patch = c.patch;
    // An encoder that codes one frame alone before groups of `time` gets it in front, and its latent is left out.
    const std::int64_t lead = parts_->cropped_frames() == time - 1 && time > 1 ? 1 : 0, missing = latent_frames * time - count + lead;
    Grid x((count + missing) / c.patch_time, height / patch, width / patch, c.in_channels * patch * patch);
    parallel_for(x.frames * x.height, threads, [&](std::int64_t i) {
        float* to = x.values.data() + i * x.width * x.channels;
        const std::int64_t t = i / x.height, h = i % x.height;
        for (std::int64_t w = 0; w < x.width; ++w) {
            for (std::int64_t channel = 0; channel < x.channels; ++channel) {  // (colour, frame, column, row) of the patch
                const std::int64_t row = channel % patch, column = channel / patch % patch, at = channel / (patch * patch);
                const std::int64_t frame = std::max<std::int64_t>(t * c.patch_time + at % c.patch_time - missing, 0);
                const std::int64_t place = ((frame * height + h * patch + row) * width + w * patch + column) * RGB + at / c.patch_time;
                *to++ = static_cast<float>(frames[static_cast<std::size_t>(place)]) / 127.5f - 1;
            }
        }
    });
    x = (*parts_->encoder_in)(x, false, nullptr, threads);
    for (const Stage& stage : parts_->down) {
        for (const ResBlock& block : stage.blocks) x = block(x, threads);
        if (stage.resample) x = (*stage.resample)(x, false, nullptr, threads);
        if (stage.change) x = (*stage.change)(x, threads);
    }
    for (const ResBlock& block : parts_->encoder_middle) x = block(x, threads);
    x = (*parts_->encoder_out)(x, true, nullptr, threads);
    const std::int64_t plane = x.height * x.width, kept = x.frames - lead;
    if (kept != latent_frames || x.height * parts_->space_factor() != height || x.width * parts_->space_factor() != width) {
        throw Error(Status::unsupported, "the encoder of the video codec makes " + std::to_string(kept) + " latent frames of " + std::to_string(count) +
                                             " frames, where " + std::to_string(latent_frames) + " are expected");
    }
    Floats latents(static_cast<std::size_t>(c.latent_channels * kept * plane));
    for (std::int64_t channel = 0; channel < c.latent_channels; ++channel) {
        const float mean = parts_->mean[static_cast<std::size_t>(channel)], deviation = parts_->std[static_cast<std::size_t>(channel)];
        float* const to = latents.data() + channel * kept * plane;
        const float* const from = x.values.data() + lead * plane * x.channels + channel;
        for (std::int64_t i = 0; i < kept * plane; ++i) to[i] = (from[i * x.channels] - mean) / deviation;
    }
    return latents;
}

std::vector<std::uint8_t> VideoVae::decode(const float* latents, std::int64_t frames, std::int64_t height, std::int64_t width, std::int64_t count,
                                           int threads) const {
    const VideoVaeConfig& c = parts_->config;
    const std::int64_t repeated = parts_->cropped_frames() > 0 ? 1 : 0, plane = height * width, patch = c.patch;
    Grid x(frames + repeated, height, width, c.latent_channels);
    for (std::int64_t i = 0; i < x.positions(); ++i) {
        const std::int64_t frame = std::max<std::int64_t>(i / plane - repeated, 0);
        for (std::int64_t channel = 0; channel < c.latent_channels; ++channel) {
            const float z = latents[(channel * frames + frame) * plane + i % plane];
            const auto at = static_cast<std::size_t>(channel);
            x.values[static_cast<std::size_t>(i * x.channels + channel)] = z * parts_->std[at] + parts_->mean[at];
        }
    }
    x = (*parts_->decoder_in)(x, false, nullptr, threads);
    for (const ResBlock& block : parts_->decoder_middle) x = block(x, threads);
    for (const Stage& stage : parts_->up) {
        if (stage.change) x = (*stage.change)(x, threads);
        if (stage.resample) x = unfold((*stage.resample)(x, false, nullptr, threads));
        for (const ResBlock& block : stage.blocks) x = block(x, threads);
    }
    x = (*parts_->decoder_out)(x, true, nullptr, threads);
    const std::int64_t first = x.frames * c.patch_time - count, full_height = x.height * patch, full_width = x.width * patch;
    std::vector<std::uint8_t> pixels(static_cast<std::size_t>(count * full_height * full_width * RGB));
    parallel_for(count * full_height, threads, [&](std::int64_t i) {
        const std::int64_t frame = first + i / full_height, y = i % full_height;
        const float* const from = x.values.data() + (frame / c.patch_time * x.height + y / patch) * x.width * x.channels;
        std::uint8_t* to = pixels.data() + i * full_width * RGB;
        for (std::int64_t column = 0; column < full_width; ++column) {
            for (std::int64_t colour = 0; colour < RGB; ++colour) {  // (colour, frame, column, row) of the patch
                const std::int64_t channel = ((colour * c.patch_time + frame % c.patch_time) * patch + column % patch) * patch + y % patch;
                const float value = std::nearbyint((from[column / patch * x.channels + channel] + 1) * 127.5f);
                *to++ = static_cast<std::uint8_t>(std::clamp(value, 0.0f, 255.0f));
            }
        }
    });
    return pixels;
}

}  // namespace syncflow::engine
