// Handles of the C API: numbers that are never given twice, so that one that was closed is recognised.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "service/failure.h"

namespace syncflow::service {

inline std::uintptr_t next_handle() {
    static std::atomic<std::uintptr_t> last{0};
    return ++last;
}

// What the handles of one kind stand for. An object lives until its handle is closed and no call uses it.
template <typename Handle, typename Object>
class HandleTable {
   public:
    explicit HandleTable(const char* kind) : kind_(kind) {}

    // A handle that stands for nothing until `set`, so that an object can know its own.
    static Handle* reserve() { return reinterpret_cast<Handle*>(next_handle()); }

    void set(Handle* handle, std::shared_ptr<Object> object) {
        const std::unique_lock lock(mutex_);
        objects_.emplace(key(handle), std::move(object));
    }

    // Throws Failure for a handle that stands for nothing.
    std::shared_ptr<Object> get(Handle* handle) const {
        const std::shared_lock lock(mutex_);
        const auto found = objects_.find(key(handle));
        if (found == objects_.end()) fail(handle);
        return found->second;
    }

    std::shared_ptr<Object> take(Handle* handle) {
        const std::unique_lock lock(mutex_);
        const auto found = objects_.find(key(handle));
        if (found == objects_.end()) fail(handle);
        std::shared_ptr<Object> object = std::move(found->second);
        objects_.erase(found);
        return object;
    }

    std::vector<std::shared_ptr<Object>> all() const {
        const std::shared_lock lock(mutex_);
        std::vector<std::shared_ptr<Object>> objects;
        for (const auto& [handle, object] : objects_) objects.push_back(object);
        return objects;
    }

   private:
    static std::uintptr_t key(Handle* handle) { return reinterpret_cast<std::uintptr_t>(handle); }

    [[noreturn]] void fail(Handle* handle) const {
        const std::string kind = kind_;
        if (handle == nullptr) throw Failure(SYNCFLOW_INVALID_HANDLE, "the handle of the " + kind + " is null");
        throw Failure(SYNCFLOW_INVALID_HANDLE, "the handle stands for no " + kind + "; it was closed, or is of another kind");
    }

    const char* kind_;
    mutable std::shared_mutex mutex_;
    std::unordered_map<std::uintptr_t, std::shared_ptr<Object>> objects_;
};

}  // namespace syncflow::service
