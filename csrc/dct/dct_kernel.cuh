// The transform of one row by a group of threads, in place on a row of complex values in shared or global memory:
// DCT-II and its adjoint by the passes of plan/device_plan.h.
#pragma once

#include "common/vec.cuh"
#include "plan/device_plan.h"

namespace dctps {

// ---------------------------------------------------------------------------------------- complex numbers, small DFTs

template <class A>
struct ComplexValue {
  A re, im;
};
template <class A>
__device__ __forceinline__ ComplexValue<A> operator+(ComplexValue<A> a, ComplexValue<A> b) {
  return {a.re + b.re, a.im + b.im};
}
template <class A>
__device__ __forceinline__ ComplexValue<A> operator-(ComplexValue<A> a, ComplexValue<A> b) {
  return {a.re - b.re, a.im - b.im};
}
template <class A>
__device__ __forceinline__ ComplexValue<A> operator*(ComplexValue<A> a, ComplexValue<A> b) {
  return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}
template <class A>
__device__ __forceinline__ ComplexValue<A> conj(ComplexValue<A> z) {
  return {z.re, -z.im};
}
// The adjoint runs the same passes on values with real and imaginary part exchanged: that conjugates every factor.
template <class A>
__device__ __forceinline__ ComplexValue<A> exchanged(ComplexValue<A> z) {
  return {z.im, z.re};
}

// cos(2 pi numerator / denominator), for constants.
__host__ __device__ constexpr double cosine_of_turns(int numerator, int denominator) {
  numerator %= denominator;
  if (2 * numerator > denominator) numerator = denominator - numerator;
  const bool negative = 4 * numerator > denominator;
  const double angle = 2 * 3.14159265358979323846 *
                       (negative ? double(denominator - 2 * numerator) / 2 : double(numerator)) / denominator;
  double sum = 1, term = 1;
  for (int i = 1; i < 16; ++i) sum += term *= -angle * angle / ((2 * i - 1) * (2 * i));
  return negative ? -sum : sum;
}
__host__ __device__ constexpr double sine_of_turns(int numerator, int denominator) {
  return cosine_of_turns((4 * numerator + 3 * denominator) % (4 * denominator), 4 * denominator);
}

// z e^(-2 pi i M / R)
template <int M, int R, class A>
__device__ __forceinline__ ComplexValue<A> turned(ComplexValue<A> z) {
  if constexpr (M == 0) {
    return z;
  } else if constexpr (4 * M == R) {
    return {z.im, -z.re};
  } else if constexpr (8 * M == R) {
    constexpr A h = A(cosine_of_turns(1, 8));
    return {h * (z.re + z.im), h * (z.im - z.re)};
  } else if constexpr (8 * M == 3 * R) {
    constexpr A h = A(cosine_of_turns(1, 8));
    return {h * (z.im - z.re), -h * (z.re + z.im)};
  } else {
    constexpr A c = A(cosine_of_turns(M, R)), s = A(-sine_of_turns(M, R));
    return z * ComplexValue<A>{c, s};
  }
}

template <class A>
__device__ __forceinline__ void dft4(ComplexValue<A>& v0, ComplexValue<A>& v1, ComplexValue<A>& v2,
                                     ComplexValue<A>& v3) {
  const auto a = v0 + v2, b = v0 - v2, c = v1 + v3, d = v1 - v3;
  v0 = a + c;
  v1 = {b.re + d.im, b.im - d.re};
  v2 = a - c;
  v3 = {b.re - d.im, b.im + d.re};
}

// Constants, where the index is one after unrolling.
template <int R, class A>
struct Roots {
  A cosine[R], sine[R];
  __host__ __device__ constexpr Roots() : cosine{}, sine{} {
    for (int i = 0; i < R; ++i) cosine[i] = A(cosine_of_turns(i, R)), sine[i] = A(sine_of_turns(i, R));
  }
};

// v[k] <- sum_n v[n] e^(-2 pi i n k / R), in natural order.
template <int R, class A>
__device__ __forceinline__ void dft(ComplexValue<A> (&v)[R]) {
  if constexpr (R == 2) {
    const auto a = v[0];
    v[0] = a + v[1];
    v[1] = a - v[1];
  } else if constexpr (R == 4) {
    dft4(v[0], v[1], v[2], v[3]);
  } else if constexpr (R == 8) {
    dft4(v[0], v[2], v[4], v[6]);
    dft4(v[1], v[3], v[5], v[7]);
    const ComplexValue<A> even[4] = {v[0], v[2], v[4], v[6]};
    const ComplexValue<A> odd[4] = {v[1], turned<1, 8>(v[3]), turned<2, 8>(v[5]), turned<3, 8>(v[7])};
#pragma unroll
    for (int k = 0; k < 4; ++k) v[k] = even[k] + odd[k], v[k + 4] = even[k] - odd[k];
  } else if constexpr (R == 16) {
#pragma unroll
    for (int c = 0; c < 4; ++c) dft4(v[c], v[c + 4], v[c + 8], v[c + 12]);
    v[5] = turned<1, 16>(v[5]), v[9] = turned<2, 16>(v[9]), v[13] = turned<3, 16>(v[13]);
    v[6] = turned<2, 16>(v[6]), v[10] = turned<4, 16>(v[10]), v[14] = turned<6, 16>(v[14]);
    v[7] = turned<3, 16>(v[7]), v[11] = turned<6, 16>(v[11]), v[15] = turned<9, 16>(v[15]);
#pragma unroll
    for (int c = 0; c < 16; c += 4) dft4(v[c], v[c + 1], v[c + 2], v[c + 3]);
#pragma unroll
    for (int a = 0; a < 4; ++a) {  // 4 x 4 results, transposed
#pragma unroll
      for (int b = a + 1; b < 4; ++b) {
        const auto kept = v[4 * a + b];
        v[4 * a + b] = v[4 * b + a];
        v[4 * b + a] = kept;
      }
    }
  } else {
    constexpr int h = (R - 1) / 2;
    constexpr Roots<R, A> roots;
    ComplexValue<A> plus[h], minus[h];
    const auto first = v[0];
#pragma unroll
    for (int k = 0; k < h; ++k) {
      plus[k] = v[k + 1] + v[R - 1 - k], minus[k] = v[k + 1] - v[R - 1 - k];
      v[0] = v[0] + plus[k];
    }
#pragma unroll
    for (int s = 1; s <= h; ++s) {
      ComplexValue<A> even = first, odd{0, 0};
#pragma unroll
      for (int k = 0; k < h; ++k) {
        const A c = roots.cosine[s * (k + 1) % R], d = roots.sine[s * (k + 1) % R];
        even = {even.re + c * plus[k].re, even.im + c * plus[k].im};
        odd = {odd.re + d * minus[k].re, odd.im + d * minus[k].im};
      }
      v[s] = {even.re + odd.im, even.im - odd.re};
      v[R - s] = {even.re - odd.im, even.im + odd.re};
    }
  }
}

template <class A>
__device__ __forceinline__ ComplexValue<A> load_complex(const void* table, int64_t i DCTPS_SITE) {
  const auto pack = load<2>(static_cast<const A*>(table) + 2 * i DCTPS_AT);
  return {pack[0], pack[1]};
}

// v[r] *= w^r, where powers[columns * i] is w^(2^i): the others are products of at most three of these, which costs less
// than to load all and, in rounding errors, next to nothing.
template <int R, class A>
__device__ __forceinline__ void turn_all(ComplexValue<A> (&v)[R], const A* powers, int columns DCTPS_SITE) {
  auto power = [&](int i) { return load_complex<A>(powers, int64_t(i) * columns DCTPS_AT); };
  ComplexValue<A> low[4], high{}, four{};
  low[1] = power(0);
  if constexpr (R > 2) low[2] = power(1);
  if constexpr (R > 3) low[3] = low[1] * low[2];
#pragma unroll
  for (int first = 0; first < R; first += 4) {
    if (first == 4) high = four = power(2);
    if (first == 8) high = power(3);
    if (first == 12) high = high * four;
    if (first) v[first] = v[first] * high;
#pragma unroll
    for (int i = 1; i < 4; ++i) {
      if (first + i < R) v[first + i] = v[first + i] * (first ? low[i] * high : low[i]);
    }
  }
}

// ---------------------------------------------------------------------------------------- a row of complex values

// Part 2 s + 0, 1 of a row is the real, imaginary part of its slot s.
template <class A>
class SharedRow {
 public:
  __device__ SharedRow(const DevicePlan& plan, Shared<A> block, int row)
      : parts_(block + 2 * row * plan.slots), exchange_((row << plan.row_shift & 15) * 2) {}
  __device__ __forceinline__ ComplexValue<A> get(int slot DCTPS_SITE) const {
    const auto pack = parts_.template load<2>(2 * slot ^ exchange_ DCTPS_AT);
    return {pack[0], pack[1]};
  }
  __device__ __forceinline__ void put(int slot, ComplexValue<A> z DCTPS_SITE) const {
    parts_.template store<2>(2 * slot ^ exchange_, {
      {
        z.re, z.im
      }
    } DCTPS_AT);
  }
  __device__ __forceinline__ A get_part(int part DCTPS_SITE) const {
    return parts_.template load<1>(part ^ exchange_ DCTPS_AT)[0];
  }
  __device__ __forceinline__ void put_part(int part, A value DCTPS_SITE) const {
    parts_.template store<1>(part ^ exchange_, {
      {
        value
      }
    } DCTPS_AT);
  }

