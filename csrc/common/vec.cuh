// What kernels do with memory and with other threads, and the only way they do it. Under nvcc each of these is the
// plain instruction; under tests/cuda_emulator each is checked and counted.
//
//   load<N>(pointer), store<N>(pointer, pack)   global memory, N elements at once (N * sizeof(T) a power of two up to
//                                               16); the pointer must be aligned to N * sizeof(T). Without N: one T.
//   shared_memory<T>(byte_offset)               Shared<T>: the block's dynamic shared memory seen as T
//   copy_async<N>(shared, i, pointer), commit_async(), wait_async<pending>()   from global to shared memory (cp.async)
//   sync_block(), sync_warp(mask), shuffle(...), shuffle_xor(...), shuffle_down(...), ballot(...)
//   atomic_add(pointer, value)                  integers only; returns the value before
//   fence_device()                              earlier writes are seen by other blocks before later ones
//   block_index()                               the block's number, 64 bits
//
// A warp's operations take the mask of the lanes that take part; all of these must call, and none of the others.
// Elements are those of types.h: double, float, Half, BFloat16, integers; to_accumulator, from_accumulator convert.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/types.h"

namespace dctps {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// N elements that move as one.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  static_assert(sizeof(T) * N <= 16 && (sizeof(T) * N & (sizeof(T) * N - 1)) == 0,
                "Pack: N elements must be 1, 2, 4, 8 or 16 bytes, which is what one instruction moves");
  T lanes[N];

  __device__ T& operator[](int i) { return lanes[i]; }
  __device__ const T& operator[](int i) const { return lanes[i]; }
};

// streaming: data that no later access finds in a cache anyway, so that it does not displace what is used again.
enum class Cache { normal, streaming };

}  // namespace dctps

#if DCTPS_EMULATED
#include "vec_emulated.h"
#else

// Under the emulator, where in the source an access stands.
#define DCTPS_SITE
#define DCTPS_AT

namespace dctps {
namespace detail {

template <int bytes>
struct WordOf;
template <>
struct WordOf<1> {
  using type = unsigned char;
};
template <>
struct WordOf<2> {
  using type = unsigned short;
};
template <>
struct WordOf<4> {
  using type = unsigned;
};
template <>
struct WordOf<8> {
  using type = uint2;
};
template <>
struct WordOf<16> {
  using type = uint4;
};
// What the compiler moves as one: a struct of several members it might split.
template <class T, int N>
using Word = typename WordOf<int(sizeof(T)) * N>::type;

}  // namespace detail

template <int N, Cache cache = Cache::normal, class T>
__device__ __forceinline__ Pack<T, N> load(const T* pointer) {
  const auto* source = reinterpret_cast<const detail::Word<T, N>*>(pointer);
  const auto word = cache == Cache::streaming ? __ldcs(source) : *source;
  Pack<T, N> pack;
  std::memcpy(&pack, &word, sizeof(pack));
  return pack;
}

template <int N, Cache cache = Cache::normal, class T>
__device__ __forceinline__ void store(T* pointer, const Pack<T, N>& pack) {
  auto* target = reinterpret_cast<detail::Word<T, N>*>(pointer);
  detail::Word<T, N> word;
  std::memcpy(&word, &pack, sizeof(pack));
  if constexpr (cache == Cache::streaming) {
    __stcs(target, word);
  } else {
    *target = word;
  }
}

template <class T>
class Shared {
 public:
  __device__ explicit Shared(T* data) : data_(data) {}

  __device__ T& operator[](int i) const { return data_[i]; }
  template <int N>
  __device__ __forceinline__ Pack<T, N> load(int i) const {
    return dctps::load<N>(data_ + i);
  }
  template <int N>
  __device__ __forceinline__ void store(int i, const Pack<T, N>& pack) const {
    dctps::store<N>(data_ + i, pack);
  }
  __device__ T atomic_add(int i, T value) const { return atomicAdd(data_ + i, value); }
  // As instructions take it.
  __device__ unsigned address(int i) const { return unsigned(__cvta_generic_to_shared(data_ + i)); }

  __device__ Shared operator+(int elements) const { return Shared(data_ + elements); }
  // The same memory with elements of another type.
  template <class U>
  __device__ Shared<U> as() const {
    return Shared<U>(reinterpret_cast<U*>(data_));
  }

 private:
  T* data_;
};

template <class T>
__device__ __forceinline__ Shared<T> shared_memory(int byte_offset = 0) {
  extern __shared__ uint4 dctps_shared_memory[];
  return Shared<T>(reinterpret_cast<T*>(reinterpret_cast<char*>(dctps_shared_memory) + byte_offset));
}

// Moves N elements, 4, 8 or 16 bytes, without passing through registers. They are there for the thread itself after
// wait_async, for others after a barrier that follows it.
template <int N, class T>
__device__ __forceinline__ void copy_async(Shared<T> target, int i, const T* source) {
  static_assert(sizeof(T) * N >= 4, "copy_async: N elements must be 4, 8 or 16 bytes");
#if __CUDA_ARCH__ >= 800
  const unsigned address = target.address(i);
  if constexpr (sizeof(T) * N == 16) {  // past L1, which this data would only pass through
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(source) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(address), "l"(source), "n"(sizeof(T) * N)
                 : "memory");
  }
#else
  target.template store<N>(i, load<N>(source));
#endif
}

// Closes a group of the copies issued so far.
__device__ __forceinline__ void commit_async() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until no more than the last `pending` groups of this thread are under way.
template <int pending = 0>
__device__ __forceinline__ void wait_async() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#endif
}

__device__ __forceinline__ void sync_block() { __syncthreads(); }
__device__ __forceinline__ void sync_warp(unsigned mask = kAllLanes) { __syncwarp(mask); }

template <class T>
__device__ __forceinline__ T shuffle(T value, int lane, unsigned mask = kAllLanes) {
  return __shfl_sync(mask, value, lane);
}
template <class T>
__device__ __forceinline__ T shuffle_xor(T value, int lanes, unsigned mask = kAllLanes) {
  return __shfl_xor_sync(mask, value, lanes);
}
// From the lane that many further on; the last lanes keep their own value.
template <class T>
__device__ __forceinline__ T shuffle_down(T value, int lanes, unsigned mask = kAllLanes) {
  return __shfl_down_sync(mask, value, lanes);
}
__device__ __forceinline__ unsigned ballot(bool predicate, unsigned mask = kAllLanes) {
  return __ballot_sync(mask, predicate);
}

template <class T>
__device__ __forceinline__ T atomic_add(T* pointer, T value) {
  return atomicAdd(pointer, value);
}
__device__ __forceinline__ void fence_device() { __threadfence(); }

}  // namespace dctps

#endif

namespace dctps {

// load and store of a single element.
template <Cache cache = Cache::normal, class T>
__device__ __forceinline__ T load(const T* pointer DCTPS_SITE) {
  return load<1, cache>(pointer DCTPS_AT)[0];
}
template <Cache cache = Cache::normal, class T>
__device__ __forceinline__ void store(T* pointer, const std::type_identity_t<T>& value DCTPS_SITE) {
  store<1, cache>(
      pointer, Pack<T, 1> {
        {
          value
        }
      } DCTPS_AT);
}

// Launches of more than 2^31-1 blocks are rounded up to a rectangle: a few blocks see a number beyond those asked for,
// and must return.
__device__ __forceinline__ int64_t block_index() { return blockIdx.x + int64_t(gridDim.x) * blockIdx.y; }

}  // namespace dctps
