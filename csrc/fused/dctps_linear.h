// Arguments of the fused linear layer y = alpha D x + S x + b and of its backward pass; each part may be left
// out, so that dct, idct, sparse_linear, its transpose and the SDDMM are the same two kernels.
#pragma once

#include "common/isa.h"
#include "common/types.h"
#include "fused/parameter_sums.h"
#include "sparse/sparse.h"

namespace dctps {

// Rows of a matrix: element i of row b is data[b * row_stride + i * stride], strides in elements.
struct Rows {
  void* data = nullptr;
  int64_t row_stride = 0, stride = 1;
};

// y[b] = alpha D x[b] + S x[b] + bias
struct LinearForwardArgs {
  DType dtype;
  int64_t rows;                 // batch
  int64_t m, n;                 // y has m columns, x has n
  Rows x = {}, y = {};          // of dtype
  const void* alpha = nullptr;  // [1], accumulator type; null: no DCT part
  SparseMatrix s = {};          // nnz = 0: no sparse part
  const void* bias = nullptr;   // [m], accumulator type; may be null
};

// dx[b] = alpha D^T dy[b] + S^T dy[b];  dvalues[t] = sum_b dy[b, row t] x[b, col t];  dbias = sum_b dy[b];
// dalpha = sum_b <D^T dy[b], x[b]>. Null outputs are not computed.
struct LinearBackwardArgs {
  DType dtype;
  int64_t rows;
  int64_t m, n;
  Rows dy = {}, x = {};  // x is read only for dvalues and dalpha
  Rows dx = {};
  const void* alpha = nullptr;
  SparseMatrix s = {};
  ParameterSums sums = {};
};

DCTPS_CPU_KERNEL(linear_forward_cpu, LinearForwardArgs)
DCTPS_CPU_KERNEL(linear_backward_cpu, LinearBackwardArgs)

}  // namespace dctps
