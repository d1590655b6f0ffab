// Makes and caches the plans of plan.h: picks radices or Bluestein by counted vector operations, fills the
// tables.
#include "plan/plan.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <map>
#include <utility>

#include "plan/fourier.h"

namespace dctps {
namespace {

int largest_odd_prime(int64_t n) {
  while (n % 2 == 0) n /= 2;
  int64_t largest = 1;
  for (int64_t p = 3; p * p <= n; p += 2) {
    for (; n % p == 0; n /= p) largest = p;
  }
  return int(std::max(n, largest));
}

// Rows of so many values are a multiple of 4 KiB apart on every instruction set, so that the same place in all of them
// meets in one set of the nearest cache.
constexpr int64_t kAliasedColumns = 64;

// A large odd radix comes first, where the data is still real or long; radix 8 last, where it needs no
// twiddles. Radix 8 and 9 take more rows at a time than the sets of a cache have ways.
int complex_radix(int64_t n) {
  const int odd = largest_odd_prime(n);
  if (odd == 3 && n % 9 == 0 && n / 9 % kAliasedColumns) return 9;
  if (odd > 1) return odd;
  int log2 = 0;
  while (int64_t(1) << log2 < n) ++log2;
  if (log2 < 3) return 1 << log2;
  return log2 % 3 == 0 && n < 8 * kAliasedColumns ? 8 : 4;
}

// Radix 16 only for the last pass, and for a first one where the children of radix 8 would not fit into the nearest cache.
constexpr int64_t kLongFirstPass = 2048;
constexpr int kSkew = 8;

int real_radix(int64_t n, bool is_first) {
  if (n == 16 || (is_first && n > kLongFirstPass && n % 16 == 0)) return 16;
  if (n % 8 == 0) return 8;
  if (n % 4 == 0) return 4;
  if (n % 2 == 0) return 2;
  return largest_odd_prime(n);
}

// Children of a real pass: lengths and numbers of the real and the complex ones.
struct RealSplit {
  int64_t real_length;
  int real_children, complex_children;
};
RealSplit split_real(int64_t n, int radix) {
  switch (radix) {
    case 16:
    case 8:
    case 4:
      if (n > radix) return {2 * n / radix, 1, complex_children(radix)};
      return {1, 2, complex_children(radix)};
    case 2:
      return {n / 2, 2, complex_children(radix)};
    default:
      return {n / radix, 1, complex_children(radix)};
  }
}

// ---- Plan::cost

double complex_cost(int64_t n) {
  if (n <= 1) return 0;
  const int r = complex_radix(n);
  const double butterfly = r == 9 ? 14.5 : r == 8 ? 10.5 : r == 4 ? 7 : r == 2 ? 4 : r + 5;
  return double(n) * (butterfly + 4) + r * complex_cost(n / r);
}

double real_cost(int64_t n, bool is_first = false) {
  if (n <= 1) return 0;
  const int r = real_radix(n, is_first);
  const RealSplit split = split_real(n, r);
  const double butterfly = r == 16 ? 5.75 : r == 8 ? 3.75 : r == 4 ? 2.5 : r == 2 ? 1 : r / 2.0 + 3;
  return double(n) * (butterfly + 2) + split.real_children * real_cost(split.real_length) +
         split.complex_children * complex_cost(n / r);
}

// The length M >= 2q - 1 of the form 2^a 3^b 5^c that costs least.
int64_t convolution_length(int64_t q) {
  int64_t power = 1;
  while (power < 2 * q - 1) power *= 2;
  int64_t best = power;
  for (int64_t odd : {3, 5, 9, 15, 25, 27, 45}) {
    int64_t length = odd;
    while (length < 2 * q - 1) length *= 2;
    if (complex_cost(length) < complex_cost(best)) best = length;
  }
  return best;
}

double bluestein_cost(int64_t q) {
  const int64_t length = convolution_length(q);
  return 2 * complex_cost(length) + 14.0 * double(length);
}

bool wants_bluestein(int64_t q) {
  const int64_t prime = largest_odd_prime(q);
  if (prime > kMaxRadix) return true;
  return prime > 13 && bluestein_cost(q) < real_cost(q, true);
}

// ---- tables

// Where a plan leaves V[frequency]: real part at `re` (-1: not computed), imaginary part at `im` (-1: none, the value is
// real).
struct Place {
  int32_t re = -1, im = -1;
};

template <class A>
class Builder {
 public:
  explicit Builder(Plan<A>& plan) : plan_(plan) {}