 private:
  Shared<A> parts_;
  int exchange_;
};

// The same in global scratch memory, for a row that does not fit.
template <class A>
class GlobalRow {
 public:
  __device__ explicit GlobalRow(A* parts) : parts_(parts) {}
  __device__ __forceinline__ ComplexValue<A> get(int slot DCTPS_SITE) const {
    return load_complex<A>(parts_, slot DCTPS_AT);
  }
  __device__ __forceinline__ void put(int slot, ComplexValue<A> z DCTPS_SITE) const {
    store<2>(
        parts_ + 2 * int64_t(slot), Pack<A, 2> {
          {
            z.re, z.im
          }
        } DCTPS_AT);
  }
  __device__ __forceinline__ A get_part(int part DCTPS_SITE) const { return load(parts_ + part DCTPS_AT); }
  __device__ __forceinline__ void put_part(int part, A value DCTPS_SITE) const {
    store(parts_ + part, value DCTPS_AT);
  }

 private:
  A* parts_;
};

// ---------------------------------------------------------------------------------------- where a value is

// Part of a row that holds x[i], 0 <= i < q, before DctRow::forward and after DctRow::adjoint.
template <bool after_adjoint>
__device__ __forceinline__ int time_part(const DevicePlan& plan, int i) {
  const int j = i & 1 ? plan.length - 1 - (i >> 1) : i >> 1;  // Makhoul's order
  const int imaginary = plan.is_odd ? 0 : j & 1;
  return 2 * plan.slot(plan.is_odd ? j : j >> 1) + (after_adjoint ? 1 - imaginary : imaginary);
}

__device__ __forceinline__ int frequency_slot(const DevicePlan& plan, int k DCTPS_SITE) {
  const int group = int(plan.by_first_radix.quotient(uint32_t(k)));
  return load(plan.places + group DCTPS_AT) ^
         plan.slot((k - group * plan.first_radix) * plan.passes[0].columns);
}

// The same value, but the compiler does not know that: it computes addresses a second time where it would otherwise keep
// those of 16 loads in registers until the stores.
__device__ __forceinline__ int forgotten(int value) {
#ifdef __CUDA_ARCH__
  asm volatile("" : "+r"(value));
#endif
  return value;
}

// How far digit r of a pass of even radix takes a slot, by ^.
__device__ __forceinline__ int step(const DevicePass& pass, int r) {
  return (r & 1 ? pass.steps[0] : 0) ^ (r & 2 ? pass.steps[1] : 0) ^ (r & 4 ? pass.steps[2] : 0) ^
         (r & 8 ? pass.steps[3] : 0);
}

// Part of a row that holds y[k], 0 <= k < q, after DctRow::forward and before DctRow::adjoint. For even q the slot of
// Z[k] holds y[k] and y[q-k]; that of Z[0] holds y[0] and y[N].
__device__ __forceinline__ int frequency_part(const DevicePlan& plan, int k DCTPS_SITE) {
  if (plan.is_odd || k < plan.points) return 2 * frequency_slot(plan, k DCTPS_AT);
  return 2 * frequency_slot(plan, k == plan.points ? 0 : plan.length - k DCTPS_AT) + 1;
}

// ---------------------------------------------------------------------------------------- the transform

// A row and its group of `threads` threads, a power of two. All groups of a block take each step together; a group
// of up to 32 threads waits only for its warp.
template <class A, class Row>
class DctRow {
 public:
  __device__ DctRow(const DevicePlan& plan, Row row, int lane, int threads)
      : plan_(plan), row_(row), lane_(lane), threads_(threads) {}

