// A tensor [..., size] as the rows that the linear kernels take; shared by all ops that run on them.
#pragma once

#include <ATen/ops/empty.h>

#include "common/device.h"
#include "common/huge_pages.h"
#include "fused/dctps_linear.h"

namespace dctps {

// Keeps alive what `view` points to: the tensor itself, or a copy where its leading dimensions have no common
// stride.
struct RowsOperand {
  Tensor matrix;  // [rows, size]
  Rows view;

  explicit RowsOperand(const Tensor& tensor)
      : matrix(tensor.dim() == 2   ? tensor  // itself: a view would cost as much as a tiny product
               : tensor.dim() == 1 ? tensor.unsqueeze(0)
                                   : tensor.reshape({-1, tensor.size(-1)})) {
    view = {matrix.numel() ? const_cast<void*>(matrix.const_data_ptr()) : nullptr, matrix.stride(0),
            matrix.stride(1)};
  }
  int64_t rows() const { return matrix.size(0); }
};

// A new contiguous tensor of the shape of `like`, its last dimension replaced.
inline Tensor empty_with_last(const Tensor& like, int64_t size) {
  auto shape = like.sizes().vec();
  shape.back() = size;
  Tensor fresh = at::empty(shape, like.options().memory_format(at::MemoryFormat::Contiguous));
  hint_huge_pages(fresh);
  return fresh;
}

inline Rows output_rows(const Tensor& output) {
  return {output.numel() ? output.mutable_data_ptr() : nullptr, output.size(-1), 1};
}

// Run the kernel of like's device, with the plan and the scratch memory that it needs.
void linear_forward(const char* op, const Tensor& like, const LinearForwardArgs& args);
void linear_backward(const char* op, const Tensor& like, LinearBackwardArgs args);

}  // namespace dctps
