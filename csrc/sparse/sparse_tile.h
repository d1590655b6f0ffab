// Sparse products of a tile: one row of S, or of its transpose, times kLanes vectors at once; and with the latter
// the sampled dense-dense product that is the gradient of S's values.
#pragma once

#include "common/parallel.h"
#include "common/simd.h"
#include "sparse/sparse.h"

namespace dctps {
namespace DCTPS_ISA {

// The sum of x[index[t]] * values[t] over begin <= t < end.
template <class A>
DCTPS_INLINE Vec<A> gathered_sum(const int32_t* index, const A* values, int64_t begin, int64_t end,
                                 const Vec<A>* x) {
  Vec<A> even{}, odd{};  // two chains, because one would wait for each multiply-add
  int64_t t = begin;
  for (; t + 2 <= end; t += 2) {
    even += x[index[t]] * values[t];
    odd += x[index[t + 1]] * values[t + 1];
  }
  if (t < end) even += x[index[t]] * values[t];
  return even + odd;
}

// (S x)[r] of all lanes; x [n].
template <class A>
DCTPS_INLINE Vec<A> sparse_row(const SparseMatrix& s, int64_t r, const Vec<A>* x) {
  return gathered_sum(s.col, static_cast<const A*>(s.values), s.crow[r], s.crow[r + 1], x);
}

// (S^T v)[c] of all lanes; v [m]. `values` are S's, in column order.
template <class A>
DCTPS_INLINE Vec<A> sparse_column(const SparseMatrix& s, const A* values, int64_t c, const Vec<A>* v) {
  return gathered_sum(s.row, values, s.ccol[c], s.ccol[c + 1], v);
}

// The gradient of S's values, in column order: first[t] += sum over lanes of entry t's product. The lanes are summed
// for kLanes entries together.
template <class A>
class EntrySums {
 public:
  using V = Vec<A>;
  static constexpr int kMost = 2 * kLanes<A>;  // entries added in turn

  explicit EntrySums(A* first) : next_(first) {}

  // Where the products of the next entries go, up to kMost of them; added(entries) must follow.
  V* place() { return pending_ + count_; }

  DCTPS_INLINE void added(int entries) {
    count_ += entries;
    if (count_ < kFull) return;
    int done = 0;
    for (; done + L <= count_; done += L, next_ += L) {
      V square[L];
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l) square[l] = pending_[done + l];
      store(next_, load(next_) + sum_lanes<A>(square));
    }
    count_ -= done;
    for (int l = 0; l < count_; ++l) pending_[l] = pending_[done + l];
  }

  // The last few; must be called at the end.
  void finish() {
    for (int done = 0; done < count_; done += L, next_ += L) {
      const int here = count_ - done < L ? count_ - done : L;
      V square[L];
      for (int l = 0; l < L; ++l) square[l] = l < here ? pending_[done + l] : V{};
      store_partial(next_, load_partial(next_, here) + sum_lanes<A>(square), here);
    }
  }

 private:
  static constexpr int L = kLanes<A>, kFull = 2 * L;
  A* next_;
  int count_ = 0;
  V pending_[kFull + kMost];
};

// As above; and product(r, v[r]) of every entry goes to `sums`.
template <class A, class Product>
DCTPS_INLINE Vec<A> sparse_column(const SparseMatrix& s, const A* values, int64_t c, const Vec<A>* v,
                                  EntrySums<A>& sums, const Product& product) {
  const int64_t end = s.ccol[c + 1];
  Vec<A> even{}, odd{};
  for (int64_t t = s.ccol[c]; t < end;) {
    const int64_t begin = t, stop = end - t < sums.kMost ? end : t + sums.kMost;
    Vec<A>* const to = sums.place() - t;
    auto add = [&](Vec<A>& sum, int64_t entry) {
      const int32_t r = s.row[entry];
      const Vec<A> value = v[r];
      sum += value * values[entry];
      to[entry] = product(r, value);
    };
    for (; t + 2 <= stop; t += 2) {
      add(even, t);
      add(odd, t + 1);
    }
    if (t < stop) add(even, t++);
    sums.added(int(stop - begin));
  }
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
