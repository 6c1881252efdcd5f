#include "service/log.h"

#include <atomic>
#include <mutex>

namespace syncflow::service {
namespace {

struct Sink {
    std::mutex mutex;  // held while the callback runs
    syncflow_log_callback callback = nullptr;
    void* user_data = nullptr;
    std::atomic<int> level{-1};  // of messages that are wanted; -1: none
};

Sink& sink() {
    static Sink* const only = new Sink;  // never destroyed: threads may log until the process ends
    return *only;
}

thread_local bool logging = false;

}  // namespace

bool set_log(syncflow_log_callback callback, void* user_data, int level) {
    if (logging) return false;
    Sink& to = sink();
    const std::lock_guard lock(to.mutex);
    to.callback = callback;
    to.user_data = user_data;
    to.level = callback == nullptr ? -1 : level;
    return true;
}

void log(int level, const std::string& message) noexcept {
    Sink& to = sink();
    if (logging || level > to.level.load(std::memory_order_relaxed)) return;
    try {
        const std::lock_guard lock(to.mutex);
        if (to.callback == nullptr) return;
        logging = true;
        to.callback(level, message.c_str(), to.user_data);
    } catch (...) {
    }
    logging = false;
}

}  // namespace syncflow::service
