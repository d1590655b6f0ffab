// The factors of tap_plan.h in device memory, laid out for the products of the CUDA kernels. Of thin products without
// tensor cores, those that one thread multiplies lie side by side, kTapRows of them, in both directions.
//
// On tensor cores, in 16 bits: with V the reduction (its rows orthonormal, so that no 16-bit type loses by the scale)
// and U_s the expansion times the phases of tap s,
//   inner[p] = V x[p],   D patch = sum over s of U_s inner[p + s],   D^T dy [p] = V^T sum over s of U_s^T dy[p - s]
#pragma once

#include <memory>

#include "common/device_limits.h"

#include "common/types.h"
#include "patch/tap_plan.h"

namespace at {
class Tensor;
}

namespace dctps {

constexpr int kTapRows = 8;    // rows of a product that one thread makes
constexpr int kTapFolds = 16;  // folded channels that the backward kernel makes at a time

// Of the real or the imaginary part of one group. Tables are offsets into DeviceTapPlan::factors, in elements, and padded
// with zeros to whole kTapRows. Where a product is thin, both parts' are: the other then has the identity.
struct DeviceTapPart {
  int32_t depth = 0, rank = 0;  // rank 0: no reduction
  int64_t reduce = 0;           // [depth][rank]
  int64_t unreduce = 0;         // [rank][fold_rows]
  int64_t expand = 0;           // [rank, or depth][filter_rows]
  int64_t unexpand = 0;         // [filters][rank, or fold_rows]
};

// Matrices of 16-bit numbers as the A fragments of common/mma.cuh, in the order in which lanes load them:
// [groups][row tiles][steps][lane][8].
struct DeviceFragments {
  int64_t begin = 0;  // elements from DeviceTapMma::data
  int tiles = 0, steps = 0;
};

struct DeviceTapMma {
  int rows = 0;  // of `inner`, in whole kMmaSlab; 0: not for this shape
  const void* data = nullptr;
  DeviceFragments reduce;  // [rows / 16][rounded, rest][16][channels]: V, in two summands
  DeviceFragments expand;  // [filters][taps * rows]: U
  DeviceFragments gather;  // [rows][taps][filters, in whole fragments]: U^T
  DeviceFragments
      unreduce;  // [fold_rows / kTapFolds][even, odd][kTapFolds][rounded, rounded, rest][rows]: V^T, folded
};

struct DeviceTapPlan {
  int filter_rows = 0;  // filters of a group, in whole kTapRows
  int fold_rows = 0;    // folded channels of a group, in whole kTapFolds
  int inner_rows = 0;   // ranks of a group's two parts, each in whole kTapRows; the most of all groups
  const DeviceTapPart* parts = nullptr;  // [groups][2]
  const void* factors = nullptr;         // all of the accumulator's type
  const void* across = nullptr;          // [filters][kernel_width]{cos, sin}
  const void* down = nullptr;            // [filters][kernel_height]{a, b}: D patch = sum of a Re H + b Im H
  DeviceTapMma mma;                      // 16-bit types alone
};

constexpr int kMmaSlab = 8;  // depth of a product that belongs to one tap: half a fragment

// Whether a GPU has the instructions that the tensor form takes for this type.
inline bool has_tensor_form(DType dtype, const DeviceLimits& limits) {
  return element_bytes(dtype) == 2 && limits.major >= 8;
}

// Multiply-adds of the tensor form in whole fragments, for each input pixel and for each patch; both 0 for shapes that do
// better without it.
struct TensorProducts {
  double pixel = 0, patch = 0;
};
TensorProducts tensor_products(const TapShape& shape);

// How many of these a multiprocessor does in a clock, by the counts in docs/kernels-cuda.md.
constexpr double kTensorRate = 860;

// The plan for a shape on like's device, for the accumulator of `dtype`; cached for the life of the process.
std::shared_ptr<const DeviceTapPlan> get_device_taps(const TapShape& shape, DType dtype,
                                                     const at::Tensor& like);

}  // namespace dctps
