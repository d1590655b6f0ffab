// The materialised form of a layer, W = alpha D + S as a matrix for torch's own GEMM or convolution, and the rule that
// says when it is the faster one.
#pragma once

#include <c10/core/impl/LocalDispatchKeySet.h>

#include "common/check.h"
#include "patch/tap_plan.h"

namespace dctps {

// While one lives, torch's ops keep the dtype they are given, as the package's own kernels do.
struct NoAutocast {
  c10::impl::ExcludeDispatchKeyGuard guard{c10::autocast_dispatch_keyset};
};

// The work of one call: `rows` vectors (patches) through a layer of m x n.
struct LayerWork {
  int64_t rows, m, n, nnz;
  bool has_dct, is_backward = false;
  const TapShape* convolution = nullptr;  // null: a linear layer
  int64_t pixels_per_row = 1;  // of a convolution: seen pixels for each patch, more than 1 with strides
  double corners = 0;          // of a convolution: the share of outputs that see padding both across and down
};

// How a layer is computed: row by row (patch by patch) with an FFT; a convolution also by taps (tap_plan.h), or directly
// with a W of few entries; or with a materialised W by torch.
enum class Form { rows, taps, direct, dense };

// What algorithm="auto", "fast" or "dense" means for that work on x's device; for a convolution also "patches",
// "taps" and "direct", the forms that "fast" chooses from. Any other word is an error. "auto" is "fast" under
// torch.use_deterministic_algorithms, because torch's products do not promise bits across batches and threads.
Form choose_form(const char* op, c10::string_view algorithm, const LayerWork& work, const Tensor& x);

// alpha D + S [m, n] in like's dtype. `taps`, more than 1: the columns in the order (channel, tap) of torch's filters,
// made so from the start, where the layer's own order is (tap, channel).
Tensor dense_weight(const SparseOperand& s, const Operand& alpha, const Tensor& like, int64_t taps = 1);

// dvalues and dalpha out of the gradient of that weight; mask as in ParameterGradients.
std::tuple<Tensor, Tensor> gradients_of_dense_weight(const Tensor& gradient, const SparseOperand& s,
                                                     const Operand& alpha, std::array<bool, 4> output_mask,
                                                     int64_t taps = 1);

}  // namespace dctps
