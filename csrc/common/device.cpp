// Asks torch about the device of an op's tensors.
#include "common/device.h"

#if defined(DCTPS_WITH_CUDA) && !defined(DCTPS_EMULATED)
#include <ATen/cuda/CUDAContext.h>
#endif

#include <array>
#include <mutex>

namespace dctps {

#ifdef DCTPS_EMULATED

namespace {
bool is_emulated = false;
// An H200's. Tests set others through the emulator.
DeviceLimits emulated_limits{
    .major = 9, .minor = 0, .sm_count = 132, .shared_bytes_per_block = 232448, .shared_bytes_per_sm = 233472};
}  // namespace

bool emulated() { return is_emulated; }
void set_emulated(bool on) { is_emulated = on; }
void set_emulated_limits(const DeviceLimits& limits) { emulated_limits = limits; }
bool takes_cuda_kernels(const at::Device& device) { return device.is_cpu() && is_emulated; }
CudaScope::CudaScope(const char*, const Tensor&) : limits_(&emulated_limits) {}

#else

bool takes_cuda_kernels(const at::Device& device) { return device.is_cuda(); }

#ifdef DCTPS_WITH_CUDA

namespace {

constexpr int kOldestMajor = 7, kOldestMinor = 5;

// Properties never change, so they are asked for once.
const DeviceLimits& limits_of(int device) {
  static std::mutex mutex;
  static std::array<DeviceLimits, C10_COMPILE_TIME_MAX_GPUS> known;
  std::lock_guard<std::mutex> lock(mutex);
  DeviceLimits& limits = known[size_t(device)];
  if (limits.major == 0) {
    const cudaDeviceProp& properties = *at::cuda::getDeviceProperties(device);
    limits = {.major = properties.major,
              .minor = properties.minor,
              .sm_count = properties.multiProcessorCount,
              .shared_bytes_per_block = int(properties.sharedMemPerBlockOptin),
              .shared_bytes_per_sm = int(properties.sharedMemPerMultiprocessor)};
  }
  return limits;
}

}  // namespace

CudaScope::CudaScope(const char* op, const Tensor& like)
    : guard_(like.device()),
      stream_(at::cuda::getCurrentCUDAStream(like.get_device()).stream()),
      limits_(&limits_of(like.get_device())) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      limits_->major > kOldestMajor || (limits_->major == kOldestMajor && limits_->minor >= kOldestMinor), op,
      ": expected a GPU of compute capability ", kOldestMajor, ".", kOldestMinor, " or newer, got ",
      limits_->major, ".", limits_->minor, " (", at::cuda::getDeviceProperties(like.get_device())->name, ")");
}

#endif
#endif

}  // namespace dctps
