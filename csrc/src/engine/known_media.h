// The media of a request, and the known latents that they make (engine/tasks.py).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "codecs/audio_vae.h"
#include "codecs/video_vae.h"
#include "engine/request.h"
#include "engine/task.h"
#include "package/model_config.h"
#include "sampling/job.h"

namespace syncflow::engine {

// The media of a request at the clip's rate, size and duration. The first `seconds` are known, the rest is padding.
struct KnownMedia {
    Task task;
    Clip clip;
    double seconds;

    // Latent frames, the first of which holds the padding, and audio tokens that the known seconds fill completely.
    std::pair<std::int64_t, std::int64_t> known_lengths(const SequenceConfig& sequence) const;
};

// The media of a request and the lengths of its clip: the duration that is asked for, or that of the model's own clip
// (`base`), of the given clip (at most a minute), or half the model's own clip more than the clip to continue. Throws
// Status::invalid_argument for media that the task cannot use.
std::pair<std::optional<KnownMedia>, SequenceConfig> read_media(const Request& request, const SequenceConfig& base);

// The waveform of the reference sound at the model's rate; empty where there is none.
std::vector<float> read_reference(const Request& request, const SequenceConfig& base);

struct KnownLatents {
    std::optional<Known> video, audio;
};

// A known video is clean in a `global_local` model. Throws Status::invalid_argument where the media are shorter than a
// latent. `model_hash`: clips that this model made bring their latents along.
KnownLatents known_latents(const KnownMedia& media, const SequenceConfig& sequence, Bridge bridge, std::optional<double> strength,
                           const VideoVae& video, const AudioVae& audio, const std::string& model_hash, int threads);

// Replaces the known frames and samples of a decoded continuation by those of the clip that it continues, whose sound is
// cross-faded into the sampled one.
void restore_known(const KnownMedia& media, const SequenceConfig& sequence, Clip& clip);

}  // namespace syncflow::engine
