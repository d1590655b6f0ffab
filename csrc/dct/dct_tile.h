// The DCT of a tile: kLanes rows side by side, one per SIMD lane, so that every step of a plan is a plain
// vector operation.
#pragma once

#include "common/simd.h"
#include "plan/plan.h"

namespace dctps {
namespace DCTPS_ISA {

// ---- small DFTs, in registers: X[s] = sum_k x[k] e^(-2 pi i k s / R). The inverse is the same with re and
// im swapped.

template <class V>
DCTPS_INLINE void dft2(V& ar, V& ai, V& br, V& bi) {
  const V dr = ar - br, di = ai - bi;
  ar += br;
  ai += bi;
  br = dr;
  bi = di;
}

template <class V>
DCTPS_INLINE void dft4(V& ar, V& ai, V& br, V& bi, V& cr, V& ci, V& dr, V& di) {
  dft2(ar, ai, cr, ci);
  dft2(br, bi, dr, di);
  const V er = dr, ei = di;
  dft2(ar, ai, br, bi);        // 0 in a, 2 in b
  dr = cr - ei, di = ci + er;  // 3: c + i e
  cr = cr + ei, ci = ci - er;  // 1: c - i e
  // now a=0, b=2, c=1, d=3: put them in order
  const V tr = br, ti = bi;
  br = cr, bi = ci;
  cr = tr, ci = ti;
}

template <int R, class A, class V>
DCTPS_INLINE void dft(V* re, V* im, const A* rotations) {
  if constexpr (R == 2) {
    dft2(re[0], im[0], re[1], im[1]);
  } else if constexpr (R == 4) {
    dft4(re[0], im[0], re[1], im[1], re[2], im[2], re[3], im[3]);
  } else if constexpr (R == 8) {
    constexpr A h = A(0.70710678118654752440);
    for (int k = 0; k < 4; ++k) dft2(re[k], im[k], re[k + 4], im[k + 4]);
    // times e^(-i pi k / 4)
    V tr = (re[5] + im[5]) * h, ti = (im[5] - re[5]) * h;
    re[5] = tr, im[5] = ti;
    tr = im[6], ti = -re[6];
    re[6] = tr, im[6] = ti;
    tr = (im[7] - re[7]) * h, ti = -(re[7] + im[7]) * h;
    re[7] = tr, im[7] = ti;
    dft4(re[0], im[0], re[1], im[1], re[2], im[2], re[3], im[3]);  // 0 2 4 6
    dft4(re[4], im[4], re[5], im[5], re[6], im[6], re[7], im[7]);  // 1 3 5 7
    V er[8], ei[8];
    for (int k = 0; k < 8; ++k) er[k] = re[k], ei[k] = im[k];
    for (int k = 0; k < 4; ++k) {
      re[2 * k] = er[k], im[2 * k] = ei[k];
      re[2 * k + 1] = er[k + 4], im[2 * k + 1] = ei[k + 4];
    }
  } else {
    static_assert(R % 2 == 1, "a radix is 2, 4, 8 or odd");
    constexpr int h = (R - 1) / 2;
    V pr[h], pi[h], mr[h], mi[h];
    for (int k = 0; k < h; ++k) {
      pr[k] = re[k + 1] + re[R - 1 - k], pi[k] = im[k + 1] + im[R - 1 - k];
      mr[k] = re[k + 1] - re[R - 1 - k], mi[k] = im[k + 1] - im[R - 1 - k];
    }
    const V r0 = re[0], i0 = im[0];
    for (int k = 0; k < h; ++k) re[0] += pr[k], im[0] += pi[k];
#pragma GCC unroll 8
    for (int s = 0; s < h; ++s) {
      V a = r0, c = i0, b{}, d{};
#pragma GCC unroll 8
      for (int k = 0; k < h; ++k) {
        const A cosine = rotations[s * h + k], sine = rotations[h * h + s * h + k];
        a += pr[k] * cosine, c += pi[k] * cosine;
        b += mi[k] * sine, d += mr[k] * sine;
      }
      re[s + 1] = a + b, im[s + 1] = c - d;
      re[R - 1 - s] = a - b, im[R - 1 - s] = c + d;
    }
  }
}

// Multiplies (re, im) by the root {cos, -sin}, or by its conjugate.
template <bool Conjugate, class A, class V>
DCTPS_INLINE void twiddle(V& re, V& im, const A* root) {
  const A c = root[0], s = Conjugate ? -root[1] : root[1];
  const V r = re * c - im * s;
  im = re * s + im * c;
  re = r;
}

// ---- passes. R = 0 stands for any odd radix, known only at run time.

template <class A>
class TileTransform {
 public:
  using V = Vec<A>;

