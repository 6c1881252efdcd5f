// Messages to the host program.
#pragma once

#include <string>

#include "syncflow/syncflow.h"

namespace syncflow::service {

// False from within the callback itself: nothing is changed.
bool set_log(syncflow_log_callback callback, void* user_data, int level);

// Never throws; an exception of the callback is dropped.
void log(int level, const std::string& message) noexcept;

}  // namespace syncflow::service