  // x -> alpha y in the parts frequency_part, followed by a barrier of the block, which is the caller's. x lies in the
  // parts time_part<false>, all of them set, behind a barrier of the block. Or, if plan.starts_paired, it may come from
  // quad(j, v): v[0 .. 3] = x[4j .. 4j+3], asked for once.
  template <class Quad>
  __device__ __forceinline__ void forward(A alpha, bool from_quads, const Quad& quad) const {
    if (plan_.is_bluestein) {
      enter_convolution();
    } else if (from_quads) {
      first_from(quad);
      sync();
    }
    passes<false>(from_quads ? 1 : 0, plan_.pass_count - (plan_.ends_paired ? 1 : 0));
    if (plan_.is_bluestein) {
      multiply_spectra();
      passes<true, true>(0, plan_.pass_count);
      leave_convolution();
    }
    if (plan_.is_odd) {
      each(plan_.points, [&](int k) {
        const int slot = frequency_slot(plan_, k);
        const auto factor = load_complex<A>(plan_.finish, k), z = row_.get(slot);
        row_.put_part(2 * slot, alpha * (factor.re * z.re - factor.im * z.im));
      });
    } else if (plan_.ends_paired) {
      with_last_radix([&](auto radix) { finish_paired<decltype(radix)::value>(alpha); });
    } else {
      each(plan_.points / 2 + 1, [&](int k) { finish(k, alpha); });
    }
  }

