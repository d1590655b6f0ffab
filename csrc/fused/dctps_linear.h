// Arguments of the fused linear layer y = alpha D x + S x + b and of its backward pass; each part may be left
// out, so that dct, idct, sparse_linear, its transpose and the SDDMM are the same two kernels.
#pragma once

#include "common/integers.h"
#include "common/isa.h"
#include "common/types.h"
#include "fused/parameter_sums.h"
#include "sparse/sparse.h"

namespace dctps {

// Rows of a matrix: element i of row b is data[b * row_stride + i * stride], strides in elements. Where block > 0, rows
// come in blocks of so many, as pixels come in images: row b is row b % block of block b / block.
struct Rows {
  void* data = nullptr;
  int64_t row_stride = 0, stride = 1;
  int64_t block = 0, block_stride = 0;
};

// y[b] = alpha D x[b] + S x[b] + bias
struct LinearForwardArgs {
  DType dtype;
  int64_t rows;                 // batch
  int64_t m, n;                 // y has m columns, x has n
  Rows x = {}, y = {};          // of dtype
  bool has_dct = false;         // whether there is a DCT part
  const void* alpha = nullptr;  // [1], accumulator type; null: 1
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
  bool has_dct = false;
  const void* alpha = nullptr;
  SparseMatrix s = {};
  ParameterSums sums = {};
};

// How the backward pass sums over the batch, from the shape alone, so that bits do not depend on threads. Where it
// fits, the batch is cut into chunks with sums of their own, which are added up in order at the end: nobody waits.
// Otherwise all tiles add to one set of sums, one behind the other (OrderedSections).
struct BatchSums {
  static constexpr int64_t kChunkRows = 16, kMostChunks = 32, kFewestChunks = 8;
  static constexpr int64_t kMostBytes = 2 << 20;
  int64_t chunks = 0;  // 0: one set of sums

  BatchSums(int64_t rows, int64_t entries) {
    const int64_t blocks = ceil_div(rows, kChunkRows);
    const int64_t fitting = kMostBytes / int64_t(sizeof(float)) / (entries > 0 ? entries : 1);
    const int64_t most = blocks < kMostChunks ? blocks : kMostChunks;
    chunks = fitting < most ? fitting : most;
    if (chunks < most && chunks < kFewestChunks) chunks = 0;
  }

  // Entries of ParameterSums::scratch: the places, S's values in column order, [chunks][nnz + m].
  static constexpr int64_t place_entries(int64_t nnz) {
    return place_words(nnz) * int64_t(sizeof(uint64_t) / sizeof(float));
  }
  int64_t scratch_entries(int64_t m, int64_t nnz) const {
    return place_entries(nnz) + nnz + chunks * (nnz + m);
  }
};

inline int64_t narrow_rows(DType dtype) { return dtype == DType::f64 ? 4 : 8; }
inline Isa isa_for(const LinearForwardArgs& args) { return isa_for_rows(args.rows, narrow_rows(args.dtype)); }
inline Isa isa_for(const LinearBackwardArgs& args) {
  return isa_for_rows(args.rows, narrow_rows(args.dtype));
}
DCTPS_CPU_KERNEL(linear_forward_cpu, LinearForwardArgs)
DCTPS_CPU_KERNEL(linear_backward_cpu, LinearBackwardArgs)

// The same on a GPU; every pointer is to its memory. Bytes of CudaContext::scratch first.
struct CudaContext;
struct DeviceLimits;
int64_t linear_forward_cuda_scratch(const LinearForwardArgs& args, const DeviceLimits& limits);
void linear_forward_cuda(const LinearForwardArgs& args, const CudaContext& context);
int64_t linear_backward_cuda_scratch(const LinearBackwardArgs& args, const DeviceLimits& limits);
void linear_backward_cuda(const LinearBackwardArgs& args, const CudaContext& context);

}  // namespace dctps
