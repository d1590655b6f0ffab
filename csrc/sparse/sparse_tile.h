// Sparse products of a tile: one row of S, or of its transpose, times kLanes vectors at once; and with the latter
// the sampled dense-dense product that is the gradient of S's values.
#pragma once

#include "common/parallel.h"
#include "common/simd.h"
#include "sparse/sparse.h"

namespace dctps {
namespace DCTPS_ISA {

// (S x)[r] of all lanes; x [n].
template <class A>
DCTPS_INLINE Vec<A> sparse_row(const SparseMatrix& s, int64_t r, const Vec<A>* x) {
  const A* values = static_cast<const A*>(s.values);
  const int64_t end = s.crow[r + 1];
  Vec<A> even{}, odd{};  // two chains, because one would wait for each multiply-add
  int64_t t = s.crow[r];
  for (; t + 2 <= end; t += 2) {
    even += x[s.col[t]] * values[t];
    odd += x[s.col[t + 1]] * values[t + 1];
  }
  if (t < end) even += x[s.col[t]] * values[t];
  return even + odd;
}

// The gradient of S's values, in column order: sums[t] += sum over lanes of the products that add() is given, one
// for each entry in turn. The lanes are summed for kLanes entries together.
template <class A>
class EntrySums {
 public:
  using V = Vec<A>;

  explicit EntrySums(A* first) : next_(first) {}

  DCTPS_INLINE void add(V product) {
    pending_[count_++] = product;
    if (count_ == kLanes<A>) {
      store(next_, load(next_) + sum_lanes<A>(pending_));
      next_ += kLanes<A>;
      count_ = 0;
    }
  }

  // The last few; must be called at the end.
  void finish() {
    if (!count_) return;
    for (int l = count_; l < kLanes<A>; ++l) pending_[l] = V{};
    const V sums = sum_lanes<A>(pending_);
    store_partial(next_, load_partial(next_, count_) + sums, count_);
  }

 private:
  A* next_;
  int count_ = 0;
  V pending_[kLanes<A>];
};

// (S^T v)[c] of all lanes; v [m]. `values` are S's, in column order. each(r, v[r]) is called for every
// entry, in row r.
template <class A, class Each>
DCTPS_INLINE Vec<A> sparse_column(const SparseMatrix& s, const A* values, int64_t c, const Vec<A>* v,
                                  const Each& each) {
  const int64_t end = s.ccol[c + 1];
  Vec<A> even{}, odd{};
  auto add = [&](Vec<A>& sum, int64_t t) {
    const int32_t r = s.row[t];
    const Vec<A> entry = v[r];
    sum += entry * values[t];
    each(r, entry);
  };
  int64_t t = s.ccol[c];
  for (; t + 2 <= end; t += 2) {
    add(even, t);
    add(odd, t + 1);
  }
  if (t < end) add(even, t);
  return even + odd;
}

// S's values in column order; zeros where there are none, because only their gradient is wanted.
template <class A>
void values_by_column(const SparseMatrix& s, A* by_column) {
  const A* values = static_cast<const A*>(s.values);
  for (int64_t t = 0; t < s.nnz; ++t) by_column[t] = values ? values[s.perm[t]] : A(0);
}

// Puts sums that are in column order into CSR order.
template <class A>
void to_csr_order(const SparseMatrix& s, A* scratch, A* sums) {
  std::memcpy(scratch, sums, size_t(s.nnz) * sizeof(A));
  for (int64_t t = 0; t < s.nnz; ++t) sums[s.perm[t]] = scratch[t];
}

// A double for each lane: sums of more terms than float32 is good for.
template <class A>
struct DoubleOf {
  typedef double type __attribute__((vector_size(kLanes<A> * int(sizeof(double)))));
};
template <class A>
using DoubleVec = typename DoubleOf<A>::type;

// Sum over lanes, for one vector.
template <class A>
DCTPS_INLINE double lane_sum(DoubleVec<A> v) {
  double sum = 0;
  for (int l = 0; l < kLanes<A>; ++l) sum += v[l];
  return sum;
}

// sums[i] += sum over lanes of v[i], 0 <= i < count.
template <class A>
void add_lane_sums(const Vec<A>* v, int64_t count, A* sums) {
  constexpr int L = kLanes<A>;
  for (int64_t i = 0; i < count; i += L) {
    Vec<A> square[L];
    const int here = count - i < L ? int(count - i) : L;
    for (int l = 0; l < L; ++l) square[l] = l < here ? v[i + l] : Vec<A>{};
    const Vec<A> totals = sum_lanes<A>(square);
    store_partial(sums + i, load_partial(sums + i, here) + totals, here);
  }
}

}  // namespace DCTPS_ISA
}  // namespace dctps
