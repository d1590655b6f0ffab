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

  // True where the lanes are neighbours in memory, as the pixels of a channels-first image are.
  bool are_neighbours() const {
    for (int l = 0; l < kLanes<Accumulator<E>>; ++l) {
      if (!lane[0] || lane[l] != lane[0] + l) return false;
    }
    return true;
  }
};

// to[i] = element i of all lanes, 0 <= i < count.
template <class E>
void load_tile(const Lanes<const E>& from, int64_t count, Vec<Accumulator<E>>* to) {
  using A = Accumulator<E>;
  using V = Vec<A>;
  constexpr int L = kLanes<A>;
  if (from.stride == 1) {
    for (int64_t i = 0; i < count; i += L) {
      V square[L];
      const int here = count - i < L ? int(count - i) : L;
      if (here == L) {
        for (int l = 0; l < L; ++l) square[l] = from.lane[l] ? load(from.lane[l] + i) : V{};
        transpose<A>(square);
        for (int l = 0; l < L; ++l) to[i + l] = square[l];
      } else {
        for (int l = 0; l < L; ++l) square[l] = from.lane[l] ? load_partial(from.lane[l] + i, here) : V{};
        transpose<A>(square);
        for (int l = 0; l < here; ++l) to[i + l] = square[l];
      }
    }
  } else if (from.are_neighbours()) {
    for (int64_t i = 0; i < count; ++i) to[i] = load(from.lane[0] + i * from.stride);
  } else {
    for (int64_t i = 0; i < count; ++i) {
      E gathered[L] = {};
      for (int l = 0; l < L; ++l) {
        if (from.lane[l]) gathered[l] = from.lane[l][i * from.stride];
      }
      to[i] = load(gathered);
    }
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
}

}  // namespace DCTPS_ISA
}  // namespace dctps