  explicit TileTransform(const Plan<A>& plan)
      : plan_(plan), finish_(plan.finish.data()), adjoint_order_(plan.adjoint_order.data()) {}

  // From x [length] (zero-padded; left as it is) to work [work_size], of which finish(work, k) reads y[k].
  // Meanwhile calls meanwhile(v) now and then, after v more of the values have been worked on.
  template <class Meanwhile>
  void forward(const V* x, V* work, Meanwhile&& meanwhile) const {
    if (plan_.is_bluestein()) {
      combine_all(plan_.start.data(), plan_.work_size, x, work);
      convolve(work, A(1), meanwhile);
    } else if (plan_.root < 0) {
      work[0] = x[0];
    } else {
      run<false>(plan_.root, work, 1, x, nullptr, meanwhile);
    }
  }
  DCTPS_INLINE V finish(const V* work, int64_t k) const { return combine(finish_[k], work); }

  // The transpose: from v [length], of which adjoint_finish(work, i) reads x[i].
  template <class Meanwhile>
  void adjoint(const V* v, V* work, Meanwhile&& meanwhile) const {
    const Combine<A>* const start = plan_.adjoint_start.data();
    if (plan_.is_bluestein()) {
      combine_all(start, plan_.work_size, v, work);
      convolve(work, A(-1), meanwhile);
      combine_all(plan_.adjoint_finish.data(), plan_.length, work, work);
    } else if (plan_.root < 0) {
      combine_all(start, 1, v, work);
    } else {
      run<true>(plan_.root, work, 1, v, start, meanwhile);
    }
  }
  DCTPS_INLINE V adjoint_finish(const V* work, int64_t i) const { return work[adjoint_order_[i]]; }

 private:
  static DCTPS_INLINE V combine(const Combine<A>& term, const V* from) {
    return from[term.a] * term.ca + from[term.b] * term.cb;
  }

  static void combine_all(const Combine<A>* terms, int64_t count, const V* from, V* to) {
    for (int64_t p = 0; p < count; ++p) to[p] = combine(terms[p], from);
  }

  // Convolution with the kernel whose spectrum the plan holds; sign = -1 takes the conjugate spectrum.
  template <class Meanwhile>
  void convolve(V* work, A sign, Meanwhile& meanwhile) const {
    run<false>(plan_.root, work, 1, nullptr, nullptr, meanwhile);
    for (int s = 0;
         s < plan_.work_size;) {  // the passes end in pairs: one real part, then its imaginary part
      const A re = plan_.spectrum[size_t(s)], im = plan_.spectrum[size_t(s + 1)] * sign;
      const V r = work[s] * re - work[s + 1] * im;
      work[s + 1] = work[s] * im + work[s + 1] * re;
      work[s] = r;
      s += 2;
    }
    run<true>(plan_.root, work, 1, nullptr, nullptr, meanwhile);
  }

  // Meanwhile is called after about so many values of a leaf pass: often, because a processor drops prefetches that come
  // in large bursts.
  static constexpr int64_t kFewValues = 32;

  // The adjoint's first values are made for so many places at a time, to be worked on while they are in the nearest
  // cache. A pass over more of them has no children of length 1, which no pass would make.
  static constexpr int64_t kNearValues = 256;
  static_assert(kNearValues >= 2 * kMaxRadix);

