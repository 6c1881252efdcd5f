#include "engine/known_media.h"

#include <algorithm>
#include <cmath>

#include "engine/conform.h"
#include "package/json.h"
#include "package/settings.h"

namespace syncflow::engine {
namespace {

constexpr double CROSSFADE = 0.01;  // seconds between the sound of a clip and its continuation
constexpr double EXACT = 1e-6;      // of a frame or a sample

[[noreturn]] void invalid(const std::string& sentence) { throw Error(Status::invalid_argument, sentence); }

double seconds_of(const Clip& clip) {
    if (clip.num_frames > 0) return static_cast<double>(clip.num_frames) / clip.fps;
    return clip.waveform.empty() ? 0 : static_cast<double>(clip.waveform.size()) / static_cast<double>(clip.sample_rate);
}

SequenceConfig sequence_of(const Request& request, const SequenceConfig& base, double seconds) {
    SequenceConfig sequence = base;
    sequence.seconds = seconds;
    sequence.width = request.width.value_or(base.width);
    sequence.height = request.height.value_or(base.height);
    sequence.validate();
    return sequence;
}

// Whether a model made a clip.
bool made_by(const Clip& clip, const std::string& model_hash) {
    if (clip.provenance.empty() || model_hash.empty()) return false;
    try {
        const Json record = parse_json(clip.provenance);
        const Json* const hash = record.find("model_hash");
        return hash != nullptr && hash->string() != nullptr && *hash->string() == model_hash;
    } catch (const Error&) {
        return false;
    }
}

Floats encode_frames(const KnownMedia& media, const SequenceConfig& sequence, const VideoVae& codec, const std::string& model_hash, int threads) {
    const Clip& clip = media.clip;
    const bool fits = clip.latent_frames == sequence.latent_frames() && clip.latent_height == sequence.latent_height() &&
                      clip.latent_width == sequence.latent_width() &&
                      static_cast<std::int64_t>(clip.latents.size()) == codec.channels() * clip.latent_frames * clip.latent_height * clip.latent_width;
    if (!clip.latents.empty() && fits && made_by(clip, model_hash)) return {clip.latents.begin(), clip.latents.end()};
    return codec.encode(clip.frames, clip.num_frames, clip.height, clip.width, threads);
}

std::vector<bool> first_of(std::int64_t count, std::int64_t all) {
    std::vector<bool> mask(static_cast<std::size_t>(all));
    std::fill_n(mask.begin(), count, true);
    return mask;
}

}  // namespace

std::pair<std::int64_t, std::int64_t> KnownMedia::known_lengths(const SequenceConfig& sequence) const {
    const auto frames = static_cast<std::int64_t>(seconds * static_cast<double>(sequence.fps) + EXACT);
    const auto samples = static_cast<std::int64_t>(seconds * static_cast<double>(sequence.sample_rate) + EXACT);
    return {(frames + sequence.padding()) / sequence.time_factor, samples / sequence.audio_hop};
}

std::pair<std::optional<KnownMedia>, SequenceConfig> read_media(const Request& request, const SequenceConfig& base) {
    const Task task = task_of(request);
    if (task == Task::text_to_audio_video || task == Task::text_to_audio) {
        return {std::nullopt, sequence_of(request, base, request.seconds.value_or(base.seconds))};
    }
    const Clip& given = *(request.image != nullptr ? request.image : request.extend != nullptr ? request.extend : request.audio != nullptr ? request.audio : request.video);
    if (task == Task::audio_to_video) {
        if (given.waveform.empty()) invalid("the clip whose sound is asked for has none");
    } else if (given.num_frames == 0) {
        invalid("the clip has no frames; it is a sound alone");
    }
    const double frame = 1 / static_cast<double>(base.fps);
    double length = seconds_of(given);
    if (task == Task::audio_to_video) {  // of so many black frames
        const double sound = static_cast<double>(given.waveform.size()) / static_cast<double>(given.sample_rate);
        length = std::max(1.0, std::nearbyint(sound / frame)) * frame;
    }
    const double natural = task == Task::image_to_audio_video ? base.seconds : task == Task::continuation ? length + base.seconds / 2 : length;
    const double seconds = request.seconds.value_or(std::min(std::max(natural, frame), MAX_SECONDS));
    if (task == Task::continuation && length >= seconds) {
        invalid("the clip to continue has " + general(length) + " s and the result " + general(seconds) + " s; ask for more seconds");
    }
    const SequenceConfig sequence = sequence_of(request, base, seconds);
    KnownMedia media = {.task = task, .clip = {}, .seconds = task == Task::continuation ? length : sequence.seconds};
    if (task == Task::audio_to_video) {
        Clip sound;
        sound.waveform = given.waveform;
        sound.sample_rate = given.sample_rate;
        sound.provenance = given.provenance;
        media.clip = conform(sound, sequence);
    } else if (task == Task::image_to_audio_video) {
        Clip picture = given;
        picture.frames.resize(static_cast<std::size_t>(picture.height * picture.width * 3));
        picture.num_frames = 1;
        picture.waveform.clear();
        picture.latents.clear();
        media.clip = conform(picture, sequence);
    } else {
        media.clip = conform(given, sequence);
    }
    return {std::move(media), sequence};
}

std::vector<float> read_reference(const Request& request, const SequenceConfig& base) {
    if (request.reference == nullptr) return {};
    const Clip& clip = *request.reference;
    if (clip.waveform.empty()) invalid("the clip whose sound is asked for has none");
    const double seconds = static_cast<double>(clip.waveform.size()) / static_cast<double>(clip.sample_rate);
    const double least = static_cast<double>(base.audio_hop) / static_cast<double>(base.sample_rate);
    if (seconds < least || seconds > MAX_SECONDS) {
        invalid("the reference sound has " + general(seconds) + " s; it must have from " + general(least) + " s to " + general(MAX_SECONDS) + " s");
    }
    return resample(clip.waveform, clip.sample_rate, base.sample_rate, static_cast<std::int64_t>(MAX_SECONDS) * base.sample_rate);
}

KnownLatents known_latents(const KnownMedia& media, const SequenceConfig& sequence, Bridge bridge, std::optional<double> strength,
                           const VideoVae& video_codec, const AudioVae& audio_codec, const std::string& model_hash, int threads) {
    KnownLatents known;
    if (media.task == Task::audio_to_video) {
        known.audio = Known{.latents = audio_codec.encode(media.clip.waveform, threads), .clean = true};
        return known;
    }
    const auto [frames, tokens] = media.known_lengths(sequence);
    if (media.task == Task::continuation && frames < 1) {
        const double least = static_cast<double>(sequence.time_factor - sequence.padding()) / static_cast<double>(sequence.fps);
        invalid("the clip to continue has " + general(media.seconds) + " s; it must have at least " + general(least) + " s");
    }
    known.video = Known{.latents = encode_frames(media, sequence, video_codec, model_hash, threads)};
    if (media.task == Task::video_to_audio) {
        known.video->clean = bridge == Bridge::global_local;
        return known;
    }
    if (media.task == Task::image_to_audio_video) {
        known.video->mask = first_of(1, sequence.latent_frames());
        return known;
    }
    known.audio = Known{.latents = audio_codec.encode(media.clip.waveform, threads)};
    if (media.task == Task::variation) {
        known.video->start = known.audio->start = 1 - strength.value_or(1);
        return known;
    }
    known.video->mask = first_of(frames, sequence.latent_frames());
    known.audio->mask = first_of(tokens, sequence.audio_tokens());
    return known;
}

void restore_known(const KnownMedia& media, const SequenceConfig& sequence, Clip& clip) {
    const auto [latent_frames, tokens] = media.known_lengths(sequence);
    const std::int64_t frames = latent_frames * sequence.time_factor - sequence.padding(), frame = clip.height * clip.width * 3;
    std::copy_n(media.clip.frames.begin(), frames * frame, clip.frames.begin());
    const auto end = static_cast<double>(tokens * sequence.audio_hop), fade = CROSSFADE * static_cast<double>(sequence.sample_rate);
    for (std::size_t i = 0; i < clip.waveform.size(); ++i) {
        const auto share = static_cast<float>(std::clamp((end - static_cast<double>(i)) / fade, 0.0, 1.0));
        clip.waveform[i] = share * media.clip.waveform[i] + (1 - share) * clip.waveform[i];
    }
}

}  // namespace syncflow::engine
