// Which of the compiled sets of instructions the processor has.
#pragma once

#include "syncflow/layers.h"

namespace syncflow {

enum class Level { baseline, v3, v4 };

// The best, or less where the environment variable SYNCFLOW_INSTRUCTIONS asks for it; the same for the whole process.
Level level();

// Memory of the calling thread: as many floats, until it asks again.
float* thread_memory(std::int64_t floats);

}  // namespace syncflow

#ifdef SYNCFLOW_X86
#define SYNCFLOW_BEST(name)                                                                                                   \
    (::syncflow::level() == ::syncflow::Level::v4   ? &::syncflow::v4::name                                                   \
     : ::syncflow::level() == ::syncflow::Level::v3 ? &::syncflow::v3::name                                                   \
                                                    : &::syncflow::baseline::name)
#else
#define SYNCFLOW_BEST(name) (&::syncflow::baseline::name)
#endif
