// The fused convolution on CPU in the direct form, for groups of few values: W = alpha D + S is formed for the call, and
// each output is a sum over taps. A tile of an image at a time, pixel by pixel and padded, whatever its layout, stride
// and dtype: lanes lie along the groups where each is one channel and one filter, else along a group's filters, which
// share each value of x.
#include <algorithm>
#include <bit>
#include <type_traits>
#include <vector>

#include "common/cache_size.h"
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
// Images larger than this are written past the caches, of which the second does not hold them: waiting for the lines that
// they replace takes up to half of the time.
constexpr int64_t kCachedBytes = 3 << 19;
// How far ahead squares are fetched.
constexpr int64_t kFetchedSquares = 4;
// Of W for a tile, which is read for each few pixels: a part of the first-level cache.
constexpr int64_t kWeightBytes = 12 << 10;
// Rows of fewer pixels are summed column by column.
constexpr int64_t kFewPixels = 8;
// Output rows of a band, unless it is too large otherwise.
constexpr int64_t kLowBand = 8;
// Tiles that small batches are cut into, so that threads find some.
constexpr int64_t kFewestTiles = 16;
// Pixels whose products are summed in registers before they are added to a tile's: short sums, small errors.
constexpr int64_t kSummedPixels = 32;

// Sums of outputs that are held in registers, pixels by vectors of lanes: as many pixels as leave room for kVectors of
// them, and more vectors where pixels are few.
template <bool Shared>
constexpr int kSums = kVectorBytes < 64 ? 8
                      : Shared          ? 24
                                        : 16;
constexpr int kRegisters = kVectorBytes < 64 ? 16 : 32;
template <bool Shared>
constexpr int kVectors = Shared && kVectorBytes == 64 ? 4 : 2;
template <bool Shared>
constexpr int kPixels = kSums<Shared> / 2;
// Vectors of lanes by taps, of W's gradient.
template <bool Shared>
constexpr int kSummedVectors = Shared ? kVectors<true> : 1;
template <bool Shared>
constexpr int kSummedTaps = Shared               ? kSums<true> / kVectors<true>
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

// `count` in parts of about the same size, at most `most` <= Most.
template <int Most>
struct Parts {
  int64_t count, size, larger;  // the first `larger` parts have one more

  explicit Parts(int64_t all, int64_t most = Most) : count(all) {
    const int64_t parts = std::max(ceil_div(all, most), int64_t(1));
    size = all / parts, larger = all % parts;
  }

  // body(first, integral_constant<int, size>)
  template <class Body>
  DCTPS_INLINE void each(const Body& body) const {
    for (int64_t part = 0, first = 0; first < count; ++part) {
      const int64_t here = size + (part < larger);
      with_size<Most>(here, [&](auto constant) { body(first, constant); });
      first += here;
    }
  }
};

// Hides from the compiler what a pointer is made of: left to itself it keeps one for each of a block's loads, more than
// there are registers, in the place of one and constant distances.
template <class A>
DCTPS_INLINE const A* opaque(const A* pointer) {
  asm("" : "+r"(pointer));
  return pointer;
}

// ---- tiles of an image

// Pixels as sums meet them: that of row 0 and column 0, and the steps to the next row, pixel and channel.
template <class A>
struct View {
  A* first;
  int64_t row_step, step, channel_step;
  bool streams = false;  // stores go past the caches

  View at(int64_t row, int64_t column) const {
    return {first + row * row_step + column * step, row_step, step, channel_step, streams};
  }
  View strided(int64_t row_stride, int64_t stride) const {
    return {first, row_stride * row_step, stride * step, channel_step, streams};
  }
  operator View<const A>() const
    requires(!std::is_const_v<A>)
  {
    return {first, row_step, step, channel_step};
  }
};

// Rows of an image, of accumulators: [rows][width][pitch].
template <class A>
struct Window {
  int64_t first_row = 0, rows = 0, width = 0, pitch = 0;
  A* data = nullptr;

  int64_t values() const { return round_up(rows * width * pitch, kLanes<A>); }
  A* at(int64_t row, int64_t column) const { return data + ((row - first_row) * width + column) * pitch; }
  View<A> view() const { return {at(0, 0), width * pitch, pitch, 1}; }
};

// An image from `channel` on, where it may be read and written as it is.
template <class A>
View<A> view_of(const Images& images, int64_t image, int64_t channel, bool streams = false) {
  return {static_cast<A*>(images.data) + image * images.image_stride + channel * images.channel_stride,
          images.row_stride, images.column_stride, images.channel_stride, streams};
}

