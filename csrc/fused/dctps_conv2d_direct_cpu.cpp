// The fused convolution on CPU in the direct form, for groups of few values: W = alpha D + S is formed for the call, and
// each output is a sum over taps. A tile of an image at a time, pixel by pixel and padded, whatever its layout, stride
// and dtype: lanes lie along the groups where each is one channel and one filter, else along a group's filters, which
// share each value of x.
#include <algorithm>
#include <type_traits>
#include <vector>

#include "common/integers.h"
#include "common/parallel.h"
#include "common/tile_io.h"
#include "common/workspace.h"
#include "patch/tap_tile.h"
#include "plan/dct_matrix.h"

namespace dctps {
namespace DCTPS_ISA {
namespace {

// Of a thread's tile: it stays in the second-level cache.
constexpr int64_t kTileBytes = 384 << 10;
// Output rows of a band, unless it is too large otherwise.
constexpr int64_t kLowBand = 8;
// Tiles that small batches are cut into, so that threads find some.
constexpr int64_t kFewestTiles = 16;
// Pixels whose products are summed in registers before they are added to a tile's: short sums, small errors.
constexpr int64_t kSummedPixels = 32;

// Sums that are held in registers: vectors of lanes by pixels, of outputs ...
template <bool Shared>
constexpr int kVectors = Shared && kVectorBytes == 64 ? 4 : 2;
template <bool Shared>
constexpr int kPixels = kVectorBytes < 64 ? 4
                        : Shared          ? 6
                                          : 8;
// ... and vectors of lanes by taps, of W's gradient.
template <bool Shared>
constexpr int kSummedVectors = Shared ? kVectors<true> : 1;
template <bool Shared>
constexpr int kSummedTaps = Shared               ? kPixels<true>
                            : kVectorBytes == 64 ? 16
                                                 : 10;
// Channels of dx whose lanes are summed, with as many pixels as make a square.
template <class A>
constexpr int kReducedChannels = kLanes<A> < 4 ? kLanes<A> : 4;

// body(integral_constant<int, size>), 1 <= size <= Most.
template <int Most, class Body>
DCTPS_INLINE void with_size(int64_t size, const Body& body) {
  if (size == Most) {
    body(std::integral_constant<int, Most>{});
  } else if constexpr (Most > 1) {
    with_size<Most - 1>(size, body);
  }
}

// Deals `count` out in parts of about the same size, at most Most: body(first, integral_constant<int, size>).
template <int Most, class Body>
DCTPS_INLINE void in_parts(int64_t count, const Body& body) {
  const int64_t parts = std::max(ceil_div(count, int64_t(Most)), int64_t(1));
  const int64_t size = count / parts, larger = count % parts;
  for (int64_t part = 0, first = 0; first < count; ++part) {
    const int64_t here = size + (part < larger);
    with_size<Most>(here, [&](auto constant) { body(first, constant); });
    first += here;
  }
}

// Hides from the compiler what a pointer is made of: left to itself it keeps one for each of a block's loads, more than
// there are registers, in the place of one and constant distances.
template <class A>
DCTPS_INLINE const A* opaque(const A* pointer) {
  asm("" : "+r"(pointer));
  return pointer;
}

// ---- tiles of an image

// Rows and columns of an image, some of them perhaps outside, where there are zeros: [rows][columns][pitch].
template <class A>
struct Window {
  int64_t first_row = 0, first_column = 0, rows = 0, columns = 0, pitch = 0;
  A* data = nullptr;

  int64_t values() const { return rows * columns * pitch; }
  int64_t row_step() const { return columns * pitch; }
  A* at(int64_t row, int64_t column) const {
    return data + ((row - first_row) * columns + column - first_column) * pitch;
  }
};

// The part of a window that lies in the image.
struct Inside {
  int64_t row_begin, row_end, column_begin, column_end;