  // y in the parts frequency_part, behind a barrier of the block -> D^T y in the parts time_part<true>, followed by one.
  // Or, if plan.starts_paired, the result may go to quad(j, v) instead.
  template <class Quad>
  __device__ __forceinline__ void adjoint(bool to_quads, const Quad& quad) const {
    if (plan_.is_odd) {
      each(plan_.points, [&](int k) {
        const int slot = frequency_slot(plan_, k);
        const auto factor = load_complex<A>(plan_.finish, k);
        const A y = row_.get_part(2 * slot);
        row_.put(slot, exchanged(ComplexValue<A>{factor.re * y, -factor.im * y}));
      });
    } else if (plan_.ends_paired) {
      with_last_radix([&](auto radix) { start_paired<decltype(radix)::value>(); });
    } else {
      each(plan_.points / 2 + 1, [&](int k) { start(k); });
    }
    sync();
    if (plan_.is_bluestein) {
      enter_convolution();
      passes<false, true>(0, plan_.pass_count);
      multiply_spectra();
    }
    passes<true>(to_quads ? 1 : 0, plan_.pass_count - (plan_.ends_paired ? 1 : 0));
    if (plan_.is_bluestein) leave_convolution();
    if (to_quads) last_to(quad);
  }

 private:
  template <int value_>
  struct Constant {
    static constexpr int value = value_;
  };