// move(element, place in the window, channels) for each pixel and each vector of `count` channels from `channel` on,
// where a pixel's channels are neighbours in memory.
template <class E, class A, class Move>
DCTPS_INLINE void each_pixel(const Images& images, int64_t image, int64_t channel, int64_t count,
                             const Window<A>& window, const Move& move) {
  constexpr int64_t L = kLanes<A>;
  for (int64_t row = window.first_row; row < window.first_row + window.rows; ++row) {
    E* element = view_of<E>(images, image, channel).at(row, 0).first;
    A* place = window.at(row, 0);
    for (int64_t column = 0; column < window.width; ++column) {
      for (int64_t c = 0; c < count; c += L) move(element + c, place + c, int(std::min(L, count - c)));
      element += images.column_stride;
      place += window.pitch;
    }
  }
}

// The other layouts: move(lanes, first, pixels, place) for squares of a vector of channels by `pixels` pixels, which are
// those from element `first` of the lanes on. Squares go on from row to row where memory does.
template <class E, class A, class Move>
void each_square(const Images& images, int64_t image, int64_t channel, int64_t count, const Window<A>& window,
                 const Move& move) {
  constexpr int64_t L = kLanes<A>;
  const bool goes_on = images.row_stride == images.width * images.column_stride;
  const int64_t lines = goes_on ? 1 : window.rows, pixels = window.rows * window.width / lines;
  const int64_t squares = ceil_div(pixels, L);
  for (int64_t c = 0; c < count; c += L) {
    for (int64_t line = 0; line < lines; ++line) {
      const View<E> from = view_of<E>(images, image, channel + c).at(window.first_row + line, 0);
      Lanes<E> lanes;
      lanes.stride = images.column_stride;
      for (int64_t l = 0; l < L; ++l)
        lanes.lane[l] = c + l < count ? from.first + l * from.channel_step : nullptr;
      for (int64_t first = 0; first < pixels; first += L) {
        // A processor does not foresee as many rows as these at once: what comes some squares later, of these channels
        // or of the next ones.
        const int64_t later = first / L + kFetchedSquares;
        const E* next =
            from.first + later / squares * L * from.channel_step + later % squares * L * from.step;
        for (int64_t l = 0; l < L; ++l) __builtin_prefetch(next + l * from.channel_step, !std::is_const_v<E>);
        move(lanes, first, int(std::min(L, pixels - first)), window.at(window.first_row + line, first) + c);
      }
    }
  }
}

// window = channels channel .. channel + count - 1 of an image, in whole vectors.
template <class E>
void load_window(const Images& images, int64_t image, int64_t channel, int64_t count,
                 const Window<Accumulator<E>>& window) {
  using A = Accumulator<E>;
  if (has_channels_last(images)) {
    each_pixel<const E>(images, image, channel, count, window, [](const E* from, A* to, int here) {
      store(to, here == kLanes<A> ? load(from) : load_partial(from, here));
    });
  } else if (window.rows) {
    each_square<const E>(images, image, channel, count, window,
                         [&](const Lanes<const E>& lanes, int64_t first, int pixels, A* to) {
                           Vec<A> square[kLanes<A>];
                           load_square(lanes, first, pixels, square);
                           for (int i = 0; i < pixels; ++i) store(to + i * window.pitch, square[i]);
                         });
  }
}

// The other way round.
template <class E>
void store_window(const Images& images, int64_t image, int64_t channel, int64_t count,
                  const Window<Accumulator<E>>& window) {
  using A = Accumulator<E>;
  if (has_channels_last(images)) {
    each_pixel<E>(images, image, channel, count, window, [](E* to, const A* from, int here) {
      here == kLanes<A> ? store(to, load(from)) : store_partial(to, load(from), here);
    });
  } else if (window.rows) {
    each_square<E>(images, image, channel, count, window,
                   [&](const Lanes<E>& lanes, int64_t first, int pixels, const A* from) {
                     Vec<A> square[kLanes<A>] = {};
                     for (int i = 0; i < pixels; ++i) square[i] = load(from + i * window.pitch);
                     store_square(lanes, first, pixels, square);
                   });
  }
}

// move(element, place in the window) for each value of a window of single channels side by side, pitch of them.
template <class E, class A, class Move>
DCTPS_INLINE void each_value(const Images& images, int64_t image, int64_t channel, const Window<A>& window,
                             const Move& move) {
  for (int64_t c = 0; c < window.pitch; ++c) {
    for (int64_t row = window.first_row; row < window.first_row + window.rows; ++row) {
      E* element = view_of<E>(images, image, channel + c).at(row, 0).first;
      A* place = window.at(row, 0) + c;
      for (int64_t column = 0; column < window.width; ++column) {
        move(*element, *place);
        element += images.column_stride;
        place += window.pitch;
      }
    }
  }
}

// ---- where taps lie inside of the image

// One axis of the kernel: output k sees position origin + k * step of the source by each of its taps.
struct TapsOfAxis {
  struct Tap {
    int64_t number, origin;
  };
  std::vector<Tap> taps;
  int64_t step, outputs, size;  // size: of the source