  template <class A>
  Inside(const Window<A>& window, const Images& images)
      : row_begin(std::max(window.first_row, int64_t(0))),
        row_end(std::min(window.first_row + window.rows, images.height)),
        column_begin(std::max(window.first_column, int64_t(0))),
        column_end(std::min(window.first_column + window.columns, images.width)) {}
};

template <class A>
void clear_outside(const Window<A>& window, const Inside& inside) {
  auto clear = [](A* from, A* to) {
    if (from < to) std::memset(from, 0, size_t(to - from) * sizeof(A));
  };
  for (int64_t row = window.first_row; row < window.first_row + window.rows; ++row) {
    A *const begin = window.at(row, window.first_column), *const end = begin + window.row_step();
    const bool is_inside =
        row >= inside.row_begin && row < inside.row_end && inside.column_begin < inside.column_end;
    clear(begin, is_inside ? window.at(row, inside.column_begin) : end);
    if (is_inside) clear(window.at(row, inside.column_end), end);
  }
}

// move(element, place in the window, first channel, channels of this vector) for each pixel inside and each vector of
// `count` channels from `channel` on, where a pixel's channels are neighbours in memory.
template <class E, class A, class Move>
DCTPS_INLINE void each_pixel(const Images& images, int64_t image, int64_t channel, int64_t count,
                             const Window<A>& window, const Inside& inside, const Move& move) {
  constexpr int64_t L = kLanes<A>;
  for (int64_t row = inside.row_begin; row < inside.row_end; ++row) {
    E* element = static_cast<E*>(images.data) + image * images.image_stride + row * images.row_stride +
                 inside.column_begin * images.column_stride + channel;
    A* place = window.at(row, inside.column_begin);
    for (int64_t column = inside.column_begin; column < inside.column_end; ++column) {
      for (int64_t c = 0; c < count; c += L) move(element + c, place + c, int(std::min(L, count - c)));
      element += images.column_stride;
      place += window.pitch;
    }
  }
}

// The other layouts: move(lanes, first, pixels, places) for squares of a vector of channels by `pixels` pixels, which
// are those from element `first` of the lanes on. Squares go on from row to row where memory does.
template <class E, class A, class Move>
void each_square(const Images& images, int64_t image, int64_t channel, int64_t count, const Window<A>& window,
                 const Inside& inside, const Move& move) {
  constexpr int64_t L = kLanes<A>;
  const bool is_whole = inside.column_begin == 0 && inside.column_end == images.width &&
                        images.row_stride == images.width * images.column_stride;
  const int64_t columns = inside.column_end - inside.column_begin;
  const int64_t rows_of_line = is_whole ? inside.row_end - inside.row_begin : 1;
  for (int64_t c = 0; c < count; c += L) {
    for (int64_t row = inside.row_begin; row < inside.row_end; row += rows_of_line) {
      Lanes<E> lanes;
      lanes.stride = images.column_stride;
      E* const line = static_cast<E*>(images.data) + image * images.image_stride + row * images.row_stride +
                      inside.column_begin * images.column_stride;
      for (int64_t l = 0; l < L; ++l) {
        lanes.lane[l] = c + l < count ? line + (channel + c + l) * images.channel_stride : nullptr;
      }
      int64_t r = row, column = inside.column_begin;
      for (int64_t first = 0; first < rows_of_line * columns; first += L) {
        A* places[L];
        const int64_t pixels = std::min(L, rows_of_line * columns - first);
        for (int64_t i = 0; i < pixels; ++i) {
          places[i] = window.at(r, column) + c;
          if (++column == inside.column_end) column = inside.column_begin, ++r;
        }
        move(lanes, first, int(pixels), places);
      }
    }
  }
}

// window = channels channel .. channel + count - 1 of an image, in whole vectors.
template <class E>
void load_window(const Images& images, int64_t image, int64_t channel, int64_t count,
                 const Window<Accumulator<E>>& window) {
  using A = Accumulator<E>;
  const Inside inside(window, images);
  clear_outside(window, inside);
  if (has_channels_last(images)) {
    each_pixel<const E>(images, image, channel, count, window, inside, [](const E* from, A* to, int here) {
      store(to, here == kLanes<A> ? load(from) : load_partial(from, here));
    });
    return;
  }
  each_square<const E>(images, image, channel, count, window, inside,
                       [](const Lanes<const E>& lanes, int64_t first, int pixels, A* const* places) {
                         Vec<A> square[kLanes<A>];
                         load_square(lanes, first, pixels, square);
                         for (int i = 0; i < pixels; ++i) store(places[i], square[i]);
                       });
}

// The other way round, all of the window being inside.
template <class E>
void store_window(const Images& images, int64_t image, int64_t channel, int64_t count,
                  const Window<Accumulator<E>>& window) {
  using A = Accumulator<E>;
  const Inside inside(window, images);
  if (has_channels_last(images)) {
    each_pixel<E>(images, image, channel, count, window, inside, [](E* to, const A* from, int here) {
      here == kLanes<A> ? store(to, load(from)) : store_partial(to, load(from), here);
    });
    return;
  }
  each_square<E>(images, image, channel, count, window, inside,
                 [](const Lanes<E>& lanes, int64_t first, int pixels, A* const* places) {
                   Vec<A> square[kLanes<A>] = {};
                   for (int i = 0; i < pixels; ++i) square[i] = load(places[i]);
                   store_square(lanes, first, pixels, square);
                 });
}

// The same with single channels side by side, pitch of them.
template <class E, class A, class Move>
DCTPS_INLINE void each_value(const Images& images, int64_t image, int64_t channel, const Window<A>& window,
                             const Inside& inside, const Move& move) {
  for (int64_t c = 0; c < window.pitch; ++c) {
    for (int64_t row = inside.row_begin; row < inside.row_end; ++row) {
      E* element = static_cast<E*>(images.data) + image * images.image_stride + row * images.row_stride +
                   inside.column_begin * images.column_stride + (channel + c) * images.channel_stride;
      A* place = window.at(row, inside.column_begin) + c;
      for (int64_t column = inside.column_begin; column < inside.column_end; ++column) {
        move(*element, *place);
        element += images.column_stride;
        place += window.pitch;
      }
    }
  }
}

// What the terms of an output are read from: values that lanes share, or a lane's own.
template <bool Shared, class E>
void load_x(const Images& images, int64_t image, int64_t channel, int64_t count,
            const Window<Accumulator<E>>& window) {
  using A = Accumulator<E>;
  if constexpr (Shared) {
    const Inside inside(window, images);
    clear_outside(window, inside);
    each_value<const E>(images, image, channel, window, inside,
                        [](const E& from, A& to) { to = to_accumulator(from); });
  } else {
    load_window<E>(images, image, channel, count, window);
  }
}

// ---- sums over taps

// A place in the kernel: how far its value is from that of the first one, and where its row of W begins.
struct Term {
  int64_t offset, row;
};
using Terms = std::vector<Term>;

// Rows of pixels as sums meet them: the first one, and the steps to the next row and pixel.
template <class A>
struct Grid {
  A* first;
  int64_t row_step, step;
};

// One value for all lanes, or a lane's own.
template <bool Shared, class A>
DCTPS_INLINE auto operand(const A* from) {
  if constexpr (Shared) {
    return *from;
  } else {
    return load(from);
  }
}

template <bool Shared, int Vectors, int Pixels, class A>
DCTPS_INLINE void sum_block(const Terms& terms, const A* weights, const A* x, int64_t x_step, const A* bias,
                            A* y, int64_t y_step) {
  constexpr int64_t L = kLanes<A>;
  Vec<A> sums[Pixels][Vectors];
#pragma GCC unroll 8
  for (int v = 0; v < Vectors; ++v) {
#pragma GCC unroll 8
    for (int p = 0; p < Pixels; ++p) sums[p][v] = bias ? load(bias + v * L) : Vec<A>{};
  }
  for (const Term& term : terms) {
    const A* const from = opaque(x + term.offset);
    const A* const row = opaque(weights + term.row);
    Vec<A> w[Vectors];
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) w[v] = load(row + v * L);
#pragma GCC unroll 8
    for (int p = 0; p < Pixels; ++p) {
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) {
        sums[p][v] += w[v] * operand<Shared>(from + p * x_step + (Shared ? 0 : v * L));
      }
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < Pixels; ++p) {
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) store(y + p * y_step + v * L, sums[p][v]);
  }
}

// y = bias + sum over terms of weights times x at its offset, for all pixels and lanes.
template <bool Shared, class A>
void sum_taps(const Terms& terms, const A* weights, int64_t vectors, int64_t rows, int64_t pixels,
              const Grid<const A>& x, const A* bias, const Grid<A>& y) {
  in_parts<kVectors<Shared>>(vectors, [&](int64_t v, auto wide) {
    const int64_t lane = v * kLanes<A>;
    for (int64_t row = 0; row < rows; ++row) {
      in_parts<kPixels<Shared>>(pixels, [&](int64_t p, auto high) {
        sum_block<Shared, decltype(wide)::value, decltype(high)::value>(
            terms, weights + lane, x.first + row * x.row_step + p * x.step + (Shared ? 0 : lane), x.step,
            bias ? bias + lane : nullptr, y.first + row * y.row_step + p * y.step + lane, y.step);
      });
    }
  });
}

// The transpose where lanes share a value: dx = sum over terms, channels and lanes of weights times dy. W's row of
// channel c is `pitch` behind that of c - 1.
template <class A>
void reduce_taps(const Terms& terms, const A* weights, int64_t vectors, int64_t channels, int64_t pitch,
                 int64_t rows, int64_t pixels, const Grid<const A>& dy, const Grid<A>& dx) {
  constexpr int64_t L = kLanes<A>;
  in_parts<kReducedChannels<A>>(channels, [&](int64_t c, auto wide) {
    constexpr int kWide = decltype(wide)::value;
    for (int64_t row = 0; row < rows; ++row) {
      in_parts<L / kWide>(pixels, [&](int64_t first, auto high) {
        constexpr int kHigh = decltype(high)::value;
        const A* const from = dy.first + row * dy.row_step + first * dy.step;
        A* const to = dx.first + row * dx.row_step + first * dx.step + c;
        Vec<A> sums[L] = {};  // [kHigh][kWide]
        for (const Term& term : terms) {
          for (int64_t v = 0; v < vectors; ++v) {
            const A* const values = opaque(from + term.offset + v * L);
            Vec<A> w[kWide];
#pragma GCC unroll 4
            for (int i = 0; i < kWide; ++i) w[i] = load(weights + term.row + (c + i) * pitch + v * L);
#pragma GCC unroll 16
            for (int p = 0; p < kHigh; ++p) {
              const Vec<A> value = load(values + p * dy.step);
#pragma GCC unroll 4
              for (int i = 0; i < kWide; ++i) sums[p * kWide + i] += w[i] * value;
            }
          }
        }
        alignas(Vec<A>) A totals[L];
        store(totals, sum_lanes<A>(sums));
        for (int p = 0; p < kHigh; ++p) {
          for (int i = 0; i < kWide; ++i) to[p * dx.step + i] = totals[p * kWide + i];
        }
      });
    }
  });
}

// sums[t] += sum over pixels of dy times x at the offset of term t: W's gradient, in rows `pitch` apart.
template <bool Shared, class A>
void sum_products(const Terms& terms, int64_t vectors, int64_t rows, int64_t pixels, const Grid<const A>& x,
                  const Grid<const A>& dy, A* sums, int64_t pitch) {
  constexpr int64_t L = kLanes<A>;
  const int64_t rows_at_a_time = std::max(kSummedPixels / pixels, int64_t(1));
  in_parts<kSummedVectors<Shared>>(vectors, [&](int64_t v, auto wide) {
    const int64_t lane = v * L;
    in_parts<kSummedTaps<Shared>>(int64_t(terms.size()), [&](int64_t first, auto high) {
      constexpr int kWide = decltype(wide)::value, kTaps = decltype(high)::value;
      for (int64_t row = 0; row < rows; row += rows_at_a_time) {
        Vec<A> products[kTaps][kWide] = {};
        for (int64_t r = row; r < std::min(row + rows_at_a_time, rows); ++r) {
          const A* from[kTaps];
#pragma GCC unroll 16
          for (int t = 0; t < kTaps; ++t) {
            from[t] = x.first + r * x.row_step + terms[size_t(first + t)].offset + (Shared ? 0 : lane);
          }
          const A* gradient = dy.first + r * dy.row_step + lane;
          for (int64_t p = 0; p < pixels; ++p, gradient += dy.step) {
            Vec<A> g[kWide];
#pragma GCC unroll 8
            for (int i = 0; i < kWide; ++i) g[i] = load(gradient + i * L);
#pragma GCC unroll 16
            for (int t = 0; t < kTaps; ++t) {
#pragma GCC unroll 8
              for (int i = 0; i < kWide; ++i) {
                products[t][i] += g[i] * operand<Shared>(from[t] + p * x.step + (Shared ? 0 : i * L));
              }
            }
          }
        }
#pragma GCC unroll 16
        for (int t = 0; t < kTaps; ++t) {
#pragma GCC unroll 8
          for (int i = 0; i < kWide; ++i) {
            A* const to = sums + (first + t) * pitch + lane + i * L;
            store(to, load(to) + products[t][i]);
          }
        }
      }
    });
  });
}

// sums += sum over pixels of dy
template <class A>
void sum_pixels(int64_t vectors, int64_t rows, int64_t pixels, const Grid<const A>& dy, A* sums) {
  constexpr int64_t L = kLanes<A>;
  in_parts<4>(vectors, [&](int64_t v, auto wide) {
    constexpr int kWide = decltype(wide)::value;
    for (int64_t row = 0; row < rows; ++row) {
      Vec<A> parts[kWide] = {};
      const A* from = dy.first + row * dy.row_step + v * L;
      for (int64_t p = 0; p < pixels; ++p, from += dy.step) {
#pragma GCC unroll 8
        for (int i = 0; i < kWide; ++i) parts[i] += load(from + i * L);
      }
#pragma GCC unroll 8
      for (int i = 0; i < kWide; ++i) {
        A* const to = sums + (v + i) * L;
        store(to, load(to) + parts[i]);
      }
    }
  });
}

// ---- what both directions share

template <class E>
struct Shape {
  using A = Accumulator<E>;
  static constexpr int64_t L = kLanes<A>;
  const ConvGeometry& g;
  int64_t channels, filters;  // of a group
  int64_t height, width;      // of x
  int64_t out_height, out_width;
  int64_t m, n;
  bool shared;                              // lanes are a group's filters, not groups
  int64_t lanes;                            // of a section: the groups, or the filters of one
  int64_t vectors;                          // of a section
  int64_t pitch;                            // of W's rows: of all sections, which begin with a vector each
  std::shared_ptr<const DctMatrix<A>> dct;  // null: no DCT part

