// Time grids: the flow times of both modalities at every step, to the bit those of engine/sampling/schedule.py.
#pragma once

#include <cstdint>
#include <vector>

namespace syncflow::engine {

// Flow times before every step and after the last (K + 1); 0 = noise, 1 = data.
struct Schedule {
    std::vector<double> video, audio;

    std::int64_t steps() const { return static_cast<std::int64_t>(video.size()) - 1; }

    Schedule known_video() const;    // without the steps that only the video would take
    Schedule known_audio() const;    // without the steps that only the audio would take
    Schedule without_video() const;  // for a sound alone
    Schedule after(double start) const;  // what is left from a flow time on, which becomes the first
};

// `steps` Euler steps for each modality, on a grid bent towards noise by `shift` (1 = even): t' = t / (t + shift (1 - t)).
// The clock takes round(steps * (1 + lead)) steps.
Schedule schedule(std::int64_t steps, double shift, double lead);

}  // namespace syncflow::engine
