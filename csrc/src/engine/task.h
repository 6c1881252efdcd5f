// What a request asks for: its checks, its task, its guidance (engine/types.py, tasks.py, pipeline.py).
#pragma once

#include <cstdint>
#include <string>

#include "engine/request.h"
#include "package/json.h"
#include "package/model_config.h"
#include "sampling/guidance.h"

namespace syncflow::engine {

// What media may have before they are brought to the model's size and rate.
constexpr std::int64_t MAX_FRAME_SIDE = 16'384, MAX_FRAMES = 1'000'000;
constexpr std::int64_t MIN_SAMPLE_RATE = 1000, MAX_SAMPLE_RATE = 384'000;
constexpr double MIN_CLIP_FPS = 0.01, MAX_CLIP_FPS = 1000;

enum class Task { text_to_audio_video, video_to_audio, image_to_audio_video, continuation, audio_to_video, variation, text_to_audio };

const char* name_of(Task task);

// The task that a request's media ask for.
Task task_of(const Request& request);

// Throws Status::invalid_argument for the first setting that is out of its range, or that does not go with the others.
void validate(const Request& request);

// Whether a text holds nothing but blanks.
bool blank(const std::string& text);

// The branches and weights of a request. Without a prompt there is no text to move away from. Throws
// Status::invalid_argument for what the model cannot do.
GuidancePlan plan_guidance(const Request& request, const ModelConfig& config);

// How a clip came to be, with the seed of its sound.
Json provenance(const Request& request, Task task, const ModelConfig& config, const std::string& model_hash, std::uint64_t audio_seed);

}  // namespace syncflow::engine
