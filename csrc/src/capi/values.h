// From the values of the C API to those of the engine, checked, and back.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "engine/backend.h"
#include "service/engine.h"
#include "service/request.h"
#include "syncflow/syncflow.h"

namespace syncflow::capi {

// The first version's sizes, which never change.
struct FirstSize {
    static constexpr std::size_t clip = 112, media_params = 40, engine_params = 48, model_info = 344, engine_stats = 64, progress = 40, request_params = 248;
};

syncflow_engine_params default_engine_params();
syncflow_request_params default_request_params();
syncflow_media_params default_media_params();

struct EngineSettings {
    std::filesystem::path package;
    engine::BackendOptions backend;
    service::EngineOptions engine;
};

// All throw service::Failure with SYNCFLOW_INVALID_ARGUMENT for what is null, out of range or not UTF-8.
std::string text(const char* given, const char* name);
EngineSettings engine_settings(const syncflow_engine_params* params);
service::Submission submission(const syncflow_request_params* params);
syncflow_media_params media_params(const syncflow_media_params* params);
// A view of the same arrays.
syncflow_clip clip_view(const syncflow_clip* clip, const char* name);

syncflow_clip view_of(const engine::Clip& clip);
syncflow_model_info info_of(const engine::ModelInfo& info);

}  // namespace syncflow::capi
