// The one way to launch a kernel: raises its limit of shared memory, launches, and turns failure into an exception.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace dctps {

struct Grid {
  int64_t blocks;        // 0: nothing is launched; from 2^31 on see block_index()
  int threads;           // per block; whole warps
  int shared_bytes = 0;  // dynamic shared memory per block
};

namespace detail {

constexpr int kSharedBytesWithoutAsking = 48 << 10;
constexpr int64_t kMostBlocks = (int64_t(1) << 31) - 1;  // of gridDim.x

#if !DCTPS_EMULATED
inline void check(cudaError_t status, const char* kernel, const char* what, const Grid& grid) {
  if (status == cudaSuccess) return;
  // Either of the first two, by the call that comes across it.
  const bool lacks_code = status == cudaErrorNoKernelImageForDevice ||
                          status == cudaErrorInvalidDeviceFunction ||
                          status == cudaErrorUnsupportedPtxVersion;
  const char* const hint = lacks_code
                               ? "; this build of dctps_ext has no code for this GPU: build it again with "
                                 "the GPU's compute capability in TORCH_CUDA_ARCH_LIST"
                               : "";
  throw std::runtime_error(std::string(kernel) + ": " + what + " failed for " + std::to_string(grid.blocks) +
                           " blocks of " + std::to_string(grid.threads) + " threads with " +
                           std::to_string(grid.shared_bytes) +
                           " bytes of shared memory: " + cudaGetErrorString(status) + hint);
}
#endif

}  // namespace detail

// Does not wait for the kernel, and can be captured in a graph. `stream` is a cudaStream_t.
template <class Args>
void launch(void (*kernel)(Args), const char* name, const Grid& grid, [[maybe_unused]] void* stream,
            const Args& args) {
  static_assert(std::is_trivially_copyable_v<Args> && sizeof(Args) <= 4096,
                "launch: a kernel's arguments are one plain struct, passed by value, of up to 4096 bytes");
  if (grid.blocks <= 0) return;
#if DCTPS_EMULATED
  emulator::launch(kernel, name, grid.blocks, grid.threads, grid.shared_bytes, args);
#else
  if (grid.shared_bytes > detail::kSharedBytesWithoutAsking) {
    detail::check(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, grid.shared_bytes), name,
        "asking for shared memory", grid);
  }
  const int64_t y = (grid.blocks + detail::kMostBlocks - 1) / detail::kMostBlocks;
  const int64_t x = (grid.blocks + y - 1) / y;
  Args copy = args;
  void* parameters[] = {&copy};
  detail::check(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(unsigned(x), unsigned(y)),
                                 dim3(unsigned(grid.threads)), parameters, size_t(grid.shared_bytes),
                                 static_cast<cudaStream_t>(stream)),
                name, "launch", grid);
#endif
}

}  // namespace dctps
