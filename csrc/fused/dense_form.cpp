// Materialised layers: the measured rule for them, the matrix, and the way back from its gradient to the parameters'.
#include "fused/dense_form.h"

#include <ATen/Context.h>
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <limits>
#include <map>
#include <mutex>
#include <tuple>

#include "common/device.h"
#include "common/integers.h"
#include "dct/dct.h"
#include "plan/plan.h"

#ifdef DCTPS_WITH_CUDA
#include "patch/device_taps.h"
#endif

namespace dctps {
namespace {

// Nanoseconds, float32, one AVX-512 core (AMD EPYC, Zen 5), fitted to the benchmark suite's sections "auto" and "conv".
// Only their ratios matter, and those hold on other machines within about a half, as wide as the band in which both
// forms are about as fast.
struct Costs {
  double dense_call = 4000, dense_entry = 1.0;    // once: build W
  double dense_tile = 70, gemm = 0.34;            // 16 rows, per entry of W
  double dense_pixels = 100, convolution = 0.17;  // the same of a convolution
  double fast_tile = 150, operation = 0.35, value = 1.2, patch_value = 4, entry = 0.6;  // 16 rows
  double tap_product = 0.28, tap_value = 2.2, tap_filter = 6, tap_group = 20;           // 16 rows
  // Of torch's convolutions: a group, if not depthwise; a filter's tap in a backward pass; depthwise, once, a filter and
  // its taps.
  double dense_group = 64, dense_tap = 3, depthwise_call = 25000, depthwise_filter = 4, depthwise = 0.18;
  // Direct: once; 16 rows; a product, with full vectors or one alone; depthwise, a filter and its taps.
  double direct_call = 6000, direct_tile = 60, direct = 0.14, direct_narrow = 0.25;
  double direct_backward = 1.5;  // dx is summed over lanes
  double direct_filter = 1.5, direct_depthwise = 0.22;
};
constexpr double kTileRows = 16;
// "auto" never holds a larger W: its memory is a promise of the package.
constexpr int64_t kMostEntries = 1 << 20;
// The direct form is for groups of few values, and small W where lanes lie along the groups.
constexpr int64_t kMostDirectValues = 512, kMostDirectEntries = 1 << 16;
constexpr int64_t kDirectLanes = 16;  // of a vector

bool is_depthwise(const TapShape& shape) { return shape.channels == 1 && shape.filters == shape.groups; }

double dense_cost(const LayerWork& w) {
  const Costs c;
  const TapShape* conv = w.convolution;
  const double entries = double(w.m) * double(w.n), products = w.is_backward ? 2 : 1;
  double call = c.dense_call,
         tile = conv ? c.dense_pixels + c.convolution * entries : c.dense_tile + c.gemm * entries;
  if (conv && is_depthwise(*conv)) {
    call = c.depthwise_call;
    tile = c.depthwise_filter * double(w.m) + c.depthwise * entries;
  } else if (conv && conv->groups > 1) {
    tile += c.dense_group * double(conv->groups);
  }
  const double backward = conv && w.is_backward ? c.dense_tap * entries / double(conv->channels) : 0;
  return call + c.dense_entry * entries + double(w.rows) / kTileRows * (products * tile + backward);
}

// Infinite where the form is not meant for the shape.
double direct_cost(const LayerWork& w) {
  const Costs c;
  const TapShape* conv = w.convolution;
  const bool is_known = conv && !conv->is_pointwise() && w.m * w.n <= kMostDirectEntries &&
                        (is_depthwise(*conv) || w.n <= kMostDirectValues);
  if (!is_known) return std::numeric_limits<double>::infinity();
  const double n = double(w.n), tiles = std::max(double(w.rows) / kTileRows, 1.0);
  double tile;
  if (is_depthwise(*conv)) {
    // Outputs in a corner, which see other taps than their neighbours, are summed one by one.
    tile = (1 + w.corners) * (c.direct_filter + c.direct_depthwise * n) * double(round_up(w.m, kDirectLanes));
  } else {
    const int64_t lanes = round_up(w.m / conv->groups, kDirectLanes);
    const double rate = lanes == kDirectLanes ? c.direct_narrow : c.direct;
    tile = double(conv->groups) * (c.direct_tile + rate * n * double(lanes));
    if (w.is_backward) tile *= c.direct_backward;
  }
  const double products = w.is_backward ? 2 : 1;
  return products * (c.direct_call + tiles * tile) + c.dense_entry * double(w.m) * n;
}

double rows_cost(const LayerWork& w) {
  const Costs c;
  const double transform = w.has_dct ? get_plan<float>(w.m > w.n ? w.m : w.n)->cost : 0;
  const TapShape* conv = w.convolution;
  const bool gathers = conv && !conv->is_pointwise();
  const double input = (gathers ? c.patch_value : c.value) * double(w.n);
  const double output = c.value * double(w.m);
  const double products = w.is_backward ? 2 : 1, entries = (w.is_backward ? 3 : 1) * c.entry * double(w.nnz);
  const double tiles = w.rows < int64_t(kTileRows) ? 1 : double(w.rows) / kTileRows;
  const double groups = conv ? double(conv->groups) : 1;
  const double group = c.fast_tile + c.operation * transform + input;
  return tiles * (products * (groups * group + output) + entries);
}

double taps_cost(const LayerWork& w) {
  const Costs c;
  const TapShape& shape = *w.convolution;
  const double products = w.is_backward ? 2 : 1, entries = (w.is_backward ? 3 : 1) * c.entry * double(w.nnz);
  const double transform = w.has_dct ? c.tap_product * get_tap_plan<float>(shape)->cost : 0;
  const double pixel = transform + c.tap_value * double(shape.channels * shape.groups);
  const double output = c.tap_group * double(shape.groups) + (c.tap_value + c.tap_filter) * double(w.m);
  const double tiles = w.rows < int64_t(kTileRows) ? 1 : double(w.rows) / kTileRows;
  return tiles * (products * (double(w.pixels_per_row) * pixel + output) + entries);
}

#ifdef DCTPS_WITH_CUDA
// On a GPU, in clocks of one multiprocessor. No GPU has been at hand: these are counts (docs/kernels-cuda.md), with
// the rates of compute capability 9.0; of others, too, only the ratio of the two forms matters.
struct GpuCosts {
  // The package's kernels wait for the load and store units: bytes that these serve, conflicts included.
  double transform = 38, value = 12, entry = 16, patch_entry = 6, served = 128;
  double tap_products = 64;                 // multiply-adds a clock with the thin factors of the tap form
  double backward = 1.5;                    // of the forward's
  double call = 5000, dense_call = 40000;   // launches: one or two, a dozen
  double matrix_entry = 24, memory = 19.7;  // bytes to make W; bytes a clock
  // Floating-point operations a clock in torch's products; in float32 as torch is set by default: convolutions in TF32,
  // matrix products not. (Asking for the setting throws where a program has used both of torch's ways to set it.)
  double f64 = 190, f32 = 230, tf32 = 1400, f16 = 2800;
};

double gpu_dense_cost(const LayerWork& w, const Tensor& x) {
  const GpuCosts c;
  const double rate = x.itemsize() == 2 ? c.f16 : x.itemsize() == 8 ? c.f64 : w.convolution ? c.tf32 : c.f32;
  const double entries = double(w.m) * double(w.n), products = w.is_backward ? 2 : 1;
  return double(w.rows) * products * 2 * entries / rate + c.matrix_entry * entries / c.memory;
}

double gpu_fast_cost(const LayerWork& w, DType dtype, const DeviceLimits& limits) {
  const GpuCosts c;
  const TapShape* conv = w.convolution;
  const bool taps = conv && !conv->is_pointwise();
  const double inputs = conv ? double(w.pixels_per_row * conv->channels * conv->groups) : double(w.n);
  double row =
      (c.value * (inputs + double(w.m)) + (taps ? c.patch_entry : c.entry) * double(w.nnz)) / c.served;
  if (w.has_dct) {
    const double pixels = double(w.pixels_per_row);
    const TensorProducts products =
        taps && has_tensor_form(dtype, limits) ? tensor_products(*conv) : TensorProducts{};
    row += products.patch > 0 ? (products.pixel * pixels + products.patch) / kTensorRate
           : taps             ? get_tap_plan<float>(*conv)->cost * pixels / c.tap_products
                              : c.transform * double(std::max(w.m, w.n)) / c.served;
  }
  return (w.is_backward ? c.backward : 1) * double(w.rows) * row;
}
#endif

// D [m, n], its columns as in dense_weight; kept where it is small, because there the dense form is taken again and
// again.
Tensor dct_matrix(int64_t m, int64_t n, int64_t taps, const Tensor& like) {
  constexpr int64_t kKeptEntries = 1 << 16;
  static std::mutex mutex;
  static auto* const kept =
      new std::map<std::tuple<int64_t, int64_t, int64_t, at::ScalarType, c10::DeviceType, c10::DeviceIndex>,
                   Tensor>;
  const auto key =
      std::make_tuple(m, n, taps, like.scalar_type(), like.device().type(), like.device().index());
  std::lock_guard<std::mutex> lock(mutex);
  const auto known = kept->find(key);
  if (known != kept->end()) return known->second;
  // Row k of idct(I) is row k of D, row i of dct(I) is column i of D: by way of the smaller identity.
  Tensor matrix =
      m <= n ? idct(at::eye(m, like.options()), n) : dct(at::eye(n, like.options()), m).t().contiguous();
  if (taps > 1) matrix = matrix.view({m, taps, -1}).transpose(1, 2).reshape({m, n});
  if (m * n <= kKeptEntries) kept->emplace(key, matrix);
  return matrix;
}

template <class Body>
void for_each_entry(const SparseMatrix& s, int64_t taps, const Body& body) {
  const int64_t channels = s.n / taps;
  for (int64_t r = 0; r < s.m; ++r) {
    for (int32_t t = s.crow[r]; t < s.crow[r + 1]; ++t) {
      const int64_t col = s.col[t];
      body(t, r * s.n + (taps == 1 ? col : col % channels * taps + col / channels));
    }
  }
}

// The place of every entry in W, laid out flat; for a GPU, which torch's kernels serve without a wait. (On a CPU their
// calls would cost more than the sums.)
Tensor entry_places(const SparseOperand& s, int64_t taps) {
  const int64_t nnz = s.matrix.nnz;
  auto part = [&](const int32_t* data) {  // of the index tensor
    return s.index.narrow(0, data - s.index.const_data_ptr<int32_t>(), nnz).to(at::kLong);
  };
  const Tensor row = at::empty({nnz}, s.index.options().dtype(at::kLong))
                         .index_copy_(0, part(s.matrix.perm), part(s.matrix.row));
  const Tensor col = part(s.matrix.col);
  const int64_t channels = s.matrix.n / taps;
  const Tensor place = taps == 1 ? col : col.remainder(channels).mul_(taps).add_(col.div(channels, "floor"));
  return row.mul(s.matrix.n).add_(place);
}

}  // namespace

Form choose_form(const char* op, c10::string_view algorithm, const LayerWork& work, const Tensor& x) {
  if (algorithm == "dense") return Form::dense;
  if (work.convolution && algorithm == "taps") return Form::taps;
  if (work.convolution && algorithm == "patches") return Form::rows;
  if (work.convolution && algorithm == "direct") return Form::direct;
  TORCH_CHECK_VALUE(algorithm == "auto" || algorithm == "fast", op, ": algorithm: expected 'auto', 'fast'",
                    work.convolution ? ", 'taps', 'patches', 'direct'" : "", " or 'dense', got '", algorithm,
                    "'");
  const bool may_be_dense = algorithm == "auto" && !at::globalContext().deterministicAlgorithms() &&
                            work.m * work.n <= kMostEntries;
#ifdef DCTPS_WITH_CUDA
  if (takes_cuda_kernels(x.device())) {  // one kernel for each kind of layer
    if (!may_be_dense) return Form::rows;
    const GpuCosts c;
    const DeviceLimits limits = CudaScope(op, x).limits();
    const double multiprocessors = limits.sm_count;
    return c.dense_call + gpu_dense_cost(work, x) / multiprocessors <
                   c.call + gpu_fast_cost(work, check_dtype(op, "x", x), limits) / multiprocessors
               ? Form::dense
               : Form::rows;
  }
#endif
  static_cast<void>(x);
  const double rows = rows_cost(work);
  const double taps = work.convolution ? taps_cost(work) : rows, direct = direct_cost(work);
  const double least = std::min({rows, taps, direct});
  if (may_be_dense && dense_cost(work) < least) return Form::dense;
  return least == direct ? Form::direct : taps < rows ? Form::taps : Form::rows;
}

Tensor dense_weight(const SparseOperand& s, const Operand& alpha, const Tensor& like, int64_t taps) {
  const SparseMatrix& matrix = s.matrix;
  const auto options = s.values.options();
  Tensor weight = alpha.given() ? dct_matrix(matrix.m, matrix.n, taps, s.values).mul(alpha.tensor)
                                : at::zeros({matrix.m, matrix.n}, options);
  if (takes_cuda_kernels(weight.device())) {
    weight.view({-1}).index_add_(0, entry_places(s, taps), s.values);
    return weight.to(like.scalar_type());
  }
  AT_DISPATCH_FLOATING_TYPES(weight.scalar_type(), "dense_weight", [&] {
    const scalar_t* values = s.values.const_data_ptr<scalar_t>();
    scalar_t* entries = weight.mutable_data_ptr<scalar_t>();
    for_each_entry(matrix, taps, [&](int32_t t, int64_t place) { entries[place] += values[t]; });
  });
  return weight.to(like.scalar_type());
}

std::tuple<Tensor, Tensor> gradients_of_dense_weight(const Tensor& gradient, const SparseOperand& s,
                                                     const Operand& alpha, std::array<bool, 4> output_mask,
                                                     int64_t taps) {
  Tensor dvalues = at::empty({0}, gradient.options()), dalpha = dvalues;
  const Tensor wide = gradient.to(s.values.scalar_type()).contiguous();
  if (output_mask[1] && takes_cuda_kernels(wide.device())) {
    dvalues = wide.view({-1}).index_select(0, entry_places(s, taps)).to(gradient.scalar_type());
  } else if (output_mask[1]) {
    Tensor sums = at::empty({s.matrix.nnz}, wide.options());
    AT_DISPATCH_FLOATING_TYPES(wide.scalar_type(), "gradients_of_dense_weight", [&] {
      const scalar_t* entries = wide.const_data_ptr<scalar_t>();
      scalar_t* results = sums.mutable_data_ptr<scalar_t>();
      for_each_entry(s.matrix, taps, [&](int32_t t, int64_t place) { results[t] = entries[place]; });
    });
    dvalues = sums.to(gradient.scalar_type());
  }
  if (output_mask[2] && alpha.given()) {
    const Tensor matrix = dct_matrix(s.matrix.m, s.matrix.n, taps, s.values);
    dalpha = matrix.mul(wide).sum(at::kDouble).to(gradient.scalar_type());
  }
  return {dvalues, dalpha};
}

}  // namespace dctps
