// The gradients of a fused layer's parameters, as its backward kernels add them up.
#pragma once

namespace dctps {

// Sums over the batch. They come in as zeros; null ones are not computed.
struct ParameterSums {
  void* scratch = nullptr;   // accumulator type, for the kernel's own use; its size is said beside the kernel
  void* dvalues = nullptr;   // [nnz], accumulator type
  double* dalpha = nullptr;  // [1], in double because it sums rows * n products
  void* dbias = nullptr;     // [m], accumulator type
};

}  // namespace dctps
