// A tensor [..., size] as the rows that the linear kernels take; shared by all ops that run on them.
#pragma once

#include "common/check.h"
#include "fused/dctps_linear.h"

namespace dctps {

// Keeps alive what `view` points to: the tensor itself, or a copy where its leading dimensions have no common
// stride.
struct RowsOperand {
  Tensor matrix;  // [rows, size]
  Rows view;

  explicit RowsOperand(const Tensor& tensor)
      : matrix(tensor.dim() == 1 ? tensor.unsqueeze(0) : tensor.reshape({-1, tensor.size(-1)})) {
    view = {matrix.numel() ? const_cast<void*>(matrix.const_data_ptr()) : nullptr, matrix.stride(0),
            matrix.stride(1)};
  }
  int64_t rows() const { return matrix.size(0); }
};

// A new contiguous tensor of the shape of `like`, its last dimension replaced.
inline Tensor empty_with_last(const Tensor& like, int64_t size) {
  auto shape = like.sizes().vec();
  shape.back() = size;
  return at::empty(shape, like.options().memory_format(at::MemoryFormat::Contiguous));
}

inline Rows output_rows(const Tensor& output) {
  return {output.numel() ? output.mutable_data_ptr() : nullptr, output.size(-1), 1};
}

// Of ParameterSums::scratch, for a backward pass over dy [..., m] that wants sums.
inline int64_t backward_scratch_entries(const Tensor& dy, int64_t m, int64_t nnz) {
  return BatchSums(dy.numel() / m, nnz + m).scratch_entries(m, nnz);
}

}  // namespace dctps