  // Neighbouring outputs whose taps first_tap .. end_tap - 1 lie inside, and no others.
  struct Span {
    int64_t first, count;
    size_t first_tap, end_tap;
  };
  // body(tap, run) for the taps of a span, sorted into runs that are `step` apart, as outputs are: each tap but a run's
  // first sees what the one before it sees from the next output. run: how many are left, this one included.
  template <class Body>
  void each_run(const Span& span, const Body& body) const {
    auto find = [&](int64_t origin) {
      return std::find_if(taps.begin() + int64_t(span.first_tap), taps.begin() + int64_t(span.end_tap),
                          [&](const Tap& tap) { return tap.origin == origin; });
    };
    const auto end = taps.begin() + int64_t(span.end_tap);
    for (auto first = taps.begin() + int64_t(span.first_tap); first != end; ++first) {
      if (find(first->origin - step) != end) continue;
      int64_t run = 1;
      while (find(first->origin + run * step) != end) ++run;
      for (auto tap = first; run; tap = find(tap->origin + step), --run) body(*tap, run);
    }
  }
  std::vector<Span> spans() const {
    std::vector<Span> result;
    for (int64_t k = 0; k < outputs; ++k) {
      auto is_inside = [&](const Tap& tap) {
        const int64_t at = tap.origin + k * step;
        return at >= 0 && at < size;
      };
      const auto first = std::find_if(taps.begin(), taps.end(), is_inside);
      const auto end = std::find_if_not(first, taps.end(), is_inside);
      const Span span{k, 1, size_t(first - taps.begin()), size_t(end - taps.begin())};
      if (!result.empty() && result.back().first_tap == span.first_tap &&
          result.back().end_tap == span.end_tap) {
        ++result.back().count;
      } else {
        result.push_back(span);
      }
    }
    return result;
  }
};

// A place in the kernel: how far its value is from that of the source's position output * step, and where its row of W
// begins. run: how many terms from this one on see each what the one before it sees from the next output of the row.
struct Term {
  int64_t offset, row, run;
};
struct Terms {
  const Term *begin_, *end_;
  bool turned;  // outputs are neighbours in a column, not in a row, for the runs as for blocks of sums
  const Term* begin() const { return begin_; }
  const Term* end() const { return end_; }
  int64_t size() const { return end_ - begin_; }
};

// The outputs in rectangles that see the same terms, so that no zeros are added and no border is tested for.
struct Regions {
  struct Region {
    TapsOfAxis::Span rows, columns;
    size_t first_term, end_term;
    bool turned;
  };
  std::vector<Region> regions;
  std::vector<Term> terms;
  int64_t row_step, column_step;

  // `channels`: of which each is a term; rows of W are `pitch` apart, those of taps all_channels of them.
  template <class A>
  Regions(const TapsOfAxis& rows, const TapsOfAxis& columns, int64_t kernel_width, const View<A>& source,
          int64_t channels, int64_t all_channels, int64_t pitch)
      : row_step(rows.step), column_step(columns.step) {
    const auto column_spans = columns.spans();
    for (const auto& r : rows.spans()) {
      for (const auto& c : column_spans) {
        const size_t first = terms.size();
        auto add = [&](const TapsOfAxis::Tap& y, const TapsOfAxis::Tap& x, int64_t run) {
          for (int64_t channel = 0; channel < channels; ++channel) {
            terms.push_back(
                {y.origin * source.row_step + x.origin * source.step + channel * source.channel_step,
                 ((y.number * kernel_width + x.number) * all_channels + channel) * pitch, run});
          }
        };
        const bool turned = c.count < std::min(r.count, kFewPixels);
        const auto &outer = turned ? columns : rows, &inner = turned ? rows : columns;
        const auto &outer_span = turned ? c : r, &inner_span = turned ? r : c;
        for (size_t a = outer_span.first_tap; a < outer_span.end_tap; ++a) {
          inner.each_run(inner_span, [&](const TapsOfAxis::Tap& b, int64_t run) {
            turned ? add(b, outer.taps[a], run) : add(outer.taps[a], b, run);
          });
        }
        regions.push_back({r, c, first, terms.size(), turned});
      }
    }
  }

  // body(terms, first row, rows, first column, columns) for the outputs in rows begin .. end - 1.
  template <class Body>
  DCTPS_INLINE void each(int64_t begin, int64_t end, const Body& body) const {
    for (const Region& region : regions) {
      const int64_t first = std::max(begin, region.rows.first);
      const int64_t last = std::min(end, region.rows.first + region.rows.count);
      if (first >= last) continue;
      body(Terms{terms.data() + region.first_term, terms.data() + region.end_term, region.turned}, first,
           last - first, region.columns.first, region.columns.count);
    }
  }
};

