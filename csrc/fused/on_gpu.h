// Runs a CUDA entry point for an op: its tensors' device, stream and limits, scratch memory from torch's allocator.
#pragma once

#include <ATen/ops/empty.h>

#include "common/device.h"
#include "fused/cuda_context.h"
#ifdef DCTPS_EMULATED
#include "conv_memory.h"
#include "linear_memory.h"
#endif

namespace dctps {

// Calls launch(args, context) on like's device, with scratch_bytes(limits) bytes of scratch. The plans are null where
// there is no such part.
template <class Args, class ScratchBytes, class Launch>
void on_gpu(const char* op, const Tensor& like, const Args& args, const DevicePlan* plan,
            const DeviceTapPlan* taps, const ScratchBytes& scratch_bytes, const Launch& launch) {
  const CudaScope scope(op, like);
  const Tensor scratch =
      at::empty({scratch_bytes(scope.limits())},
                like.options().dtype(at::kByte).memory_format(at::MemoryFormat::Contiguous));
#ifdef DCTPS_EMULATED
  emulator::Memory memory;
  emulator::tell(memory, args);
  scratch.fill_(0xff);  // NaN, so that reading what was never written shows
  memory.add("scratch", scratch.const_data_ptr(), scratch.numel(), emulator::Memory::Access::read_write);
#endif
  launch(args, CudaContext{.stream = scope.stream(),
                           .limits = scope.limits(),
                           .plan = plan,
                           .taps = taps,
                           .scratch = scratch.mutable_data_ptr()});
}

}  // namespace dctps
