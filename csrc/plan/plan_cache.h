// Plans kept for the life of the process: made once for each key, with a count of their bytes.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

namespace dctps {

// Bytes held by all cached plans of all kinds.
int64_t cached_plan_bytes();
void count_plan_bytes(int64_t bytes);

template <class Key, class Plan>
class PlanCache {
 public:
  // The plan for `key`, from make() the first time. A static one is never destroyed: threads may still use it while
  // the process ends.
  template <class Make>
  std::shared_ptr<const Plan> get(const Key& key, const Make& make) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      const auto known = plans_->find(key);
      if (known != plans_->end()) return known->second;
    }
    std::shared_ptr<const Plan> plan = make();  // outside the lock: others need not wait
    std::lock_guard<std::mutex> lock(mutex_);
    const auto [place, is_new] = plans_->emplace(key, std::move(plan));
    if (is_new) count_plan_bytes(place->second->bytes());
    return place->second;
  }

 private:
  std::mutex mutex_;
  std::map<Key, std::shared_ptr<const Plan>>* plans_ = new std::map<Key, std::shared_ptr<const Plan>>;
};

}  // namespace dctps