  template <class Body>
  __device__ __forceinline__ void each(int count, const Body& body) const {
    for (int i = lane_; i < count; i += threads_) body(i);
  }
  __device__ __forceinline__ void sync() const {
    if (threads_ <= kWarp) {
      sync_warp();
    } else {
      sync_block();
    }
  }

  // ---- finish: with S = Z[k] + conj Z[N-k], T = Z[k] - conj Z[N-k], G = a S, H = b T, where a = c/2 e^(-pi i k/2q) and
  // b = c/2 e^(-5 pi i k/2q) / i:  y[k] - i y[q-k] = G + H,  y[N-k] - i y[N+k] = e^(-pi i/4) conj(G - H).

  struct Finish {
    ComplexValue<A> a, b;
    __device__ __forceinline__ Finish(ComplexValue<A> a, ComplexValue<A> b) : a(a), b(b) {}
    __device__ __forceinline__ Finish(const DevicePlan& plan, int k)
        : a(load_complex<A>(plan.finish, 2 * int64_t(k))),
          b(load_complex<A>(plan.finish, 2 * int64_t(k) + 1)) {}

    // (Z[k], Z[N-k]) -> (y[k] + i y[q-k], y[N-k] + i y[N+k]) alpha, for 0 < k < N/2.
    __device__ __forceinline__ void forward(ComplexValue<A>& z, ComplexValue<A>& mirrored, A alpha) const {
      const auto g = a * (z + conj(mirrored)), h = b * (z - conj(mirrored));
      const auto sum = g + h, difference = g - h;
      const A eighth = alpha * A(cosine_of_turns(1, 8));
      z = {alpha * sum.re, -alpha * sum.im};
      mirrored = {eighth * (difference.re - difference.im), eighth * (difference.re + difference.im)};
    }
    // The transpose of Z -> (G + H, G - H).
    __device__ __forceinline__ void transposed(ComplexValue<A> sum, ComplexValue<A> difference,
                                               ComplexValue<A>& z, ComplexValue<A>& mirrored) const {
      const auto s = conj(a) * (sum + difference), t = conj(b) * (sum - difference);
      z = s + t;
      mirrored = conj(s - t);
    }
    // The transpose of `forward`; gives z and mirrored exchanged.
    __device__ __forceinline__ void adjoint(ComplexValue<A>& y, ComplexValue<A>& mirrored) const {
      constexpr A eighth = A(cosine_of_turns(1, 8));
      const ComplexValue<A> difference{eighth * (mirrored.re + mirrored.im),
                                       eighth * (mirrored.im - mirrored.re)};
      transposed(conj(y), difference, y, mirrored);
      y = exchanged(y);
      mirrored = exchanged(mirrored);
    }
  };

  // For one k, 0 <= k <= N/2, in place.
  __device__ __forceinline__ void finish(int k, A alpha) const {
    const Finish factors(plan_, k);
    const int slot = frequency_slot(plan_, k);
    auto z = row_.get(slot);
    if (k == 0) {
      const A sum = 2 * factors.a.re * z.re, difference = -2 * factors.b.im * z.im;
      row_.put(slot, {alpha * (sum + difference), alpha * (sum - difference)});
    } else if (2 * k == plan_.points) {
      auto same = z;
      factors.forward(z, same, alpha);
      row_.put(slot, z);
    } else {
      const int partner = frequency_slot(plan_, plan_.points - k);
      auto mirrored = row_.get(partner);
      factors.forward(z, mirrored, alpha);
      row_.put(slot, z);
      row_.put(partner, mirrored);
    }
  }

