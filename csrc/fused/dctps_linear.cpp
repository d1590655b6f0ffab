// The op dctps_linear, y = alpha D x + S x + b, and its backward op.
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>

#include <tuple>

#include "fused/dense_form.h"
#include "fused/linear_rows.h"

namespace dctps {

Tensor dctps_linear(const Tensor& x, const Tensor& values, const Tensor& index, const OptionalTensor& alpha,
                    const OptionalTensor& bias, int64_t m, int64_t n, c10::string_view algorithm) {
  const char* op = "dctps_linear";
  const DType dtype = check_dtype(op, "x", x);
  check_last_dimension(op, "x", x, n);
  const SparseOperand s(op, values, index, m, n, x);
  const Operand alpha_operand(op, "alpha", alpha, {}, x), bias_operand(op, "bias", bias, {m}, x);
  const LayerWork work{
      .rows = x.numel() / n, .m = m, .n = n, .nnz = s.matrix.nnz, .has_dct = alpha_operand.given()};
  if (choose_form(op, algorithm, work, x) == Form::dense) {
    const NoAutocast guard;
    return at::linear(x, dense_weight(s, alpha_operand, x), bias);
  }
  Tensor y = empty_with_last(x, m);
  const RowsOperand rows(x);
  linear_forward(op, x,
                 {.dtype = dtype,
                  .rows = rows.rows(),
                  .m = m,
                  .n = n,
                  .x = rows.view,
                  .y = output_rows(y),
                  .has_dct = alpha_operand.given(),
                  .alpha = alpha_operand.data(),
                  .s = s.matrix,
                  .bias = bias_operand.data()});
  return y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> dctps_linear_backward(const Tensor& dy, const Tensor& x,
                                                                 const Tensor& values, const Tensor& index,
                                                                 const OptionalTensor& alpha, int64_t m,
                                                                 int64_t n, c10::string_view algorithm,
                                                                 std::array<bool, 4> output_mask) {
  const char* op = "dctps_linear_backward";
  const DType dtype = check_dtype(op, "dy", dy);
  check_like(op, "x", x, "dy", dy);
  check_last_dimension(op, "dy", dy, m);
  check_last_dimension(op, "x", x, n);
  TORCH_CHECK_VALUE(dy.sizes().slice(0, dy.dim() - 1) == x.sizes().slice(0, x.dim() - 1), op,
                    ": dy: expected the leading dimensions of x, ", x.sizes(), ", got ", dy.sizes());
  const SparseOperand s(op, values, index, m, n, dy);
  const Operand alpha_operand(op, "alpha", alpha, {}, dy);
  const bool wants_dx = output_mask[0];
  const LayerWork work{.rows = x.numel() / n,
                       .m = m,
                       .n = n,
                       .nnz = s.matrix.nnz,
                       .has_dct = alpha_operand.given(),
                       .is_backward = true};
  if (choose_form(op, algorithm, work, x) == Form::dense) {
    const NoAutocast guard;
    const Tensor dy_rows = dy.reshape({-1, m}), x_rows = x.reshape({-1, n}),
                 nothing = at::empty({0}, x.options());
    const Tensor dx =
        wants_dx ? at::matmul(dy_rows, dense_weight(s, alpha_operand, x)).view(x.sizes()) : nothing;
    const bool wants_weight = output_mask[1] || output_mask[2];
    const auto [dvalues, dalpha] = gradients_of_dense_weight(
        wants_weight ? at::matmul(dy_rows.t(), x_rows) : nothing, s, alpha_operand, output_mask);
    return {dx, dvalues, dalpha, output_mask[3] ? dy_rows.sum(0) : nothing};
  }
  const Tensor dx = wants_dx ? empty_with_last(x, n) : at::empty({0}, x.options());
  const ParameterGradients gradients(output_mask, s, alpha_operand.given(), dy);
  const RowsOperand dy_rows(dy), x_rows(x);
  linear_backward(op, dy,
                  {.dtype = dtype,
                   .rows = dy_rows.rows(),
                   .m = m,
                   .n = n,
                   .dy = dy_rows.view,
                   .x = x_rows.view,
                   .dx = wants_dx ? output_rows(dx) : Rows{},
                   .has_dct = alpha_operand.given(),
                   .alpha = alpha_operand.data(),
                   .s = s.matrix,
                   .sums = gradients.sums()});
  return std::tuple_cat(std::make_tuple(dx), gradients.finished(dy));
}

DCTPS_REGISTER(library) {
  library.impl("dctps_linear", &dctps_linear);
  library.impl("dctps_linear_backward", &dctps_linear_backward);
}

}  // namespace dctps
