// The ops dct and idct: orthonormal DCT-II of the zero-padded input, truncated, and its transpose.
#include "dct/dct.h"

#include "fused/linear_rows.h"

namespace dctps {
namespace {

void check(const char* op, const char* name, const Tensor& tensor, const char* size_name, int64_t size) {
  TORCH_CHECK_VALUE(tensor.dim() >= 1, op, ": ", name,
                    ": expected at least one dimension, got a 0-dimensional tensor");
  check_size(op, (std::string(name) + "'s last dimension").c_str(), tensor.size(-1));
  check_size(op, size_name, size);
}

}  // namespace

Tensor dct(const Tensor& x, int64_t out_features) {
  const DType dtype = check_dtype("dct", "x", x);
  check("dct", "x", x, "out_features", out_features);
  Tensor y = empty_with_last(x, out_features);
  const RowsOperand rows(x);
  linear_forward("dct", x,
                 {.dtype = dtype,
                  .rows = rows.rows(),
                  .m = out_features,
                  .n = x.size(-1),
                  .x = rows.view,
                  .y = output_rows(y),
                  .has_dct = true});
  return y;
}

Tensor idct(const Tensor& v, int64_t in_features) {
  const DType dtype = check_dtype("idct", "v", v);
  check("idct", "v", v, "in_features", in_features);
  Tensor x = empty_with_last(v, in_features);
  const RowsOperand rows(v);
  linear_backward("idct", v,
                  {.dtype = dtype,
                   .rows = rows.rows(),
                   .m = v.size(-1),
                   .n = in_features,
                   .dy = rows.view,
                   .dx = output_rows(x),
                   .has_dct = true});
  return x;
}

DCTPS_REGISTER(library) {
  library.impl("dct", &dct);
  library.impl("idct", &idct);
}

}  // namespace dctps