// ---- sums over taps

// One value for all lanes, or a lane's own.
template <bool Shared, class A>
DCTPS_INLINE auto operand(const A* from) {
  if constexpr (Shared) {
    return *from;
  } else {
    return load(from);
  }
}

// What the terms of a run see is read once for all of them.
template <bool Shared, int Vectors, int Pixels, class A>
DCTPS_INLINE void sum_block(Terms terms, const A* weights, const A* x, int64_t x_step, const A* bias, A* y,
                            int64_t y_step, bool streams) {
  constexpr int64_t L = kLanes<A>;
  constexpr int kMostRun = Shared ? 1 : std::clamp((kRegisters - 2) / Vectors - Pixels, 1, 4);
  Vec<A> sums[Pixels][Vectors];
#pragma GCC unroll 8
  for (int v = 0; v < Vectors; ++v) {
#pragma GCC unroll 16
    for (int p = 0; p < Pixels; ++p) sums[p][v] = bias ? load(bias + v * L) : Vec<A>{};
  }
  for (const Term* term = terms.begin(); term != terms.end();) {
    with_size<kMostRun>(std::min(term->run, int64_t(kMostRun)), [&](auto size) {
      constexpr int kRun = decltype(size)::value;
      const A* const from = opaque(x + term->offset);
      Vec<A> w[kRun][Vectors];
#pragma GCC unroll 4
      for (int t = 0; t < kRun; ++t) {
        const A* const row = opaque(weights + term[t].row);
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) w[t][v] = load(row + v * L);
      }
#pragma GCC unroll 16
      for (int p = 0; p < Pixels + kRun - 1; ++p) {
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) {
          auto value = operand<Shared>(from + p * x_step + (Shared ? 0 : v * L));
          if constexpr (kRun > 1) value = in_register(value);
#pragma GCC unroll 4
          for (int t = 0; t < kRun; ++t) {
            if (p >= t && p - t < Pixels) sums[p - t][v] += w[t][v] * value;
          }
        }
      }
      term += kRun;
    });
  }
#pragma GCC unroll 16
  for (int p = 0; p < Pixels; ++p) {
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) {
      A* const to = y + p * y_step + v * L;
      streams ? stream(to, sums[p][v]) : store(to, sums[p][v]);
    }
  }
}

// body(first, integral_constant<int, size>) for `vectors` in powers of two of at most Most.
template <int Most, class Body>
DCTPS_INLINE void in_powers(int64_t first, int64_t vectors, const Body& body) {
  for (; vectors - first >= Most; first += Most) body(first, std::integral_constant<int, Most>{});
  if constexpr (Most > 1) in_powers<Most / 2>(first, vectors, body);
}

// y = bias + sum over terms of weights times x at its offset, for all pixels and lanes. fetched_rows, fetched_pixels: how
// many of x belong to each output, where the next ones are to be fetched meanwhile.
template <bool Shared, class A>
void sum_taps(Terms terms, const A* weights, int64_t vectors, int64_t rows, int64_t pixels,
              const View<const A>& x, const A* bias, const View<A>& y, int64_t fetched_rows = 0,
              int64_t fetched_pixels = 0) {
  constexpr int kMost = kPixels<Shared>, kWide = kVectors<Shared>;
  int64_t x_row = x.row_step, x_step = x.step, y_row = y.row_step, y_step = y.step;
  if (terms.turned)
    std::swap(rows, pixels), std::swap(x_row, x_step), std::swap(y_row, y_step), fetched_rows = 0;
  const Parts<kMost> parts(pixels, vectors >= kWide ? kSums<Shared> / kWide : kMost);
  for (int64_t row = 0; row < rows; ++row) {
    parts.each([&](int64_t p, auto high) {
      constexpr int kHigh = decltype(high)::value;
      const A* const from = x.first + row * x_row + p * x_step;
      A* const to = y.first + row * y_row + p * y_step;
      // Vectors innermost: that is how pixels come from memory.
      in_powers<int(std::bit_floor(unsigned(std::min(kSums<Shared> / kHigh, 8))))>(
          0, vectors, [&](int64_t v, auto wide) {
            constexpr int kHere = decltype(wide)::value;
            const int64_t lane = v * kLanes<A>;
            for (int64_t r = 1; r <= fetched_rows && terms.size(); ++r) {
              const A* next = from + lane + (terms.end() - 1)->offset + r * (x_row / fetched_rows);
              for (int64_t i = 0; i < kHigh * fetched_pixels; ++i, next += x_step / fetched_pixels) {
                for (int64_t k = 0; k < kHere; ++k) __builtin_prefetch(next + k * kLanes<A>);
              }
            }
            sum_block<Shared, kHere, kHigh>(terms, weights + lane, from + (Shared ? 0 : lane), x_step,
                                            bias ? bias + lane : nullptr, to + lane, y_step, y.streams);
          });
    });
  }
}