  Shape(const ConvGeometry& geometry, const Images& x, const Images& y, bool transforms)
      : g(geometry),
        channels(x.channels / g.groups),
        filters(y.channels / g.groups),
        height(x.height),
        width(x.width),
        out_height(y.height),
        out_width(y.width),
        m(y.channels),
        n(g.kernel_height * g.kernel_width * channels),
        shared(channels != 1 || filters != 1),
        lanes(shared ? filters : m),
        vectors(ceil_div(lanes, L)),
        pitch(m / lanes * vectors * L),
        dct(transforms ? get_dct_matrix<A>(m, n) : nullptr) {}

  int64_t sections() const { return m / lanes; }
  int64_t place(int64_t filter) const { return filter / lanes * vectors * L + filter % lanes; }

  // W [n][pitch].
  std::vector<Vec<A>> weights(const void* alpha_pointer, const SparseMatrix& s) const {
    std::vector<Vec<A>> matrix(size_t(n * pitch / L));
    A* const to = reinterpret_cast<A*>(matrix.data());
    for (int64_t i = 0; i < n && dct; ++i) {
      const A alpha = *static_cast<const A*>(alpha_pointer);
      for (int64_t section = 0; section < sections(); ++section) {
        const A* from = dct->entries.data() + i * m + section * lanes;
        A* const row = to + i * pitch + section * vectors * L;
        for (int64_t l = 0; l < lanes; ++l) row[l] = alpha * from[l];
      }
    }
    const A* values = static_cast<const A*>(s.values);
    for (int64_t k = 0; k < m; ++k) {
      for (int32_t t = s.crow[k]; t < s.crow[k + 1]; ++t) to[s.col[t] * pitch + place(k)] += values[t];
    }
    return matrix;
  }