  // Runs pass `number` and all below it on `blocks` transforms that lie one behind the other. Depth first: a
  // sub-transform is finished while it is in the nearest cache. The adjoint visits the passes in the reverse
  // order. The first pass reads `input`, if any; that of the adjoint through the combinations `start`.
  template <bool Adjoint, class Meanwhile>
  void run(int number, V* work, int blocks, const V* input, const Combine<A>* start,
           Meanwhile& meanwhile) const {
    if (number < 0) return;
    const Pass<A>& pass = plan_.passes[size_t(number)];
    const int64_t size = int64_t(pass.length()) * (pass.is_complex ? 2 : 1);
    const bool is_leaf = pass.real_child < 0 && pass.complex_child < 0;
    const int few = is_leaf && size < kFewValues ? int(kFewValues / size) : 1;
    for (int b = 0; b < blocks; b += few, work += few * size) {
      const int here = blocks - b < few ? blocks - b : few;
      const Combine<A>* below = Adjoint && start ? start + b * size : nullptr;
      if (below && size <= kNearValues) {
        combine_all(below, here * size, input, work);
        below = nullptr;
      }
      if (!Adjoint || is_leaf) apply<Adjoint>(pass, work, here, Adjoint ? nullptr : input);
      if (is_leaf) {
        meanwhile(size * here);
        continue;
      }
      const int64_t real_size = int64_t(pass.real_children) * pass.real_child_length;
      const V* const values = below ? input : nullptr;
      run<Adjoint>(pass.real_child, work, pass.real_children, values, below, meanwhile);
      run<Adjoint>(pass.complex_child, work + real_size, pass.complex_children, values,
                   below ? below + real_size : nullptr, meanwhile);
      if (Adjoint) apply<Adjoint>(pass, work, 1, nullptr);
    }
  }

  template <bool Adjoint>
  void apply(const Pass<A>& pass, V* work, int blocks, const V* input) const {
    switch (pass.radix) {
      case 2:
        return apply_radix<Adjoint, 2>(pass, work, blocks, input);
      case 3:
        return apply_radix<Adjoint, 3>(pass, work, blocks, input);
      case 4:
        return apply_radix<Adjoint, 4>(pass, work, blocks, input);
      case 5:
        return apply_radix<Adjoint, 5>(pass, work, blocks, input);
      case 7:
        return apply_radix<Adjoint, 7>(pass, work, blocks, input);
      case 8:
        return apply_radix<Adjoint, 8>(pass, work, blocks, input);
      default:
        return apply_radix<Adjoint, 0>(pass, work, blocks, input);
    }
  }

  template <bool Adjoint, int R>
  void apply_radix(const Pass<A>& pass, V* work, int blocks, const V* input) const {
    if (pass.is_complex) {
      if (pass.columns == 1) {
        complex_pass<Adjoint, R, false>(pass, work, blocks);
      } else {
        complex_pass<Adjoint, R, true>(pass, work, blocks);
      }
    } else if (!input) {
      real_pass<Adjoint, R>(pass, work, blocks, [](const V* in_place, int64_t j) { return in_place[j]; });
    } else if constexpr (!Adjoint) {
      const int32_t* order = plan_.order.data();
      real_pass<Adjoint, R>(pass, work, blocks, [=](const V*, int64_t j) { return input[order[j]]; });
    }
  }

