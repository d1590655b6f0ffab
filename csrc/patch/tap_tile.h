// The steps of the tap form on a tile, which is a part of the line of cells (tap_space.h): images in and out, sums over
// the taps of a row or a column, and sparse products.
#pragma once

#include <algorithm>
#include <vector>

#include "common/integers.h"
#include "common/simd.h"
#include "common/types.h"
#include "patch/tap_space.h"

namespace dctps {
namespace DCTPS_ISA {

// ---- images in and out

// to[0 .. count-1] = elements of a run; with neighbours in memory, zeros up to a whole vector behind them.
template <class E>
DCTPS_INLINE void load_run(const E* from, int64_t stride, int64_t count, Accumulator<E>* to) {
  constexpr int64_t L = kLanes<Accumulator<E>>;
  int64_t i = 0;
  if (stride != 1) {
    for (; i < count; ++i) to[i] = to_accumulator(from[i * stride]);
    return;
  }
  for (; i + L <= count; i += L) store(to + i, load(from + i));
  if (i < count) store(to + i, load_partial(from + i, int(count - i)));
}

template <class E>
DCTPS_INLINE void store_run(const Accumulator<E>* from, int64_t stride, int64_t count, bool streaming,
                            E* to) {
  constexpr int64_t L = kLanes<Accumulator<E>>;
  int64_t i = 0;
  if (stride != 1) {
    for (; i < count; ++i) to[i * stride] = from_accumulator<E>(from[i]);
    return;
  }
  for (; i + L <= count; i += L) {
    streaming ? stream(to + i, load(from + i)) : store(to + i, load(from + i));
  }
  if (i < count) store_partial(to + i, load(from + i), int(count - i));
}

// Whether a pixel's channels are neighbours in memory.
inline bool has_channels_last(const Images& images) {
  return images.channel_stride == 1 && images.channels > 1;
}

// What is neighbours in memory of a vector of cells, which may be parts of several rows of pixels.
struct Piece {
  int64_t cell, offset;  // the vector's first cell; elements to the first pixel
  uint32_t lanes;        // that are pixels
  int count;             // of them
  bool joins;            // another piece of the same vector
};

// The runs of a part of the line and, for layouts with neighbouring channels, the pixel behind each of its cells.
// Of elements that only what moves them (load_cells, store_cells) looks at.
template <class A>
struct Cells {
  static constexpr int64_t L = kLanes<A>;
  DType dtype = DType::f32;
  std::vector<Run> runs;
  std::vector<Piece> pieces;  // the same, for short rows
  std::vector<char*> pixels;
  std::vector<char> padding;  // the pixel of all cells that are none
  bool streaming =
      false;  // store_cells goes past the caches (not for single pixels: that is at times far slower)

  // For load_cells and store_cells, once the runs are there.
  void prepare(const Images& images, DType images_dtype, int64_t cells) {
    dtype = images_dtype;
    if (!has_channels_last(images)) return find_pieces();
    const int64_t bytes = element_bytes(dtype);
    padding.resize(size_t(images.channels * bytes));
    pixels.assign(size_t(cells), padding.data());
    for (const Run& run : runs) {
      char* const pixel = static_cast<char*>(images.data) + run.offset * bytes;
      for (int64_t i = 0; i < run.count; ++i) pixels[size_t(run.cell + i)] = pixel + i * run.stride * bytes;
    }
  }

