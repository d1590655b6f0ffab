// The steps of the tap form on a block of a GPU: a rectangle of near cells, which the block makes, and the far cells that
// their taps see, in shared memory; how cells move, thin products, sums over taps.
//
// Forward, near cells are output pixels and far cells input pixels; backward the other way round. Input pixels lie on the
// lattice y = step * cell - padding, of which taps see every cell: step = gcd(stride, dilation). In cells, output o meets
// input cell o * stride + a * dilation with tap a.
#pragma once

#include <math.h>

#include "common/vec.cuh"
#include "fused/dctps_conv2d.h"
#include "patch/device_taps.h"

namespace dctps {

constexpr int kTapThreads = 256, kTapWarps = kTapThreads / kWarp;
constexpr int kStrip = 4;        // near cells, one below the other, that a thread combines
constexpr int kLaneCells = 8;    // near cells that a lane has in sparse products
constexpr int kTapFilters = 16;  // filters at a time
constexpr int kQuad = 4;         // cells, side by side, that a thread has in a thin product
constexpr int kMostNearCells = kLaneCells * kWarp;

// Where the far cells of all channels are, and what multiplies: left in global memory; in shared memory; there in
// 16 bits, for tensor cores.
enum class TapForm { in_place, in_shared, tensor };

// Rows or columns of a tile.
struct TapAxisTile {
  int kernel, stride, dilation;  // in cells
  int step, padding;             // input position of a cell: step * cell - padding
  int near, far;                 // of the tile
  int tiles;                     // side by side
  int first;                     // near cell of the first one
  bool is_transposed;            // backward

  // A tile's first near and far cell.
  DCTPS_HOST_DEVICE int near_begin(int tile) const { return first + tile * near; }
  DCTPS_HOST_DEVICE int far_begin(int near_begin) const {
    if (!is_transposed) return near_begin * stride;
    const int reach = near_begin - (kernel - 1) * dilation + stride - 1;  // rounded up, if below zero too
    return reach >= 0 ? reach / stride : -((stride - 1 - reach) / stride);
  }
  // The tap by which near cell j and far cell r of the tile meet, or -1. `shift`: see tile_shift.
  DCTPS_HOST_DEVICE int tap(int shift, int j, int r) const {
    const int t = is_transposed ? shift + j - r * stride : r - j * stride;
    return t >= 0 && t % dilation == 0 && t / dilation < kernel ? t / dilation : -1;
  }
  // The far cell that near cell j meets by tap a, or -1.
  DCTPS_HOST_DEVICE int far_cell(int shift, int j, int a) const {
    if (!is_transposed) return j * stride + a * dilation;
    const int t = shift + j - a * dilation;
    return t >= 0 && t % stride == 0 && t / stride < far ? t / stride : -1;
  }
  DCTPS_HOST_DEVICE int tile_shift(int near_begin) const {
    return near_begin - far_begin(near_begin) * stride;
  }
};

// Bytes into shared memory.
struct TapPlaces {
  int row_taps;            // int16 [far rows][near rows in whole strips]
  int far_rows, far_cols;  // int16 [near rows][kernel rows], [near columns][kernel columns]
  int far_offsets;         // int64 [far_pitch]: elements from the images' data; -1: padding
  int near_offsets;        // int64 [near_pitch]: of y or x
  int dx_offsets;          // backward: the same, of dx
  int first_cells;         // forward: int16 [near_pitch]: the far cell that tap (0, 0) sees
  int tile;  // E [channels][far_pitch], if in shared memory; tensor form, backward: [far_cells + 1][tile_pitch]
  int inner;     // [inner_rows][pitch of the input's cells]; tensor form: E [the input's cells][inner_pitch]
  int slabs;     // tensor form, forward: int [2][steps of `expand`]
  int combined;  // [kTapFilters][re, im][pitch of the input's cells]
  int results;   // forward [filters at a time][near_pitch], backward [2][kTapFolds][near_pitch]
  int x;         // backward: E [2][kTapFolds][near_pitch]
  int weights;   // [kTapFilters][kernel rows + kernel columns][2]
  int bytes;
};

struct TapTiles {
  TapAxisTile rows, columns;
  int images;  // of a tile
  int64_t batch, tiles;
  int near_cells, far_cells, near_pitch, far_pitch;
  int tile_pitch, inner_pitch;  // tensor form: elements from one cell's to the next one's
  int strips;                   // of the near rows; 0 where no thread sums over taps
  TapPlaces places;
};

// ------------------------------------------------------------------------------------ four cells at once

template <class A>
struct Quad {
  A of[kQuad];
};

template <class T>
__device__ __forceinline__ Quad<Accumulator<T>> get_quad(Shared<T> from, int i DCTPS_SITE) {
  constexpr int kPart = sizeof(T) == 8 ? 2 : kQuad;
  Quad<Accumulator<T>> result;
#pragma unroll
  for (int first = 0; first < kQuad; first += kPart) {
    const auto pack = from.template load<kPart>(i + first DCTPS_AT);
#pragma unroll
    for (int e = 0; e < kPart; ++e) result.of[first + e] = to_accumulator(pack[e]);
  }
  return result;
}

template <class T>
__device__ __forceinline__ void put_quad(Shared<T> to, int i, const T (&values)[kQuad] DCTPS_SITE) {
  constexpr int kPart = sizeof(T) == 8 ? 2 : kQuad;
#pragma unroll
  for (int first = 0; first < kQuad; first += kPart) {
    Pack<T, kPart> pack;
#pragma unroll
    for (int e = 0; e < kPart; ++e) pack[e] = values[first + e];
    to.template store<kPart>(i + first, pack DCTPS_AT);
  }
}

// ------------------------------------------------------------------------------------ a tile's place

struct TapPosition {
  int64_t image;
  int near_row, near_column;

