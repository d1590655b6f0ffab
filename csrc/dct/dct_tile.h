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
DCTPS_INLINE void sum_and_difference(V& a, V& b) {
  const V difference = a - b;
  a += b;
  b = difference;
}

template <class V>
DCTPS_INLINE void dft2(V& ar, V& ai, V& br, V& bi) {
  sum_and_difference(ar, br);
  sum_and_difference(ai, bi);
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

// Multiplies (re, im) by the root {cos, -sin}, or by its conjugate.
template <bool Conjugate, class A, class V>
DCTPS_INLINE void twiddle(V& re, V& im, const A* root) {
  const A c = root[0], s = Conjugate ? -root[1] : root[1];
  const V r = re * c - im * s;
  im = re * s + im * c;
  re = r;
}

// A result of the passes, see Plan::turns.
template <class A, class V>
DCTPS_INLINE void turn(V& re, V& im, const A* factors) {
  const A a = factors[0], b = factors[1];
  const V r = re * a + im * b;
  im = re * b - im * a;
  re = r;
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
  } else if constexpr (R == 9) {
    static constexpr A third[] = {A(-0.5), A(0.86602540378443864676)};
    static constexpr A roots[5][2] = {{A(1), A(0)},
                                      {A(0.76604444311897803520), A(-0.64278760968653932632)},
                                      {A(0.17364817766693034885), A(-0.98480775301220805937)},
                                      {},
                                      {A(-0.93969262078590838405), A(-0.34202014332566873304)}};
    V r[9], i[9];  // [frequency modulo 3][place modulo 3]
    for (int p = 0; p < 3; ++p) {
      V tr[3] = {re[p], re[p + 3], re[p + 6]}, ti[3] = {im[p], im[p + 3], im[p + 6]};
      dft<3, A>(tr, ti, third);
      for (int s = 0; s < 3; ++s) {
        if (p > 0 && s > 0) twiddle<false>(tr[s], ti[s], roots[p * s]);
        r[3 * s + p] = tr[s], i[3 * s + p] = ti[s];
      }
    }
    for (int s = 0; s < 3; ++s) {
      dft<3, A>(r + 3 * s, i + 3 * s, third);
      for (int t = 0; t < 3; ++t) re[s + 3 * t] = r[3 * s + t], im[s + 3 * t] = i[3 * s + t];
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

// ---- passes. R = 0 stands for any odd radix, known only at run time.

template <class A>
class TileTransform {
 public:
  using V = Vec<A>;

  explicit TileTransform(const Plan<A>& plan)
      : plan_(plan), place_of_y_(plan.place_of_y.data()), place_of_x_(plan.place_of_x.data()) {}

  // From x [length] (zero-padded) to work [work_size], of which finish(work, k) reads y[k]. x comes as
  // squares.all(), or in pieces: squares.square(first, slot) is x[first .. first + kLanes - 1], and stays in memory
  // until another square takes its slot, of which there are length / kLanes. Its values are squares.stride() vectors
  // apart, 1 or 2. Meanwhile calls meanwhile(v) now and then, after v more of the values have been worked on.
  template <class Squares, class Meanwhile>
  void forward(const Squares& squares, V* work, Meanwhile&& meanwhile) const {
    if constexpr (kTakesSquares) {
      const Pass<A>* const first = first_even_pass();
      if (first && first->columns >= kLanes<A>) return from_first_pass(*first, squares, work, meanwhile);
    }
    from_memory({squares.all(), squares.stride()}, work, meanwhile);
  }
  // The same from x [length] in memory.
  void forward(const V* x, V* work) const { from_memory({x, 1}, work, Nothing{}); }
  template <class Work>  // const V*, or InTwo<V> for two tiles at once
  DCTPS_INLINE auto finish(Work work, int64_t k) const {
    return work[place_of_y_[k]];
  }

  // The transpose: from v [length], in squares like forward()'s x, of which adjoint_finish(work, i) reads x[i].
  template <class Squares, class Meanwhile>
  void adjoint(const Squares& squares, V* work, Meanwhile&& meanwhile) const {
    if (plan_.is_bluestein()) {
      return convolve(plan_.adjoint_start, plan_.adjoint_finish, {squares.all(), squares.stride()}, work,
                      meanwhile);
    }
    constexpr int L = kLanes<A>;
    for (int64_t first = 0; first < plan_.length; first += L) {
      const V* const square = squares.square(first, 0);
      for (int i = 0; i < L && first + i < plan_.length; ++i) {
        work[place_of_y_[first + i]] = square[i * squares.stride()];
      }
    }
    run<true>(plan_.root, work, plan_.turns.data(), 1, nullptr, meanwhile);
  }
  void adjoint(const V* v, V* work) const { adjoint(Input{v, 1}, work, Nothing{}); }
  template <class Work>
  DCTPS_INLINE auto adjoint_finish(Work work, int64_t i) const {
    return work[place_of_x_[i]];
  }

 private:
  // All of x in memory, its values so many vectors apart; as squares, too.
  struct Input {
    const V* data;
    int apart;
    DCTPS_INLINE V operator[](int64_t i) const { return data[i * apart]; }
    const V* square(int64_t first, int) const { return data + first * apart; }
    const V* all() const { return data; }
    int stride() const { return apart; }
  };
  struct Nothing {  // meanwhile
    void operator()(int64_t) const {}
  };

  // Whether an even length's first pass goes through x in squares: where vectors fill cache lines. Squares of half lines
  // would be waited for twice: measured, that takes 6 to 25% longer on AVX2 than loading all of x before.
  static constexpr bool kTakesSquares = kVectorBytes == 64;

  // The pass that takes x in pairs from both ends; null where the length has none.
  const Pass<A>* first_even_pass() const {
    if (plan_.is_bluestein() || plan_.root < 0) return nullptr;
    const Pass<A>& first = plan_.passes[size_t(plan_.root)];
    return first.radix % 2 || first.is_last() ? nullptr : &first;
  }

  template <class X, class Meanwhile>  // X: Input, or squares
  void from_first_pass(const Pass<A>& first, const X& x, V* work, Meanwhile& meanwhile) const {
    switch (first.radix) {
      case 2:
        first_pass<2>(first, work, x);
        break;
      case 4:
        first_pass<4>(first, work, x);
        break;
      case 8:
        first_pass<8>(first, work, x);
        break;
      default:
        first_pass<16>(first, work, x);
    }
    run_children<false>(first, work, plan_.turns.data(), meanwhile);
  }

  template <class Meanwhile>
  DCTPS_NOINLINE void from_memory(const Input& x, V* work, Meanwhile&& meanwhile) const {
    if (const Pass<A>* const first = first_even_pass()) return from_first_pass(*first, x, work, meanwhile);
    if (plan_.is_bluestein()) return convolve(plan_.start, plan_.finish, x, work, meanwhile);
    if (plan_.root < 0) {
      work[0] = x[0];
      return;
    }
    run<false>(plan_.root, work, plan_.turns.data(), 1, &x, meanwhile);
  }

  // to[p] = terms[p] of from, which may be `to` where a term takes nothing that another one has written.
  static void combine(const std::vector<Combine<A>>& terms, Input from, V* to) {
    for (const Combine<A>& term : terms) *to++ = from[term.a] * term.ca + from[term.b] * term.cb;
  }

  // Bluestein's convolution: the passes, by whose last ones the kernel's spectrum is multiplied, and back.
  template <class Meanwhile>
  void convolve(const std::vector<Combine<A>>& start, const std::vector<Combine<A>>& finish, const Input& x,
                V* work, Meanwhile& meanwhile) const {
    combine(start, x, work);
    run<false>(plan_.root, work, plan_.turns.data(), 1, nullptr, meanwhile);
    run<true>(plan_.root, work, plan_.turns_back.data(), 1, nullptr, meanwhile);
    combine(finish, {work, 1}, work);
  }

  // Meanwhile is called after about so many values of a leaf pass: often, because a processor drops prefetches that come
  // in large bursts.
  static constexpr int64_t kFewValues = 32;

  // Runs pass `number` and all below it on `blocks` transforms that lie one behind the other. Depth first: a
  // sub-transform is finished while it is in the nearest cache. The adjoint visits the passes in the reverse
  // order. The first pass reads `input`, if any. turns: those of work's places.
  template <bool Adjoint, class Meanwhile>
  void run(int number, V* work, const A* turns, int blocks, const Input* input, Meanwhile& meanwhile) const {
    if (number < 0) return;
    const Pass<A>& pass = plan_.passes[size_t(number)];
    const int64_t size = int64_t(pass.length()) * (pass.is_complex ? 2 : 1);
    const bool is_leaf = pass.real_child < 0 && pass.complex_child < 0;
    const int few = is_leaf && size < kFewValues ? int(kFewValues / size) : 1;
    for (int b = 0; b < blocks; b += few, work += few * size, turns += few * size) {
      const int here = blocks - b < few ? blocks - b : few;
      if (!Adjoint || is_leaf) apply<Adjoint>(pass, work, turns, here, input);
      if (is_leaf) {
        meanwhile(size * here);
        continue;
      }
      run_children<Adjoint>(pass, work, turns, meanwhile);
      if (Adjoint) apply<Adjoint>(pass, work, turns, 1, nullptr);
    }
  }

  template <bool Adjoint, class Meanwhile>
  DCTPS_INLINE void run_children(const Pass<A>& pass, V* work, const A* turns, Meanwhile& meanwhile) const {
    run<Adjoint>(pass.real_child, work, turns, pass.real_children, nullptr, meanwhile);
    const int together = pass.skew ? 1 : pass.complex_children;  // children one behind the other
    for (int c = 0; c < pass.complex_children; c += together) {
      const int64_t at = pass.complex_child_at(c);
      run<Adjoint>(pass.complex_child, work + at, turns + at, together, nullptr, meanwhile);
    }
  }

  template <bool Adjoint>
  void apply(const Pass<A>& pass, V* work, const A* turns, int blocks, const Input* input) const {
    switch (pass.radix) {
      case 2:
        return apply_radix<Adjoint, 2>(pass, work, turns, blocks, input);
      case 3:
        return apply_radix<Adjoint, 3>(pass, work, turns, blocks, input);
      case 4:
        return apply_radix<Adjoint, 4>(pass, work, turns, blocks, input);
      case 5:
        return apply_radix<Adjoint, 5>(pass, work, turns, blocks, input);
      case 7:
        return apply_radix<Adjoint, 7>(pass, work, turns, blocks, input);
      case 8:
        return apply_radix<Adjoint, 8>(pass, work, turns, blocks, input);
      case 9:
        return apply_radix<Adjoint, 9>(pass, work, turns, blocks, input);
      case 16:
        return apply_radix<Adjoint, 16>(pass, work, turns, blocks, input);
      default:
        return apply_radix<Adjoint, 0>(pass, work, turns, blocks, input);
    }
  }

  template <bool Adjoint, int R>
  void apply_radix(const Pass<A>& pass, V* work, const A* turns, int blocks, const Input* input) const {
    pass.is_last() ? apply_radix<Adjoint, R, true>(pass, work, turns, blocks, input)
                   : apply_radix<Adjoint, R, false>(pass, work, turns, blocks, input);
  }

  template <bool Adjoint, int R, bool Last>
  void apply_radix(const Pass<A>& pass, V* work, const A* turns, int blocks, const Input* input) const {
    if (pass.is_complex) {
      if constexpr (R != 16) complex_pass<Adjoint, R, Last>(pass, work, turns, blocks);
    } else if constexpr (R != 9) {
      if (!input) {
        real_pass<Adjoint, R, Last>(pass, work, turns, blocks,
                                    [](const V* row, int64_t at) { return row[at]; });
      } else if constexpr (!Adjoint) {
        real_pass<Adjoint, R, Last>(
            pass, work, turns, blocks,
            [x = *input, order = plan_.order.data()](const V*, int64_t at) { return x[order[at]]; });
      }
    }
  }

  template <bool Adjoint, int R, bool Last>
  static void complex_pass(const Pass<A>& pass, V* work, const A* turns, int blocks) {
    const int r = R ? R : pass.radix;
    const int64_t m = Last ? 1 : pass.columns;
    const A* rotations = pass.rotations.data();
    for (int b = 0; b < blocks; ++b, work += 2 * r * m, turns += 2 * r * m) {
      const A* roots = pass.twiddles.data();
      for (int64_t j = 0; j < m; ++j, roots += 2 * (r - 1)) {
        V re[R ? R : kMaxRadix], im[R ? R : kMaxRadix];
        V* column = work + j;  // as input of the forward pass: re of x[k] at k m, im at (r + k) m
        auto multiply = [&](int s) {
          if constexpr (Last) {
            turn(re[s], im[s], turns + 2 * s);
          } else if (s > 0) {
            twiddle<Adjoint>(re[s], im[s], roots + 2 * (s - 1));
          }
        };
        if (!Adjoint) {
          for (int k = 0; k < r; ++k) re[k] = column[k * m], im[k] = column[(r + k) * m];
          complex_dft<R>(re, im, r, rotations);
          for (int s = 0; s < r; ++s) {
            multiply(s);
            column[2 * s * m] = re[s], column[(2 * s + 1) * m] = im[s];
          }
        } else {
          for (int s = 0; s < r; ++s) {
            re[s] = column[2 * s * m], im[s] = column[(2 * s + 1) * m];
            multiply(s);
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
  template <bool Adjoint, int R, bool Last, class Read>
  static void real_pass(const Pass<A>& pass, V* work, const A* turns, int blocks, const Read& read) {
    const int r = R ? R : pass.radix;
    const int64_t m = pass.columns, skew = R == 16 ? pass.skew : 0;
    for (int b = 0; b < blocks; ++b, work += r * m, turns += r * m) {
      for (int64_t j = 0; j < m; ++j) {
        V x[R ? R : kMaxRadix];
        x[0] = read(work, j);
        for (int k = 1; k < r; ++k) x[k] = read(work + k / 2 * skew, j + k * m);
        real_butterfly<Adjoint, R, Last>(pass, turns, j, x);
        for (int k = 0; k < r; ++k) work[j + k * m + k / 2 * skew] = x[k];
      }
    }
  }

  // The first pass of an even length. Butterfly j takes x[2 s m + 2 j] and x[2 (s + 1) m - 1 - 2 j] of each of R / 2
  // segments s of 2 m values.
  template <int R>
  static void first_pass(const Pass<A>& pass, V* work, const Input& x) {
    const int64_t m = pass.columns;
    const V *low[R / 2], *high[R / 2];
    for (int s = 0; s < R / 2; ++s) {
      low[s] = x.data + 2 * s * m * x.apart;
      high[s] = x.data + (2 * (s + 1) * m - 1) * x.apart;
    }
    for (int64_t j = 0; j < m; ++j) {
      first_butterfly<R>(pass, j, low, 2 * j * x.apart, high, -2 * j * x.apart, work);
    }
  }

  // The same by squares of x, in whose order it goes: one at either end of every segment is all that the butterflies of
  // kLanes / 2 neighbours j and of their mirror images m - 1 - j need. At least kLanes columns.
  template <int R, class Squares>
  static void first_pass(const Pass<A>& pass, V* work, const Squares& squares) {
    constexpr int L = kLanes<A>;
    const int64_t m = pass.columns;
    const int stride = squares.stride();
    const V *low[R / 2], *high[R / 2];
    for (int64_t begin = 0; 2 * begin < m; begin += L / 2) {
#pragma GCC unroll 1
      for (int s = 0; s < R / 2; ++s) {
        low[s] = squares.square(2 * s * m + 2 * begin, 2 * s);
        high[s] = squares.square(2 * (s + 1) * m - 2 * begin - L, 2 * s + 1) + (L - 1) * stride;
      }
      for (int i = 0; i < L && 2 * begin + i < m; i += 2) {
        const int64_t j = begin + i / 2;
        const int at = i * stride, next = at + stride;
        first_butterfly<R>(pass, j, low, at, high, -at, work);
        if (2 * j < m - 1) first_butterfly<R>(pass, m - 1 - j, high, -next, low, next, work);
      }
    }
  }

  template <int R>
  static DCTPS_INLINE void first_butterfly(const Pass<A>& pass, int64_t j, const V* const* even, int64_t e,
                                           const V* const* odd, int64_t o, V* work) {
    V x[R];
#pragma GCC unroll 16
    for (int s = 0; s < R / 2; ++s) x[s] = even[s][e], x[R - 1 - s] = odd[s][o];
    real_butterfly<false, R, false>(pass, nullptr, j, x);
#pragma GCC unroll 16
    for (int k = 0; k < R; ++k) work[j + pass.row(k)] = x[k];
  }

  // Column j of a pass over real data, twiddles or turns included.
  template <bool Adjoint, int R, bool Last>
  static DCTPS_INLINE void real_butterfly(const Pass<A>& pass, const A* turns, int64_t j, V* x) {
    const int r = R ? R : pass.radix;
    constexpr bool kEndsInPair = Last && R > 2 && R % 2 == 0;  // the real child, of length 2, is done here
    if (Adjoint) real_twiddles<Adjoint, R, Last>(pass, turns, j, x);
    if (Adjoint && kEndsInPair) sum_and_difference(x[0], x[1]);
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
      real_dft4<Adjoint>(x);
    } else if constexpr (R == 8) {
      real_dft8<Adjoint>(x);
    } else if constexpr (R == 16) {
      real_dft16<Adjoint>(x);
    } else {
      real_odd_dft<Adjoint>(x, r, pass.rotations.data());
    }
    if (!Adjoint && kEndsInPair) sum_and_difference(x[0], x[1]);
    if (!Adjoint) real_twiddles<Adjoint, R, Last>(pass, turns, j, x);
  }

  template <bool Adjoint, int R, bool Last>
  static DCTPS_INLINE void real_twiddles(const Pass<A>& pass, const A* turns, int64_t j, V* x) {
    // Constants, or x would not be in registers.
    const int r = R ? R : pass.radix, children = R ? complex_children(R) : pass.complex_children;
    const int first = r - 2 * children;
    const A* factors = Last ? turns + first : pass.twiddles.data() + 2 * j * children;
    for (int s = 0; s < children; ++s) {
      V &re = x[first + 2 * s], &im = x[first + 2 * s + 1];
      Last ? turn(re, im, factors + 2 * s) : twiddle<Adjoint>(re, im, factors + 2 * s);
    }
    if constexpr (Last) {
      for (int s = 0; s < first; ++s) x[s] *= turns[s];
    }
  }

  template <bool Adjoint>
  static DCTPS_INLINE void real_dft4(V* x) {
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
  }

  template <bool Adjoint>
  static DCTPS_INLINE void real_dft8(V* x) {
    constexpr A h = A(0.70710678118654752440);
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
  }

  // The even frequencies are real_dft8 of the sums x[k] + x[k+8]. The odd ones are, with the differences d and
  // z[k] = (d[k] - i d[k+4]) e^(-i pi k / 8), the complex DFT of z[0 .. 3]: frequencies 1, 5, 9 = -7 and 13 = -3.
  template <bool Adjoint>
  static DCTPS_INLINE void real_dft16(V* x) {
    static constexpr A roots[4][2] = {{A(1), A(0)},
                                      {A(0.92387953251128675613), -A(0.38268343236508977173)},
                                      {A(0.70710678118654752440), -A(0.70710678118654752440)},
                                      {A(0.38268343236508977173), -A(0.92387953251128675613)}};
    V e[8], re[4], im[4];
    if constexpr (!Adjoint) {
#pragma GCC unroll 8
      for (int k = 0; k < 8; ++k) e[k] = x[k] + x[k + 8];
#pragma GCC unroll 8
      for (int k = 0; k < 4; ++k) {
        re[k] = x[k] - x[k + 8], im[k] = x[k + 12] - x[k + 4];
        if (k > 0) twiddle<false>(re[k], im[k], roots[k]);
      }
      real_dft8<false>(e);
      dft<4, A>(re, im, nullptr);
      x[0] = e[0], x[1] = e[1];
      x[2] = re[0], x[3] = im[0];
      x[4] = e[2], x[5] = e[3];
      x[6] = re[3], x[7] = -im[3];
      x[8] = e[4], x[9] = e[5];
      x[10] = re[1], x[11] = im[1];
      x[12] = e[6], x[13] = e[7];
      x[14] = re[2], x[15] = -im[2];
    } else {
      e[0] = x[0], e[1] = x[1];
      re[0] = x[2], im[0] = x[3];
      e[2] = x[4], e[3] = x[5];
      re[3] = x[6], im[3] = -x[7];
      e[4] = x[8], e[5] = x[9];
      re[1] = x[10], im[1] = x[11];
      e[6] = x[12], e[7] = x[13];
      re[2] = x[14], im[2] = -x[15];
      real_dft8<true>(e);
      dft<4, A>(im, re, nullptr);
#pragma GCC unroll 8
      for (int k = 0; k < 4; ++k) {
        if (k > 0) twiddle<true>(re[k], im[k], roots[k]);
        x[k] = e[k] + re[k], x[k + 8] = e[k] - re[k];
        x[k + 4] = e[k + 4] - im[k], x[k + 12] = e[k + 4] + im[k];
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
  const int32_t *const place_of_y_, *const place_of_x_;
};

}  // namespace DCTPS_ISA
}  // namespace dctps
