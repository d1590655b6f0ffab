// Tiles between memory and vectors: kLanes rows of any layout are loaded side by side, one per lane, and
// stored back.
#pragma once

#include "common/simd.h"

namespace dctps {
namespace DCTPS_ISA {

// Where the lanes of a tile live: lane l's element i is lane[l][i * stride]. A null lane reads as zeros and
// is never written.
template <class E>
struct Lanes {
  E* lane[kLanes<Accumulator<E>>];
  int64_t stride;
  bool streaming = false;  // stores go past the caches

  // Whether each lane begins a cache line.
  bool begin_lines() const {
    for (const E* data : lane) {
      if (reinterpret_cast<uintptr_t>(data) % 64) return false;
    }
    return true;
  }

  bool all_present() const {
    for (const E* data : lane) {
      if (!data) return false;
    }
    return true;
  }

  // True where the lanes are neighbours in memory, as the pixels of a channels-first image are.
  bool are_neighbours() const {
    for (int l = 0; l < kLanes<Accumulator<E>>; ++l) {
      if (!lane[0] || lane[l] != lane[0] + l) return false;
    }
    return true;
  }
};

// The square of whole vectors at element `first` of rows that are contiguous and all present: nearly every one. In
// functions of their own, because an array that some branch indexes by a variable is kept in memory in all of them,
// and then each of these moves costs two.
template <class E>
DCTPS_INLINE void load_whole_square(const Lanes<const E>& from, int64_t first, Vec<Accumulator<E>>* to) {
  constexpr int L = kLanes<Accumulator<E>>;
  Vec<Accumulator<E>> square[L];
#pragma GCC unroll 16
  for (int l = 0; l < L; ++l) square[l] = load(from.lane[l] + first);
  transpose<Accumulator<E>>(square);
#pragma GCC unroll 16
  for (int l = 0; l < L; ++l) to[l] = square[l];
}

// are_lines: every row of the square is known to begin a cache line.
template <class E>
DCTPS_INLINE void store_whole_square(const Lanes<E>& to, int64_t first, const Vec<Accumulator<E>>* from,
                                     bool are_lines = false) {
  constexpr int L = kLanes<Accumulator<E>>;
  Vec<Accumulator<E>> square[L];
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) square[i] = from[i];
  transpose<Accumulator<E>>(square);
  if (to.streaming && are_lines) {
#pragma GCC unroll 16
    for (int l = 0; l < L; ++l) stream_line(to.lane[l] + first, square[l]);
  } else if (to.streaming) {
#pragma GCC unroll 16
    for (int l = 0; l < L; ++l) stream(to.lane[l] + first, square[l]);
  } else {
#pragma GCC unroll 16
    for (int l = 0; l < L; ++l) store(to.lane[l] + first, square[l]);
  }
}

// to[0 .. count-1] = elements first .. first + count - 1 of all lanes, count <= kLanes. The rest of to[0 .. kLanes-1]
// may be overwritten.
template <class E>
DCTPS_INLINE void load_square(const Lanes<const E>& from, int64_t first, int count, Vec<Accumulator<E>>* to) {
  using A = Accumulator<E>;
  constexpr int L = kLanes<A>;
  if (from.stride == 1) {
    if (count == L && from.all_present()) return load_whole_square(from, first, to);
    Vec<A> square[L];
    if (count == L) {
      for (int l = 0; l < L; ++l) square[l] = from.lane[l] ? load(from.lane[l] + first) : Vec<A>{};
    } else {
      for (int l = 0; l < L; ++l) {
        square[l] = from.lane[l] ? load_partial(from.lane[l] + first, count) : Vec<A>{};
      }
    }
    transpose<A>(square);
    for (int i = 0; i < count; ++i) to[i] = square[i];
  } else if (from.are_neighbours()) {
    for (int i = 0; i < count; ++i) to[i] = load(from.lane[0] + (first + i) * from.stride);
  } else {
    for (int i = 0; i < count; ++i) {
      E gathered[L] = {};
      for (int l = 0; l < L; ++l) {
        if (from.lane[l]) gathered[l] = from.lane[l][(first + i) * from.stride];
      }
      to[i] = load(gathered);
    }
  }
}

// to[i] = element i of all lanes, 0 <= i < count.
template <class E>
void load_tile(const Lanes<const E>& from, int64_t count, Vec<Accumulator<E>>* to) {
  constexpr int L = kLanes<Accumulator<E>>;
  int64_t first = 0;
  if (from.stride == 1 && from.all_present()) {
    for (; first + L <= count; first += L) load_whole_square(from, first, to + first);
  }
  for (; first < count; first += L) {
    load_square(from, first, count - first < L ? int(count - first) : L, to + first);
  }
}

// The values of a tile square by square, as TileTransform::forward takes them, those from `count` on zero: loaded into
// `to` [length], where kept at their places, otherwise one over the other.
template <class E>
class RowSquares {
 public:
  using V = Vec<Accumulator<E>>;

  // to[count ..] is zero already. fetches: the rows are not in the caches, so that each square's neighbour, which comes
  // next, is fetched along with it.
  RowSquares(const Lanes<const E>& from, int64_t count, V* to, bool kept, bool fetches)
      : from_(from),
        count_(count),
        to_(to),
        kept_(kept),
        whole_(from.stride == 1 && from.all_present()),
        fetches_(fetches) {}

  DCTPS_INLINE const V* square(int64_t first, int slot) const {
    constexpr int L = kLanes<Accumulator<E>>;
    V* const to = to_ + (kept_ ? first : slot * L);
    if (whole_ && first + L <= count_) {
      if (fetches_) {
        const int64_t next = slot % 2 ? first - L : first + L;
#pragma GCC unroll 16
        for (int l = 0; l < L; ++l) __builtin_prefetch(from_.lane[l] + next);
      }
      load_whole_square(from_, first, to);
    } else {
      load_cut_square(first, to);
    }
    return to;
  }

