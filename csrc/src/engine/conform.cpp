#include "engine/conform.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numbers>
#include <numeric>

namespace syncflow::engine {
namespace {

constexpr std::int64_t RGB = 3;
constexpr double LANCZOS = 3;         // lobes on either side
constexpr double ZERO_CROSSINGS = 24;  // of the resampling filter on either side
constexpr double EXACT = 1e-9;         // of a frame: what the product of two rates is off at most
constexpr std::int64_t MOST_PHASES = 1024;  // that are kept

double sinc(double x) { return std::abs(x) < 1e-12 ? 1 : std::sin(std::numbers::pi * x) / (std::numbers::pi * x); }

// The inputs from `first` on that an output averages, with weights that sum to 1.
struct Taps {
    std::int64_t first;
    std::vector<float> weights;
};

// Of `count` outputs that share `length` inputs from `start` on.
std::vector<Taps> resize_taps(std::int64_t start, std::int64_t length, std::int64_t count) {
    const double scale = static_cast<double>(length) / static_cast<double>(count), last = static_cast<double>(length);
    std::vector<Taps> taps;
    for (std::int64_t i = 0; i < count; ++i) {
        std::vector<double> weights;
        std::int64_t first = 0;
        if (scale > 1) {  // the share of each input that the output covers
            const double low = static_cast<double>(i) * scale, high = std::min(low + scale, last);
            first = static_cast<std::int64_t>(low);
            for (auto x = static_cast<double>(first); x < high; ++x) weights.push_back(std::min(x + 1, high) - std::max(x, low));
        } else {
            const double centre = (static_cast<double>(i) + 0.5) * scale - 0.5;
            first = static_cast<std::int64_t>(std::floor(centre - LANCZOS)) + 1;
            for (auto x = first; static_cast<double>(x) < centre + LANCZOS; ++x) {
                const double distance = static_cast<double>(x) - centre;
                weights.push_back(sinc(distance) * sinc(distance / LANCZOS));
            }
        }
        // What lies beyond an end is the input there.
        const std::int64_t inside = std::clamp<std::int64_t>(first, 0, length - 1);
        Taps one = {.first = start + inside, .weights = {}};
        const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
        for (std::size_t k = 0; k < weights.size(); ++k) {
            const auto place = static_cast<std::size_t>(std::clamp(first + static_cast<std::int64_t>(k), std::int64_t{0}, length - 1) - inside);
            if (one.weights.size() <= place) one.weights.resize(place + 1);
            one.weights[place] += static_cast<float>(weights[k] / total);
        }
        taps.push_back(std::move(one));
    }
    return taps;
}

// The filter of a resampling at one of its phases: of inputs from `-reach` to `reach` around the output.
std::vector<float> resample_taps(double phase, std::int64_t reach, double cutoff) {
    std::vector<double> weights;
    for (std::int64_t k = -reach; k <= reach; ++k) {
        const double distance = static_cast<double>(k) - phase, place = distance / static_cast<double>(reach + 1);
        const double window = 0.42 + 0.5 * std::cos(std::numbers::pi * place) + 0.08 * std::cos(2 * std::numbers::pi * place);  // Blackman's
        weights.push_back(cutoff * sinc(cutoff * distance) * window);
    }
    return {weights.begin(), weights.end()};
}

}  // namespace

std::vector<std::uint8_t> fit(std::span<const std::uint8_t> pixels, std::int64_t height, std::int64_t width, std::int64_t new_height,
                              std::int64_t new_width) {
    if (height == new_height && width == new_width) return {pixels.begin(), pixels.end()};
    const double scale = std::min(static_cast<double>(width) / static_cast<double>(new_width), static_cast<double>(height) / static_cast<double>(new_height));
    const auto cut = [&](std::int64_t side, std::int64_t of) {
        return std::clamp(static_cast<std::int64_t>(std::nearbyint(static_cast<double>(side) * scale)), std::int64_t{1}, of);
    };
    const std::int64_t cut_width = cut(new_width, width), cut_height = cut(new_height, height);
    const std::vector<Taps> columns = resize_taps((width - cut_width) / 2, cut_width, new_width), rows = resize_taps((height - cut_height) / 2, cut_height, new_height);
    std::vector<float> narrowed(static_cast<std::size_t>(height * new_width * RGB));
    auto to = narrowed.begin();
    for (std::int64_t y = 0; y < height; ++y) {
        for (const Taps& column : columns) {
            for (std::int64_t colour = 0; colour < RGB; ++colour, ++to) {
                const auto from = pixels.begin() + (y * width + column.first) * RGB + colour;
                for (std::size_t k = 0; k < column.weights.size(); ++k) *to += column.weights[k] * static_cast<float>(from[static_cast<std::ptrdiff_t>(k) * RGB]);
            }
        }
    }
    std::vector<std::uint8_t> resized;
    resized.reserve(static_cast<std::size_t>(new_height * new_width * RGB));
    for (const Taps& row : rows) {
        for (std::int64_t i = 0; i < new_width * RGB; ++i) {
            float total = 0;
            for (std::size_t k = 0; k < row.weights.size(); ++k) {
                total += row.weights[k] * narrowed[static_cast<std::size_t>((row.first + static_cast<std::int64_t>(k)) * new_width * RGB + i)];
            }
            resized.push_back(static_cast<std::uint8_t>(std::clamp(std::nearbyint(total), 0.0f, 255.0f)));
        }
    }
    return resized;
}

std::vector<float> resample(std::span<const float> waveform, std::int64_t rate, std::int64_t new_rate, std::int64_t most) {
    std::vector<float> found;
    const auto length = static_cast<std::int64_t>(waveform.size());
    if (rate == new_rate) {
        found.assign(waveform.begin(), waveform.begin() + std::min(most, length));
    } else {
        const std::int64_t common = std::gcd(rate, new_rate), phases = new_rate / common, advance = rate / common;
        const double cutoff = std::min(1.0, static_cast<double>(new_rate) / static_cast<double>(rate));
        const auto reach = static_cast<std::int64_t>(std::ceil(ZERO_CROSSINGS / cutoff));
        const auto taps_at = [&](std::int64_t phase) { return resample_taps(static_cast<double>(phase) / static_cast<double>(phases), reach, cutoff); };
        std::vector<std::vector<float>> kept(phases <= MOST_PHASES ? static_cast<std::size_t>(phases) : 0);
        const std::int64_t count = std::min(most, (length * phases + advance - 1) / advance);
        found.reserve(static_cast<std::size_t>(count));
        for (std::int64_t n = 0; n < count; ++n) {
            const std::int64_t centre = n * advance / phases, phase = n * advance % phases;
            std::vector<float> made;
            std::vector<float>& taps = kept.empty() ? made : kept[static_cast<std::size_t>(phase)];
            if (taps.empty()) taps = taps_at(phase);
            double total = 0;
            for (std::int64_t k = std::max(centre - reach, std::int64_t{0}); k <= std::min(centre + reach, length - 1); ++k) {
                total += static_cast<double>(taps[static_cast<std::size_t>(k - centre + reach)]) * static_cast<double>(waveform[static_cast<std::size_t>(k)]);
            }
            found.push_back(static_cast<float>(total));
        }
    }
    for (float& sample : found) sample = std::clamp(sample, -1.0f, 1.0f);
    return found;
}

Clip conform(const Clip& clip, const SequenceConfig& sequence) {
    const std::int64_t count = sequence.frames(), pixels = clip.height * clip.width * RGB;
    Clip made = {.frames = {},
                 .num_frames = clip.num_frames == 0 ? 0 : count,
                 .height = sequence.height,
                 .width = sequence.width,
                 .fps = static_cast<double>(sequence.fps),
                 .waveform = resample(clip.waveform, std::max<std::int64_t>(clip.sample_rate, 1), sequence.sample_rate, sequence.samples()),
                 .sample_rate = sequence.sample_rate,
                 .provenance = clip.provenance,
                 .latents = {}};
    made.waveform.resize(static_cast<std::size_t>(sequence.samples()));
    bool same = count == clip.num_frames && clip.height == sequence.height && clip.width == sequence.width;
    std::int64_t before = -1;
    std::vector<std::uint8_t> frame;
    for (std::int64_t k = 0; k < made.num_frames; ++k) {
        const auto at = static_cast<std::int64_t>(std::floor(static_cast<double>(k) * clip.fps / made.fps + EXACT));
        const std::int64_t shown = std::min(at, clip.num_frames - 1);
        same = same && shown == k;
        if (shown != before) frame = fit(std::span(clip.frames).subspan(static_cast<std::size_t>(shown * pixels), static_cast<std::size_t>(pixels)), clip.height, clip.width, made.height, made.width);
        before = shown;
        made.frames.insert(made.frames.end(), frame.begin(), frame.end());
    }
    if (same) {
        made.latents = clip.latents;
        made.latent_frames = clip.latent_frames;
        made.latent_height = clip.latent_height;
        made.latent_width = clip.latent_width;
    }
    return made;
}

}  // namespace syncflow::engine
