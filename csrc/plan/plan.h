// The plan of a DCT of one length: radices, twiddles and index tables, made once in double precision and
// shared by every kernel and both directions.
//
// DCT-II of length q by Makhoul: v[j] = x[2j], v[q-1-j] = x[2j+1]; V = FFT(v), real input;
// y[k] = c_k Re(e^(-i pi k/2q) V[k]). The FFT of real input is a tree of decimation-in-frequency passes, in place on q
// values (and a few between them, see Pass::row):
//     real(n)    -> radix 4, 8, 16:    real(2n/r) + (r/2-1) complex(n/r)
//                   radix 2 (n/2 odd): 2 real(n/2)
//                   odd r:             real(n/r) + (r-1)/2 complex(n/r)
//                   (n = r even:       2 real(1) + (r/2-1) complex(1))
//     complex(n) -> r complex(n/r)
// Only one of each conjugate pair V[k], V[q-k] is ever computed, and y[k], y[q-k] are the real and the negative
// imaginary part of c_k e^(-i pi k/2q) V[k]. The pass that ends in V[k] multiplies by that and leaves y where V would
// be; `place_of_y` knows the place. The adjoint (DCT-III) runs the transposed steps in reverse order on the same tables.
// Lengths for which that costs too much (a large prime factor) use Bluestein's convolution instead.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "plan/plan_cache.h"

namespace dctps {

// destination = ca * source[a] + cb * source[b]
template <class A>
struct Combine {
  int32_t a, b;
  A ca, cb;
};

constexpr int kMaxRadix = 127;

// Complex children of a real pass.
constexpr int complex_children(int radix) { return radix % 4 ? (radix - 1) / 2 : radix / 2 - 1; }

// One pass over one sub-transform of length radix * columns. Layout from its base: a real one holds `length`
// values, a complex one its real parts, then its imaginary parts. Output: the real children, then the complex
// ones, each contiguous.
template <class A>
struct Pass {
  bool is_complex;
  int radix;
  int columns;        // m: length / radix
  int skew = 0;       // of a real pass: see row()
  int real_children;  // of a real pass: 1, or 2 for radix 2 and for an even last one
  int real_child_length;
  int complex_children;
  int real_child = -1, complex_child = -1;  // numbers of their passes in Plan::passes, -1 for length 1
  // [columns][complex_children (less the first, if is_complex)] {cos, -sin}; none of a last pass
  std::vector<A> twiddles;
  std::vector<A> rotations;  // odd radix, h = (radix-1)/2: [h][h] cos, then [h][h] sin of 2 pi k s / radix

  int length() const { return radix * columns; }

  // Whether the complex children are of length 1, results: Plan::turns take the place of the twiddles, which are all 1.
  bool is_last() const { return columns == 1; }

  // Where row k of a real pass begins, the values j + k * columns. With a skew, each complex child's two rows lie that
  // much further on than they would without: rows a power of two apart would meet in one set of the nearest cache,
  // more of them than it has ways.
  int64_t row(int64_t k) const { return k * columns + k / 2 * skew; }
  // Where complex child c begins.
  int64_t complex_child_at(int64_t c) const {
    return int64_t(real_children) * real_child_length + 2 * columns * c + (c + 1) * skew;
  }
};

template <class A>
struct Plan {
  int length;     // q
  int work_size;  // values of the working tile: q and the skews, or 2M for Bluestein
  std::vector<Pass<A>> passes;
  int root = -1;  // number of the first pass, -1 where there is none (q = 1)

  // The first pass of the forward reads input order[j] as its value j.
  std::vector<int32_t> order;
  // Where the working tile has y[k] and x[i], each after one direction and before the other.
  std::vector<int32_t> place_of_y, place_of_x;  // [q]
  // By places of results: {a, b} of the complex ones, which become a re + b im, b re - a im, a factor of the real ones.
  // A symmetric map: the adjoint applies it as well, before all passes.
  std::vector<A> turns;  // [work_size]

  // Bluestein only, otherwise empty: a complex(M) convolution, with the kernel's spectrum in the turns, and without it
  // in those of the way back. Combined from x before it, to y in place after it; the same for the adjoint.
  std::vector<A> turns_back;                       // [work_size]
  std::vector<Combine<A>> start, adjoint_start;    // [work_size]
  std::vector<Combine<A>> finish, adjoint_finish;  // [q]

  double
      cost;  // vector operations of one transform, loads and stores included; speeds follow it within a third

  bool is_bluestein() const { return !turns_back.empty(); }
  int64_t bytes() const;
};

// The plan for length q >= 1, cached for the life of the process.
template <class A>
std::shared_ptr<const Plan<A>> get_plan(int64_t q);

}  // namespace dctps