  template <bool Adjoint, int R, bool Twiddles>
  static void complex_pass(const Pass<A>& pass, V* work, int blocks) {
    const int r = R ? R : pass.radix;
    const int64_t m = Twiddles ? pass.columns : 1;
    const A* rotations = pass.rotations.data();
    for (int b = 0; b < blocks; ++b, work += 2 * r * m) {
      const A* roots = pass.twiddles.data();
      for (int64_t j = 0; j < m; ++j, roots += 2 * (r - 1)) {
        V re[R ? R : kMaxRadix], im[R ? R : kMaxRadix];
        V* column = work + j;  // as input of the forward pass: re of x[k] at k m, im at (r + k) m
        if (!Adjoint) {
          for (int k = 0; k < r; ++k) re[k] = column[k * m], im[k] = column[(r + k) * m];
          complex_dft<R>(re, im, r, rotations);
          for (int s = 0; s < r; ++s) {
            if (Twiddles && s > 0) twiddle<false>(re[s], im[s], roots + 2 * (s - 1));
            column[2 * s * m] = re[s], column[(2 * s + 1) * m] = im[s];
          }
        } else {
          for (int s = 0; s < r; ++s) {
            re[s] = column[2 * s * m], im[s] = column[(2 * s + 1) * m];
            if (Twiddles && s > 0) twiddle<true>(re[s], im[s], roots + 2 * (s - 1));
          }
          complex_dft<R>(im, re, r, rotations);
          for (int k = 0; k < r; ++k) column[k * m] = re[k], column[(r + k) * m] = im[k];
        }
      }
    }
  }

  template <int R>
  static DCTPS_INLINE void complex_dft(V* re, V* im, int r, const A* rotations) {
    if constexpr (R != 0) {
      dft<R, A>(re, im, rotations);
    } else {
      any_odd_dft(re, im, r, rotations);
    }
  }

  // dft<R> for an odd radix known only at run time.
  static void any_odd_dft(V* re, V* im, int r, const A* rotations) {
    const int h = (r - 1) / 2;
    V pr[kMaxRadix / 2], pi[kMaxRadix / 2], mr[kMaxRadix / 2], mi[kMaxRadix / 2];
    const V r0 = re[0], i0 = im[0];
    for (int k = 0; k < h; ++k) {
      pr[k] = re[k + 1] + re[r - 1 - k], pi[k] = im[k + 1] + im[r - 1 - k];
      mr[k] = re[k + 1] - re[r - 1 - k], mi[k] = im[k + 1] - im[r - 1 - k];
      re[0] += pr[k], im[0] += pi[k];
    }
    for (int s = 0; s < h; ++s) {
      const A* cosines = rotations + s * h;
      const A* sines = cosines + h * h;
      V a = r0, c = i0, b{}, d{};
      for (int k = 0; k < h; ++k) {
        a += pr[k] * cosines[k], c += pi[k] * cosines[k];
        b += mi[k] * sines[k], d += mr[k] * sines[k];
      }
      re[s + 1] = a + b, im[s + 1] = c - d;
      re[r - 1 - s] = a - b, im[r - 1 - s] = c + d;
    }
  }

