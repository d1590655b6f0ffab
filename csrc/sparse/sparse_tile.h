// Sparse products of a tile: one row of S, or of its transpose, times kLanes vectors at once; and with the latter
// the sampled dense-dense product that is the gradient of S's values.
#pragma once

#include "common/parallel.h"
#include "common/simd.h"
#include "sparse/sparse.h"

namespace dctps {
namespace DCTPS_ISA {

// start + the sum of x[index[t]] * values[t] over begin <= t < end; of two tiles at once where these are Two and Interleaved.
template <class A, class T, class X>
DCTPS_INLINE T gathered_sum(T start, const int32_t* index, const A* values, int64_t begin, int64_t end, X x) {
  int64_t t = begin;
  if (t == end) return start;
  if (t + 1 == end) return start + x[index[t]] * values[t];
  T odd{};  // a second chain, because one would wait for each multiply-add
  do {
    start += x[index[t]] * values[t];
    odd += x[index[t + 1]] * values[t + 1];
    t += 2;
  } while (t + 2 <= end);
  if (t < end) start += x[index[t]] * values[t];
  return start + odd;
}

// start + (S x)[r] of all lanes; x [n].
template <class A, class T, class X>
DCTPS_INLINE T sparse_row(T start, const SparseMatrix& s, int64_t r, X x) {
  return gathered_sum<A>(start, s.col, static_cast<const A*>(s.values), s.crow[r], s.crow[r + 1], x);
}

// start + (S^T v)[c] of all lanes; v [m]. `values` are S's, in column order.
template <class A, class T, class X>
DCTPS_INLINE T sparse_column(T start, const SparseMatrix& s, const A* values, int64_t c, X v) {
  return gathered_sum<A>(start, s.row, values, s.ccol[c], s.ccol[c + 1], v);
}

// The gradient of S's values, in column order: first[t] += sum over lanes of entry t's product. The lanes are summed
// for kLanes entries together.
template <class A>
class EntrySums {
 public:
  using V = Vec<A>;

  explicit EntrySums(A* first) : next_(first) {}

  // Entries begin .. end - 1, in turn; products(to, t, count) puts those of entries t .. t + count - 1 to `to`.
  template <class Products>
  DCTPS_INLINE void add(int64_t begin, int64_t end, const Products& products) {
    int64_t t = begin;
    if (count_) {  // the group that the last call has begun
      const int here = end - t < L - count_ ? int(end - t) : L - count_;
      products(pending_ + count_, t, here);
      t += here;
      count_ += here;
      if (count_ < L) return;
      add_group(pending_);
    }
    for (; t + L <= end; t += L) {
      V group[L];
      products(group, t, L);
      add_group(group);
    }
    count_ = int(end - t);
    products(pending_, t, count_);
  }

  // The last few; must be called at the end.
  void finish() {
    if (!count_) return;
    for (int l = count_; l < L; ++l) pending_[l] = V{};
    const V sums = sum_lanes<A>(pending_);
    store_partial(next_, load_partial(next_, count_) + sums, count_);
  }

 private:
  static constexpr int L = kLanes<A>;

  DCTPS_INLINE void add_group(V (&group)[L]) {
    store(next_, load(next_) + sum_lanes<A>(group));
    next_ += L;
  }

  A* next_;
  int count_ = 0;
  V pending_[L];
};

// As sparse_column, to the bit, and x_c v[r] of every entry goes to `sums`: one look at v for both.
template <class A, class T, class X>
DCTPS_INLINE T sparse_column(T start, const SparseMatrix& s, const A* values, int64_t c, X v, T x_c,
                             EntrySums<A>& sums) {
  const int64_t begin = s.ccol[c];
  T odd{};  // as in gathered_sum, whatever the lengths of the groups
  sums.add(begin, s.ccol[c + 1], [&](Vec<A>* to, int64_t t, int count) {
    if ((t - begin) % 2) std::swap(start, odd);
#pragma GCC unroll 16
    for (int e = 0; e < count; ++e) {
      const T entry = v[s.row[t + e]];
      (e % 2 ? odd : start) += entry * values[t + e];
      to[e] = sum_of(entry * x_c);
    }
    if ((t - begin) % 2) std::swap(start, odd);
  });
  return start + odd;
}

// S's values in column order; zeros where there are none, because only their gradient is wanted.
template <class A>
void values_by_column(const SparseMatrix& s, A* by_column) {
  const A* values = static_cast<const A*>(s.values);
  for (int64_t t = 0; t < s.nnz; ++t) by_column[t] = values ? values[s.perm[t]] : A(0);
}

// The place of each entry's column in its square of kLanes columns, in column order: 16 of 4 bits in a word.
class EntryPlaces {
 public:
  static constexpr int kBits = 4, kInWord = 64 / kBits;
  static_assert(place_words(kInWord) == place_words(0) + 1);

  explicit EntryPlaces(uint64_t* words) : words_(words) {}  // [place_words(nnz)]

  template <class A>
  void fill(const SparseMatrix& s) const {
    static_assert(kLanes<A> <= 1 << kBits);
    constexpr uint64_t kOnes = ~uint64_t(0) / ((1 << kBits) - 1);  // 1 in every place
    words_[0] = words_[place_words(s.nnz) - 1] = words_[place_words(s.nnz) - 2] = 0;
    for (int64_t c = 0; c < s.n; ++c) {
      const int64_t t = s.ccol[c], end = s.ccol[c + 1], bits = t % kInWord * kBits;
      if (t == end) continue;
      const uint64_t place =
          uint64_t(c % kLanes<A>) * kOnes;  // up to the word's end: later columns overwrite that
      int64_t word = t / kInWord;
      words_[word] = (words_[word] & ((uint64_t(1) << bits) - 1)) | place << bits;
      while (++word * kInWord < end) words_[word] = place;
    }
  }

  // Those of entries t, t + 1, .., from the lowest bits on.
  DCTPS_INLINE uint64_t from(int64_t t) const {
    const int64_t word = t / kInWord, bits = t % kInWord * kBits;
    return words_[word] >> bits | words_[word + 1] << (63 - bits) << 1;
  }

 private:
  uint64_t* words_;
};

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
template <class A, class X>
void add_lane_sums(X v, int64_t count, A* sums) {
  constexpr int L = kLanes<A>;
  for (int64_t i = 0; i < count; i += L) {
    Vec<A> square[L];
    const int here = count - i < L ? int(count - i) : L;
    for (int l = 0; l < L; ++l) square[l] = l < here ? sum_of(v[i + l]) : Vec<A>{};
    const Vec<A> totals = sum_lanes<A>(square);
    store_partial(sums + i, load_partial(sums + i, here) + totals, here);
  }
}

}  // namespace DCTPS_ISA
}  // namespace dctps
