// What every op checks about its tensors, and how they become the plain pointers that kernels take. The only
// place where arguments are validated: kernels trust them.
#pragma once

#include <torch/library.h>
#include <torch/types.h>

#include <optional>
#include <string>

#include "common/types.h"
#include "sparse/sparse.h"

namespace dctps {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Messages read "<op>: <argument>: expected ..., got ...".
DType check_dtype(const char* op, const char* name, const Tensor& tensor);
// The same dtype and device as `like`.
void check_like(const char* op, const char* name, const Tensor& tensor, const char* like_name,
                const Tensor& like);
void check_shape(const char* op, const char* name, const Tensor& tensor, at::IntArrayRef shape);
// 1 <= size <= the largest transform, for a matrix dimension.
void check_size(const char* op, const char* name, int64_t size);
void check_last_dimension(const char* op, const char* name, const Tensor& tensor, int64_t size);

at::ScalarType accumulator_type(DType dtype);

// S as kernels see it. `values` may be undefined, where only the support matters.
struct SparseOperand {
  Tensor values, index;  // keep the memory below alive
  SparseMatrix matrix;

  SparseOperand(const char* op, const Tensor& values, const Tensor& index, int64_t m, int64_t n,
                const Tensor& like);
};

// A vector or scalar operand in the accumulator's type, contiguous; undefined and null where the argument is
// absent.
struct Operand {
  Tensor tensor;

  Operand() = default;
  Operand(const char* op, const char* name, const OptionalTensor& argument, at::IntArrayRef shape,
          const Tensor& like);
  const void* data() const { return tensor.defined() ? tensor.const_data_ptr() : nullptr; }
};

// Zeros of that shape in the accumulator's type if wanted, else undefined: a sum for a kernel to add to.
Tensor zero_sums(bool wanted, at::IntArrayRef shape, const Tensor& like);
void* mutable_data_or_null(const Tensor& tensor);
// The sum in like's dtype; a tensor of no elements where it was not wanted.
Tensor finished_sums(const Tensor& sums, const Tensor& like);

}  // namespace dctps
