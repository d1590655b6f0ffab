// What a CUDA entry point needs beside its arguments. Torch-free.
#pragma once

#include <cstdint>

#include "common/device_limits.h"

namespace dctps {

struct DevicePlan;
struct DeviceTapPlan;

struct CudaContext {
  void* stream;  // cudaStream_t
  DeviceLimits limits;
  const DevicePlan* plan;     // of length max(m, n); null where there is no DCT part
  const DeviceTapPlan* taps;  // of a convolution with a DCT part, else null
  void* scratch;              // as many bytes as the entry point's *_scratch function asked for
};

}  // namespace dctps
