// The ops dct and idct: orthonormal DCT-II of the zero-padded input, truncated, and its transpose.
#include "dct/dct.h"

#include "fused/linear_rows.h"

namespace dctps {
namespace {

// The alpha of the plain transforms, in the accumulator's type.
const void* one(DType dtype) {
  static constexpr float as_float = 1;
  static constexpr double as_double = 1;
  return dtype == DType::f64 ? static_cast<const void*>(&as_double) : &as_float;
}

void check(const char* op, const char* name, const Tensor& tensor, const char* size_name, int64_t size) {
  TORCH_CHECK_VALUE(tensor.dim() >= 1, op, ": ", name,
                    ": expected at least one dimension, got a 0-dimensional tensor");
  check_size(op, (std::string(name) + "'s last dimension").c_str(), tensor.size(-1));
  check_size(op, size_name, size);
}

}  // namespace

Tensor dct_cpu(const Tensor& x, int64_t out_features) {
  const DType dtype = check_dtype("dct", "x", x);
  check("dct", "x", x, "out_features", out_features);
  Tensor y = empty_with_last(x, out_features);
  const RowsOperand rows(x);
  linear_forward_cpu({.dtype = dtype,
                      .rows = rows.rows(),
                      .m = out_features,
                      .n = x.size(-1),
                      .x = rows.view,
                      .y = output_rows(y),
                      .alpha = one(dtype)});
  return y;
}

Tensor idct_cpu(const Tensor& v, int64_t in_features) {
  const DType dtype = check_dtype("idct", "v", v);
  check("idct", "v", v, "in_features", in_features);
  Tensor x = empty_with_last(v, in_features);
  const RowsOperand rows(v);
  linear_backward_cpu({.dtype = dtype,
                       .rows = rows.rows(),
                       .m = v.size(-1),
                       .n = in_features,
                       .dy = rows.view,
                       .dx = output_rows(x),
                       .alpha = one(dtype)});
  return x;
}

TORCH_LIBRARY_IMPL(dctps_ext, CPU, library) {
  library.impl("dct", &dct_cpu);
  library.impl("idct", &idct_cpu);
}

}  // namespace dctps
