// The factors of tap_plan.h in device memory, laid out for the thin products of the CUDA kernels: those that one thread
// multiplies lie side by side, kTapRows of them, in both directions.
#pragma once

#include <memory>

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

struct DeviceTapPlan {
  int filter_rows = 0;  // filters of a group, in whole kTapRows
  int fold_rows = 0;    // folded channels of a group, in whole kTapFolds
  int inner_rows = 0;   // ranks of a group's two parts, each in whole kTapRows; the most of all groups
  const DeviceTapPart* parts = nullptr;  // [groups][2]
  const void* factors = nullptr;         // all of the accumulator's type
  const void* across = nullptr;          // [filters][kernel_width]{cos, sin}
  const void* down = nullptr;            // [filters][kernel_height]{a, b}: D patch = sum of a Re H + b Im H
};

// The plan for a shape on like's device, for the accumulator of `dtype`; cached for the life of the process.
std::shared_ptr<const DeviceTapPlan> get_device_taps(const TapShape& shape, DType dtype,
                                                     const at::Tensor& like);

}  // namespace dctps
