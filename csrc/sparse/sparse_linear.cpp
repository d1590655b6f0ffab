// The ops of S alone: sparse_linear (CSR SpMM), its transpose, and sddmm, the gradient of the values.
#include "fused/linear_rows.h"

namespace dctps {

Tensor sparse_linear(const Tensor& x, const Tensor& values, const Tensor& index, int64_t m, int64_t n) {
  const char* op = "sparse_linear";
  const DType dtype = check_dtype(op, "x", x);
  check_last_dimension(op, "x", x, n);
  const SparseOperand s(op, values, index, m, n, x);
  Tensor y = empty_with_last(x, m);
  const RowsOperand rows(x);
  linear_forward(op, x,
                 {.dtype = dtype,
                  .rows = rows.rows(),
                  .m = m,
                  .n = n,
                  .x = rows.view,
                  .y = output_rows(y),
                  .s = s.matrix});
  return y;
}

Tensor sparse_linear_transposed(const Tensor& v, const Tensor& values, const Tensor& index, int64_t m,
                                int64_t n) {
  const char* op = "sparse_linear_transposed";
  const DType dtype = check_dtype(op, "v", v);
  check_last_dimension(op, "v", v, m);
  const SparseOperand s(op, values, index, m, n, v);
  Tensor x = empty_with_last(v, n);
  const RowsOperand rows(v);
  linear_backward(op, v,
                  {.dtype = dtype,
                   .rows = rows.rows(),
                   .m = m,
                   .n = n,
                   .dy = rows.view,
                   .dx = output_rows(x),
                   .s = s.matrix});
  return x;
}

Tensor sddmm(const Tensor& v, const Tensor& x, const Tensor& index, int64_t m, int64_t n) {
  const char* op = "sddmm";
  const DType dtype = check_dtype(op, "v", v);
  check_like(op, "x", x, "v", v);
  check_last_dimension(op, "v", v, m);
  check_last_dimension(op, "x", x, n);
  TORCH_CHECK_VALUE(v.sizes().slice(0, v.dim() - 1) == x.sizes().slice(0, x.dim() - 1), op,
                    ": x: expected the leading dimensions of v, ", v.sizes(), ", got ", x.sizes());
  const SparseOperand s(op, {}, index, m, n, v);
  const ParameterGradients gradients({false, true, false, false}, s, false, v);
  const RowsOperand v_rows(v), x_rows(x);
  linear_backward(op, v,
                  {.dtype = dtype,
                   .rows = v_rows.rows(),
                   .m = m,
                   .n = n,
                   .dy = v_rows.view,
                   .x = x_rows.view,
                   .s = s.matrix,
                   .sums = gradients.sums()});
  return std::get<0>(gradients.finished(v));
}

DCTPS_REGISTER(library) {
  library.impl("sparse_linear", &sparse_linear);
  library.impl("sparse_linear_transposed", &sparse_linear_transposed);
  library.impl("sddmm", &sddmm);
}

}  // namespace dctps
