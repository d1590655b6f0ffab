// The ops dct and idct, for other ops to use.
#pragma once

#include "common/check.h"

namespace dctps {

Tensor dct(const Tensor& x, int64_t out_features);
Tensor idct(const Tensor& v, int64_t in_features);

}  // namespace dctps
