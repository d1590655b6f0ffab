// The sparse part of a linear layer in kernels of its own: without a DCT part, or with one that was computed before.
#pragma once

#include "fused/cuda_context.h"
#include "fused/dctps_linear.h"

namespace dctps {

// The layer as its arguments say, but for the DCT part, which is given: transformed [rows][m], D x in the accumulator's
// type, null where there is none. It may be y itself where the types agree.
void sparse_forward_cuda(const LinearForwardArgs& args, const void* transformed, const CudaContext& context);

// Likewise; transformed [rows][n] is D^T dy and may be dx itself. context.scratch: sparse_backward_scratch bytes.
void sparse_backward_cuda(const LinearBackwardArgs& args, const void* transformed, const CudaContext& context);
int64_t sparse_backward_scratch(const LinearBackwardArgs& args);

}  // namespace dctps
