// Stands in for CUDA's header of this name where a host compiler builds the kernels (see emulator.h). Memory, barriers
// and warps are absent on purpose: kernels reach them through common/vec.cuh alone.
#pragma once

#include <cmath>
#include <cstdint>

#include "emulator.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) alignas(bytes)

struct uint3 {
  unsigned x, y, z;
};

// Set by the scheduler whenever it lets a thread of a block run. initial-exec: read often, and much cheaper so.
#define DCTPS_EMULATED_REGISTER inline constinit thread_local uint3 __attribute__((tls_model("initial-exec")))
DCTPS_EMULATED_REGISTER threadIdx{}, blockIdx{}, blockDim{}, gridDim{};
#undef DCTPS_EMULATED_REGISTER

template <class T>
T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
T max(T a, T b) {
  return a < b ? b : a;
}
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
