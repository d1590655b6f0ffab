// Makes what device_plan.h describes: chooses radices and padding, fills the tables in double precision.
#include <cstring>

#include "plan/device_plan.h"
#include "plan/fourier.h"

namespace dctps {
namespace {

constexpr int kOddRadices[] = {3, 5, 7, 11, 13};

// Radices of n, odd ones first, or nothing if a prime factor is too large. A power of two is cut into as few passes
// of radix <= 16 as possible, the larger ones last: their slots lie closest, and the padding is for powers of two.
std::vector<int> radices_of(int64_t n) {
  std::vector<int> result;
  for (int radix : kOddRadices) {
    for (; n % radix == 0; n /= radix) result.push_back(radix);
  }
  int log2 = 0;
  for (; n % 2 == 0; n /= 2) ++log2;
  if (n > 1) return {};
  const int count = (log2 + 3) / 4;
  for (int i = 0; i < count; ++i) result.push_back(1 << ((log2 + i) / count));
  return result;
}

// The shortest length M >= 2n - 1 of the form odd * 2^a.
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
    bytes_.resize((bytes_.size() + 15) / 16 * 16);
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

}  // namespace

// Everything but the tables. Rule for the strides: shared memory has 16 banks of one complex float. The
// innermost stride is 1. The next one would be the last radix, 8 or 16: one more makes it odd. The strides above are
// made odd too, or 2 above a radix 8, so that 8 neighbours and the next 8 interleave. Only strides that are powers of
// two need this. tests/test_cuda_kernels.py counts the conflicts.
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
  plan.pass_count = int(radices.size());

  int64_t columns = 1;
  int pads = 0;
  for (int p = plan.pass_count - 1; p >= 0; --p) {
    DevicePass& pass = plan.passes[p];
    pass.radix = radices[size_t(p)];
    pass.columns = int(columns);
    pass.by_columns = Divisor(uint32_t(columns));
    const bool is_power = (columns & (columns - 1)) == 0;
    if (columns > 1 && is_power && pads < DevicePlan::kPads) {
      plan.shifts[pads] = 0;
      while (int64_t(1) << plan.shifts[pads] < columns) ++plan.shifts[pads];
      plan.pads[pads] = pads > 0 && pass.radix == 8 ? 2 : 1;
      ++pads;
    }
    pass.stride = plan.slot(int(columns));
    columns *= pass.radix;
  }
  plan.slots = plan.slot(plan.size - 1) + 1;
  if (plan.pass_count && !plan.is_bluestein) {  // otherwise places in natural order
    plan.first_radix = plan.passes[0].radix;
    plan.first_stride = plan.passes[0].stride;
  }
  plan.by_first_radix = Divisor(uint32_t(plan.first_radix));
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