  // The terms of an output, in W's order, for an x of the pitch and the row step of a window.
  Terms terms(const Window<A>& x) const {
    Terms result;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t tap = i / channels, a = tap / g.kernel_width, b = tap % g.kernel_width;
      result.push_back(
          {a * g.dilation_y * x.row_step() + b * g.dilation_x * x.pitch + i % channels, i * pitch});
    }
    return result;
  }

  // What outputs in rows first .. end - 1 see of x.
  Window<A> seen(int64_t first, int64_t end, int64_t x_pitch) const {
    return {.first_row = first * g.stride_y - g.padding_y,
            .first_column = -g.padding_x,
            .rows = (end - first - 1) * g.stride_y + (g.kernel_height - 1) * g.dilation_y + 1,
            .columns = (out_width - 1) * g.stride_x + (g.kernel_width - 1) * g.dilation_x + 1,
            .pitch = x_pitch};
  }
};

// How images are cut into tiles: bands of output rows, blocks of vectors of lanes. It follows from the shape alone.
struct Cut {
  int64_t band_rows, bands, block, blocks;

  // bytes(rows, vectors): of a tile. Bands are cut first: pixels that are read whole are read as memory has them. But
  // not lower than kLowBand, because each reads its neighbours' rows too; then blocks, where vectors may be split.
  template <class Bytes>
  Cut(int64_t batch, int64_t out_height, int64_t vectors, bool may_split, const Bytes& bytes)
      : band_rows(out_height), bands(1), block(vectors), blocks(1) {
    auto is_too_large = [&] { return bytes(band_rows, block) > kTileBytes; };
    auto are_too_few = [&] { return batch * bands * blocks < kFewestTiles; };
    auto cut_bands = [&](int64_t lowest, const auto& wanted) {
      while (band_rows >= 2 * lowest && wanted()) {
        bands = ceil_div(out_height, band_rows / 2);
        band_rows = ceil_div(out_height, bands);
      }
    };
    auto cut_blocks = [&](const auto& wanted) {
      while (may_split && block >= 4 && wanted()) {
        blocks = ceil_div(vectors, block / 2);
        block = ceil_div(vectors, blocks);
      }
    };
    cut_bands(kLowBand, is_too_large);
    cut_blocks(is_too_large);
    cut_bands(1, is_too_large);
    cut_bands(kLowBand, are_too_few);
    cut_blocks(are_too_few);
    bands = ceil_div(out_height, band_rows);
    blocks = ceil_div(vectors, block);
  }

