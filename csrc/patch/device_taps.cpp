// Lays out the factors of a shape for CUDA kernels and keeps them in a tensor.
#include "patch/device_taps.h"

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <tuple>
#include <vector>

#include "common/integers.h"
#include "plan/device_plan.h"
#include "plan/plan_cache.h"

namespace dctps {
namespace {

struct OnDevice {
  at::Tensor tables;  // uint8
  DeviceTapPlan plan;
  int64_t bytes() const { return tables.numel(); }
};

// Tables of 16-byte aligned parts in one piece of memory.
class Bytes {
 public:
  template <class T>
  int64_t add(const std::vector<T>& values) {
    const size_t place = size_t(round_up(int64_t(bytes_.size()), 16));
    bytes_.resize(place + values.size() * sizeof(T));
    if (!values.empty()) std::memcpy(bytes_.data() + place, values.data(), values.size() * sizeof(T));
    return int64_t(place);
  }
  const std::vector<char>& bytes() const { return bytes_; }

 private:
  std::vector<char> bytes_;
};

template <class A>
class Factors {
 public:
  // A table [rows][width, padded] of entry(r, c); where it begins.
  template <class Entry>
  int64_t add(int64_t rows, int64_t width, int64_t padded, const Entry& entry) {
    const int64_t place = int64_t(values.size());
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < padded; ++c) values.push_back(c < width ? entry(r, c) : A(0));
    }
    return place;
  }
  std::vector<A> values;
};

// ------------------------------------------------------------------------------------ tensor cores

constexpr int64_t kFragmentRows = 16, kFragmentDepth = 16;  // of A in common/mma.cuh

// Below the rounding of either 16-bit type. (The rank in whole slabs is the same for bfloat16's 2^-11.)
std::shared_ptr<const TapPlan<double>> get_rough_plan(const TapShape& shape) {
  return get_tap_plan<double>(shape, 0x1p-14);
}

int64_t inner_rows(const TapPlan<double>& plan) {
  int64_t most = 0;
  for (const auto& group : plan.parts) most = std::max(most, group[0].inner() + group[1].inner());
  return round_up(most, kMmaSlab);
}

// V and U of one group in double, padded with zeros to `rows`.
struct TensorFactors {
  int64_t rows, channels, filters, taps;
  TensorFactors(const TapShape& shape, const TapPlan<double>& plan, int64_t group)
      : rows(inner_rows(plan)),
        channels(shape.channels),
        filters(shape.filters / shape.groups),
        taps(shape.kernel_height * shape.kernel_width),
        reduce_(size_t(rows * channels)),
        expand_(size_t(filters * taps * rows)) {
    int64_t row = 0;
    for (int odd : {0, 1}) {
      const auto& part = plan.parts[size_t(group)][size_t(odd)];
      for (int64_t i = 0; i < part.inner(); ++i, ++row) {
        double square = 0;
        for (int64_t c = 0; c < part.depth; ++c) {
          const double factor = part.rank ? part.reduce[size_t(i * part.depth + c)] : double(i == c);
          reduce_[size_t(row * channels + c)] += factor;
          reduce_[size_t(row * channels + channels - 1 - c)] += odd ? -factor : factor;
        }
        for (int64_t c = 0; c < channels; ++c) square += reduced(row, c) * reduced(row, c);
        const double norm = std::sqrt(square);
        for (int64_t c = 0; c < channels; ++c) reduce_[size_t(row * channels + c)] /= norm;
        for (int64_t f = 0; f < filters; ++f) {
          const double factor = norm * part.expand[size_t(f * part.inner() + i)];
          for (int64_t s = 0; s < taps; ++s) {
            expand_[size_t((f * taps + s) * rows + row)] =
                factor * phase(shape, plan, group * filters + f, s, odd);
          }
        }
      }
    }
  }

  double reduced(int64_t row, int64_t c) const { return reduce_[size_t(row * channels + c)]; }
  // The even or the odd part of a row; a channel folded onto itself counts twice when they are put together.
  double folded(int64_t row, int64_t c, int64_t odd) const {
    const double mirrored = reduced(row, channels - 1 - c);
    return (reduced(row, c) + (odd ? -mirrored : mirrored)) / (2 * c + 1 == channels ? 4 : 2);
  }
  double expanded(int64_t f, int64_t s, int64_t row) const {
    return expand_[size_t((f * taps + s) * rows + row)];
  }

 private:
  std::vector<double> reduce_;  // [rows][channels]
  std::vector<double> expand_;  // [filters][taps][rows]

