# The engine's sources: what is compiled once, and what is compiled once per instruction level.
set(SYNCFLOW_CORE_SOURCES
  csrc/src/codecs/audio_vae.cpp
  csrc/src/codecs/convolution.cpp
  csrc/src/codecs/text_encoder.cpp
  csrc/src/codecs/video_vae.cpp
  csrc/src/engine/conform.cpp
  csrc/src/engine/known_media.cpp
  csrc/src/engine/model_backend.cpp
  csrc/src/engine/task.cpp
  csrc/src/graphs/export.cpp
  csrc/src/graphs/graph_denoiser.cpp
  csrc/src/graphs/module.cpp
  csrc/src/model/audio_tower.cpp
  csrc/src/model/ddit.cpp
  csrc/src/model/layers.cpp
  csrc/src/model/shape_tables.cpp
  csrc/src/model/video_tower.cpp
  csrc/src/package/json.cpp
  csrc/src/package/mapped_file.cpp
  csrc/src/package/model_config.cpp
  csrc/src/package/package.cpp
  csrc/src/package/safetensors.cpp
  csrc/src/package/settings.cpp
  csrc/src/package/sha256.cpp
  csrc/src/sampling/batch.cpp
  csrc/src/sampling/guidance.cpp
  csrc/src/sampling/job.cpp
  csrc/src/sampling/one_way.cpp
  csrc/src/sampling/schedule.cpp
  csrc/src/sampling/step_plan.cpp)
# Headers of the standard library that most sources include: reading them takes longer than compiling what follows.
set(SYNCFLOW_COMMON_HEADERS <algorithm> <array> <atomic> <chrono> <cmath> <condition_variable> <cstdint> <cstdio> <cstring> <filesystem> <functional>
  <map> <memory> <mutex> <optional> <set> <span> <string> <thread> <utility> <variant> <vector>)
set(SYNCFLOW_LEVEL_SOURCES
  csrc/src/kernels/block_kernels.cpp
  csrc/src/kernels/codec_kernels.cpp
  csrc/src/kernels/layer_kernels.cpp)