  int64_t tiles(int64_t batch) const { return batch * bands * blocks; }
};

struct TileNumber {
  int64_t image, band, block;

  TileNumber(int64_t number, const Cut& cut)
      : image(number / cut.blocks / cut.bands),
        band(number / cut.blocks % cut.bands),
        block(number % cut.blocks) {}
};

// Whether sums may be stored right to the images: pixels of whole vectors of accumulators.
template <class E>
bool takes_sums(const Images& images, int64_t lanes) {
  return std::is_same_v<E, Accumulator<E>> && has_channels_last(images) &&
         lanes % kLanes<Accumulator<E>> == 0;
}

template <class A, class T>
Grid<A> grid_of(const Window<T>& window, int64_t row, int64_t column, int64_t row_stride = 1,
                int64_t stride = 1) {
  return {window.at(row, column), row_stride * window.row_step(), stride * window.pitch};
}

template <class A>
Grid<A> grid_of(const Images& images, int64_t image, int64_t channel, int64_t row, int64_t column,
                int64_t row_stride = 1, int64_t stride = 1) {
  return {static_cast<A*>(images.data) + image * images.image_stride + row * images.row_stride +
              column * images.column_stride + channel,
          row_stride * images.row_stride, stride * images.column_stride};
}

// ---------------------------------------------------------------------------------------------------- forward