  __device__ TapPosition(const TapTiles& t, int64_t tile) {
    const int64_t line = tile / t.columns.tiles;
    near_column = t.columns.near_begin(int(tile - line * t.columns.tiles));
    image = line / t.rows.tiles;
    near_row = t.rows.near_begin(int(line - image * t.rows.tiles));
    image *= t.images;
  }
};

// Offset of a cell of `images` from their data, -1 outside. Cells of the input lie on the lattice, others are pixels.
__device__ __forceinline__ int64_t cell_offset(const TapTiles& t, const Images& images, bool is_input,
                                               int64_t image, int row, int column) {
  const int64_t y = is_input ? int64_t(row) * t.rows.step - t.rows.padding : row;
  const int64_t x = is_input ? int64_t(column) * t.columns.step - t.columns.padding : column;
  const bool inside = image < t.batch && y >= 0 && y < images.height && x >= 0 && x < images.width;
  return inside ? image * images.image_stride + y * images.row_stride + x * images.column_stride : -1;
}

// Fills the tables of a tile. Barriers before, where shared memory was in use, and after are the caller's.
__device__ __forceinline__ void place_far_cells(const TapTiles& t, const TapPosition& at, const Images& far) {
  const TapAxisTile &rows = t.rows, &columns = t.columns;
  const int thread = int(threadIdx.x);
  const int row_shift = rows.tile_shift(at.near_row), column_shift = columns.tile_shift(at.near_column);
  const Shared<int16_t> row_taps = shared_memory<int16_t>(t.places.row_taps);
  const Shared<int16_t> far_rows = shared_memory<int16_t>(t.places.far_rows);
  const Shared<int16_t> far_columns = shared_memory<int16_t>(t.places.far_cols);
  const Shared<int64_t> far_offsets = shared_memory<int64_t>(t.places.far_offsets);
  const int padded = t.strips * kStrip;
  for (int i = thread; i < rows.far * padded; i += kTapThreads) {
    const int r = i / padded, j = i - r * padded;
    row_taps[i] = int16_t(j < rows.near ? rows.tap(row_shift, j, r) : -1);
  }
  for (int i = thread; i < rows.near * rows.kernel; i += kTapThreads) {
    far_rows[i] = int16_t(rows.far_cell(row_shift, i / rows.kernel, i % rows.kernel));
  }
  for (int i = thread; i < columns.near * columns.kernel; i += kTapThreads) {
    far_columns[i] = int16_t(columns.far_cell(column_shift, i / columns.kernel, i % columns.kernel));
  }
  const int far_row = rows.far_begin(at.near_row), far_column = columns.far_begin(at.near_column);
  for (int i = thread; i < t.far_pitch; i += kTapThreads) {
    const int line = i / columns.far, image = line / rows.far;
    far_offsets[i] = i < t.far_cells
                         ? cell_offset(t, far, !rows.is_transposed, at.image + image,
                                       far_row + line - image * rows.far, far_column + i - line * columns.far)
                         : -1;
  }
}

// Where the near cells are in `images`.
__device__ __forceinline__ void place_near_cells(const TapTiles& t, const TapPosition& at,
                                                 const Images& images, Shared<int64_t> offsets) {
  const TapAxisTile &rows = t.rows, &columns = t.columns;
  const Shared<int16_t> first_cells = shared_memory<int16_t>(t.places.first_cells);
  for (int i = int(threadIdx.x); i < t.near_pitch; i += kTapThreads) {
    const int line = i / columns.near, column = i - line * columns.near;
    const int image = line / rows.near, row = line - image * rows.near;
    const bool is_there = i < t.near_cells;
    offsets[i] = is_there ? cell_offset(t, images, rows.is_transposed, at.image + image, at.near_row + row,
                                        at.near_column + column)
                          : -1;
    if (rows.is_transposed) continue;
    const int first = (image * rows.far + row * rows.stride) * columns.far + column * columns.stride;
    first_cells[i] = int16_t(is_there ? first : 0);
  }
}

// ------------------------------------------------------------------------------------ images in and out

// Whether lanes run through a pixel's channels, or through the pixels of a channel.
DCTPS_HOST_DEVICE inline bool runs_through_channels(const Images& images) {
  return images.channel_stride < images.column_stride;
}

// Channels first, first + step, ...: row i of a tile.
struct ChannelRange {
  int64_t first;
  int step, count;
};

// to[row][0 .. pitch - 1] = the channels at the cells of `offsets`, zeros elsewhere.
template <class E>
__device__ __forceinline__ void load_cells(const Images& images, Shared<int64_t> offsets, int pitch,
                                           const ChannelRange& channels, Shared<E> to) {
  const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp;
  const E* const data = static_cast<const E*>(images.data) + channels.first * images.channel_stride;
  const int64_t step = channels.step * images.channel_stride;
  if (runs_through_channels(images)) {
    for (int cell = warp * kQuad; cell < pitch; cell += kTapWarps * kQuad) {
      int64_t offset[kQuad];
#pragma unroll
      for (int e = 0; e < kQuad; ++e) offset[e] = offsets[cell + e];
      for (int row = lane; row < channels.count; row += kWarp) {
        E values[kQuad];
#pragma unroll
        for (int e = 0; e < kQuad; ++e) {
          values[e] = offset[e] >= 0 ? load<Cache::streaming>(data + offset[e] + row * step) : E{};
        }
        put_quad(to, row * pitch + cell, values);
      }
    }
    return;
  }
  for (int cell = lane; cell < pitch; cell += kWarp) {
    const int64_t offset = offsets[cell];
    const E* from = data + offset + warp * step;
#pragma unroll 4
    for (int row = warp; row < channels.count; row += kTapWarps, from += kTapWarps * step) {
      to[row * pitch + cell] = offset >= 0 ? load<Cache::streaming>(from) : E{};
    }
  }
}

// The other way round.
template <class E>
__device__ __forceinline__ void store_cells(const Images& images, Shared<int64_t> offsets, int cells,
                                            int pitch, const ChannelRange& channels,
                                            Shared<Accumulator<E>> from) {
  using A = Accumulator<E>;
  E* const data = static_cast<E*>(images.data) + channels.first * images.channel_stride;
  const int64_t step = channels.step * images.channel_stride;
  // Lanes run through what is contiguous; of channels, half a warp for each cell, of cells, two at once if aligned.
  const bool through_channels = runs_through_channels(images);
  const int side = through_channels ? kWarp / 2 : kTapWarps, thread = int(threadIdx.x);
  const int first_row = through_channels ? thread % side : thread / kWarp;
  const int first_cell = through_channels ? thread / side : thread % kWarp;
  const bool in_pairs = !through_channels && images.column_stride == 1 && images.channel_stride % 2 == 0 &&
                        reinterpret_cast<uintptr_t>(data) % (2 * sizeof(E)) == 0;
  const int width = in_pairs ? 2 : 1;
  for (int cell = first_cell * width; cell < cells; cell += kTapThreads / side * width) {
    const Pack<int64_t, 2> both =
        in_pairs ? offsets.template load<2>(cell) : Pack<int64_t, 2>{{int64_t(offsets[cell]), -1}};
    const int64_t first = both[0], second = both[1];
    if (first >= 0 && first % 2 == 0 && second == first + 1) {
      E* to = data + first + first_row * step;
      for (int row = first_row; row < channels.count; row += side, to += side * step) {
        const auto values = from.template load<2>(row * pitch + cell);
        store<2, Cache::streaming>(
            to, Pack<E, 2>{{from_accumulator<E>(values[0]), from_accumulator<E>(values[1])}});
      }
      continue;
    }
    for (int e = 0; e < width; ++e) {
      const int64_t offset = e ? second : first;
      if (offset < 0) continue;
      E* to = data + offset + first_row * step;
      for (int row = first_row; row < channels.count; row += side, to += side * step) {
        store<Cache::streaming>(to, from_accumulator<E>(A(from[row * pitch + cell + e])));
      }
    }
  }
}

// The far cells of all channels of a group: in shared memory, or left where they are.
template <class E, TapForm form>
class FarTile {
 public:
  using A = Accumulator<E>;
  static constexpr bool in_shared = form == TapForm::in_shared;