  // What tap s makes of the real or the imaginary part of Z.
  static double phase(const TapShape& shape, const TapPlan<double>& plan, int64_t k, int64_t s, int odd) {
    const int64_t a = s / shape.kernel_width, b = s % shape.kernel_width;
    const double* const turn = &plan.across[size_t(2 * (k * shape.kernel_width + b))];
    const double* const uv = &plan.down[size_t(2 * (k * shape.kernel_height + a))];
    const bool swaps = plan.swaps[size_t(k)];
    const double re = uv[swaps ? 1 : 0], im = uv[swaps ? 0 : 1];
    return odd ? im * turn[0] - re * turn[1] : re * turn[0] + im * turn[1];
  }
};

// The fragments of one matrix [rows][depth] with the given entries, zeros beyond.
template <class E, class Entry>
void add_fragments(std::vector<E>& to, const DeviceFragments& shape, int64_t rows, int64_t depth,
                   const Entry& entry) {
  for (int64_t tile = 0; tile < shape.tiles; ++tile) {
    for (int64_t step = 0; step < shape.steps; ++step) {
      for (int64_t lane = 0; lane < 32; ++lane) {
        for (int64_t i = 0; i < 8; ++i) {
          const int64_t row = tile * kFragmentRows + lane / 4 + (i / 2 % 2) * 8;
          const int64_t k = step * kFragmentDepth + 2 * (lane % 4) + i % 2 + (i / 4) * 8;
          to.push_back(from_accumulator<E>(row < rows && k < depth ? float(entry(row, k)) : 0.0f));
        }
      }
    }
  }
}

// Fills all of `mma` but the address of the data, and returns these.
template <class E>
std::vector<E> make_tensor_form(const TapShape& shape, int fold_rows, DeviceTapMma& mma) {
  const auto plan = get_rough_plan(shape);
  const int64_t rows = inner_rows(*plan), filters = shape.filters / shape.groups, folds = fold_rows;
  const int64_t taps = shape.kernel_height * shape.kernel_width;
  const int64_t padded = round_up(filters, kFragmentDepth);
  auto fragments = [](int64_t height, int64_t depth) {
    return DeviceFragments{0, int(ceil_div(height, kFragmentRows)), int(ceil_div(depth, kFragmentDepth))};
  };
  mma = {.rows = int(rows),
         .reduce = fragments(2 * round_up(rows, kFragmentRows), shape.channels),
         .expand = fragments(filters, taps * rows),
         .gather = fragments(rows, taps * padded),
         .unreduce = fragments(2 * folds, 3 * rows)};
  // V is cheap, so it keeps what its rounding leaves.
  auto rest = [](double v) { return v - double(to_accumulator(from_accumulator<E>(float(v)))); };
  std::vector<TensorFactors> groups;
  for (int64_t group = 0; group < shape.groups; ++group) groups.emplace_back(shape, *plan, group);
  std::vector<E> data;
  auto add = [&](DeviceFragments& part, int64_t height, int64_t depth, const auto& entry) {
    part.begin = int64_t(data.size());
    for (const TensorFactors& factors : groups) {
      add_fragments(data, part, height, depth, [&](int64_t r, int64_t k) { return entry(factors, r, k); });
    }
  };
  add(mma.reduce, 2 * round_up(rows, kFragmentRows), shape.channels,
      [&](const TensorFactors& factors, int64_t i, int64_t c) {
        const int64_t tile = i / kFragmentRows, r = tile / 2 * kFragmentRows + i % kFragmentRows;
        const double v = r < rows ? factors.reduced(r, c) : 0;
        return tile % 2 ? rest(v) : v;
      });
  add(mma.expand, filters, taps * rows, [&](const TensorFactors& factors, int64_t f, int64_t k) {
    return factors.expanded(f, k / rows, k % rows);
  });
  add(mma.gather, rows, taps * padded, [&](const TensorFactors& factors, int64_t r, int64_t k) {
    return k % padded < filters ? factors.expanded(k % padded, k / padded, r) : 0;
  });
  add(mma.unreduce, 2 * folds, 3 * rows, [&](const TensorFactors& factors, int64_t i, int64_t k) {
    const int64_t odd = i / kTapFolds % 2, c = i / (2 * kTapFolds) * kTapFolds + i % kTapFolds;
    const double v = c < (shape.channels + 1) / 2 ? factors.folded(k % rows, c, odd) : 0;
    return k < 2 * rows ? v : rest(v);
  });
  return data;
}