template <bool Shared, class E>
void forward(const Conv2dForwardArgs& args, const Shape<E>& shape) {
  using A = Accumulator<E>;
  constexpr int64_t L = kLanes<A>;
  const std::vector<Vec<A>> matrix = shape.weights(args.alpha, args.s);
  const A* const weights = reinterpret_cast<const A*>(matrix.data());
  std::vector<Vec<A>> padded_bias(args.bias ? size_t(shape.pitch / L) : 0);
  A* const bias = args.bias ? reinterpret_cast<A*>(padded_bias.data()) : nullptr;
  for (int64_t k = 0; k < shape.m && bias; ++k) bias[shape.place(k)] = static_cast<const A*>(args.bias)[k];

  const bool stores_sums = takes_sums<E>(args.y, shape.lanes);
  auto windows = [&](int64_t first, int64_t end, int64_t vectors) {
    const Window<A> y{.first_row = first,
                      .rows = stores_sums ? 0 : end - first,
                      .columns = shape.out_width,
                      .pitch = vectors * L};
    return std::pair{shape.seen(first, end, Shared ? shape.channels : vectors * L), y};
  };
  const Cut cut(args.batch, shape.out_height, shape.vectors, true, [&](int64_t rows, int64_t vectors) {
    const auto [x, y] = windows(0, rows, vectors);
    return (x.values() + y.values()) * int64_t(sizeof(A));
  });
  const auto [most_x, most_y] = windows(0, cut.band_rows, cut.block);
  const int64_t x_values = round_up(most_x.values(), L), values = x_values + most_y.values();
  const Terms terms = shape.terms(most_x);

  parallel_chunks(cut.tiles(args.batch), [&] {
    A* const memory = static_cast<A*>(thread_workspace(size_t(values) * sizeof(A)));
    return [&, memory](int64_t number) {
      const TileNumber tile(number, cut);
      const int64_t first = tile.band * cut.band_rows,
                    end = std::min(first + cut.band_rows, shape.out_height);
      const int64_t lane = tile.block * cut.block * L, count = std::min(cut.block * L, shape.lanes - lane);
      auto [x, y] = windows(first, end, cut.block);
      x.data = memory, y.data = memory + x_values;
      for (int64_t section = 0; section < shape.sections(); ++section) {
        load_x<Shared, E>(args.x, tile.image, Shared ? section * shape.channels : lane, count, x);
        const int64_t place = section * shape.vectors * L + lane, filter = section * shape.lanes + lane;
        sum_taps<Shared>(
            terms, weights + place, ceil_div(count, L), end - first, shape.out_width,
            grid_of<const A>(x, x.first_row, x.first_column, shape.g.stride_y, shape.g.stride_x),
            bias ? bias + place : nullptr,
            stores_sums ? grid_of<A>(args.y, tile.image, filter, first, 0) : grid_of<A>(y, first, 0));
        if (!stores_sums) store_window<E>(args.y, tile.image, filter, count, y);
      }
    };
  });
}

// --------------------------------------------------------------------------------------------------- backward

// Pixels of dx a stride apart, which see the same taps.
struct Phase {
  int64_t row, column;  // of the first one in the padded image
  Terms terms;          // of dy

  // The first one from `first` on, at distance `padding` from the padded image's edge.
  static int64_t next(int64_t phase, int64_t first, int64_t padding, int64_t stride) {
    return first + ((phase - first - padding) % stride + stride) % stride;
  }
};

template <class E>
std::vector<Phase> phases_of(const Shape<E>& shape, const Window<Accumulator<E>>& dy) {
  const ConvGeometry& g = shape.g;
  std::vector<Phase> phases;
  for (int64_t row = 0; row < g.stride_y; ++row) {
    for (int64_t column = 0; column < g.stride_x; ++column) {
      Phase phase{row, column, {}};
      for (int64_t tap = 0; tap < g.kernel_height * g.kernel_width; ++tap) {
        const int64_t y = tap / g.kernel_width * g.dilation_y, x = tap % g.kernel_width * g.dilation_x;
        if (y % g.stride_y != row || x % g.stride_x != column) continue;
        phase.terms.push_back({-(y / g.stride_y * dy.row_step() + x / g.stride_x * dy.pitch),
                               tap * shape.channels * shape.pitch});
      }
      phases.push_back(std::move(phase));
    }
  }
  return phases;
}