  __device__ FarTile(const TapTiles& t, const Images& images, int64_t first_channel)
      : images_(images),
        data_(static_cast<const E*>(images.data) + first_channel * images.channel_stride),
        first_(first_channel),
        pitch_(t.far_pitch),
        tile_(shared_memory<E>(t.places.tile)),
        offsets_(shared_memory<int64_t>(t.places.far_offsets)) {}

  __device__ __forceinline__ void fill(int channels) const {
    if constexpr (in_shared) {
      load_cells(images_, offsets_, pitch_, {first_, 1, channels}, tile_);
    }
  }
  __device__ __forceinline__ A operator()(int channel, int cell) const {
    if constexpr (in_shared) {
      return to_accumulator(E(tile_[channel * pitch_ + cell]));
    } else {
      const int64_t offset = offsets_[cell];
      return offset < 0 ? A(0) : to_accumulator(load(data_ + offset + channel * images_.channel_stride));
    }
  }
  __device__ __forceinline__ Quad<A> quad(int channel, int cell) const {
    if constexpr (in_shared) {
      return get_quad(tile_, channel * pitch_ + cell);
    } else {
      Quad<A> result;
#pragma unroll
      for (int e = 0; e < kQuad; ++e) result.of[e] = (*this)(channel, cell + e);
      return result;
    }
  }