  const V* all() const {
    load_tile(from_, count_, to_);
    return to_;
  }

 private:
  __attribute__((noinline)) void load_cut_square(int64_t first, V* to) const {
    constexpr int L = kLanes<Accumulator<E>>;
    const int here = count_ - first >= L ? L : count_ > first ? int(count_ - first) : 0;
    if (here) load_square(from_, first, here, to);
    for (int i = here; i < L; ++i) to[i] = V{};
  }

  const Lanes<const E>& from_;
  const int64_t count_;
  V* const to_;
  const bool kept_, whole_, fetches_;
};

// Elements first .. first + count - 1 of all lanes = square[0 .. count-1], count <= kLanes. Overwrites square.
template <class E>
DCTPS_INLINE void store_square(const Lanes<E>& to, int64_t first, int count,
                               Vec<Accumulator<E>> (&square)[kLanes<Accumulator<E>>]) {
  using A = Accumulator<E>;
  constexpr int L = kLanes<A>;
  if (to.stride == 1) {
    if (count == L && to.all_present()) return store_whole_square(to, first, square);
    transpose<A>(square);
    for (int l = 0; l < L; ++l) {
      if (!to.lane[l]) continue;
      if (count == L) {
        store(to.lane[l] + first, square[l]);
      } else {
        store_partial(to.lane[l] + first, square[l], count);
      }
    }
  } else if (to.are_neighbours()) {
    for (int i = 0; i < count; ++i) store(to.lane[0] + (first + i) * to.stride, square[i]);
  } else {
    for (int i = 0; i < count; ++i) {
      E scattered[L];
      store(scattered, square[i]);
      for (int l = 0; l < L; ++l) {
        if (to.lane[l]) to.lane[l][(first + i) * to.stride] = scattered[l];
      }
    }
  }
}

// Stores value(k, i) for begin <= k < end as element k of all lanes, a square at a time: i is k's place in the square,
// and before(first, count) is called ahead of each. Unrolled, so that the values stay in registers, and that a branch
// in value() is foretold for each place in the square by itself.
template <class E, class Before, class Value>
DCTPS_INLINE void store_squares(const Lanes<E>& to, int64_t begin, int64_t end, const Before& before,
                                const Value& value) {
  using V = Vec<Accumulator<E>>;
  constexpr int L = kLanes<Accumulator<E>>;
  const bool whole = to.stride == 1 && to.all_present();
  const bool are_lines = to.begin_lines() && begin % L == 0;
  for (int64_t first = begin; first < end; first += L) {
    const int here = end - first < L ? int(end - first) : L;
    before(first, here);
    if (whole && here == L) {
      V square[L];
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) square[i] = value(first + i, i);
      store_whole_square(to, first, square, are_lines);
    } else {
      V square[L] = {};
      for (int i = 0; i < here; ++i) square[i] = value(first + i, i);
      store_square(to, first, here, square);
    }
  }
}

// Stores value(i) for 0 <= i < count as element i of all lanes.
template <class E, class Value>
DCTPS_INLINE void store_tile(const Lanes<E>& to, int64_t count, const Value& value) {
  store_squares(to, 0, count, [](int64_t, int) {}, [&](int64_t k, int) { return value(k); });
}

// The same for two tiles: value(i) is a Two. The second one's squares wait in memory for the first one's.
template <class E, class Value>
DCTPS_INLINE void store_tile(const Two<Lanes<E>>& to, int64_t count, const Value& value) {
  constexpr int L = kLanes<Accumulator<E>>;
  Vec<Accumulator<E>> square[L];
  int64_t stored = 0;
  auto store_waiting = [&](int64_t end, int) {
    if (end > stored) store_square(to.second, stored, int(end - stored), square);
    stored = end;
  };
  store_squares(to.first, 0, count, store_waiting, [&](int64_t k, int i) {
    const auto both = value(k);
    square[i] = both.second;
    return both.first;
  });
  store_waiting(count, 0);
}

// The same where value() is too much code to be unrolled.
template <class E, class Value>
DCTPS_INLINE void store_tile_rolled(const Lanes<E>& to, int64_t count, const Value& value) {
  Vec<Accumulator<E>> square[kLanes<Accumulator<E>>] = {};
  store_squares(
      to, 0, count,
      [&](int64_t first, int here) {
        for (int i = 0; i < here; ++i) square[i] = value(first + i);
      },
      [&](int64_t, int i) { return square[i]; });
}

// Fetches a tile's rows into the caches bit by bit, while other work goes on.
template <class E>
class Prefetch {
 public:
  // Nothing is fetched where `wanted` is false, or unless all rows are there and contiguous.
  Prefetch(const Lanes<const E>& rows, int64_t count, bool wanted)
      : rows_(rows),
        end_(wanted && rows.stride == 1 && rows.all_present() ? count * int64_t(sizeof(E)) : 0) {}

  // The next bytes of every row, as many as `elements` vectors of elements fill.
  DCTPS_INLINE void advance(int64_t elements) {
    due_ += elements * int64_t(sizeof(E));
    for (const int64_t stop = due_ < end_ ? due_ : end_; at_ < stop; at_ += 64) {
#pragma GCC unroll 16
      for (int l = 0; l < kRows; ++l) {
        __builtin_prefetch(reinterpret_cast<const char*>(rows_.lane[l]) + at_);
      }
    }
  }

 private:
  static constexpr int kRows = kLanes<Accumulator<E>>;
  const Lanes<const E>& rows_;
  int64_t at_ = 0, due_ = 0, end_;  // bytes of each row
};

}  // namespace DCTPS_ISA
}  // namespace dctps