// The transpose where lanes share a value: dx = sum over terms, channels and lanes of weights times dy. W's row of
// channel c is `pitch` behind that of c - 1.
template <class A>
void reduce_taps(Terms terms, const A* weights, int64_t vectors, int64_t channels, int64_t pitch,
                 int64_t rows, int64_t pixels, const View<const A>& dy, const View<A>& dx) {
  constexpr int64_t L = kLanes<A>;
  Parts<kReducedChannels<A>>(channels).each([&](int64_t c, auto wide) {
    constexpr int kWide = decltype(wide)::value;
    for (int64_t row = 0; row < rows; ++row) {
      Parts<L / kWide>(pixels).each([&](int64_t first, auto high) {
        constexpr int kHigh = decltype(high)::value;
        const A* const from = dy.first + row * dy.row_step + first * dy.step;
        A* const to = dx.first + row * dx.row_step + first * dx.step;
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
          for (int i = 0; i < kWide; ++i) to[p * dx.step + (c + i) * dx.channel_step] = totals[p * kWide + i];
        }
      });
    }
  });
}

// W's gradient: sums += sum over pixels of dy times x, for each term in its row.
template <bool Shared, class A>
void sum_products(Terms terms, int64_t vectors, int64_t rows, int64_t pixels, const View<const A>& x,
                  const View<const A>& dy, A* sums) {
  constexpr int64_t L = kLanes<A>;
  const int64_t rows_at_a_time = std::max(kSummedPixels / pixels, int64_t(1));
  Parts<kSummedVectors<Shared>>(vectors).each([&](int64_t v, auto wide) {
    const int64_t lane = v * L;
    Parts<kSummedTaps<Shared>>(terms.size()).each([&](int64_t first, auto high) {
      constexpr int kWide = decltype(wide)::value, kTaps = decltype(high)::value;
      for (int64_t row = 0; row < rows; row += rows_at_a_time) {
        Vec<A> products[kTaps][kWide] = {};
        for (int64_t r = row; r < std::min(row + rows_at_a_time, rows); ++r) {
          const A* from[kTaps];
#pragma GCC unroll 16
          for (int t = 0; t < kTaps; ++t) {
            from[t] = x.first + r * x.row_step + terms.begin()[first + t].offset + (Shared ? 0 : lane);
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
            A* const to = sums + terms.begin()[first + t].row + lane + i * L;
            store(to, load(to) + products[t][i]);
          }
        }
      }
    });
  });
}