// What a tile of the backward pass holds.
template <class A>
struct BackwardWindows {
  Window<A> x, dy, dx;
};

template <bool Shared, class E>
void backward(const Conv2dBackwardArgs& args, const Shape<E>& shape) {
  using A = Accumulator<E>;
  constexpr int64_t L = kLanes<A>;
  const ConvGeometry& g = shape.g;
  const bool wants_dx = args.dx.data, wants_weights = args.sums.dvalues || args.sums.dalpha;
  const std::vector<Vec<A>> matrix = wants_dx ? shape.weights(args.alpha, args.s) : std::vector<Vec<A>>();
  const A* const weights = reinterpret_cast<const A*>(matrix.data());
  const bool stores_sums = !Shared && takes_sums<E>(args.dx, shape.lanes);

  // Of output rows first .. end - 1, and of as many rows of dx.
  auto windows = [&](int64_t first, int64_t end, int64_t vectors) {
    BackwardWindows<A> result;
    result.x = shape.seen(first, end, Shared ? shape.channels : vectors * L);
    if (!wants_weights) result.x.rows = 0;
    const int64_t dx_first = std::min(first * g.stride_y, shape.height);
    const int64_t dx_end = end == shape.out_height ? shape.height : std::min(end * g.stride_y, shape.height);
    int64_t dy_first = first, dy_end = end, dy_left = 0, dy_right = shape.out_width;
    if (wants_dx) {
      result.dx = {.first_row = dx_first,
                   .rows = dx_end - dx_first,
                   .columns = shape.width,
                   .pitch = Shared ? shape.channels : vectors * L};
      if (dx_first < dx_end) {
        dy_first = std::min(dy_first, (dx_first + g.padding_y) / g.stride_y -
                                          (g.kernel_height - 1) * g.dilation_y / g.stride_y);
        dy_end = std::max(dy_end, (dx_end - 1 + g.padding_y) / g.stride_y + 1);
      }
      dy_left =
          std::min(dy_left, g.padding_x / g.stride_x - (g.kernel_width - 1) * g.dilation_x / g.stride_x);
      dy_right = std::max(dy_right, (shape.width - 1 + g.padding_x) / g.stride_x + 1);
    }
    result.dy = {.first_row = dy_first,
                 .first_column = dy_left,
                 .rows = dy_end - dy_first,
                 .columns = dy_right - dy_left,
                 .pitch = vectors * L};
    return result;
  };
  // Where lanes share values, dx is a sum over all of them.
  const Cut cut(args.batch, shape.out_height, shape.vectors, !Shared, [&](int64_t rows, int64_t vectors) {
    const BackwardWindows<A> w = windows(0, rows, vectors);
    return (w.x.values() + w.dy.values() + (stores_sums ? 0 : w.dx.values())) * int64_t(sizeof(A));
  });
  int64_t x_values = 0, dy_values = 0, dx_values = 0;
  for (int64_t band = 0; band < cut.bands; ++band) {
    const int64_t first = band * cut.band_rows;
    const auto w = windows(first, std::min(first + cut.band_rows, shape.out_height), cut.block);
    x_values = std::max(x_values, round_up(w.x.values(), L));
    dy_values = std::max(dy_values, round_up(w.dy.values(), L));
    if (!stores_sums) dx_values = std::max(dx_values, round_up(w.dx.values(), L));
  }
  const BackwardWindows<A> any = windows(0, cut.band_rows, cut.block);
  const Terms terms = shape.terms(any.x);
  const std::vector<Phase> phases = phases_of(shape, any.dy);

  // Rows of W's gradient, and dy's sums as one more.
  const int64_t tile_pitch = Shared ? shape.pitch : cut.block * L, sum_rows = shape.n + 1;
  std::vector<A> sums(size_t(sum_rows * shape.pitch));
  OrderedSections sections(int(cut.blocks));
  parallel_chunks(cut.tiles(args.batch), [&] {
    const int64_t values = x_values + dy_values + dx_values + sum_rows * tile_pitch;
    A* const memory = static_cast<A*>(thread_workspace(size_t(values) * sizeof(A)));
    return [&, memory](int64_t number) {
      const TileNumber tile(number, cut);
      const int64_t first = tile.band * cut.band_rows,
                    end = std::min(first + cut.band_rows, shape.out_height);
      const int64_t lane = tile.block * cut.block * L, count = std::min(cut.block * L, shape.lanes - lane);
      const int64_t vectors = ceil_div(count, L);
      BackwardWindows<A> w = windows(first, end, cut.block);
      w.x.data = memory, w.dy.data = memory + x_values, w.dx.data = w.dy.data + dy_values;
      A* const tile_sums = w.dx.data + dx_values;
      std::memset(tile_sums, 0, size_t(sum_rows * tile_pitch) * sizeof(A));
      for (int64_t section = 0; section < shape.sections(); ++section) {
        const int64_t place = section * shape.vectors * L, channel = section * shape.channels + lane;
        load_window<E>(args.dy, tile.image, section * shape.lanes + lane, count, w.dy);
        const Grid<const A> dy = grid_of<const A>(w.dy, first, 0);
        if (args.sums.dbias) {
          sum_pixels(vectors, end - first, shape.out_width, dy, tile_sums + shape.n * tile_pitch + place);
        }
        if (wants_weights) {
          load_x<Shared, E>(args.x, tile.image, channel, count, w.x);
          sum_products<Shared>(terms, vectors, end - first, shape.out_width,
                               grid_of<const A>(w.x, w.x.first_row, w.x.first_column, g.stride_y, g.stride_x),
                               dy, tile_sums + place, tile_pitch);
        }
        if (!wants_dx) continue;
        const int64_t dx_end = w.dx.first_row + w.dx.rows;
        for (const Phase& phase : phases) {
          const int64_t row = Phase::next(phase.row, w.dx.first_row, g.padding_y, g.stride_y);
          const int64_t column = Phase::next(phase.column, 0, g.padding_x, g.stride_x);
          if (row >= dx_end || column >= shape.width) continue;
          const int64_t rows = ceil_div(dx_end - row, g.stride_y);
          const int64_t pixels = ceil_div(shape.width - column, g.stride_x);
          const Grid<const A> from =
              grid_of<const A>(w.dy, (row + g.padding_y) / g.stride_y, (column + g.padding_x) / g.stride_x);
          const Grid<A> to =
              stores_sums ? grid_of<A>(args.dx, tile.image, channel, row, column, g.stride_y, g.stride_x)
                          : grid_of<A>(w.dx, row, column, g.stride_y, g.stride_x);
          if constexpr (Shared) {
            reduce_taps(phase.terms, weights + place, vectors, shape.channels, shape.pitch, rows, pixels,
                        from, to);
          } else {
            sum_taps<false>(phase.terms, weights + lane, vectors, rows, pixels, from,
                            static_cast<const A*>(nullptr), to);
          }
        }
        if constexpr (Shared) {
          each_value<E>(args.dx, tile.image, channel, w.dx, Inside(w.dx, args.dx),
                        [](E& to, const A& from) { to = from_accumulator<E>(from); });
        } else if (!stores_sums) {
          store_window<E>(args.dx, tile.image, channel, count, w.dx);
        }
      }
      sections.in_turn(int(tile.block), number / cut.blocks, [&] {
        for (int64_t i = 0; i < sum_rows; ++i) {
          A* const to = sums.data() + i * shape.pitch + lane;
          const A* from = tile_sums + i * tile_pitch;
          const int64_t lanes = Shared ? shape.pitch : vectors * L;
          for (int64_t l = 0; l < lanes; ++l) to[l] += from[l];
        }
      });
    };
  });

  const SparseMatrix& s = args.s;
  for (int64_t k = 0; k < shape.m; ++k) {
    const A* column = sums.data() + shape.place(k);
    if (args.sums.dbias) static_cast<A*>(args.sums.dbias)[k] = column[shape.n * shape.pitch];
    for (int32_t t = s.crow[k]; args.sums.dvalues && t < s.crow[k + 1]; ++t) {
      static_cast<A*>(args.sums.dvalues)[t] = column[s.col[t] * shape.pitch];
    }
  }
  if (!args.sums.dalpha) return;
  const auto dct = get_dct_matrix<A>(shape.m, shape.n);
  double dalpha = 0;
  for (int64_t i = 0; i < shape.n; ++i) {
    for (int64_t k = 0; k < shape.m; ++k) {
      dalpha += double(dct->entries[size_t(i * shape.m + k)]) *
                double(sums[size_t(i * shape.pitch + shape.place(k))]);
    }
  }
  *args.sums.dalpha = dalpha;
}

}  // namespace

void conv2d_direct_forward_cpu(const Conv2dForwardArgs& args) {
  if (!args.batch) return;
  dispatch(args.dtype, [&](auto element) {
    using E = decltype(element);
    const Shape<E> shape(args.geometry, args.x, args.y, args.alpha);
    shape.shared ? forward<true, E>(args, shape) : forward<false, E>(args, shape);
  });
}

void conv2d_direct_backward_cpu(const Conv2dBackwardArgs& args) {
  if (!args.batch) return;
  dispatch(args.dtype, [&](auto element) {
    using E = decltype(element);
    const Shape<E> shape(args.geometry, args.x, args.dy, args.alpha && args.dx.data);
    shape.shared ? backward<true, E>(args, shape) : backward<false, E>(args, shape);
  });
}

}  // namespace DCTPS_ISA
}  // namespace dctps