 private:
  void find_pieces() {
    pieces.clear();
    const auto fills_vector = [](const Run& run) { return run.count >= L; };
    if (!kMovesLanes || std::any_of(runs.begin(), runs.end(), fills_vector)) return;
    for (const Run& run : runs) {
      if (run.stride != 1) return pieces.clear();
      for (int64_t i = 0, here; i < run.count; i += here) {
        const int64_t lane = (run.cell + i) % L, cell = run.cell + i - lane;
        here = std::min(run.count - i, L - lane);
        const bool joins = !pieces.empty() && pieces.back().cell == cell;
        if (!joins || pieces.back().offset + pieces.back().count != run.offset + i) {
          pieces.push_back({cell, run.offset + i, 0, 0, joins});
        }
        pieces.back().lanes |= ((1u << here) - 1) << lane;
        pieces.back().count += int(here);
      }
    }
  }
};

// load_cells and store_cells, which follow, for one element type.
template <class E, class A>
void load_elements(const Images& images, const Cells<A>& source, int64_t cells, int64_t channel,
                   int64_t count, A* to, int64_t pitch) {
  constexpr int L = kLanes<A>;
  if (has_channels_last(images)) {
    for (int64_t first = 0; first < count; first += L) {
      const int here = count - first < L ? int(count - first) : L;
      for (int64_t cell = 0; cell < cells; cell += L) {
        char* const* pixels = source.pixels.data() + cell;
        Vec<A> square[L];
        for (int l = 0; l < L; ++l) {
          const E* from = reinterpret_cast<const E*>(pixels[l]) + channel + first;
          square[l] = here == L ? load(from) : load_partial(from, here);
        }
        transpose<A>(square);
        for (int c = 0; c < here; ++c) store(to + (first + c) * pitch + cell, square[c]);
      }
    }
    return;
  }
  const E* from = static_cast<const E*>(images.data) + channel * images.channel_stride;
  for (int64_t c = 0; c < count; ++c, from += images.channel_stride, to += pitch) {
    int64_t cell = 0;
    auto clear = [&](int64_t end) {
      for (; cell < end; cell += L) store(to + cell, Vec<A>{});
    };
    if constexpr (kMovesLanes) {
      for (const Piece& piece : source.pieces) {
        clear(piece.cell);
        Vec<A> pixels = expand_lanes<A>(load_partial(from + piece.offset, piece.count), piece.lanes);
        if (piece.joins) pixels += load(to + piece.cell);
        store(to + piece.cell, pixels);
        cell = piece.cell + L;
      }
    }
    for (const Run& run : source.runs) {
      if (!source.pieces.empty()) break;
      clear(run.cell);
      load_run(from + run.offset, run.stride, run.count, to + run.cell);
      cell = run.cell + (run.stride == 1 ? round_up(run.count, L) : run.count);
    }
    clear(cells);
  }
}

template <class E, class A>
void store_elements(const Images& images, const Cells<A>& target, int64_t cells, int64_t channel,
                    int64_t count, const A* from, int64_t pitch) {
  constexpr int L = kLanes<A>;
  if (has_channels_last(images)) {
    for (int64_t cell = 0; cell < cells; cell += L) {
      char* const* pixels = target.pixels.data() + cell;
      for (int64_t first = 0; first < count; first += L) {
        const int here = count - first < L ? int(count - first) : L;
        Vec<A> square[L];
        for (int c = 0; c < L; ++c) square[c] = c < here ? load(from + (first + c) * pitch + cell) : Vec<A>{};
        transpose<A>(square);
        for (int l = 0; l < L; ++l) {
          E* const to = reinterpret_cast<E*>(pixels[l]) + channel + first;
          here == L ? store(to, square[l]) : store_partial(to, square[l], here);
        }
      }
    }
    return;
  }
  E* to = static_cast<E*>(images.data) + channel * images.channel_stride;
  for (int64_t c = 0; c < count; ++c, to += images.channel_stride, from += pitch) {
    if constexpr (kMovesLanes) {
      for (const Piece& piece : target.pieces) {
        store_partial(to + piece.offset, compress_lanes<A>(load(from + piece.cell), piece.lanes),
                      piece.count);
      }
      if (!target.pieces.empty()) continue;
    }
    for (const Run& run : target.runs)
      store_run(from + run.cell, run.stride, run.count, target.streaming, to + run.offset);
  }
}

// to[c][0 .. cells-1] = channels channel .. channel + count - 1, zeros in the padding; cells is a multiple of kLanes, and
// less than a vector behind a row is overwritten.
template <class A>
void load_cells(const Images& images, const Cells<A>& source, int64_t cells, int64_t channel, int64_t count,
                A* to, int64_t pitch) {
  dispatch_to<A>(source.dtype, [&](auto element) {
    load_elements<decltype(element)>(images, source, cells, channel, count, to, pitch);
  });
}

// The other way round; what is computed in the padding is left out.
template <class A>
void store_cells(const Images& images, const Cells<A>& target, int64_t cells, int64_t channel, int64_t count,
                 const A* from, int64_t pitch) {
  dispatch_to<A>(target.dtype, [&](auto element) {
    store_elements<decltype(element)>(images, target, cells, channel, count, from, pitch);
  });
}

// (Inline, as all that fetches: GCC takes a function that does nothing else for one without effect.)
DCTPS_INLINE void fetch_lines(const char* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(from + i);
}

// Fetches part `part` of `parts` of what load_cells reads: bit by bit, other work hides the wait.
template <class A>
DCTPS_INLINE void fetch_cells(const Images& images, const Cells<A>& source, int64_t channel, int64_t count,
                              int64_t part, int64_t parts) {
  const int64_t bytes = element_bytes(source.dtype);
  if (has_channels_last(images)) {
    const int64_t pixels = int64_t(source.pixels.size());
    for (int64_t i = pixels * part / parts; i < pixels * (part + 1) / parts; ++i) {
      fetch_lines(source.pixels[size_t(i)] + channel * bytes, count * bytes);
    }
    return;
  }
  for (int64_t c = count * part / parts; c < count * (part + 1) / parts; ++c) {
    const char* from = static_cast<const char*>(images.data) + (channel + c) * images.channel_stride * bytes;
    for (const Run& run : source.runs) {
      fetch_lines(from + run.offset * bytes, ((run.count - 1) * run.stride + 1) * bytes);
    }
  }
}

// ---- sums over taps

// The lanes of every even and every odd vector of a tile in which a tap sees pixels, where rows have no padding between
// them (TapAxis::is_packed).
struct SeenLanes {
  LaneMask even, odd;

