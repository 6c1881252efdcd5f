// Which of the compiled instruction levels runs.
#pragma once

#include "syncflow/layers.h"

namespace syncflow {

enum class Level { baseline, v3, v4 };

// The best that the processor has, or the one that the environment variable SYNCFLOW_INSTRUCTIONS names; the same for
// the whole process. Throws std::invalid_argument for a name that is unknown or that the processor lacks.
Level level();

// The kernels of this level, of three tables of the same kind.
template <typename Kernels>
const Kernels& at_level(const Kernels& baseline, const Kernels& v3, const Kernels& v4) {
    return level() == Level::v4 ? v4 : level() == Level::v3 ? v3 : baseline;
}

}  // namespace syncflow

#ifdef __x86_64__  // then all three levels are compiled
#define SYNCFLOW_KERNELS(table) (::syncflow::at_level(::syncflow::baseline::table, ::syncflow::v3::table, ::syncflow::v4::table))
#else
#define SYNCFLOW_KERNELS(table) (::syncflow::baseline::table)
#endif
