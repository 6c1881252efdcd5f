#include "sampling/job.h"

#include <algorithm>
#include <cmath>

namespace syncflow::engine {
namespace {

constexpr double LEAST_DEVIATION = 1e-12;

double deviation(const float* values, std::size_t count) {
    double mean = 0, squares = 0;
    for (std::size_t i = 0; i < count; ++i) mean += static_cast<double>(values[i]);
    mean /= static_cast<double>(count);
    for (std::size_t i = 0; i < count; ++i) squares += (static_cast<double>(values[i]) - mean) * (static_cast<double>(values[i]) - mean);
    return std::sqrt(squares);
}

}  // namespace

LatentState::LatentState(Floats noise, std::vector<double> times, std::int64_t outer, std::int64_t axis, const Known* known,
                         std::vector<CachePhase> phases)
    : latents(std::move(noise)),
      estimate(latents.size()),
      grid(std::move(times)),
      outer_(outer),
      axis_(axis),
      inner_(static_cast<std::int64_t>(latents.size()) / (outer * axis)),
      phases_(std::move(phases)) {
    if (!phases_.empty()) difference_.resize(latents.size());
    if (known == nullptr) return;
    if (known->start) {
        const auto start = static_cast<float>(*known->start);
        for (std::size_t i = 0; i < latents.size(); ++i) latents[i] += start * (known->latents[i] - latents[i]);
        return;
    }
    noise_ = latents;
    known_ = known->latents;
    clean_ = known->clean;
    mask_ = known->mask.empty() ? std::vector<bool>(static_cast<std::size_t>(axis), true) : known->mask;
    put_known_back(latents, clean_ ? 1 : static_cast<float>(grid[0]));
}

void LatentState::put_known_back(Floats& stepped, float time) const {
    for (std::int64_t block = 0; block < outer_ * axis_ && !known_.empty(); ++block) {
        if (!mask_[static_cast<std::size_t>(block % axis_)]) continue;
        for (auto i = static_cast<std::size_t>(block * inner_); i < static_cast<std::size_t>((block + 1) * inner_); ++i) {
            stepped[i] = known_[i] * time + noise_[i] * (1 - time);
        }
    }
}

void LatentState::move(std::span<const std::pair<const float*, double>> velocities, double rescale) {
    const std::size_t count = latents.size();
    Floats guided(count);
    for (const auto& [velocity, weight] : velocities) {
        const auto share = static_cast<float>(weight);
        for (std::size_t i = 0; i < count; ++i) guided[i] += share * velocity[i];
    }
    const float* const first = velocities.front().first;
    if (phase() == CachePhase::reuse) {
        for (std::size_t i = 0; i < count; ++i) guided[i] += difference_[i];
    } else if (phase() == CachePhase::renew) {
        for (std::size_t i = 0; i < count; ++i) difference_[i] = guided[i] - first[i];
    }
    const auto now = static_cast<float>(grid[step]), then = static_cast<float>(grid[step + 1]);
    float change = then - now;
    if (rescale != 0) {
        const double ratio = deviation(first, count) / std::max(deviation(guided.data(), count), LEAST_DEVIATION);
        change *= static_cast<float>(rescale * ratio + (1 - rescale));
    }
    for (std::size_t i = 0; i < count; ++i) guided[i] = latents[i] + change * guided[i];
    put_known_back(guided, clean_ ? 1 : then);
    const float reach = (1 - now) / std::max(then - now, 1e-6f);
    for (std::size_t i = 0; i < count; ++i) estimate[i] = latents[i] + reach * (guided[i] - latents[i]);
    latents = std::move(guided);
}

Floats LatentState::still_picture() const {
    Floats picture = time() >= 1 ? latents : estimate;
    put_known_back(picture, 1);
    for (std::int64_t block = 0; block < outer_ * axis_; ++block) {
        const std::int64_t first = block / axis_ * axis_;
        if (block != first) std::copy_n(picture.begin() + first * inner_, inner_, picture.begin() + block * inner_);
    }
    return picture;
}

}  // namespace syncflow::engine
