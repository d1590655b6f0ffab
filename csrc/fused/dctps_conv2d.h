// Arguments of the fused convolution y = alpha D patch(x) + S patch(x) + b and of its backward pass.
#pragma once

#include "common/isa.h"
#include "common/types.h"
#include "fused/parameter_sums.h"
#include "sparse/sparse.h"

namespace dctps {

// A batch of images, any memory format: strides in elements for image, row, column and channel.
struct Images {
  void* data = nullptr;
  int64_t channels = 0, height = 0, width = 0;
  int64_t image_stride = 0, row_stride = 0, column_stride = 0, channel_stride = 0;

  int64_t values(int64_t batch) const { return batch * channels * height * width; }
};

// A patch is flattened in the order (kernel row, kernel column, channel of the group): n = kernel_height *
// kernel_width * C/groups.
struct ConvGeometry {
  int64_t kernel_height, kernel_width, stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x,
      groups;
};

struct Conv2dForwardArgs {
  DType dtype;
  int64_t batch;
  ConvGeometry geometry;
  Images x = {}, y = {};        // of dtype; y.channels = m
  const void* alpha = nullptr;  // [1], accumulator type; null: no DCT part
  SparseMatrix s = {};          // [m x n]
  const void* bias = nullptr;   // [m], accumulator type; may be null
};

// The gradients of dctps_linear.h, for patches. Null outputs are not computed. The scratch has nnz entries.
struct Conv2dBackwardArgs {
  DType dtype;
  int64_t batch;
  ConvGeometry geometry;
  Images dy = {}, x = {}, dx = {};  // x.data is read only for dvalues and dalpha
  const void* alpha = nullptr;
  SparseMatrix s = {};
  ParameterSums sums = {};
};

DCTPS_CPU_KERNEL(conv2d_forward_cpu, Conv2dForwardArgs)
DCTPS_CPU_KERNEL(conv2d_backward_cpu, Conv2dBackwardArgs)
DCTPS_CPU_KERNEL(conv2d_taps_forward_cpu, Conv2dForwardArgs)
DCTPS_CPU_KERNEL(conv2d_taps_backward_cpu, Conv2dBackwardArgs)
DCTPS_CPU_KERNEL(conv2d_direct_forward_cpu, Conv2dForwardArgs)
DCTPS_CPU_KERNEL(conv2d_direct_backward_cpu, Conv2dBackwardArgs)

// The same on a GPU, in the tap form; every pointer is to its memory. Bytes of CudaContext::scratch first. The sums over
// the batch leave dbias out: no product of this kernel needs dy's sums.
struct CudaContext;
struct DeviceTapPlan;
struct DeviceLimits;
void conv2d_forward_cuda(const Conv2dForwardArgs& args, const CudaContext& context);
int64_t conv2d_backward_cuda_scratch(const Conv2dBackwardArgs& args, const DeviceTapPlan* taps,
                                     const DeviceLimits& limits);
void conv2d_backward_cuda(const Conv2dBackwardArgs& args, const CudaContext& context);

}  // namespace dctps
