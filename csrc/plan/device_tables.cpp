// Makes what device_plan.h describes: chooses radices and padding, fills the tables in double precision.
#include <algorithm>
#include <cstring>

#include "common/integers.h"
#include "plan/device_plan.h"
#include "plan/fourier.h"

namespace dctps {
namespace {

constexpr int kOddRadices[] = {3, 5, 7, 11, 13};

// Radices of n, odd ones first, or nothing if a prime factor is too large. A power of two is cut into as few passes
// as possible of which the first and the last have radix 8 at most, as one thread then takes two columns of them at
// once, and those between 16.
std::vector<int> radices_of(int64_t n) {
  std::vector<int> result;
  for (int radix : kOddRadices) {
    for (; n % radix == 0; n /= radix) result.push_back(radix);
  }
  int log2 = 0;
  for (; n % 2 == 0; n /= 2) ++log2;
  if (n > 1) return {};
  const int first = log2 <= 3 ? 0 : log2 <= 5 ? log2 / 2 : 3, last = log2 <= 5 ? log2 - first : 3;
  const int middle = log2 - first - last, count = (middle + 3) / 4;
  if (first) result.push_back(1 << first);
  for (int i = 0; i < count; ++i) result.push_back(1 << ((middle + i) / count));
  if (last) result.push_back(1 << last);
  return result;
}

// The shortest length M >= 2n - 1 of the form odd * 2^a. (Radices of 7 and more are not compiled for it: DctRow::passes.)
int64_t convolution_length(int64_t n) {
  int64_t best = 0;
  for (int64_t odd : {1, 3, 5, 9, 15}) {
    int64_t length = odd;
    while (length < 2 * n - 1) length *= 2;
    if (!best || length < best) best = length;
  }
  return best;
}

class Writer {
 public:
  Writer(std::vector<char>& bytes, bool is_double) : bytes_(bytes), is_double_(is_double) {}

  // Starts a table and gives its offset, as the pointer that `relocated` turns into an address.
  void* start() {
    bytes_.resize(size_t(round_up(int64_t(bytes_.size()), 16)));
    return reinterpret_cast<void*>(bytes_.size());
  }
  void add(const Complex& value) {
    for (double part : {value.real(), value.imag()}) {
      if (is_double_) {
        add_raw(part);
      } else {
        add_raw(float(part));
      }
    }
  }
  template <class T>
  void add_raw(T value) {
    const size_t at = bytes_.size();
    bytes_.resize(at + sizeof(value));
    std::memcpy(bytes_.data() + at, &value, sizeof(value));
  }

