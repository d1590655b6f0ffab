// Sparse products of a tile: one row of S, or of its transpose, times kLanes vectors at once; and the sampled
// dense-dense product that is the gradient of S's values.
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
  const int32_t* col = s.col;
  const int32_t end = s.crow[r + 1];
  Vec<A> even{}, odd{};  // two chains, because one would wait for each multiply-add
  int32_t t = s.crow[r];
  for (; t + 2 <= end; t += 2) {
    even += x[col[t]] * values[t];
    odd += x[col[t + 1]] * values[t + 1];
  }
  if (t < end) even += x[col[t]] * values[t];
  return even + odd;
}

// (S^T v)[c] of all lanes; v [m].
template <class A>
DCTPS_INLINE Vec<A> sparse_column(const SparseMatrix& s, int64_t c, const Vec<A>* v) {
  const A* values = static_cast<const A*>(s.values);
  const int32_t* row = s.row;
  const int32_t* perm = s.perm;
  const int32_t end = s.ccol[c + 1];
  Vec<A> even{}, odd{};
  int32_t t = s.ccol[c];
  for (; t + 2 <= end; t += 2) {
    even += v[row[t]] * values[perm[t]];
    odd += v[row[t + 1]] * values[perm[t + 1]];
  }
  if (t < end) even += v[row[t]] * values[perm[t]];
  return even + odd;
}

// dvalues[t] += sum over lanes of v[row t] x[col t], for the entries begin <= t < end.
template <class A>
void add_sampled_products(const SparseMatrix& s, int64_t begin, int64_t end, const Vec<A>* v, const Vec<A>* x,
                          A* dvalues) {
  constexpr int L = kLanes<A>;
  if (begin >= end) return;
  int64_t r = 0;  // the row of entry `begin`: the last with crow[r] <= begin
  for (int64_t high = s.m; high - r > 1;) {
    const int64_t middle = (r + high) / 2;
    (s.crow[middle] <= begin ? r : high) = middle;
  }
  for (int64_t t = begin; t < end; t += L) {
    Vec<A> products[L];
    const int here = end - t < L ? int(end - t) : L;
    for (int l = 0; l < here; ++l) {
      while (t + l >= s.crow[r + 1]) ++r;
      products[l] = v[r] * x[s.col[t + l]];
    }
    for (int l = here; l < L; ++l) products[l] = Vec<A>{};
    const Vec<A> sums = sum_lanes<A>(products);
    if (here == L) {
      store(dvalues + t, load(dvalues + t) + sums);
    } else {
      store_partial(dvalues + t, load_partial(dvalues + t, here) + sums, here);
    }
  }
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