  DCTPS_INLINE LaneMask of(int vector) const { return vector % 2 ? odd : even; }
};
constexpr SeenLanes kAllLanes{0xffff, 0xffff};

// One tap of a sum: its factors and how far away its cells are.
template <class A>
struct TapTerm {
  A c, s;
  SeenLanes lanes;
  int64_t offset;
};

// Vectors that a sum over taps or entries keeps in registers; of complex sums, whose terms' lanes are read again for each.
constexpr int kTapVectors = 4, kFewVectors = 2, kComplexVectors = kVectorBytes == 64 ? 6 : 4;

template <int Vectors, class A>
DCTPS_INLINE void rotated_sum_at(const A* re, const A* im, const int64_t* center, const TapTerm<A>* terms,
                                 int count, A* out_re, A* out_im) {
  constexpr int L = kLanes<A>;
  Vec<A> r[Vectors] = {}, i[Vectors] = {};
  if (center) {
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) {
      r[v] = load(re + *center + v * L);
      i[v] = load(im + *center + v * L);
    }
  }
  for (int t = 0; t < count; ++t) {
    const TapTerm<A>& term = terms[t];
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) {
      const Vec<A> x = in_register(load(re + term.offset + v * L));
      const Vec<A> y = in_register(load(im + term.offset + v * L));
      const LaneMask lanes = term.lanes.of(v);
      r[v] = add_product<A>(r[v], x, term.c, lanes);
      i[v] = add_product<A>(i[v], y, term.c, lanes);
      r[v] = add_product<A>(r[v], -y, term.s, lanes);
      i[v] = add_product<A>(i[v], x, term.s, lanes);
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < Vectors; ++v) {
    store(out_re + v * L, r[v]);
    store(out_im + v * L, i[v]);
  }
}

// The complex sum out[p] = in[p + center] + sum over terms of (c + i s) in[p + offset], re and im apart, each term in the
// lanes that it sees; without a center the first part is 0. `vectors` is even.
template <class A>
void rotated_sum(const A* re, const A* im, const int64_t* center, const TapTerm<A>* terms, int count,
                 int64_t vectors, A* out_re, A* out_im) {
  constexpr int L = kLanes<A>;
  int64_t v = 0;
  for (; v + kComplexVectors <= vectors; v += kComplexVectors) {
    rotated_sum_at<kComplexVectors>(re + v * L, im + v * L, center, terms, count, out_re + v * L,
                                    out_im + v * L);
  }
  for (; v < vectors; v += kFewVectors) {
    rotated_sum_at<kFewVectors>(re + v * L, im + v * L, center, terms, count, out_re + v * L, out_im + v * L);
  }
}

// The transpose: out_re = sum over terms of c in[offset], out_im likewise with s.
template <class A>
void spread_sum(const A* in, const TapTerm<A>* terms, int count, int64_t vectors, A* out_re, A* out_im) {
  constexpr int L = kLanes<A>;
  for (int64_t p = 0; p < vectors * L; p += kTapVectors * L) {
    Vec<A> r[kTapVectors] = {}, i[kTapVectors] = {};
    for (int t = 0; t < count; ++t) {
      const TapTerm<A>& term = terms[t];
#pragma GCC unroll 8
      for (int v = 0; v < kTapVectors; ++v) {
        const Vec<A> x = load(in + term.offset + p + v * L);
        r[v] += x * term.c;
        i[v] += x * term.s;
      }
    }
#pragma GCC unroll 8
    for (int v = 0; v < kTapVectors; ++v) {
      store(out_re + p + v * L, r[v]);
      store(out_im + p + v * L, i[v]);
    }
  }
}

// ---- sparse products

// A term of a sum over cells: a nonzero of S, or the tap of a row, as it meets the cells of a tile.
template <class A>
struct TapEntry {
  A value;
  SeenLanes lanes;
  int64_t offset;
};

// Entries that x is fetched ahead for, where they read whole cache lines: where the next one is cannot be guessed.
// Measured, that is 5% with 512 channels at 1%.
constexpr int64_t kEntriesAhead = 3;
constexpr bool kFetchesEntries = kVectorBytes == 64;

template <int Vectors, class A>
DCTPS_INLINE void sum_entries_at(const TapEntry<A>* entry, const TapEntry<A>* end, const A* x, A start,
                                 A* sums) {
  constexpr int L = kLanes<A>;
  Vec<A> sum[Vectors];
#pragma GCC unroll 32
  for (int v = 0; v < Vectors; ++v) sum[v] = Vec<A>{} + start;
  do {  // at least once: for a loop that may be left out GCC keeps a second set of sums, in memory
    const A* const from = x + entry->offset;
    const A* const later = x + (end - entry > kEntriesAhead ? entry + kEntriesAhead : entry)->offset;
#pragma GCC unroll 32
    for (int v = 0; v < Vectors; ++v) {
      if (kFetchesEntries) __builtin_prefetch(later + v * L);
      sum[v] = add_product<A>(sum[v], load(from + v * L), entry->value, entry->lanes.of(v));
    }
  } while (++entry != end);
#pragma GCC unroll 32
  for (int v = 0; v < Vectors; ++v) store(sums + v * L, sum[v]);
}

template <int Most, class A>
DCTPS_INLINE void sum_entries_of(int64_t vectors, const TapEntry<A>* entry, const TapEntry<A>* end,
                                 const A* x, A start, A* sums) {
  if (vectors == Most) {
    sum_entries_at<Most>(entry, end, x, start, sums);
  } else if constexpr (Most > kFewVectors) {
    sum_entries_of<Most - kFewVectors>(vectors, entry, end, x, start, sums);
  }
}

// Calls body(first vector, vectors) for blocks of about the same length, of which the sums are in registers: more vectors
// would read longer from each of the entries' places. `vectors` is even.
constexpr int kMostSums = kVectorBytes == 64 ? 24 : 8;
template <class Body>
void in_blocks(int64_t vectors, const Body& body) {
  const int64_t units = vectors / kFewVectors, blocks = ceil_div(vectors, kMostSums);
  for (int64_t b = 0, v = 0; b < blocks; ++b) {
    const int64_t here = (units / blocks + (b < units % blocks)) * kFewVectors;
    body(v, here);
    v += here;
  }
}

// sums[p] = start + sum over the `count` >= 1 entries of value x[p + offset], in their order, in the lanes that each sees.
template <class A>
void sum_entries(const TapEntry<A>* entries, int64_t count, const A* x, int64_t vectors, A start, A* sums) {
  in_blocks(vectors, [&](int64_t v, int64_t here) {
    sum_entries_of<kMostSums>(here, entries, entries + count, x + v * kLanes<A>, start, sums + v * kLanes<A>);
  });
}

// Sum over all cells of a b, in these lanes; `vectors` is a multiple of kTapVectors.
template <class A>
A cell_product(const A* a, const A* b, SeenLanes lanes, int64_t vectors) {
  constexpr int L = kLanes<A>;
  Vec<A> sums[kTapVectors] = {};
  for (int64_t p = 0; p < vectors * L; p += kTapVectors * L) {
#pragma GCC unroll 8
    for (int v = 0; v < kTapVectors; ++v) {
      sums[v] = add_product<A>(sums[v], load(a + p + v * L), load(b + p + v * L), lanes.of(v));
    }
  }
  return lanes_total<A>((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// Sum over all cells; `vectors` is a multiple of kTapVectors.
template <class A>
A cell_sum(const A* a, int64_t vectors) {
  constexpr int L = kLanes<A>;
  Vec<A> sums[kTapVectors] = {};
  for (int64_t p = 0; p < vectors * L; p += kTapVectors * L) {
#pragma GCC unroll 8
    for (int v = 0; v < kTapVectors; ++v) sums[v] += load(a + p + v * L);
  }
  return lanes_total<A>((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

}  // namespace DCTPS_ISA
}  // namespace dctps
