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

// square[0 .. count-1] = elements first .. first + count - 1 of all lanes, count <= kLanes. The rest is overwritten.
template <class E>
DCTPS_INLINE void load_square(const Lanes<const E>& from, int64_t first, int count,
                              Vec<Accumulator<E>> (&square)[kLanes<Accumulator<E>>]) {
  using A = Accumulator<E>;
  constexpr int L = kLanes<A>;
  if (from.stride == 1) {
    if (count == L && from.all_present()) {  // nearly always: no lane is looked at twice
      for (int l = 0; l < L; ++l) square[l] = load(from.lane[l] + first);
    } else if (count == L) {
      for (int l = 0; l < L; ++l) square[l] = from.lane[l] ? load(from.lane[l] + first) : Vec<A>{};
    } else {
      for (int l = 0; l < L; ++l) {
        square[l] = from.lane[l] ? load_partial(from.lane[l] + first, count) : Vec<A>{};
      }
    }
    transpose<A>(square);
  } else if (from.are_neighbours()) {
    for (int i = 0; i < count; ++i) square[i] = load(from.lane[0] + (first + i) * from.stride);
  } else {
    for (int i = 0; i < count; ++i) {
      E gathered[L] = {};
      for (int l = 0; l < L; ++l) {
        if (from.lane[l]) gathered[l] = from.lane[l][(first + i) * from.stride];
      }
      square[i] = load(gathered);
    }
  }
}

// to[i] = element i of all lanes, 0 <= i < count.
template <class E>
void load_tile(const Lanes<const E>& from, int64_t count, Vec<Accumulator<E>>* to) {
  constexpr int L = kLanes<Accumulator<E>>;
  for (int64_t first = 0; first < count; first += L) {
    Vec<Accumulator<E>> square[L];
    const int here = count - first < L ? int(count - first) : L;
    load_square(from, first, here, square);
    for (int i = 0; i < here; ++i) to[first + i] = square[i];
  }
}

// Elements first .. first + count - 1 of all lanes = square[0 .. count-1], count <= kLanes. Overwrites
// square.
template <class E>
DCTPS_INLINE void store_square(const Lanes<E>& to, int64_t first, int count,
                               Vec<Accumulator<E>> (&square)[kLanes<Accumulator<E>>]) {
  using A = Accumulator<E>;
  constexpr int L = kLanes<A>;
  if (to.stride == 1) {
    transpose<A>(square);
    if (count == L && to.streaming && to.all_present()) {
      for (int l = 0; l < L; ++l) stream(to.lane[l] + first, square[l]);
    } else {
      for (int l = 0; l < L; ++l) {
        if (!to.lane[l]) continue;
        if (count == L) {
          store(to.lane[l] + first, square[l]);
        } else {
          store_partial(to.lane[l] + first, square[l], count);
        }
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

// Stores value(i) for 0 <= i < count as element i of all lanes.
template <class E, class Value>
DCTPS_INLINE void store_tile(const Lanes<E>& to, int64_t count, const Value& value) {
  constexpr int L = kLanes<Accumulator<E>>;
  for (int64_t first = 0; first < count; first += L) {
    Vec<Accumulator<E>> square[L];
    const int here = count - first < L ? int(count - first) : L;
    for (int i = 0; i < here; ++i) square[i] = value(first + i);
    for (int i = here; i < L; ++i) square[i] = Vec<Accumulator<E>>{};
    store_square(to, first, here, square);
  }
  if (to.streaming) end_streaming();
}

// Fetches a tile's rows into the second-level cache bit by bit, while other work goes on.
template <class E>
class Prefetch {
 public:
  // Nothing is fetched where `wanted` is false, or where rows are not contiguous.
  Prefetch(const Lanes<const E>& rows, int64_t count, bool wanted)
      : rows_(rows),
        end_(wanted && rows.stride == 1 ? kRows * ((count * int64_t(sizeof(E)) + 63) / 64) : 0) {}

  // The next lines, as many as `elements` vectors of elements fill.
  DCTPS_INLINE void advance(int64_t elements) {
    const int64_t lines = elements * int64_t(kRows * sizeof(E)) / 64;
    for (const int64_t stop = line_ + lines < end_ ? line_ + lines : end_; line_ < stop; ++line_) {
      const E* row = rows_.lane[line_ % kRows];
      if (row) __builtin_prefetch(reinterpret_cast<const char*>(row) + line_ / kRows * 64, 0, 2);
    }
  }

 private:
  static constexpr int kRows = kLanes<Accumulator<E>>;
  const Lanes<const E>& rows_;
  int64_t line_ = 0, end_;
};

}  // namespace DCTPS_ISA
}  // namespace dctps
