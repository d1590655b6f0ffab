// What every op checks about its tensors, and how they become the plain pointers that kernels take. The only
// place where arguments are validated: kernels trust them.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <string>
#include <tuple>

#include "common/types.h"
#include "fused/parameter_sums.h"
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
  bool given() const { return tensor.defined(); }
  const void* data() const { return tensor.defined() ? tensor.const_data_ptr() : nullptr; }
};

// The sums that a backward kernel fills, and the gradients made of them.
struct ParameterGradients {
  Tensor dvalues, dalpha, dbias;  // undefined where not wanted

  // output_mask: dx (not held here), dvalues, dalpha, dbias.
  ParameterGradients(std::array<bool, 4> output_mask, const SparseOperand& s, bool has_alpha,
                     const Tensor& like);
  ParameterSums sums() const;  // without scratch
  // In like's dtype; of no elements where not wanted.
  std::tuple<Tensor, Tensor, Tensor> finished(const Tensor& like) const;
};

}  // namespace dctps