 private:
  const Images& images_;
  const E* data_;
  int64_t first_;
  int pitch_;
  Shared<E> tile_;
  Shared<int64_t> offsets_;
};

// ------------------------------------------------------------------------------------ thin products

// sum[r][e] += sum over i < depth of table[i][r] cells(i)[e]; `table` points to the first of kTapRows columns.
template <class A, class Cells>
__device__ __forceinline__ void add_product(const A* table, int table_pitch, int depth, const Cells& cells,
                                            A (&sum)[kTapRows][kQuad]) {
  constexpr int kPart = 16 / int(sizeof(A));
#pragma unroll 2
  for (int i = 0; i < depth; ++i, table += table_pitch) {
    A factor[kTapRows];
#pragma unroll
    for (int first = 0; first < kTapRows; first += kPart) {
      const auto pack = load<kPart>(table + first);
#pragma unroll
      for (int r = 0; r < kPart; ++r) factor[first + r] = pack[r];
    }
    const Quad<A> cell = cells(i);
#pragma unroll
    for (int r = 0; r < kTapRows; ++r) {
#pragma unroll
      for (int e = 0; e < kQuad; ++e) sum[r][e] = fma(factor[r], cell.of[e], sum[r][e]);
    }
  }
}

// Calls body(row, cell) for the first rows of all groups of kTapRows and the first cells of all quads, each for one
// thread, neighbouring cells for neighbouring threads.
template <class Body>
__device__ __forceinline__ void each_block(int rows, int pitch, const Body& body) {
  const int quads = pitch / kQuad, blocks = rows / kTapRows * quads;
  for (int i = int(threadIdx.x); i < blocks; i += kTapThreads) {
    const int group = i / quads;
    body(group * kTapRows, (i - group * quads) * kQuad);
  }
}

// ------------------------------------------------------------------------------------ sums over taps

// The factors of kTapFilters filters, of columns and of rows, in shared memory.
template <class A>
struct TapWeights {
  Shared<A> across, down;
  int across_pitch, down_pitch;

