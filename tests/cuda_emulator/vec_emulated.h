// The emulator's side of common/vec.cuh, which includes this file: the same functions, each access reported.
#pragma once

#include <atomic>

#include "emulator.h"

#define DCTPS_SITE , ::dctps::emulator::Site site = ::dctps::emulator::Site::current()
#define DCTPS_AT , site

namespace dctps {

template <int N, Cache cache = Cache::normal, class T>
Pack<T, N> load(const T* pointer DCTPS_SITE) {
  Pack<T, N> pack;
  emulator::access_global(pointer, sizeof(pack), emulator::Kind::load, site);
  std::memcpy(&pack, pointer, sizeof(pack));
  return pack;
}

template <int N, Cache cache = Cache::normal, class T>
void store(T* pointer, const Pack<T, N>& pack DCTPS_SITE) {
  emulator::access_global(pointer, sizeof(pack), emulator::Kind::store, site);
  std::memcpy(static_cast<void*>(pointer), &pack, sizeof(pack));
}

namespace emulator {

// An int that knows the line where it became one: operator[] takes no argument for it.
struct Index {
  int value;
  Site site;
  Index(int value, Site site = Site::current()) : value(value), site(site) {}
};

}  // namespace emulator

template <class T>
class Shared {
 public:
  explicit Shared(T* data) : data_(data) {}

  // What [] gives: it must be read or assigned in the same expression, so that `auto` does not defer the access.
  class Element {
   public:
    operator T() const&& { return shared_.template load<1>(i_.value, i_.site)[0]; }
    void operator=(const T& value) && { shared_.template store<1>(i_.value, {{value}}, i_.site); }
    void operator=(Element&& other) && { std::move(*this) = T(std::move(other)); }
    void operator+=(const T& value) && { std::move(*this) = T(std::move(*this)) + value; }
    void operator-=(const T& value) && { std::move(*this) = T(std::move(*this)) - value; }
    void operator*=(const T& value) && { std::move(*this) = T(std::move(*this)) * value; }

   private:
    friend Shared;
    Element(Shared shared, emulator::Index i) : shared_(shared), i_(i) {}
    Shared shared_;
    emulator::Index i_;
  };
  Element operator[](emulator::Index i) const { return {*this, i}; }

  template <int N>
  Pack<T, N> load(int i DCTPS_SITE) const {
    Pack<T, N> pack;
    emulator::access_shared(data_ + i, sizeof(pack), emulator::Kind::load, site);
    std::memcpy(&pack, data_ + i, sizeof(pack));
    return pack;
  }
  template <int N>
  void store(int i, const Pack<T, N>& pack DCTPS_SITE) const {
    emulator::access_shared(data_ + i, sizeof(pack), emulator::Kind::store, site);
    std::memcpy(static_cast<void*>(data_ + i), &pack, sizeof(pack));
  }
  T atomic_add(int i, T value DCTPS_SITE) const {
    emulator::access_shared(data_ + i, sizeof(T), emulator::Kind::atomic, site);
    const T before = data_[i];
    data_[i] += value;
    return before;
  }

  Shared operator+(int elements) const { return Shared(data_ + elements); }
  template <class U>
  Shared<U> as() const {
    return Shared<U>(reinterpret_cast<U*>(data_));
  }

 private:
  template <int N, class U>
  friend void copy_async(Shared<U> target, int i, const U* source, emulator::Site site);
  T* data_;
};

template <class T>
Shared<T> shared_memory(int byte_offset = 0 DCTPS_SITE) {
  return Shared<T>(static_cast<T*>(emulator::shared_memory(byte_offset, site)));
}

template <int N, class T>
void copy_async(Shared<T> target, int i, const T* source DCTPS_SITE) {
  static_assert(sizeof(Pack<T, N>) >= 4, "copy_async: N elements must be 4, 8 or 16 bytes");
  emulator::copy_async(target.data_ + i, source, sizeof(Pack<T, N>), site);
}
inline void commit_async() { emulator::commit_async(); }
template <int pending = 0>
void wait_async(emulator::Site site = emulator::Site::current()) {
  emulator::wait_async(pending, site);
}

inline void sync_block(emulator::Site site = emulator::Site::current()) { emulator::sync_block(site); }
inline void sync_warp(unsigned mask = kAllLanes DCTPS_SITE) {
  emulator::warp_step(emulator::WarpStep::sync, 0, 0, mask, site);
}

namespace emulator {

template <class T>
T shuffled(WarpStep step, T value, int argument, unsigned mask, Site site) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffle: expected 4 or 8 bytes");
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof(value));
  word = warp_step(step, word, argument, mask, site);
  std::memcpy(&value, &word, sizeof(value));
  return value;
}

}  // namespace emulator

template <class T>
T shuffle(T value, int lane, unsigned mask = kAllLanes DCTPS_SITE) {
  return emulator::shuffled(emulator::WarpStep::shuffle, value, lane, mask, site);
}
template <class T>
T shuffle_xor(T value, int lanes, unsigned mask = kAllLanes DCTPS_SITE) {
  return emulator::shuffled(emulator::WarpStep::shuffle_xor, value, lanes, mask, site);
}
template <class T>
T shuffle_down(T value, int lanes, unsigned mask = kAllLanes DCTPS_SITE) {
  return emulator::shuffled(emulator::WarpStep::shuffle_down, value, lanes, mask, site);
}
inline unsigned ballot(bool predicate, unsigned mask = kAllLanes DCTPS_SITE) {
  return unsigned(emulator::warp_step(emulator::WarpStep::ballot, predicate, 0, mask, site));
}

template <class T>
T atomic_add(T* pointer, T value DCTPS_SITE) {
  static_assert(std::is_integral_v<T>,
                "atomic_add: integers only, as sums of floats would depend on the order");
  emulator::access_global(pointer, sizeof(T), emulator::Kind::atomic, site);
  return std::atomic_ref<T>(*pointer).fetch_add(value);
}
inline void fence_device() { std::atomic_thread_fence(std::memory_order_seq_cst); }

}  // namespace dctps
