// Tiles between memory and vectors: kLanes rows of any layout are loaded side by side, one per lane, and
// stored back.
#pragma once

#include <array>

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

// The rows of N tiles that go together.
template <class E, int N>
using Tiles = std::array<Lanes<E>, N>;

// The square of whole vectors at element `first` of rows that are contiguous and all present: nearly every one. In
// functions of their own, because an array that some branch indexes by a variable is kept in memory in all of them,
// and then each of these moves costs two. The columns of a square come N vectors apart.
template <class E, int N = 1>
DCTPS_INLINE void load_whole_square(const Lanes<const E>& from, int64_t first, Vec<Accumulator<E>>* to) {
  constexpr int L = kLanes<Accumulator<E>>;
  Vec<Accumulator<E>> square[L];
#pragma GCC unroll 16
  for (int l = 0; l < L; ++l) square[l] = load(from.lane[l] + first);
  transpose<Accumulator<E>>(square);
#pragma GCC unroll 16
  for (int l = 0; l < L; ++l) to[l * N] = square[l];
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

// The other squares, as load_square and store_square, which follow.
template <class E, int N>
DCTPS_NOINLINE void load_other_square(const Lanes<const E>& from, int64_t first, int count,
                                      Vec<Accumulator<E>>* to) {
  using A = Accumulator<E>;
  constexpr int L = kLanes<A>;
  if (from.stride == 1) {
    Vec<A> square[L];
    if (count == L) {
      for (int l = 0; l < L; ++l) square[l] = from.lane[l] ? load(from.lane[l] + first) : Vec<A>{};
    } else {
      for (int l = 0; l < L; ++l) {
        square[l] = from.lane[l] ? load_partial(from.lane[l] + first, count) : Vec<A>{};
      }
    }
    transpose<A>(square);
    for (int i = 0; i < count; ++i) to[i * N] = square[i];
  } else if (from.are_neighbours()) {
    for (int i = 0; i < count; ++i) to[i * N] = load(from.lane[0] + (first + i) * from.stride);
  } else {
    for (int i = 0; i < count; ++i) {
      E gathered[L] = {};
      for (int l = 0; l < L; ++l) {
        if (from.lane[l]) gathered[l] = from.lane[l][(first + i) * from.stride];
      }
      to[i * N] = load(gathered);
    }
  }
}

template <class E>
DCTPS_NOINLINE void store_other_square(const Lanes<E>& to, int64_t first, int count,
                                       Vec<Accumulator<E>> (&square)[kLanes<Accumulator<E>>]) {
  using A = Accumulator<E>;
  constexpr int L = kLanes<A>;
  if (to.stride == 1) {
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

// to[0], to[N], .. = elements first .. first + count - 1 of all lanes, count <= kLanes.
template <class E, int N = 1>
DCTPS_INLINE void load_square(const Lanes<const E>& from, int64_t first, int count, Vec<Accumulator<E>>* to) {
  if (from.stride == 1 && count == kLanes<Accumulator<E>> && from.all_present()) {
    load_whole_square<E, N>(from, first, to);
  } else {
    load_other_square<E, N>(from, first, count, to);
  }
}

// Elements first .. first + count - 1 of all lanes = square[0 .. count-1], count <= kLanes. Overwrites square.
template <class E>
DCTPS_INLINE void store_square(const Lanes<E>& to, int64_t first, int count,
                               Vec<Accumulator<E>> (&square)[kLanes<Accumulator<E>>]) {
  if (to.stride == 1 && count == kLanes<Accumulator<E>> && to.all_present()) {
    store_whole_square(to, first, square);
  } else {
    store_other_square(to, first, count, square);
  }
}

// to[i * N] = element i of all lanes, 0 <= i < count.
template <class E, int N = 1>
void load_tile(const Lanes<const E>& from, int64_t count, Vec<Accumulator<E>>* to) {
  constexpr int L = kLanes<Accumulator<E>>;
  int64_t first = 0;
  if (from.stride == 1 && from.all_present()) {
    for (; first + L <= count; first += L) load_whole_square<E, N>(from, first, to + first * N);
  }
  for (; first < count; first += L) {
    load_other_square<E, N>(from, first, count - first < L ? int(count - first) : L, to + first * N);
  }
}

// to = elements 0 .. count - 1 of N tiles, side by side.
template <class E, size_t N>
void load_tiles(const std::array<Lanes<const E>, N>& from, int64_t count, Vec<Accumulator<E>>* to) {
  for (size_t t = 0; t < N; ++t) load_tile<E, int(N)>(from[t], count, to + t);
}

// The values of a tile square by square, as TileTransform::forward takes them, those from `count` on zero, N vectors apart:
// loaded into `to` [length * N], where kept at their places, otherwise one over the other.
template <class E, int N>
class RowSquares {
 public:
  using V = Vec<Accumulator<E>>;

  // `tiles` tiles are loaded at a time, the next one's values beside this one's; 0: they are there already. Other than 1
  // only where kept. to[count * N ..] is zero already. fetches: the rows are not in the caches, so that each square's
  // neighbour, which comes next, is fetched along with it.
  RowSquares(const Lanes<const E>* from, int tiles, int64_t count, V* to, bool kept, bool fetches)
      : from_(from),
        tiles_(tiles),
        count_(count),
        to_(to),
        kept_(kept),
        whole_(tiles == 1 && from->stride == 1 && from->all_present()),
        fetches_(fetches) {}

  static constexpr int stride() { return N; }

  DCTPS_INLINE const V* square(int64_t first, int slot) const {
    constexpr int L = kLanes<Accumulator<E>>;
    V* const to = to_ + (kept_ ? first : slot * L) * N;
    if (whole_ && first + L <= count_) {
      if (fetches_) {
        const int64_t next = slot % 2 ? first - L : first + L;
#pragma GCC unroll 16
        for (int l = 0; l < L; ++l) __builtin_prefetch(from_->lane[l] + next);
      }
      load_whole_square<E, N>(*from_, first, to);
    } else if (tiles_) {
      load_cut_square(first, to);
    }
    return to;
  }

  const V* all() const {
    for (int t = 0; t < tiles_; ++t) load_tile<E, N>(from_[t], count_, to_ + t);
    return to_;
  }

 private:
  DCTPS_NOINLINE void load_cut_square(int64_t first, V* to) const {
    constexpr int L = kLanes<Accumulator<E>>;
    const int here = count_ - first >= L ? L : count_ > first ? int(count_ - first) : 0;
    for (int t = 0; t < tiles_; ++t) {
      if (here) load_square<E, N>(from_[t], first, here, to + t);
      for (int i = here; i < L; ++i) to[i * N + t] = V{};
    }
  }

  const Lanes<const E>* const from_;
  const int tiles_;
  const int64_t count_;
  V* const to_;
  const bool kept_, whole_, fetches_;
};

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
      store_other_square(to, first, here, square);
    }
  }
}