  __device__ TapWeights(const TapTiles& t)
      : across(shared_memory<A>(t.places.weights)),
        down(across + 2 * kTapFilters * t.columns.kernel),
        across_pitch(2 * t.columns.kernel),
        down_pitch(2 * t.rows.kernel) {}

  // Those of filters first .. first + count - 1.
  __device__ __forceinline__ void fill(const DeviceTapPlan& plan, int64_t first, int count) const {
    const A* const from_across = static_cast<const A*>(plan.across) + first * across_pitch;
    const A* const from_down = static_cast<const A*>(plan.down) + first * down_pitch;
    for (int i = int(threadIdx.x); i < count * across_pitch; i += kTapThreads)
      across[i] = load(from_across + i);
    for (int i = int(threadIdx.x); i < count * down_pitch; i += kTapThreads) down[i] = load(from_down + i);
  }
};

// A thread's place in sums over taps: one column of near cells, kStrip rows of it, of one image, for one filter.
struct TapStrip {
  int filter, column, first_row, image;
  int far_first, near_first;  // cells: of the image's far ones, of the strip's near ones

  __device__ TapStrip(const TapTiles& t, int i) {
    const int line = i / t.columns.near, strip = line / t.strips;
    column = i - line * t.columns.near;
    first_row = (line - strip * t.strips) * kStrip;
    filter = strip / t.images;
    image = strip - filter * t.images;
    far_first = image * t.rows.far * t.columns.far;
    near_first = (image * t.rows.near + first_row) * t.columns.near + column;
  }
  static __device__ int count(const TapTiles& t, int filters) {
    return filters * t.images * t.strips * t.columns.near;
  }