  // A pass over real data. Its values and results take the same places j + k m: for radix 8 the two of the
  // real child, then re and im of the children of frequency 1, 2, 3; and so on, see plan.h.
  template <bool Adjoint, int R, class Read>
  static void real_pass(const Pass<A>& pass, V* work, int blocks, const Read& read) {
    [[maybe_unused]] constexpr A h = A(0.70710678118654752440);
    const int r = R ? R : pass.radix;
    const int children =
        R ? complex_children(R) : pass.complex_children;  // a constant, or x would not be in registers
    const int64_t m = pass.columns;
    const A* rotations = pass.rotations.data();
    for (int b = 0; b < blocks; ++b, work += r * m) {
      const A* roots = pass.twiddles.data();
      for (int64_t j = 0; j < m; ++j, roots += 2 * children) {
        V* column = work + j;
        V x[R ? R : kMaxRadix];
        if constexpr (!Adjoint) {
          for (int k = 0; k < r; ++k) x[k] = read(work, j + k * m);
        } else {
          for (int k = 0; k < r; ++k) x[k] = column[k * m];
          if constexpr (R != 2) {
            for (int s = 0; s < children; ++s) {
              const int re = r - 2 * children + 2 * s;
              twiddle<true>(x[re], x[re + 1], roots + 2 * s);
            }
          }
        }
        if constexpr (R == 2) {
          const A sign = j % 2 ? A(-1) : A(1);
          if constexpr (!Adjoint) {
            const V difference = (x[0] - x[1]) * sign;
            x[0] += x[1];
            x[1] = difference;
          } else {
            const V signed_second = x[1] * sign;
            x[1] = x[0] - signed_second;
            x[0] += signed_second;
          }
        } else if constexpr (R == 4) {
          if constexpr (!Adjoint) {
            const V re = x[0] - x[2], im = x[3] - x[1];
            x[0] += x[2];
            x[1] += x[3];
            x[2] = re, x[3] = im;
          } else {
            const V u0 = x[0], u1 = x[1], re = x[2], im = x[3];
            x[0] = u0 + re;
            x[2] = u0 - re;
            x[1] = u1 - im;
            x[3] = u1 + im;
          }
        } else if constexpr (R == 8) {
          if constexpr (!Adjoint) {
            const V t0 = x[0] + x[4], t1 = x[1] + x[5], t2 = x[2] + x[6], t3 = x[3] + x[7];
            const V d0 = x[0] - x[4], d2 = x[2] - x[6];
            const V d1 = x[1] - x[5], d3 = x[3] - x[7];
            const V even = (d1 - d3) * h, odd = (d1 + d3) * h;
            x[0] = t0 + t2;
            x[1] = t1 + t3;
            x[2] = d0 + even, x[3] = -(d2 + odd);
            x[4] = t0 - t2, x[5] = t3 - t1;
            x[6] = d0 - even, x[7] = d2 - odd;
          } else {
            const V u0 = x[0], u1 = x[1];
            const V t0 = u0 + x[4], t2 = u0 - x[4], t1 = u1 - x[5], t3 = u1 + x[5];
            const V d0 = x[2] + x[6], d2 = x[7] - x[3];
            const V even = (x[2] - x[6]) * h, odd = (x[3] + x[7]) * h;
            const V d1 = even - odd, d3 = -(even + odd);
            x[0] = t0 + d0, x[4] = t0 - d0;
            x[1] = t1 + d1, x[5] = t1 - d1;
            x[2] = t2 + d2, x[6] = t2 - d2;
            x[3] = t3 + d3, x[7] = t3 - d3;
          }
        } else {
          real_odd_dft<Adjoint>(x, r, rotations);
        }
        if constexpr (!Adjoint && R != 2) {
          for (int s = 0; s < children; ++s) {
            const int re = r - 2 * children + 2 * s;
            twiddle<false>(x[re], x[re + 1], roots + 2 * s);
          }
        }
        for (int k = 0; k < r; ++k) column[k * m] = x[k];
      }
    }
  }

  // x[0 .. r-1] real <-> X[0], then re and im of X[1 .. (r-1)/2]; the adjoint is the transposed map.
  template <bool Adjoint>
  static DCTPS_INLINE void real_odd_dft(V* x, int r, const A* rotations) {
    const int h = (r - 1) / 2;
    V plus[kMaxRadix / 2], minus[kMaxRadix / 2];
    const V first = x[0];
    for (int k = 0; k < h; ++k) {
      plus[k] = Adjoint ? x[2 * k + 1] : x[k + 1] + x[r - 1 - k];
      minus[k] = Adjoint ? x[2 * k + 2] : x[k + 1] - x[r - 1 - k];
      x[0] += plus[k];
    }
    for (int s = 0; s < h; ++s) {
      const A* cosines = rotations + s * h;
      const A* sines = cosines + h * h;
      V a = first, b{};
      for (int k = 0; k < h; ++k) a += plus[k] * cosines[k], b += minus[k] * sines[k];
      x[Adjoint ? s + 1 : 2 * s + 1] = Adjoint ? a - b : a;
      x[Adjoint ? r - 1 - s : 2 * s + 2] = Adjoint ? a + b : -b;
    }
  }

  const Plan<A>& plan_;
  // Here, not looked up after every store.
  const Combine<A>* const finish_;
  const int32_t* const adjoint_order_;
};

}  // namespace DCTPS_ISA
}  // namespace dctps