  __device__ __forceinline__ void start(int k) const {
    const Finish factors(plan_, k);
    const int slot = frequency_slot(plan_, k);
    auto y = row_.get(slot);
    if (k == 0) {
      row_.put(slot, {-2 * factors.b.im * (y.re - y.im), 2 * factors.a.re * (y.re + y.im)});
    } else if (2 * k == plan_.points) {
      ComplexValue<A> z, mirrored;
      factors.transposed(conj(y), {0, 0}, z, mirrored);
      row_.put(slot, exchanged(z + mirrored));
    } else {
      const int partner = frequency_slot(plan_, plan_.points - k);
      auto mirrored = row_.get(partner);
      factors.adjoint(y, mirrored);
      row_.put(slot, y);
      row_.put(partner, mirrored);
    }
  }

  // ---- the last pass with the finish: its columns c and M - c, M = N / R, in one thread. Columns 0 and M/2 are their
  // own partners: the first thread transforms them, and then all of its warp finish them.

  template <class Body>
  __device__ __forceinline__ void with_last_radix(const Body& body) const {
    switch (plan_.passes[plan_.pass_count - 1].radix) {
      case 2:
        return body(Constant<2>{});
      case 4:
        return body(Constant<4>{});
      case 8:
        return body(Constant<8>{});
    }
  }

  // The factors of columns i and M - i from those of k = i alone: a and b of i + M r, and then of M - i + M r, are these or
  // their conjugates, turned by constant angles, because M / 2q = 1 / 4R.
  template <int R>
  struct PairedFinish {
    Finish of_column;
    __device__ __forceinline__ PairedFinish(const DevicePlan& plan, int i) : of_column(plan, i) {}
    __device__ __forceinline__ Finish low(int r) const {
      return {of_column.a * root(r), of_column.b * root(5 * r)};
    }
    __device__ __forceinline__ Finish high(int r) const {
      const auto b = conj(of_column.b);
      return {conj(of_column.a) * root(r + 1), ComplexValue<A>{-b.re, -b.im} * root(5 * (r + 1))};
    }
    static __device__ __forceinline__ ComplexValue<A> root(int i) {
      constexpr Roots<8 * R, A> roots;
      return {roots.cosine[i], -roots.sine[i]};
    }
  };

  template <int R, class Body>
  __device__ __forceinline__ void each_unpaired(const Body& body) const {
    const int columns = plan_.points / R, lanes = threads_ < 8 ? threads_ : 8;  // more would meet in a bank
    if (lane_ >= lanes) return;
    for (int i = lane_; i < 8 + R / 2; i += lanes) {
      if (i <= R / 2) body(columns * i);
      if (i >= 8) body(columns / 2 + columns * (i - 8));
    }
  }

  template <int R>
  __device__ __forceinline__ void finish_paired(A alpha) const {
    const int columns = plan_.points / R;
    each(columns / 2, [&](int i) {
      int low = frequency_slot(plan_, i), high = frequency_slot(plan_, i ? columns - i : columns / 2);
      ComplexValue<A> v[R], w[R];
#pragma unroll
      for (int r = 0; r < R; ++r) v[r] = row_.get(low ^ r), w[r] = row_.get(high ^ r);
      dft(v);
      dft(w);
      if (i) {
        const PairedFinish<R> factors(plan_, i);
#pragma unroll
        for (int r = 0; r < R / 2; ++r) {
          factors.low(r).forward(v[r], w[R - 1 - r], alpha);
          factors.high(r).forward(w[r], v[R - 1 - r], alpha);
        }
      }
      low = forgotten(low), high = forgotten(high);
#pragma unroll
      for (int r = 0; r < R; ++r) row_.put(low ^ r, v[r]), row_.put(high ^ r, w[r]);
    });
    sync_warp();
    each_unpaired<R>([&](int k) { finish(k, alpha); });
  }