  int add_pass(bool is_complex, int64_t length, bool is_first = false) {
    if (length <= 1) return -1;
    const auto key = std::make_pair(is_complex, length);
    const auto known = numbers_.find(key);
    if (known != numbers_.end()) return known->second;

    Pass<A> pass;
    pass.is_complex = is_complex;
    pass.radix = is_complex ? complex_radix(length) : real_radix(length, is_first);
    pass.columns = int(length / pass.radix);
    pass.skew = !is_complex && pass.radix == 16 && !pass.is_last() ? kSkew : 0;
    const RealSplit split = is_complex ? RealSplit{0, 0, pass.radix} : split_real(length, pass.radix);
    pass.real_child_length = int(split.real_length);
    pass.real_children = split.real_children;
    pass.complex_children = split.complex_children;
    const int first = is_complex ? 0 : 1;  // the frequency, modulo the radix, of the first complex child
    for (int j = 0; j < pass.columns && !pass.is_last(); ++j) {
      for (int s = 1; s < first + pass.complex_children; ++s) {
        const Complex root = unit_root(int64_t(j) * s, length);
        pass.twiddles.push_back(A(root.real()));
        pass.twiddles.push_back(A(root.imag()));
      }
    }
    if (pass.radix % 2) {
      const int half = (pass.radix - 1) / 2;
      for (bool sine : {false, true}) {
        for (int s = 1; s <= half; ++s) {
          for (int k = 1; k <= half; ++k) {
            const Complex root = unit_root(int64_t(k) * s, pass.radix);
            pass.rotations.push_back(A(sine ? -root.imag() : root.real()));
          }
        }
      }
    }
    pass.real_child = add_pass(false, pass.real_child_length);
    pass.complex_child = pass.complex_children ? add_pass(true, pass.columns) : -1;
    plan_.passes.push_back(std::move(pass));
    return numbers_[key] = int(plan_.passes.size()) - 1;
  }

  // Records where the transform at `base`, pass `number`, leaves the frequencies offset + stride * t (mod
  // total).
  void place(int number, bool is_complex, int64_t base, int64_t offset, int64_t stride, int64_t total,
             std::vector<Place>& places) const {
    if (number < 0) {  // length 1
      places[size_t(offset % total)] = {int32_t(base), is_complex ? int32_t(base + 1) : -1};
      return;
    }
    const Pass<A>& pass = plan_.passes[size_t(number)];
    const int64_t r = pass.radix;
    if (is_complex) {
      for (int64_t s = 0; s < r; ++s) {
        place(pass.complex_child, true, base + pass.complex_child_at(s), (offset + stride * s) % total,
              stride * r % total, total, places);
      }
      return;
    }
    const int64_t step = pass.length() / pass.real_child_length;  // between the frequencies of a real child
    for (int child = 0; child < pass.real_children; ++child) {
      // Radix 2: the second child has the frequencies 2t + m; it is the FFT of (x[j] - x[j+m]) (-1)^j. Of a last pass the
      // second one is the frequency length / 2 alone.
      const int64_t shift = child * (pass.length() / 2);
      place(pass.real_child, false, base + child * int64_t(pass.real_child_length),
            (offset + stride * shift) % total, stride * step % total, total, places);
    }
    for (int64_t s = 1; s <= pass.complex_children; ++s) {
      place(pass.complex_child, true, base + pass.complex_child_at(s - 1), (offset + stride * s) % total,
            stride * r % total, total, places);
    }
  }

