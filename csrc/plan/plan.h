// The plan of a DCT of one length: radices, twiddles and index tables, made once in double precision and
// shared by every kernel and both directions.
//
// DCT-II of length q by Makhoul: v[j] = x[2j], v[q-1-j] = x[2j+1]; V = FFT(v), real input;
// y[k] = c_k Re(e^(-i pi k/2q) V[k]). The FFT of real input is a tree of decimation-in-frequency passes, in place on q
// values (and a few between them, see Pass::row):
//     real(n)    -> radix 4, 8, 16:    real(2n/r) + (r/2-1) complex(n/r)
//                   radix 2 (n/2 odd): 2 real(n/2)
//                   odd r:             real(n/r) + (r-1)/2 complex(n/r)
//     complex(n) -> r complex(n/r)
// Only one of each conjugate pair V[k], V[q-k] is ever computed. The results stay where the passes leave
// them; `finish` knows the place. The adjoint (DCT-III) runs the transposed steps in reverse order on the
// same tables. Lengths for which that costs too much (a large prime factor) use Bluestein's convolution
// instead.
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
  int real_children;  // of a real pass: 1, or 2 for radix 2; their length: see real_child_length
  int real_child_length;
  int complex_children;
  int real_child = -1, complex_child = -1;  // numbers of their passes in Plan::passes, -1 for length 1
  std::vector<A> twiddles;   // [columns][complex_children (less the first, if is_complex)] {cos, sin}
  std::vector<A> rotations;  // odd radix, h = (radix-1)/2: [h][h] cos, then [h][h] sin of 2 pi k s / radix

  int length() const { return radix * columns; }

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

  // Forward: the first pass reads input order[j] as its value j, and y[k] = finish[k] of the working tile.
  // The adjoint begins with the transpose of `finish` (y[k] and y[q-k] are made of the same two values), and
  // x[i] = working value adjoint_order[i].
  std::vector<int32_t> order;
  std::vector<Combine<A>> finish;      // [q]
  std::vector<int32_t> adjoint_order;  // [q]

  // Bluestein only: a complex(M) convolution between start and finish, of the adjoint between adjoint_start and one
  // more step in place, adjoint_finish. Empty otherwise.
  std::vector<Combine<A>> start, adjoint_start;  // [work_size]
  std::vector<Combine<A>> adjoint_finish;        // [q]
  std::vector<A> spectrum;  // [2M]: real parts, imaginary parts, in the order the passes leave frequencies in

  double
      cost;  // vector operations of one transform, loads and stores included; speeds follow it within a third

  bool is_bluestein() const { return !spectrum.empty(); }
  int64_t bytes() const;
};

// The plan for length q >= 1, cached for the life of the process.
template <class A>
std::shared_ptr<const Plan<A>> get_plan(int64_t q);

}  // namespace dctps
