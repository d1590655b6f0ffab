// The two kernels of the linear ops, CPU or CUDA: the plan and the scratch memory they need, and the choice between them.
#include "fused/linear_rows.h"

#include <ATen/ops/empty.h>

#ifdef DCTPS_WITH_CUDA
#include "fused/on_gpu.h"
#include "plan/device_plan.h"
#endif

namespace dctps {
namespace {

#ifdef DCTPS_WITH_CUDA
template <class Args, class ScratchBytes, class Launch>
void rows_on_gpu(const char* op, const Tensor& like, const Args& args, const ScratchBytes& scratch_bytes,
                 const Launch& launch) {
  const int64_t q = args.m > args.n ? args.m : args.n;
  const auto plan = args.has_dct ? get_device_plan(q, args.dtype, like) : nullptr;
  on_gpu(
      op, like, args, plan.get(), nullptr,
      [&](const DeviceLimits& limits) { return scratch_bytes(args, limits); }, launch);
}
#endif

}  // namespace

void linear_forward(const char* op, const Tensor& like, const LinearForwardArgs& args) {
  if (args.rows == 0) return;
#ifdef DCTPS_WITH_CUDA
  if (takes_cuda_kernels(like.device())) {
    return rows_on_gpu(op, like, args, linear_forward_cuda_scratch, linear_forward_cuda);
  }
#endif
  static_cast<void>(op), static_cast<void>(like);
  linear_forward_cpu(args);
}

void linear_backward(const char* op, const Tensor& like, LinearBackwardArgs args) {
  if (args.rows == 0) return;
#ifdef DCTPS_WITH_CUDA
  if (takes_cuda_kernels(like.device())) {
    return rows_on_gpu(op, like, args, linear_backward_cuda_scratch, linear_backward_cuda);
  }
#endif
  static_cast<void>(op);
  const auto type = accumulator_type(args.dtype);
  const int64_t entries = BatchSums(args.rows, args.s.nnz + args.m).scratch_entries(args.m, args.s.nnz);
  const Tensor scratch = at::empty({entries}, like.options().dtype(type));
  args.sums.scratch = scratch.mutable_data_ptr();
  linear_backward_cpu(args);
}

}  // namespace dctps
