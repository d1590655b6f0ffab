// Lays out the factors of a shape for CUDA kernels and keeps them in a tensor.
#include "patch/device_taps.h"

#include <ATen/ATen.h>

#include <algorithm>
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

template <class A>
std::shared_ptr<const OnDevice> make_plan(const TapShape& shape, const at::Tensor& like) {
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
  const at::Tensor tables = upload_table(bytes.bytes(), like);
  const char* const base = static_cast<const char*>(tables.const_data_ptr());
  plan.parts = reinterpret_cast<const DeviceTapPart*>(base + places[0]);
  plan.factors = base + places[1];
  plan.across = base + places[2];
  plan.down = base + places[3];
  return std::make_shared<const OnDevice>(OnDevice{tables, plan});
}

}  // namespace

std::shared_ptr<const DeviceTapPlan> get_device_taps(const TapShape& shape, DType dtype,
                                                     const at::Tensor& like) {
  static PlanCache<
      std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, bool, c10::DeviceType, c10::DeviceIndex>,
      OnDevice>
      cache;
  const bool is_double = dtype == DType::f64;
  const auto made =
      cache.get({shape.kernel_height, shape.kernel_width, shape.channels, shape.filters, shape.groups,
                 is_double, like.device().type(), like.device().index()},
                [&] { return is_double ? make_plan<double>(shape, like) : make_plan<float>(shape, like); });
  return {made, &made->plan};
}

}  // namespace dctps
