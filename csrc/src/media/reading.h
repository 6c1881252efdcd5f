// Files as clips.
#pragma once

#include <filesystem>
#include <memory>

#include "engine/request.h"
#include "syncflow/syncflow.h"

namespace syncflow::media {

// See syncflow_media_read; the params are valid. Throws service::Failure.
std::shared_ptr<const engine::Clip> read_clip(const std::filesystem::path& path, const syncflow_media_params& params);

}  // namespace syncflow::media