 private:
  std::vector<char>& bytes_;
  bool is_double_;
};

// The frequency that the passes leave in the slot that n had.
int64_t frequency_at(const DevicePlan& plan, int64_t n) {
  int64_t frequency = 0, weight = 1;
  for (int p = 0; p < plan.pass_count; ++p) {
    const DevicePass& pass = plan.passes[p];
    frequency += n / pass.columns % pass.radix * weight;
    weight *= pass.radix;
  }
  return frequency;
}

// The number of independent vectors among `vectors`, each a set of bits.
int rank(std::vector<int> vectors) {
  int result = 0;
  for (size_t i = 0; i < vectors.size(); ++i) {
    if (!vectors[i]) continue;
    ++result;
    const int lowest = vectors[i] & -vectors[i];
    for (size_t j = i + 1; j < vectors.size(); ++j) {
      if (vectors[j] & lowest) vectors[j] ^= vectors[i];
    }
  }
  return result;
}

// Sets what DevicePlan::slot exchanges. Shared memory serves 16 lanes at once, each a complex float, without conflict
// if their slots differ in the low 4 bits: if these, as linear functions of the 4 bits of the lane's number, have rank
// 4. Wanted for each pass (lanes are its columns, then blocks, then rows of the tile), and where lanes move 4 or 8
// neighbouring values each to or from y. The terms are found by trying, one after the other, each time the one that
// leaves the least missing. Digits of odd radices lie above the swizzled bits, so that the strides of their passes
// remain sums.
void choose_swizzle(DevicePlan& plan) {
  int tail = 0;   // bits of the power of two at the end
  int lanes = 0;  // bits of the lane's number that are not the row's
  while (plan.size % (2 << tail) == 0) ++tail;
  while (lanes < 4 && (kValuesPerThread << lanes) < plan.size) ++lanes;
  plan.row_shift = lanes;
  struct Digit {
    int first, bits;  // where its bits are in n
  };
  std::vector<Digit> digits;
  for (int p = 0; p < plan.pass_count; ++p) {
    const DevicePass& pass = plan.passes[p];
    if (pass.radix % 2) continue;
    Digit digit{0, 0};
    while (1 << digit.first < pass.columns) ++digit.first;
    while (1 << digit.bits < pass.radix) ++digit.bits;
    digits.push_back(digit);
  }
  std::vector<int> order;  // where bit i of k is in n
  for (const Digit& digit : digits) {
    for (int i = 0; i < digit.bits; ++i) order.push_back(digit.first + i);
  }

  std::vector<std::vector<int>> patterns;  // bits of n that differ between the lanes
  for (size_t p = 0; p + 1 < digits.size(); ++p) {
    std::vector<int> columns;
    for (int i = 0; i < tail; ++i) {
      if (i < digits[p].first || i >= digits[p].first + digits[p].bits) columns.push_back(i);
    }
    patterns.push_back(columns);
  }
  patterns.push_back(order);
  for (auto& pattern : patterns) pattern.resize(std::min(pattern.size(), size_t(lanes)));
  for (size_t first : {size_t(2), size_t(3)}) {
    if (order.size() < first + 4) continue;
    patterns.emplace_back(order.begin() + long(first), order.begin() + long(first) + 4);
  }
  auto missing = [&] {
    int result = 0;
    for (const auto& pattern : patterns) {
      std::vector<int> vectors;
      for (int bit : pattern) vectors.push_back(plan.slot(1 << bit) & 15);
      for (int bit = int(pattern.size()); bit < 4; ++bit) vectors.push_back(1 << bit);  // of the row
      result += 4 - rank(vectors);
    }
    return result;
  };
  int least = missing();
  for (int term = 0; term < DevicePlan::kSwizzles && least > 0; ++term) {
    int best_shift = 0, best_mask = 0;
    for (int shift = 1; shift < tail; ++shift) {
      for (int mask = 1; mask < 16; ++mask) {
        if ((mask << shift) >> tail) continue;
        plan.shifts[term] = shift, plan.masks[term] = mask;
        const int now = missing();
        if (now < least) least = now, best_shift = shift, best_mask = mask;
      }
    }
    plan.shifts[term] = best_shift, plan.masks[term] = best_mask;
  }
}

}  // namespace

DevicePlan device_plan_layout(int64_t q) {
  DevicePlan plan;
  plan.length = int(q);
  plan.is_odd = q % 2;
  const int64_t points = plan.is_odd ? q : q / 2;
  plan.points = int(points);
  std::vector<int> radices = radices_of(points);
  plan.is_bluestein = radices.empty() && points > 1;
  plan.size = int(plan.is_bluestein ? convolution_length(points) : points);
  if (plan.is_bluestein) radices = radices_of(plan.size);
  plan.slots = int(round_up(plan.size, 16));
  plan.pass_count = int(radices.size());

  int64_t columns = 1;
  for (int p = plan.pass_count - 1; p >= 0; --p) {
    DevicePass& pass = plan.passes[p];
    pass.radix = radices[size_t(p)];
    pass.columns = int(columns);
    pass.by_columns = Divisor(uint32_t(columns));
    columns *= pass.radix;
  }
  const bool is_even_fft = !plan.is_odd && !plan.is_bluestein;
  const bool is_power = (points & (points - 1)) == 0;
  if (plan.pass_count >= 2 && is_even_fft) {
    const DevicePass &first = plan.passes[0], &last = plan.passes[plan.pass_count - 1];
    plan.starts_paired = is_power;
    plan.ends_paired = last.radix % 2 == 0 && points / last.radix % 2 == 0;
    if (is_power) plan.first_radix = first.radix;
  }
  plan.by_first_radix = Divisor(uint32_t(plan.first_radix));
  choose_swizzle(plan);
  for (int p = 0; p < plan.pass_count; ++p) {
    DevicePass& pass = plan.passes[p];
    for (int i = 0; pass.radix % 2 == 0 && 1 << i < pass.radix; ++i) {
      pass.steps[i] = plan.slot(pass.columns << i);
    }
  }
  return plan;
}

HostTables make_device_tables(int64_t q, bool is_double) {
  HostTables result{device_plan_layout(q),
                    std::vector<char>(16)};  // no table has offset 0, which stands for none
  DevicePlan& plan = result.plan;
  Writer writer(result.bytes, is_double);
  const int64_t points = plan.points, size = plan.size;

  plan.twiddles = writer.start();
  int64_t offset = 0;
  for (int p = 0; p < plan.pass_count; ++p) {
    DevicePass& pass = plan.passes[p];
    pass.twiddles = offset;
    if (pass.columns == 1) continue;
    for (int power = 1; power < pass.radix; power *= 2) {
      for (int64_t j = 0; j < pass.columns; ++j) {
        writer.add(unit_root(j * power, int64_t(pass.radix) * pass.columns));
        offset += 2;
      }
    }
  }

  std::vector<int32_t> places(static_cast<size_t>(points / plan.first_radix));
  for (int64_t n = 0; n < points; ++n) {
    const int64_t k = plan.is_bluestein ? n : frequency_at(plan, n);
    if (k % plan.first_radix == 0) places[size_t(k / plan.first_radix)] = plan.slot(int(n));
  }
  plan.places = static_cast<const int32_t*>(writer.start());
  for (int32_t place : places) writer.add_raw(place);

  plan.finish = writer.start();
  if (plan.is_odd) {
    for (int64_t k = 0; k < points; ++k) writer.add(dct_scale(k, q) * unit_root(k, 4 * q));
  } else {
    for (int64_t k = 0; k <= points / 2; ++k) {
      const Complex half = dct_scale(k, q) / 2;
      writer.add(half * unit_root(k, 4 * q));
      writer.add(half * Complex(0, -1) * unit_root(5 * k, 4 * q));
    }
  }

  if (plan.is_bluestein) {
    auto chirp = [&](int64_t n) { return unit_root(n * n % (2 * points), 2 * points); };
    std::vector<Complex> kernel(static_cast<size_t>(size));
    for (int64_t n = 0; n < points; ++n) {
      kernel[size_t(n)] = std::conj(chirp(n));
      kernel[size_t((size - n) % size)] = kernel[size_t(n)];
    }
    kernel = small_prime_fft(kernel);
    plan.chirp = writer.start();
    for (int64_t n = 0; n < points; ++n) writer.add(chirp(n));
    plan.spectrum = writer.start();
    for (int64_t n = 0; n < size; ++n) writer.add(kernel[size_t(frequency_at(plan, n))] / double(size));
  }
  return result;
}

DevicePlan relocated(DevicePlan plan, const void* tables) {
  auto move = [&](auto& pointer) {
    using Pointer = std::remove_reference_t<decltype(pointer)>;
    if (pointer)
      pointer =
          reinterpret_cast<Pointer>(static_cast<const char*>(tables) + reinterpret_cast<size_t>(pointer));
  };
  move(plan.twiddles);
  move(plan.places);
  move(plan.finish);
  move(plan.chirp);
  move(plan.spectrum);
  return plan;
}

}  // namespace dctps
