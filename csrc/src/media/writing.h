// Clips as files.
#pragma once

#include <filesystem>
#include <string>

#include "syncflow/syncflow.h"

namespace syncflow::media {

// ".wav", ... that `write_clip` can write in this build.
std::string written_formats();

// The name says how, see syncflow_clip_write. The clip is valid. Throws service::Failure.
void write_clip(const syncflow_clip& clip, const std::filesystem::path& path);

// 16 bit PCM.
void write_wav(const syncflow_clip& clip, const std::filesystem::path& path);
// YUV4MPEG2, 4:4:4, ITU-R BT.601 limited range.
void write_y4m(const syncflow_clip& clip, const std::filesystem::path& path);
// The frames as they are in memory.
void write_rgb(const syncflow_clip& clip, const std::filesystem::path& path);
// A file for each frame; `path` has one %d or %05d in its name.
void write_ppm(const syncflow_clip& clip, const std::filesystem::path& path);
// H.264 with AAC, as `Clip.save` of Python writes it; where FFmpeg was found.
void write_mp4(const syncflow_clip& clip, const std::filesystem::path& path);

}  // namespace syncflow::media
