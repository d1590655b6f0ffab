// The device that an op's tensors are on: which kernels they take, the current stream, the limits that launches obey.
#pragma once

#include <torch/library.h>
#ifdef DCTPS_WITH_CUDA
#include <c10/core/DeviceGuard.h>
#endif

#include "common/check.h"
#include "common/device_limits.h"

// Registers the ops that the following block names, `library.impl(...)`, for the CPU and, in a CUDA build, the GPU.
#if defined(DCTPS_WITH_CUDA) && !defined(DCTPS_EMULATED)
#define DCTPS_REGISTER(library)                                                         \
  static void register_kernels(torch::Library& library);                                \
  TORCH_LIBRARY_IMPL(dctps_ext, CPU, cpu_library) { register_kernels(cpu_library); }    \
  TORCH_LIBRARY_IMPL(dctps_ext, CUDA, cuda_library) { register_kernels(cuda_library); } \
  static void register_kernels(torch::Library& library)
#else
#define DCTPS_REGISTER(library) TORCH_LIBRARY_IMPL(dctps_ext, CPU, library)
#endif

namespace dctps {

// Whether tensors on this device take the CUDA kernels: those on a GPU, and in the emulated build (tests/cuda_emulator)
// those on the CPU while emulation is on.
bool takes_cuda_kernels(const at::Device& device);

#ifdef DCTPS_EMULATED
bool emulated();
void set_emulated(bool on);
void set_emulated_limits(const DeviceLimits& limits);
#endif

#ifdef DCTPS_WITH_CUDA
// While one lives, its tensor's device is the current one. Refuses a GPU older than the kernels are built for.
class CudaScope {
 public:
  CudaScope(const char* op, const Tensor& like);
  void* stream() const { return stream_; }  // the current one
  const DeviceLimits& limits() const { return *limits_; }

 private:
  c10::OptionalDeviceGuard guard_;
  void* stream_ = nullptr;
  const DeviceLimits* limits_ = nullptr;
};
#endif

}  // namespace dctps
