#include "engine/task.h"

#include <array>
#include <string_view>
#include <vector>

#include "package/settings.h"

namespace syncflow::engine {
namespace {

[[noreturn]] void invalid(const std::string& sentence) { throw Error(Status::invalid_argument, sentence); }

void require_text(const char* name, const std::string& text) {
    if (!is_utf8(text)) invalid(std::string(name) + " is not UTF-8; it must be text in UTF-8");
}

void require_weight(const char* name, const std::optional<double>& weight) {
    const std::string most = general(MAX_WEIGHT);
    if (weight && !(*weight >= -MAX_WEIGHT && *weight <= MAX_WEIGHT)) refuse(name, shown(*weight), "a finite number from -" + most + " to " + most);
}

void require_clip(const char* name, const std::shared_ptr<const Clip>& clip) {
    if (clip == nullptr) return;
    const auto fail = [&](const std::string& reason) { invalid(std::string(name) + " is no clip: " + reason); };
    const std::int64_t count = clip->num_frames;
    if (count < 0 || clip->height < 0 || clip->width < 0 || (count > 0 && (clip->height == 0 || clip->width == 0))) fail("its sizes must not be negative or 0");
    if (count > 0 && (clip->height > MAX_FRAME_SIDE || clip->width > MAX_FRAME_SIDE || count > MAX_FRAMES)) {
        fail("it has " + std::to_string(count) + " frames of " + std::to_string(clip->width) + "x" + std::to_string(clip->height) + "; the most are " +
             std::to_string(MAX_FRAMES) + " of " + std::to_string(MAX_FRAME_SIDE) + "x" + std::to_string(MAX_FRAME_SIDE));
    }
    const auto bytes = static_cast<std::size_t>(count * clip->height * clip->width * 3);
    if (clip->frames.size() != bytes) fail("it has " + std::to_string(clip->frames.size()) + " bytes of frames, and its sizes ask for " + std::to_string(bytes));
    if (count > 0 && !(clip->fps >= MIN_CLIP_FPS && clip->fps <= MAX_CLIP_FPS)) {
        fail("its fps are " + shown(clip->fps) + "; they must be from " + general(MIN_CLIP_FPS) + " to " + general(MAX_CLIP_FPS));
    }
    if (!clip->waveform.empty() && (clip->sample_rate < MIN_SAMPLE_RATE || clip->sample_rate > MAX_SAMPLE_RATE)) {
        fail("its sample rate is " + std::to_string(clip->sample_rate) + "; it must be from " + std::to_string(MIN_SAMPLE_RATE) + " to " +
             std::to_string(MAX_SAMPLE_RATE));
    }
    if (!clip->latents.empty()) {
        const std::array<std::int64_t, 3> sides = {clip->latent_frames, clip->latent_height, clip->latent_width};
        std::size_t positions = 1;
        for (const std::int64_t side : sides) {
            if (side < 1 || side > MAX_FRAMES) fail("the sizes of its latents do not fit");
            positions *= static_cast<std::size_t>(side);
        }
        if (clip->latents.size() % positions != 0) fail("the sizes of its latents do not fit");
        for (const float value : clip->latents) {
            if (!(value - value == 0)) fail("its latents hold NaN or infinity");
        }
    }
    for (const float sample : clip->waveform) {
        if (!(sample - sample == 0)) fail("its sound holds NaN or infinity");
    }
}

std::string joined(const std::vector<const char*>& names, const char* between) {
    std::string text;
    for (const char* const name : names) text += (text.empty() ? "" : between) + std::string(name);
    return text;
}

std::vector<const char*> media_of(const Request& request) {
    std::vector<const char*> names;
    if (request.video != nullptr) names.push_back("video");
    if (request.image != nullptr) names.push_back("image");
    if (request.extend != nullptr) names.push_back("extend");
    if (request.audio != nullptr) names.push_back("audio");
    return names;
}

// The settings that concern the video, of those that are given.
std::vector<const char*> video_settings(const Request& request) {
    std::vector<const char*> names = media_of(request);
    if (request.width) names.push_back("width");
    if (request.height) names.push_back("height");
    if (request.video_lead) names.push_back("video_lead");
    if (request.sync_guidance) names.push_back("sync_guidance");
    if (request.sync_cfg_audio) names.push_back("sync_cfg_audio");
    if (request.sync_cfg_video) names.push_back("sync_cfg_video");
    if (request.reference != nullptr) names.push_back("reference");
    return names;
}

double sync_guidance_of(const Request& request, Task task, const SamplingConfig& sampling) {
    return request.sync_guidance.value_or(task == Task::video_to_audio ? sampling.v2a_sync_guidance : sampling.sync_guidance);
}

}  // namespace

const char* name_of(Task task) {
    static constexpr std::array<const char*, 7> names = {"text-to-audio-video", "video-to-audio", "image-to-audio-video", "continuation",
                                                         "audio-to-video",      "variation",      "text-to-audio"};
    return names[static_cast<std::size_t>(task)];
}

Task task_of(const Request& request) {
    if (request.image != nullptr) return Task::image_to_audio_video;
    if (request.extend != nullptr) return Task::continuation;
    if (request.audio != nullptr) return Task::audio_to_video;
    if (request.video != nullptr) return request.strength ? Task::variation : Task::video_to_audio;
    return request.sound_only ? Task::text_to_audio : Task::text_to_audio_video;
}

bool blank(const std::string& text) {
    static constexpr std::array<std::string_view, 10> spaces = {"\u0085", "\u00A0", "\u1680", "\u2028", "\u2029", "\u202F", "\u205F", "\u3000", "\u2000", "\u200A"};
    for (std::string_view rest = text; !rest.empty();) {
        const auto sign = static_cast<unsigned char>(rest[0]);
        if (sign == ' ' || (sign >= '\t' && sign <= '\r') || (sign >= 0x1C && sign <= 0x1F)) {
            rest.remove_prefix(1);
            continue;
        }
        const bool narrow = rest.starts_with("\xE2\x80") && rest.size() > 2 && static_cast<unsigned char>(rest[2]) >= 0x80 && static_cast<unsigned char>(rest[2]) <= 0x8A;
        std::size_t length = narrow ? 3 : 0;
        for (const std::string_view space : spaces) {
            if (rest.starts_with(space)) length = space.size();
        }
        if (length == 0) return false;
        rest.remove_prefix(length);
    }
    return true;
}

void validate(const Request& request) {
    require_text("prompt", request.prompt);
    if (request.steps) require_whole("steps", *request.steps, 1, MAX_STEPS);
    require_weight("guidance", request.guidance);
    if (request.shift) require_number("shift", *request.shift, 0, MAX_SHIFT, true);
    if (request.video_lead) require_number("video_lead", *request.video_lead, 0, 1);
    require_clip("video", request.video);
    require_clip("image", request.image);
    require_clip("extend", request.extend);
    require_clip("audio", request.audio);
    require_clip("reference", request.reference);
    if (request.strength) require_number("strength", *request.strength, 0, 1, true);
    if (request.negative_prompt) require_text("negative_prompt", *request.negative_prompt);
    require_weight("sync_guidance", request.sync_guidance);
    require_weight("sync_cfg_audio", request.sync_cfg_audio);
    require_weight("sync_cfg_video", request.sync_cfg_video);
    if (request.guidance_interval) {
        const auto& [low, high] = *request.guidance_interval;
        if (!(0 <= low && low < high && high <= 1)) refuse("guidance_interval", shown(low) + " to " + shown(high), "two rising times from 0 to 1");
    }
    if (request.guidance_rescale) require_number("guidance_rescale", *request.guidance_rescale, 0, 1);
    if (request.branch_interval) require_whole("branch_interval", *request.branch_interval, 1, MAX_STEPS);
    require_whole("takes", request.takes, 1, MAX_TAKES);
    const std::vector<const char*> media = media_of(request);
    if (media.size() > 1) invalid(joined(media, " and ") + " are given; a clip is made from one of them");
    if (request.strength && request.video == nullptr) invalid("strength says how far to move away from a video; there is none");
    if (blank(request.prompt) && media.empty()) invalid("the prompt is empty; say in a sentence what the clip shows");
    if (const auto given = video_settings(request); request.sound_only && !given.empty()) {
        invalid("sound_only draws a sound without a video; it goes without " + joined(given, ", "));
    }
    if (request.negative_prompt && blank(*request.negative_prompt)) invalid("the negative prompt is empty; leave it out to move away from no text");
    if (request.negative_prompt && blank(request.prompt)) invalid("a negative prompt needs a prompt; there is none");
}

GuidancePlan plan_guidance(const Request& request, const ModelConfig& config) {
    const SamplingConfig& sampling = config.sampling;
    const DDiTConfig& model = config.ddit;
    const Task task = task_of(request);
    const double of_audio = request.sync_cfg_audio.value_or(sampling.sync_cfg_audio), of_video = request.sync_cfg_video.value_or(sampling.sync_cfg_video);
    struct Need {
        const char* name;
        bool asked;
        const char* needed;
    };
    const char *const reads_video = "a model whose audio reads the video", *const reads_audio = "a model whose video reads the audio";
    for (const Need& need : {Need{"sync_cfg_audio", of_audio != 1 && !model.audio_reads_video(), reads_video},
                             Need{"sync_cfg_video", of_video != 1 && !model.video_reads_audio(), reads_audio},
                             Need{"video-to-audio", task == Task::video_to_audio && !model.audio_reads_video(), reads_video},
                             Need{"audio-to-video", task == Task::audio_to_video && !model.video_reads_audio(), reads_audio},
                             Need{"a reference sound", request.reference != nullptr && model.bridge != Bridge::global_local, "a model with the bridge global_local"},
                             Need{"more than one take", request.takes > 1 && model.video_reads_audio(), "a model whose video does not read the audio"}}) {
        if (need.asked) invalid(std::string(need.name) + " needs " + need.needed + "; this one has " + name_of(model.bridge));
    }
    if (request.sound_only && !model.audio_text) invalid("a sound without a video needs a model whose audio reads the text (audio_text)");
    std::vector<Direction> directions;
    if (!blank(request.prompt)) {
        const double weight = request.guidance.value_or(sampling.guidance) - 1;
        directions.push_back({.branch = {.text = false}, .video = weight, .audio = weight});
    }
    if (!request.sound_only) {
        const double strength = sync_guidance_of(request, task, sampling);
        directions.push_back({.branch = {.bridge = false}, .video = strength, .audio = strength});
        directions.push_back({.branch = {.still = true}, .video = 0, .audio = of_audio - 1});
        directions.push_back({.branch = {.muted = true}, .video = of_video - 1, .audio = 0});
    }
    GuidancePlan plan = combine(directions, {.interval = request.guidance_interval.value_or(std::pair(0.0, 1.0)),
                                             .rescale = request.guidance_rescale.value_or(0),
                                             .branch_interval = request.branch_interval.value_or(1)});
    return request.sound_only ? unbridged(std::move(plan)) : plan;
}

Json provenance(const Request& request, Task task, const ModelConfig& config, const std::string& model_hash, std::uint64_t audio_seed) {
    const SamplingConfig& sampling = config.sampling;
    Json::Object members;
    const auto add = [&](const char* name, Json value) { members.emplace_back(name, std::move(value)); };
    add("prompt", Json(request.prompt));
    add("seed", Json(request.seed));
    add("steps", Json(request.steps.value_or(sampling.steps)));
    add("guidance", Json(request.guidance.value_or(sampling.guidance)));
    add("shift", Json(request.shift.value_or(sampling.shift)));
    if (!request.sound_only) {
        add("video_lead", Json(request.video_lead.value_or(sampling.video_lead)));
        add("sync_guidance", Json(sync_guidance_of(request, task, sampling)));
        add("sync_cfg_audio", Json(request.sync_cfg_audio.value_or(sampling.sync_cfg_audio)));
        add("sync_cfg_video", Json(request.sync_cfg_video.value_or(sampling.sync_cfg_video)));
    }
    if (request.negative_prompt) add("negative_prompt", Json(*request.negative_prompt));
    if (request.guidance_interval) {
        add("guidance_interval", Json(Json::Array{Json(request.guidance_interval->first), Json(request.guidance_interval->second)}));
    }
    if (request.guidance_rescale) add("guidance_rescale", Json(*request.guidance_rescale));
    if (request.branch_interval) add("branch_interval", Json(*request.branch_interval));
    if (request.strength) add("strength", Json(*request.strength));
    if (audio_seed != request.seed) add("audio_seed", Json(audio_seed));
    add("task", Json(std::string(name_of(task))));
    add("model", Json(config.name));
    add("model_hash", Json(model_hash));
    return Json(std::move(members));
}

}  // namespace syncflow::engine