  template <int R>
  __device__ __forceinline__ void start_paired() const {
    const int columns = plan_.points / R;
    each_unpaired<R>([&](int k) { start(k); });
    sync_warp();
    each(columns / 2, [&](int i) {
      int low = frequency_slot(plan_, i), high = frequency_slot(plan_, i ? columns - i : columns / 2);
      ComplexValue<A> v[R], w[R];
#pragma unroll
      for (int r = 0; r < R; ++r) v[r] = row_.get(low ^ r), w[r] = row_.get(high ^ r);
      if (i) {
        const PairedFinish<R> factors(plan_, i);
#pragma unroll
        for (int r = 0; r < R / 2; ++r) {
          factors.low(r).adjoint(v[r], w[R - 1 - r]);
          factors.high(r).adjoint(w[r], v[R - 1 - r]);
        }
      }
      dft(v);
      dft(w);
      low = forgotten(low), high = forgotten(high);
#pragma unroll
      for (int r = 0; r < R; ++r) row_.put(low ^ r, v[r]), row_.put(high ^ r, w[r]);
    });
  }

  // ---- the first pass from x, and its transpose: columns c and M - 1 - c in one thread.

  template <class Body>
  __device__ __forceinline__ void with_first_radix(const Body& body) const {
    switch (plan_.passes[0].radix) {
      case 4:
        return body(Constant<4>{});
      case 8:
        return body(Constant<8>{});
    }
  }

  template <class Quad>
  __device__ __forceinline__ void first_from(const Quad& quad) const {
    with_first_radix([&](auto radix) {
      constexpr int R = decltype(radix)::value;
      const DevicePass& pass = plan_.passes[0];
      const A* twiddles = static_cast<const A*>(plan_.twiddles) + pass.twiddles;
      each(pass.columns / 2, [&](int low) {
        const int high = pass.columns - 1 - low;
        A x[R][4];
#pragma unroll
        for (int r = 0; r < R; ++r) quad((r % 2 ? high : low) + pass.columns * (r / 2), x[r]);
        ComplexValue<A> v[R], w[R];
#pragma unroll
        for (int r = 0; r < R / 2; ++r) {
          v[r] = {x[2 * r][0], x[2 * r][2]}, w[R - 1 - r] = {x[2 * r][3], x[2 * r][1]};
          w[r] = {x[2 * r + 1][0], x[2 * r + 1][2]}, v[R - 1 - r] = {x[2 * r + 1][3], x[2 * r + 1][1]};
        }
        auto finish_column = [&](int column, ComplexValue<A>(&column_values)[R]) {
          dft(column_values);
          turn_all(column_values, twiddles + 2 * column, pass.columns);
          const int base = plan_.slot(column);
#pragma unroll
          for (int r = 0; r < R; ++r) row_.put(base ^ step(pass, r), column_values[r]);
        };
        finish_column(low, v);
        finish_column(high, w);
      });
    });
  }

  template <class Quad>
  __device__ __forceinline__ void last_to(const Quad& quad) const {
    with_first_radix([&](auto radix) {
      constexpr int R = decltype(radix)::value;
      const DevicePass& pass = plan_.passes[0];
      const A* twiddles = static_cast<const A*>(plan_.twiddles) + pass.twiddles;
      each(pass.columns / 2, [&](int low) {
        const int high = pass.columns - 1 - low;
        ComplexValue<A> v[R], w[R];
        auto start_column = [&](int column, ComplexValue<A>(&column_values)[R]) {
          const int base = plan_.slot(column);
#pragma unroll
          for (int r = 0; r < R; ++r) column_values[r] = row_.get(base ^ step(pass, r));
          turn_all(column_values, twiddles + 2 * column, pass.columns);
          dft(column_values);
        };
        start_column(low, v);
        start_column(high, w);
#pragma unroll
        for (int r = 0; r < R / 2; ++r) {  // real and imaginary parts are exchanged
          const A even[4] = {v[r].im, w[R - 1 - r].re, v[r].re, w[R - 1 - r].im};
          const A odd[4] = {w[r].im, v[R - 1 - r].re, w[r].re, v[R - 1 - r].im};
          quad(low + pass.columns * r, even);
          quad(high + pass.columns * r, odd);
        }
      });
    });
  }