template <class A>
std::shared_ptr<const OnDevice> make_plan(const TapShape& shape, DType dtype, const at::Tensor& like) {
  const auto host = get_tap_plan<A>(shape);
  const int64_t filters = shape.filters / shape.groups;
  DeviceTapPlan plan;
  plan.filter_rows = int(round_up(filters, kTapRows));
  plan.fold_rows = int(round_up((shape.channels + 1) / 2, kTapFolds));

  Factors<A> factors;
  std::vector<DeviceTapPart> parts;
  for (const auto& group : host->parts) {
    const bool is_thin = group[0].rank || group[1].rank;
    int64_t inner_rows = 0;
    for (const auto& from : group) {
      const int64_t rank = is_thin && !from.rank ? from.depth : from.rank;
      const int64_t inner = is_thin ? rank : from.depth, padded = round_up(rank, kTapRows);
      auto reduce = [&](int64_t i, int64_t c) {
        return from.rank ? from.reduce[size_t(i * from.depth + c)] : A(i == c);
      };
      auto expand = [&](int64_t f, int64_t i) { return from.expand[size_t(f * inner + i)]; };
      DeviceTapPart part{.depth = int32_t(from.depth), .rank = int32_t(rank)};
      part.reduce = factors.add(is_thin ? from.depth : 0, rank, padded,
                                [&](int64_t c, int64_t i) { return reduce(i, c); });
      part.unreduce = factors.add(rank, from.depth, plan.fold_rows, reduce);
      part.expand =
          factors.add(inner, filters, plan.filter_rows, [&](int64_t i, int64_t f) { return expand(f, i); });
      part.unexpand = factors.add(filters, inner, is_thin ? padded : plan.fold_rows, expand);
      parts.push_back(part);
      inner_rows += padded;
    }
    plan.inner_rows = std::max(plan.inner_rows, int(inner_rows));
  }
  std::vector<A> down;
  for (int64_t f = 0; f < shape.filters; ++f) {
    for (int64_t a = 0; a < shape.kernel_height; ++a) {
      const A* const uv = host->down.data() + 2 * (f * shape.kernel_height + a);
      const bool swaps = host->swaps[size_t(f)];
      down.push_back(uv[swaps ? 1 : 0]);
      down.push_back(uv[swaps ? 0 : 1]);
    }
  }
  Bytes bytes;
  const int64_t places[] = {bytes.add(parts), bytes.add(factors.values), bytes.add(host->across),
                            bytes.add(down)};
  int64_t fragments = 0;
  if (element_bytes(dtype) == 2 && tensor_products(shape).patch > 0) {
    fragments = dtype == DType::f16 ? bytes.add(make_tensor_form<Half>(shape, plan.fold_rows, plan.mma))
                                    : bytes.add(make_tensor_form<BFloat16>(shape, plan.fold_rows, plan.mma));
  }
  const at::Tensor tables = upload_table(bytes.bytes(), like);
  const char* const base = static_cast<const char*>(tables.const_data_ptr());
  plan.parts = reinterpret_cast<const DeviceTapPart*>(base + places[0]);
  plan.factors = base + places[1];
  plan.across = base + places[2];
  plan.down = base + places[3];
  plan.mma.data = base + fragments;
  return std::make_shared<const OnDevice>(OnDevice{tables, plan});
}

}  // namespace

TensorProducts tensor_products(const TapShape& shape) {
  constexpr double kThinRate = 32;  // the same, of thin products without tensor cores
  const int64_t taps = shape.kernel_height * shape.kernel_width, filters = shape.filters / shape.groups;
  if (taps == 1) return {};
  const int64_t rows = inner_rows(*get_rough_plan(shape));
  auto product = [&](int64_t height, int64_t depth) {
    return double(shape.groups * round_up(height, kFragmentRows) * round_up(depth, kFragmentDepth));
  };
  const TensorProducts products{2 * product(rows, shape.channels), product(filters, taps * rows)};
  const bool pays =
      (products.pixel + products.patch) / kTensorRate < get_tap_plan<float>(shape)->cost / kThinRate;
  return pays ? products : TensorProducts{};
}

std::shared_ptr<const DeviceTapPlan> get_device_taps(const TapShape& shape, DType dtype,
                                                     const at::Tensor& like) {
  static PlanCache<
      std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, DType, c10::DeviceType, c10::DeviceIndex>,
      OnDevice>
      cache;
  const auto made = cache.get({shape.kernel_height, shape.kernel_width, shape.channels, shape.filters,
                               shape.groups, dtype, like.device().type(), like.device().index()},
                              [&] {
                                return dtype == DType::f64 ? make_plan<double>(shape, dtype, like)
                                                           : make_plan<float>(shape, dtype, like);
                              });
  return {made, &made->plan};
}

}  // namespace dctps
