// Argument checks shared by all ops, and their error messages.
#include "common/check.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

namespace dctps {

namespace {
constexpr int64_t kLargestSize = int64_t(1) << 28;  // plans number their entries with int32
}

DType check_dtype(const char* op, const char* name, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kDouble:
      return DType::f64;
    case at::kFloat:
      return DType::f32;
    case at::kHalf:
      return DType::f16;
    case at::kBFloat16:
      return DType::bf16;
    default:
      TORCH_CHECK_TYPE(false, op, ": ", name, ": expected dtype float64, float32, float16 or bfloat16, got ",
                       tensor.scalar_type());
  }
}

void check_like(const char* op, const char* name, const Tensor& tensor, const char* like_name,
                const Tensor& like) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == like.scalar_type(), op, ": ", name, ": expected the dtype of ",
                   like_name, ", ", like.scalar_type(), ", got ", tensor.scalar_type());
  TORCH_CHECK_VALUE(tensor.device() == like.device(), op, ": ", name, ": expected a tensor on the device of ",
                    like_name, ", ", like.device(), ", got one on ", tensor.device());
}

void check_shape(const char* op, const char* name, const Tensor& tensor, at::IntArrayRef shape) {
  TORCH_CHECK_VALUE(tensor.sizes() == shape, op, ": ", name, ": expected shape ", shape, ", got ",
                    tensor.sizes());
}

void check_size(const char* op, const char* name, int64_t size) {
  TORCH_CHECK_VALUE(size >= 1 && size <= kLargestSize, op, ": ", name, ": expected a size from 1 to ",
                    kLargestSize, ", got ", size);
}

void check_last_dimension(const char* op, const char* name, const Tensor& tensor, int64_t size) {
  TORCH_CHECK_VALUE(tensor.dim() >= 1 && tensor.size(-1) == size, op, ": ", name,
                    ": expected a last dimension of size ", size, ", got shape ", tensor.sizes());
}

at::ScalarType accumulator_type(DType dtype) { return dtype == DType::f64 ? at::kDouble : at::kFloat; }

SparseOperand::SparseOperand(const char* op, const Tensor& values_argument, const Tensor& index_argument,
                             int64_t m, int64_t n, const Tensor& like)
    : index(index_argument) {
  check_size(op, "support rows", m);
  check_size(op, "support columns", n);
  TORCH_CHECK_TYPE(index.scalar_type() == at::kInt && index.dim() == 1 && index.is_contiguous(), op,
                   ": support: expected its index to be a contiguous 1-D int32 tensor, got ",
                   index.scalar_type(), " of shape ", index.sizes());
  TORCH_CHECK_VALUE(index.device() == like.device(), op, ": support: expected it on ", like.device(),
                    ", got ", index.device(), "; move it with support.to(device)");
  const int64_t nnz = (index.numel() - (m + 1) - (n + 1)) / 3;
  TORCH_CHECK_VALUE(nnz >= 0 && m + n + 2 + 3 * nnz == index.numel(), op,
                    ": support: expected the index of a support of shape (", m, ", ", n, "), got one of ",
                    index.numel(), " entries, which belongs to another shape");
  if (values_argument.defined()) {
    check_like(op, "values", values_argument, "the input", like);
    check_shape(op, "values", values_argument, {nnz});
    values = values_argument.to(accumulator_type(check_dtype(op, "values", like))).contiguous();
  }
  matrix.m = m;
  matrix.n = n;
  matrix.nnz = nnz;
  matrix.crow = index.const_data_ptr<int32_t>();
  matrix.col = matrix.crow + m + 1;
  matrix.ccol = matrix.col + nnz;
  matrix.row = matrix.ccol + n + 1;
  matrix.perm = matrix.row + nnz;
  // What a GPU holds cannot be looked at without waiting for it.
  TORCH_CHECK_VALUE(!index.is_cpu() || (matrix.crow[0] == 0 && matrix.crow[m] == nnz && matrix.ccol[0] == 0 &&
                                        matrix.ccol[n] == nnz),
                    op, ": support: expected the index of a support of shape (", m, ", ", n, ") with ", nnz,
                    " entries, got one whose row and column starts do not fit");
  matrix.values = values.defined() ? values.const_data_ptr() : nullptr;
}

Operand::Operand(const char* op, const char* name, const OptionalTensor& argument, at::IntArrayRef shape,
                 const Tensor& like) {
  if (!argument || !argument->defined()) return;
  check_like(op, name, *argument, "the input", like);
  check_shape(op, name, *argument, shape);
  tensor = argument->to(accumulator_type(check_dtype(op, name, like))).contiguous();
}

ParameterGradients::ParameterGradients(std::array<bool, 4> output_mask, const SparseOperand& s,
                                       bool has_alpha, const Tensor& like) {
  const auto options = like.options().dtype(accumulator_type(check_dtype("backward", "dy", like)));
  if (output_mask[1]) dvalues = at::zeros({s.matrix.nnz}, options);
  if (output_mask[2] && has_alpha) dalpha = at::zeros({}, options.dtype(at::kDouble));
  if (output_mask[3]) dbias = at::zeros({s.matrix.m}, options);
}

ParameterSums ParameterGradients::sums() const {
  auto data = [](const Tensor& tensor) { return tensor.defined() ? tensor.mutable_data_ptr() : nullptr; };
  return {.dvalues = data(dvalues), .dalpha = static_cast<double*>(data(dalpha)), .dbias = data(dbias)};
}

std::tuple<Tensor, Tensor, Tensor> ParameterGradients::finished(const Tensor& like) const {
  auto result = [&](const Tensor& tensor) {
    return tensor.defined() ? tensor.to(like.scalar_type()) : at::empty({0}, like.options());
  };
  return {result(dvalues), result(dalpha), result(dbias)};
}

}  // namespace dctps
