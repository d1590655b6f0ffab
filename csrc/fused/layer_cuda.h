// Linear layers with a sparse part, or with sums over the batch, on a GPU: in which form, and the launches.
#pragma once

#include "fused/cuda_context.h"
#include "fused/dctps_linear.h"

namespace dctps {

// Whether every row starts at a multiple of 16 bytes and is contiguous.
inline bool takes_vectors(const Rows& matrix, int64_t rows, int64_t element_bytes) {
  return matrix.stride == 1 && reinterpret_cast<uintptr_t>(matrix.data) % 16 == 0 &&
         (rows <= 1 || matrix.row_stride * element_bytes % 16 == 0);
}

// linear_forward_cuda and linear_backward_cuda for such layers.
int64_t layer_forward_scratch(const LinearForwardArgs& args, const DeviceLimits& limits);
void layer_forward_cuda(const LinearForwardArgs& args, const CudaContext& context);
int64_t layer_backward_scratch(const LinearBackwardArgs& args, const DeviceLimits& limits);
void layer_backward_cuda(const LinearBackwardArgs& args, const CudaContext& context);

// The DCT part alone, in dctps_linear_cuda.cu: y = alpha D x, dx = D^T dy alpha. The output is of the accumulator's type
// if `wide`, else of args.dtype.
int64_t dct_forward_scratch(const LinearForwardArgs& args, const DeviceLimits& limits);
void dct_forward_cuda(const LinearForwardArgs& args, bool wide, const CudaContext& context);
int64_t dct_backward_scratch(const LinearBackwardArgs& args, const DeviceLimits& limits);
void dct_backward_cuda(const LinearBackwardArgs& args, bool wide, const CudaContext& context);

}  // namespace dctps
