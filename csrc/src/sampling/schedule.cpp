#include "sampling/schedule.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace syncflow::engine {
namespace {

using Times = std::vector<double>;

// The times before steps that `moves` holds for, and the last.
template <typename Moves>
Schedule kept(const Schedule& from, Moves moves) {
    Schedule to;
    for (std::size_t k = 0; k < from.video.size(); ++k) {
        if (k + 1 < from.video.size() && !moves(k)) continue;
        to.video.push_back(from.video[k]);
        to.audio.push_back(from.audio[k]);
    }
    return to;
}

bool rises(const Times& times, std::size_t k) { return times[k + 1] - times[k] > 0; }

}  // namespace

Schedule Schedule::known_video() const {
    return kept(*this, [&](std::size_t k) { return rises(audio, k); });
}

Schedule Schedule::known_audio() const {
    return kept(*this, [&](std::size_t k) { return rises(video, k); });
}

Schedule Schedule::without_video() const {
    Schedule alone = known_video();
    std::fill(alone.video.begin(), alone.video.end(), 1.0);
    return alone;
}

Schedule Schedule::after(double start) const {
    Schedule later = *this;
    for (Times* const times : {&later.video, &later.audio}) {
        for (double& time : *times) time = std::max(time, start);
    }
    return kept(later, [&](std::size_t k) { return rises(later.video, k) || rises(later.audio, k); });
}

Schedule schedule(std::int64_t steps, double shift, double lead) {
    const auto count = static_cast<std::int64_t>(std::nearbyint(static_cast<double>(steps) * (1 + lead)));
    const auto ahead = static_cast<std::size_t>(count - steps);
    Times bent;
    for (std::int64_t k = 0; k <= steps; ++k) {
        const double even = static_cast<double>(k) / static_cast<double>(steps);
        const double noise = shift * (1 - even);
        bent.push_back(even / (even + noise));
    }
    Schedule made = {.video = bent, .audio = Times(ahead, 0.0)};
    made.video.insert(made.video.end(), ahead, 1.0);
    made.audio.insert(made.audio.end(), bent.begin(), bent.end());
    return made;
}

}  // namespace syncflow::engine
