// The requests that wait.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "service/request.h"

namespace syncflow::service {

// Priority with ageing: a request of priority p that has waited w seconds counts p + w / ageing. All age at one rate, so the order of
// two requests never changes; it is that of the rank submitted / ageing - p, first come first served within a rank. No request waits
// for ever: one of a higher priority q overtakes it only if it is submitted at most (q - p) * ageing seconds later.
class Queue {
   public:
    Queue(std::size_t capacity, double ageing) : capacity_(capacity), ageing_(ageing) {}

    std::size_t size() const { return requests_.size(); }

    // False: the queue is full.
    bool push(std::shared_ptr<Request> request) {
        if (requests_.size() >= capacity_) return false;
        const double submitted = std::chrono::duration<double>(request->submitted.time_since_epoch()).count();
        requests_.emplace(std::pair(submitted / ageing_ - request->submission.priority, serial_++), std::move(request));
        return true;
    }

    // The first; null where none waits.
    std::shared_ptr<Request> pop() {
        if (requests_.empty()) return nullptr;
        return std::move(requests_.extract(requests_.begin()).mapped());
    }

    // Removes those that match.
    std::vector<std::shared_ptr<Request>> remove_if(const std::function<bool(const Request&)>& matches) {
        std::vector<std::shared_ptr<Request>> removed;
        for (auto at = requests_.begin(); at != requests_.end();) {
            if (!matches(*at->second)) {
                ++at;
                continue;
            }
            removed.push_back(std::move(at->second));
            at = requests_.erase(at);
        }
        return removed;
    }

   private:
    std::size_t capacity_;
    double ageing_;
    std::uint64_t serial_ = 0;
    std::map<std::pair<double, std::uint64_t>, std::shared_ptr<Request>> requests_;
};

}  // namespace syncflow::service