  // Calls body(first far cell of a row, taps[kStrip]) for the far rows that the strip meets.
  template <class Body>
  __device__ __forceinline__ void each_far_row(const TapTiles& t, const Body& body) const {
    const Shared<int16_t> row_taps = shared_memory<int16_t>(t.places.row_taps);
    for (int r = 0; r < t.rows.far; ++r) {
      const auto taps = row_taps.load<kStrip>(r * t.strips * kStrip + first_row);
      if ((taps[0] & taps[1] & taps[2] & taps[3]) < 0) continue;  // all of them -1
      body(far_first + r * t.columns.far, taps);
    }
  }
};

// Forward: near cells from the complex values `z` [filters][re, im][far_pitch], times alpha.
template <class A>
__device__ __forceinline__ void combine(const TapTiles& t, const TapWeights<A>& weights, int filters,
                                        Shared<A> z, A alpha, Shared<A> results) {
  for (int i = int(threadIdx.x); i < TapStrip::count(t, filters); i += kTapThreads) {
    const TapStrip strip(t, i);
    const Shared<A> re = z + 2 * strip.filter * t.far_pitch, im = re + t.far_pitch;
    A sum[kStrip] = {};
    strip.each_far_row(t, [&](int first, const Pack<int16_t, kStrip>& taps) __attribute__((always_inline)) {
      A h_re = 0, h_im = 0;
      for (int b = 0; b < t.columns.kernel; ++b) {
        const int cell = first + strip.column * t.columns.stride + b * t.columns.dilation;
        const auto turn = weights.across.template load<2>(strip.filter * weights.across_pitch + 2 * b);
        const A z_re = re[cell], z_im = im[cell];
        h_re = fma(turn[0], z_re, fma(-turn[1], z_im, h_re));
        h_im = fma(turn[0], z_im, fma(turn[1], z_re, h_im));
      }
#pragma unroll
      for (int j = 0; j < kStrip; ++j) {
        if (taps[j] < 0) continue;
        const auto down = weights.down.template load<2>(strip.filter * weights.down_pitch + 2 * taps[j]);
        sum[j] = fma(down[0], h_re, fma(down[1], h_im, sum[j]));
      }
    });
#pragma unroll
    for (int j = 0; j < kStrip; ++j) {
      if (strip.first_row + j < t.rows.near) {
        results[strip.filter * t.near_pitch + strip.near_first + j * t.columns.near] = alpha * sum[j];
      }
    }
  }
}

// Backward, the transpose: complex values [filters][re, im][near_pitch] from the far cells of channels first_filter + f.
template <class A, class Tile>
__device__ __forceinline__ void spread(const TapTiles& t, const TapWeights<A>& weights, int first_filter,
                                       int filters, const Tile& far, Shared<A> z) {
  const Shared<int16_t> far_columns = shared_memory<int16_t>(t.places.far_cols);
  for (int i = int(threadIdx.x); i < TapStrip::count(t, filters); i += kTapThreads) {
    const TapStrip strip(t, i);
    A re[kStrip] = {}, im[kStrip] = {};
    strip.each_far_row(t, [&](int first, const Pack<int16_t, kStrip>& taps) __attribute__((always_inline)) {
      A c = 0, s = 0;
      for (int b = 0; b < t.columns.kernel; ++b) {
        const int column = int16_t(far_columns[strip.column * t.columns.kernel + b]);
        if (column < 0) continue;
        const auto turn = weights.across.template load<2>(strip.filter * weights.across_pitch + 2 * b);
        const A value = far(first_filter + strip.filter, first + column);
        c = fma(turn[0], value, c);
        s = fma(turn[1], value, s);
      }
#pragma unroll
      for (int j = 0; j < kStrip; ++j) {
        if (taps[j] < 0) continue;
        const auto down = weights.down.template load<2>(strip.filter * weights.down_pitch + 2 * taps[j]);
        re[j] = fma(down[0], c, fma(down[1], s, re[j]));
        im[j] = fma(down[1], c, fma(-down[0], s, im[j]));
      }
    });
#pragma unroll
    for (int j = 0; j < kStrip; ++j) {
      if (strip.first_row + j >= t.rows.near) continue;
      const int cell = 2 * strip.filter * t.near_pitch + strip.near_first + j * t.columns.near;
      z[cell] = re[j];
      z[cell + t.near_pitch] = im[j];
    }
  }
  const int padding = t.near_pitch - t.near_cells;  // which products read
  for (int i = int(threadIdx.x); i < 2 * filters * padding; i += kTapThreads) {
    z[i / padding * t.near_pitch + t.near_cells + i % padding] = 0;
  }
}

}  // namespace dctps