  // ---- all other passes

  // Bluestein's FFT_N from natural order to natural order: Z[k] = chirp[k] sum_n (z[n] chirp[n]) conj(chirp[k-n]). The
  // sum is a convolution: passes there, the product of the spectra, passes back. Being symmetric, it is the adjoint's too.
  __device__ __forceinline__ void enter_convolution() const {
    each(plan_.size, [&](int n) {
      const int slot = plan_.slot(n);
      row_.put(slot,
               n < plan_.points ? row_.get(slot) * load_complex<A>(plan_.chirp, n) : ComplexValue<A>{0, 0});
    });
    sync();
  }
  __device__ __forceinline__ void multiply_spectra() const {
    each(plan_.size, [&](int n) {
      const int slot = plan_.slot(n);
      row_.put(slot, exchanged(row_.get(slot) * load_complex<A>(plan_.spectrum, n)));
    });
    sync();
  }
  __device__ __forceinline__ void leave_convolution() const {
    each(plan_.points, [&](int n) {
      const int slot = plan_.slot(n);
      row_.put(slot, exchanged(row_.get(slot)) * load_complex<A>(plan_.chirp, n));
    });
    sync();
  }

  // Passes first .. last - 1, the adjoint in reverse order, each followed by a barrier. 7, 11 and 13, which are much code,
  // are no radices of a convolution's length (convolution_length in plan/device_tables.cpp).
  template <bool Adjoint, bool of_convolution = false>
  __device__ __forceinline__ void passes(int first, int last) const {
    for (int i = first; i < last; ++i) {
      const DevicePass& pass = plan_.passes[Adjoint ? first + last - 1 - i : i];
      switch (pass.radix) {
        case 2:
          run_pass<Adjoint, 2>(pass);
          break;
        case 3:
          run_pass<Adjoint, 3>(pass);
          break;
        case 4:
          run_pass<Adjoint, 4>(pass);
          break;
        case 5:
          run_pass<Adjoint, 5>(pass);
          break;
        case 7:
          if constexpr (!of_convolution) run_pass<Adjoint, 7>(pass);
          break;
        case 8:
          run_pass<Adjoint, 8>(pass);
          break;
        case 11:
          if constexpr (!of_convolution) run_pass<Adjoint, 11>(pass);
          break;
        case 13:
          if constexpr (!of_convolution) run_pass<Adjoint, 13>(pass);
          break;
        case 16:
          run_pass<Adjoint, 16>(pass);
          break;
      }
      sync();
    }
  }

  // Each butterfly reads and writes the same slots.
  template <bool Adjoint, int R>
  __device__ __forceinline__ void run_pass(const DevicePass& pass) const {
    const A* twiddles = static_cast<const A*>(plan_.twiddles) + pass.twiddles;
    each(plan_.size / R, [&](int i) {
      const int block = int(pass.by_columns.quotient(uint32_t(i)));
      const int column = i - block * pass.columns;
      int base = plan_.slot(block * R * pass.columns + column);
      const int one = forgotten(pass.steps[0]);  // or all 16 combinations of steps would stay in registers
      auto slot = [&](int r) {
        return R % 2 ? base + r * pass.columns : base ^ (r & 1 ? one : 0) ^ step(pass, r & ~1);
      };
      ComplexValue<A> v[R];
#pragma unroll
      for (int r = 0; r < R; ++r) v[r] = row_.get(slot(r));
      if (Adjoint && pass.columns > 1) turn_all(v, twiddles + 2 * column, pass.columns);
      dft(v);
      if (!Adjoint && pass.columns > 1) turn_all(v, twiddles + 2 * column, pass.columns);
      base = forgotten(base);
#pragma unroll
      for (int r = 0; r < R; ++r) row_.put(slot(r), v[r]);
    });
  }

  const DevicePlan& plan_;
  Row row_;
  int lane_, threads_;
};

}  // namespace dctps