template <class E, class Before, class Value>
DCTPS_INLINE void store_squares(const Tiles<E, 1>& to, int64_t begin, int64_t end, const Before& before,
                                const Value& value) {
  store_squares(to[0], begin, end, before, value);
}
// The same for two tiles: value(k, i) is a Two. The second one's squares wait in memory for the first one's.
template <class E, class Before, class Value>
DCTPS_INLINE void store_squares(const Tiles<E, 2>& to, int64_t begin, int64_t end, const Before& before,
                                const Value& value) {
  constexpr int L = kLanes<Accumulator<E>>;
  Vec<Accumulator<E>> square[L];
  int64_t stored = begin;
  auto store_waiting = [&](int64_t stop) {
    if (stop > stored) store_square(to[1], stored, int(stop - stored), square);
    stored = stop;
  };
  store_squares(
      to[0], begin, end,
      [&](int64_t first, int here) {
        store_waiting(first);
        before(first, here);
      },
      [&](int64_t k, int i) {
        const auto both = value(k, i);
        square[i] = both.second;
        return both.first;
      });
  store_waiting(end);
}

// Stores value(i) for 0 <= i < count as element i of all lanes.
template <class To, class Value>
DCTPS_INLINE void store_tile(const To& to, int64_t count, const Value& value) {
  store_squares(to, 0, count, [](int64_t, int) {}, [&](int64_t k, int) { return value(k); });
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

// Fetches rows of tiles into the caches bit by bit, while other work goes on. It does not depend on the rows' elements,
// so that what calls it is compiled once for all of them.
template <class A>
class Prefetch {
 public:
  // The rows of a tile, up to element `count`; twice at most. Nothing is fetched unless all rows are there and contiguous,
  // or neighbours in memory.
  template <class E>
  void add(const Lanes<const E>& rows, int64_t count) {
    const bool contiguous = rows.stride == 1 && rows.all_present();
    if (!contiguous && !rows.are_neighbours()) return;
    Rows& added = rows_[number_++];
    for (int l = 0; l < L; ++l) added.lane[l] = reinterpret_cast<const char*>(rows.lane[l]);
    added.step_bytes = rows.stride * int64_t(sizeof(E));
    added.line = contiguous ? 64 / int64_t(sizeof(E)) : 0;
    added.end = count;
  }

  // The next `elements` of every row.
  DCTPS_INLINE void operator()(int64_t elements) {
    due_ += elements;
    for (int r = 0; r < number_; ++r) {
      Rows& rows = rows_[r];
      const int64_t stop = due_ < rows.end ? due_ : rows.end;
      if (rows.line) {
        for (; rows.at < stop; rows.at += rows.line) {
#pragma GCC unroll 16
          for (int l = 0; l < L; ++l) __builtin_prefetch(rows.lane[l] + rows.at * rows.step_bytes);
        }
      } else {
        for (; rows.at < stop; ++rows.at) __builtin_prefetch(rows.lane[0] + rows.at * rows.step_bytes);
      }
    }
  }

 private:
  static constexpr int L = kLanes<A>;
  struct Rows {
    const char* lane[L];
    int64_t step_bytes;  // from one element of a row to the next
    int64_t line;        // elements in a cache line; 0: the first lane's line has all lanes
    int64_t end;         // elements of a row
    int64_t at = 0;      // those before it are fetched
  };

  Rows rows_[2];
  int number_ = 0;
  int64_t due_ = 0;  // elements of each row
};

}  // namespace DCTPS_ISA
}  // namespace dctps