 private:
  Plan<A>& plan_;
  std::map<std::pair<bool, int64_t>, int> numbers_;
};

template <class A>
void build_radix_plan(Plan<A>& plan) {
  const int64_t q = plan.length;
  Builder<A> builder(plan);
  plan.root = builder.add_pass(false, q, true);
  const Pass<A>* const first = plan.root < 0 ? nullptr : &plan.passes[size_t(plan.root)];
  plan.work_size = int(first ? first->row(first->radix) : q);
  plan.order.resize(size_t(q));
  plan.place_of_x.resize(size_t(q));
  for (int64_t j = 0; j < q; ++j) {
    const int64_t source = 2 * j < q ? 2 * j : 2 * (q - 1 - j) + 1;
    plan.order[size_t(j)] = int32_t(source);
    plan.place_of_x[size_t(source)] =
        int32_t(first ? first->row(j / first->columns) + j % first->columns : j);
  }
  std::vector<Place> places(static_cast<size_t>(q));
  builder.place(plan.root, false, 0, 0, 1, q, places);
  plan.place_of_y.resize(size_t(q));
  plan.turns.assign(size_t(plan.work_size), A(0));
  for (int64_t k = 0; k < q; ++k) {
    const Place place = places[size_t(k)];
    if (place.re < 0) continue;  // only its conjugate partner is computed
    const Complex turn = dct_scale(k, q) * unit_root(k, 4 * q);
    plan.place_of_y[size_t(k)] = place.re;
    plan.turns[size_t(place.re)] = A(turn.real());
    if (place.im < 0) continue;
    plan.place_of_y[size_t(q - k)] = place.im;
    plan.turns[size_t(place.im)] = A(-turn.imag());
  }
}

// y[k] = c_k Re( w(k^2 + k) sum_i (x[i] w(i^2)) conj(w((k-i)^2)) ),  w(t) = e^(-i pi t / 2q): a convolution
// of length M >= 2q-1.
template <class A>
void build_bluestein_plan(Plan<A>& plan) {
  const int64_t q = plan.length;
  const int64_t size = convolution_length(q);
  auto w = [&](int64_t t) { return unit_root(t % (4 * q), 4 * q); };
  Builder<A> builder(plan);
  plan.work_size = int(2 * size);
  plan.root = builder.add_pass(true, size);
  std::vector<Place> places(static_cast<size_t>(size));
  builder.place(plan.root, true, 0, 0, 1, size, places);

  std::vector<Complex> kernel(static_cast<size_t>(size));
  for (int64_t i = 0; i < q; ++i) {
    kernel[size_t(i)] = std::conj(w(i * i));
    kernel[size_t((size - i) % size)] = kernel[size_t(i)];
  }
  kernel = small_prime_fft(kernel);
  plan.turns.resize(size_t(2 * size));
  plan.turns_back.resize(size_t(2 * size));
  for (int64_t f = 0; f < size; ++f) {  // two turns, hence two conjugations
    const Place place = places[size_t(f)];
    const Complex value = kernel[size_t(f)] / double(size);
    plan.turns[size_t(place.re)] = A(value.real());
    plan.turns[size_t(place.im)] = A(-value.imag());
    plan.turns_back[size_t(place.re)] = A(1);
  }
  const Combine<A> nothing{0, 0, A(0), A(0)};
  plan.start.assign(size_t(2 * size), nothing);
  plan.adjoint_start.assign(size_t(2 * size), nothing);
  for (int64_t i = 0; i < q; ++i) {
    const Complex in = w(i * i);
    const Complex out = dct_scale(i, q) * w(i * i + i);
    const int32_t re = int32_t(i), im = int32_t(size + i);
    plan.start[size_t(re)] = {re, re, A(in.real()), A(0)};
    plan.start[size_t(im)] = {re, re, A(in.imag()), A(0)};
    plan.finish.push_back({re, im, A(out.real()), A(-out.imag())});
    // The adjoint convolves with the conjugate kernel: the same as this one on conjugates, because it is symmetric.
    plan.adjoint_start[size_t(re)] = {re, re, A(out.real()), A(0)};
    plan.adjoint_start[size_t(im)] = {re, re, A(out.imag()), A(0)};
    plan.adjoint_finish.push_back({re, im, A(in.real()), A(-in.imag())});
    plan.place_of_x.push_back(re);
    plan.place_of_y.push_back(re);
  }
}

std::atomic<int64_t> held_bytes{0};

template <class T>
int64_t vector_bytes(const std::vector<T>& values) {
  return int64_t(values.size() * sizeof(T));
}

}  // namespace

template <class A>
int64_t Plan<A>::bytes() const {
  int64_t total = vector_bytes(order) + vector_bytes(place_of_y) + vector_bytes(place_of_x) +
                  vector_bytes(turns) + vector_bytes(turns_back) + vector_bytes(start) +
                  vector_bytes(finish) + vector_bytes(adjoint_start) + vector_bytes(adjoint_finish);
  for (const auto& pass : passes) total += vector_bytes(pass.twiddles) + vector_bytes(pass.rotations);
  return total;
}

template <class A>
std::shared_ptr<const Plan<A>> get_plan(int64_t q) {
  static PlanCache<int64_t, Plan<A>> cache;
  return cache.get(q, [&] {
    auto plan = std::make_shared<Plan<A>>();
    plan->length = int(q);
    if (wants_bluestein(q)) {
      plan->cost = bluestein_cost(q);
      build_bluestein_plan(*plan);
    } else {
      plan->cost = real_cost(q, true);
      build_radix_plan(*plan);
    }
    return plan;
  });
}

int64_t cached_plan_bytes() { return held_bytes.load(); }
void count_plan_bytes(int64_t bytes) { held_bytes += bytes; }

template struct Plan<float>;
template struct Plan<double>;
template std::shared_ptr<const Plan<float>> get_plan<float>(int64_t);
template std::shared_ptr<const Plan<double>> get_plan<double>(int64_t);

}  // namespace dctps