// sums += sum over pixels of dy
template <class A>
void sum_pixels(int64_t vectors, int64_t rows, int64_t pixels, const View<const A>& dy, A* sums) {
  constexpr int64_t L = kLanes<A>;
  Parts<4>(vectors).each([&](int64_t v, auto wide) {
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

  // Outputs and x.
  Regions regions(const View<const A>& x) const {
    auto axis = [](int64_t kernel, int64_t stride, int64_t padding, int64_t dilation, int64_t outputs,
                   int64_t size) {
      TapsOfAxis result{{}, stride, outputs, size};
      for (int64_t t = 0; t < kernel; ++t) result.taps.push_back({t, t * dilation - padding});
      return result;
    };
    return {axis(g.kernel_height, g.stride_y, g.padding_y, g.dilation_y, out_height, height),
            axis(g.kernel_width, g.stride_x, g.padding_x, g.dilation_x, out_width, width),
            g.kernel_width,
            x,
            shared ? channels : 1,
            channels,
            pitch};
  }

  // The rows that some tap of rows first .. end - 1 sees, at `out` times as many rows and beyond.
  Window<A> seen(int64_t first, int64_t end, int64_t x_pitch) const {
    const int64_t from = std::clamp(first * g.stride_y - g.padding_y, int64_t(0), height);
    const int64_t to = std::clamp(
        (end - 1) * g.stride_y - g.padding_y + (g.kernel_height - 1) * g.dilation_y + 1, from, height);
    return {.first_row = from, .rows = to - from, .width = width, .pitch = x_pitch};
  }
};

// How images are cut into tiles: bands of output rows, blocks of vectors of lanes. It follows from the shape alone.
struct Cut {
  int64_t band_rows, bands, block, blocks;

  // bytes(rows, vectors): of a tile. Bands are cut first: pixels that are read whole are read as memory has them. But
  // not lower than kLowBand, because each reads its neighbours' rows too; then blocks, where vectors may be split.
  template <class Bytes>
  Cut(int64_t batch, int64_t out_height, int64_t vectors, int64_t terms, bool may_split, const Bytes& bytes)
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
    cut_blocks([&] { return terms * block * kVectorBytes > kWeightBytes; });
    cut_bands(kLowBand, is_too_large);
    cut_blocks(is_too_large);
    cut_bands(1, is_too_large);
    cut_bands(kLowBand, are_too_few);
    cut_blocks(are_too_few);
    bands = ceil_div(out_height, band_rows);
    blocks = ceil_div(vectors, block);
  }

  int64_t tiles(int64_t batch) const { return batch * bands * blocks; }

  // body(first, end) for the rows of each band.
  template <class Body>
  void each_band(int64_t out_height, const Body& body) const {
    for (int64_t first = 0; first < out_height; first += band_rows)
      body(first, std::min(first + band_rows, out_height));
  }
};

struct Tile {
  int64_t image, block;
  int64_t first, end;            // rows of outputs
  int64_t lane, count, vectors;  // of a section

  Tile(int64_t number, const Cut& cut, int64_t out_height, int64_t lanes, int64_t vector_lanes)
      : image(number / cut.blocks / cut.bands),
        block(number % cut.blocks),
        first(number / cut.blocks % cut.bands * cut.band_rows),
        end(std::min(first + cut.band_rows, out_height)),
        lane(block * cut.block * vector_lanes),
        count(std::min(cut.block * vector_lanes, lanes - lane)),
        vectors(ceil_div(count, vector_lanes)) {}
};

// Whether images serve as they are: of accumulators, and pixels of whole vectors where lanes are their channels.
template <bool Shared, class E>
bool is_read_in_place(const Images& images, int64_t lanes) {
  return std::is_same_v<E, Accumulator<E>> &&
         (Shared || (has_channels_last(images) && lanes % kLanes<Accumulator<E>> == 0));
}

template <class E>
bool outgrows_cache(const Images& images, int64_t batch, int64_t cache_bytes = kCachedBytes) {
  return images.values(batch) * int64_t(sizeof(E)) > cache_bytes;
}

// What terms are read from: the image itself, or its window, loaded.
template <bool Shared, class E>
View<const Accumulator<E>> source_view(const Images& images, int64_t image, int64_t channel, int64_t count,
                                       bool copies, const Window<Accumulator<E>>& window) {
  using A = Accumulator<E>;
  if (!copies) return view_of<const A>(images, image, channel);
  if constexpr (Shared) {
    each_value<const E>(images, image, channel, window,
                        [](const E& from, A& to) { to = to_accumulator(from); });
  } else {
    load_window<E>(images, image, channel, count, window);
  }
  return window.view();
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

  const bool copies_x = !is_read_in_place<Shared, E>(args.x, shape.lanes);
  const bool copies_y = !is_read_in_place<false, E>(args.y, shape.lanes);
  auto windows = [&](int64_t first, int64_t end, int64_t vectors) {
    return std::pair{
        shape.seen(first, end, Shared ? shape.channels : vectors * L),
        Window<A>{.first_row = first, .rows = end - first, .width = shape.out_width, .pitch = vectors * L}};
  };
  const Cut cut(args.batch, shape.out_height, shape.vectors, shape.n, true,
                [&](int64_t rows, int64_t vectors) {
                  const auto [x, y] = windows(0, rows, vectors);
                  return (x.values() + y.values()) * int64_t(sizeof(A));
                });
  int64_t x_values = 0, y_values = 0;
  cut.each_band(shape.out_height, [&](int64_t first, int64_t end) {
    const auto [x, y] = windows(first, end, cut.block);
    if (copies_x) x_values = std::max(x_values, x.values());
    if (copies_y) y_values = std::max(y_values, y.values());
  });
  const View<const A> any_x =
      copies_x ? windows(0, cut.band_rows, cut.block).first.view() : view_of<const A>(args.x, 0, 0);
  const Regions regions = shape.regions(any_x);

  // What the third cache holds comes in time by itself: to fetch it takes up to 20% longer, with a stride.
  const bool fetches_x =
      !Shared && !copies_x &&
      outgrows_cache<E>(args.x, args.batch, std::max(kCachedBytes, third_cache_bytes() / 2));
  const bool streams_y = !copies_y && outgrows_cache<E>(args.y, args.batch);
  parallel_chunks(cut.tiles(args.batch), [&] {
    A* const memory = static_cast<A*>(thread_workspace(size_t(x_values + y_values) * sizeof(A)));
    return [&, memory](int64_t number) {
      const Tile tile(number, cut, shape.out_height, shape.lanes, L);
      auto [x_window, y_window] = windows(tile.first, tile.end, cut.block);
      x_window.data = memory, y_window.data = memory + x_values;
      for (int64_t section = 0; section < shape.sections(); ++section) {
        const int64_t place = section * shape.vectors * L + tile.lane,
                      filter = section * shape.lanes + tile.lane;
        const View<const A> x =
            source_view<Shared, E>(args.x, tile.image, Shared ? section * shape.channels : tile.lane,
                                   tile.count, copies_x, x_window);
        const View<A> y = copies_y ? y_window.view() : view_of<A>(args.y, tile.image, filter, streams_y);
        regions.each(tile.first, tile.end,
                     [&](Terms terms, int64_t row, int64_t rows, int64_t column, int64_t columns) {
                       sum_taps<Shared>(terms, weights + place, tile.vectors, rows, columns,
                                        x.at(row * regions.row_step, column * regions.column_step)
                                            .strided(regions.row_step, regions.column_step),
                                        bias ? bias + place : nullptr, y.at(row, column),
                                        fetches_x ? regions.row_step : 0, regions.column_step);
                     });
        if (copies_y) store_window<E>(args.y, tile.image, filter, tile.count, y_window);
      }
    };
  });
}

// --------------------------------------------------------------------------------------------------- backward

// Pixels of dx a stride apart see the same taps of dy.
struct Phase {
  int64_t row, column;  // of the first one
  Regions regions;
};

// The taps that pixels first, first + stride, ... of an axis are seen by, and where in dy.
inline TapsOfAxis taps_of_phase(int64_t first, int64_t kernel, int64_t stride, int64_t padding,
                                int64_t dilation, int64_t inputs, int64_t outputs) {
  TapsOfAxis axis{{}, 1, ceil_div(std::max(inputs - first, int64_t(0)), stride), outputs};
  for (int64_t t = 0; t < kernel; ++t) {
    const int64_t from = first + padding - t * dilation;
    if (from % stride == 0) axis.taps.push_back({t, from / stride});
  }
  return axis;
}

template <bool Shared, class E>
void backward(const Conv2dBackwardArgs& args, const Shape<E>& shape) {
  using A = Accumulator<E>;
  constexpr int64_t L = kLanes<A>;
  const ConvGeometry& g = shape.g;
  const bool wants_dx = args.dx.data, wants_weights = args.sums.dvalues || args.sums.dalpha;
  const std::vector<Vec<A>> matrix = wants_dx ? shape.weights(args.alpha, args.s) : std::vector<Vec<A>>();
  const A* const weights = reinterpret_cast<const A*>(matrix.data());
  const bool copies_dy = !is_read_in_place<false, E>(args.dy, shape.lanes);
  const bool copies_x = wants_weights && !is_read_in_place<Shared, E>(args.x, shape.lanes);
  const bool copies_dx = wants_dx && !is_read_in_place<Shared, E>(args.dx, shape.lanes);
  const bool streams_dx = wants_dx && !Shared && !copies_dx && outgrows_cache<E>(args.dx, args.batch);

  // Of output rows first .. end - 1, and of as many rows of dx.
  struct Windows {
    Window<A> x, dy, dx;
  };
  auto windows = [&](int64_t first, int64_t end, int64_t vectors) {
    const int64_t pitch = Shared ? shape.channels : vectors * L;
    const int64_t dx_first = std::min(first * g.stride_y, shape.height);
    const int64_t dx_end = end == shape.out_height ? shape.height : std::min(end * g.stride_y, shape.height);
    int64_t dy_first = first, dy_end = end;
    if (wants_dx && dx_first < dx_end) {
      const int64_t reach = (g.kernel_height - 1) * g.dilation_y;
      dy_first = std::clamp((dx_first + g.padding_y - reach) / g.stride_y, int64_t(0), first);
      dy_end = std::clamp((dx_end - 1 + g.padding_y) / g.stride_y + 1, end, shape.out_height);
    }
    return Windows{
        shape.seen(first, end, pitch),
        {.first_row = dy_first, .rows = dy_end - dy_first, .width = shape.out_width, .pitch = vectors * L},
        {.first_row = dx_first, .rows = dx_end - dx_first, .width = shape.width, .pitch = pitch}};
  };
  // Where lanes share values, dx is a sum over all of them.
  const Cut cut(args.batch, shape.out_height, shape.vectors, shape.n, !Shared,
                [&](int64_t rows, int64_t vectors) {
                  const Windows w = windows(0, rows, vectors);
                  return (w.x.values() + w.dy.values() + w.dx.values()) * int64_t(sizeof(A));
                });
  int64_t x_values = 0, dy_values = 0, dx_values = 0;
  cut.each_band(shape.out_height, [&](int64_t first, int64_t end) {
    const Windows w = windows(first, end, cut.block);
    if (copies_x) x_values = std::max(x_values, w.x.values());
    if (copies_dy) dy_values = std::max(dy_values, w.dy.values());
    if (copies_dx) dx_values = std::max(dx_values, w.dx.values());
  });
  const Windows any = windows(0, cut.band_rows, cut.block);
  const Regions regions =
      shape.regions(copies_x ? View<const A>(any.x.view()) : view_of<const A>(args.x, 0, 0));
  std::vector<Phase> phases;
  for (int64_t row = 0; row < g.stride_y && wants_dx; ++row) {
    for (int64_t column = 0; column < g.stride_x; ++column) {
      phases.push_back({row, column,
                        Regions(taps_of_phase(row, g.kernel_height, g.stride_y, g.padding_y, g.dilation_y,
                                              shape.height, shape.out_height),
                                taps_of_phase(column, g.kernel_width, g.stride_x, g.padding_x, g.dilation_x,
                                              shape.width, shape.out_width),
                                g.kernel_width, copies_dy ? any.dy.view() : view_of<A>(args.dy, 0, 0), 1,
                                shape.channels, shape.pitch)});
    }
  }

  // Rows of W's gradient, and dy's sums as one more.
  const int64_t sum_values = (shape.n + 1) * shape.pitch;
  std::vector<A> sums(static_cast<size_t>(sum_values));
  OrderedSections turns(int(cut.blocks));
  parallel_chunks_in_order(cut.tiles(args.batch), [&] {
    A* const memory =
        static_cast<A*>(thread_workspace(size_t(x_values + dy_values + dx_values + sum_values) * sizeof(A)));
    return [&, memory](int64_t number) {
      const Tile tile(number, cut, shape.out_height, shape.lanes, L);
      Windows w = windows(tile.first, tile.end, cut.block);
      w.x.data = memory, w.dy.data = memory + x_values, w.dx.data = w.dy.data + dy_values;
      A* const tile_sums = w.dx.data + dx_values;
      std::memset(tile_sums, 0, size_t(sum_values) * sizeof(A));
      for (int64_t section = 0; section < shape.sections(); ++section) {
        const int64_t place = section * shape.vectors * L + tile.lane;
        const int64_t channel = Shared ? section * shape.channels : tile.lane;
        const View<const A> dy = source_view<false, E>(args.dy, tile.image, section * shape.lanes + tile.lane,
                                                       tile.count, copies_dy, w.dy);
        const View<const A> dy_rows = dy.at(tile.first, 0);
        if (args.sums.dbias) {
          sum_pixels(tile.vectors, tile.end - tile.first, shape.out_width, dy_rows,
                     tile_sums + shape.n * shape.pitch + place);
        }
        if (wants_weights) {
          const View<const A> x =
              source_view<Shared, E>(args.x, tile.image, channel, tile.count, copies_x, w.x);
          regions.each(tile.first, tile.end,
                       [&](Terms terms, int64_t row, int64_t rows, int64_t column, int64_t columns) {
                         sum_products<Shared>(
                             terms, tile.vectors, rows, columns,
                             x.at(row * g.stride_y, column * g.stride_x).strided(g.stride_y, g.stride_x),
                             dy.at(row, column), tile_sums + place);
                       });
        }
        if (!wants_dx) continue;
        const View<A> dx = copies_dx ? w.dx.view() : view_of<A>(args.dx, tile.image, channel, streams_dx);
        for (const Phase& phase : phases) {
          auto number_of = [&](int64_t row) {  // of the phase's rows before this one
            return ceil_div(std::max(row - phase.row, int64_t(0)), g.stride_y);
          };
          phase.regions.each(number_of(w.dx.first_row), number_of(w.dx.first_row + w.dx.rows),
                             [&](Terms terms, int64_t row, int64_t rows, int64_t column, int64_t columns) {
                               const View<A> to =
                                   dx.at(phase.row + row * g.stride_y, phase.column + column * g.stride_x)
                                       .strided(g.stride_y, g.stride_x);
                               if constexpr (Shared) {
                                 reduce_taps(terms, weights + place, tile.vectors, shape.channels,
                                             shape.pitch, rows, columns, dy.at(row, column), to);
                               } else {
                                 sum_taps<false>(terms, weights + place, tile.vectors, rows, columns,
                                                 dy.at(row, column), static_cast<const A*>(nullptr), to);
                               }
                             });
        }
        if (!copies_dx) continue;
        if constexpr (Shared) {
          each_value<E>(args.dx, tile.image, channel, w.dx,
                        [](E& to, const A& from) { to = from_accumulator<E>(from); });
        } else {
          store_window<E>(args.dx, tile.image, channel, tile.count, w.dx);
        }
      }
      turns.in_turn(int(tile.block), number / cut.blocks, [&] {
        const int64_t lanes = Shared ? shape.pitch : tile.vectors * L;
        for (int64_t i = tile.lane; i < sum_values; i += shape.pitch) {
          for (int64_t l = 0; l < lanes; ++l) sums[size_t(i + l)] += tile_sums[i + l];
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
