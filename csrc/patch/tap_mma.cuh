// The steps of the tap form on tensor cores, for 16-bit types: the products of device_taps.h. Expansion and sums over taps
// are one product of depth taps * rows.
#pragma once

#include "common/mma.cuh"
#include "patch/tap_tile.cuh"

namespace dctps {

constexpr int kMmaFilters = 128;  // at a time
// A warp's share of a product: tiles of 16 rows, of the expansion and of the others, by columns of 8 cells.
constexpr int kExpandTiles = 4, kTaskTiles = 2, kTaskColumns = 4, kTaskCells = kTaskColumns * kMmaColumns;

// Backward, the far cells of all channels of a group in shared memory, in pairs of channels: [far_cells + 1]
// [tile_pitch], the last cell zero. (Forward, FarTile in shared memory serves: there only far cells side by side are
// multiplied with each other's factors.) The pitch is an odd multiple of four words, so that fragments (eight cells of four words) are in
// all banks; exchanging the four words by cell / 8 spreads one channel of 32 neighbours over all banks too.
template <class E>
class FarTile<E, TapForm::tensor> {
 public:
  using A = Accumulator<E>;

  __device__ FarTile(const TapTiles& t, const Images& images, int64_t first_channel)
      : images_(images),
        first_(first_channel),
        cells_(t.far_cells + 1),
        pitch_(t.tile_pitch / 2),
        tile_(shared_memory<E>(t.places.tile)),
        offsets_(shared_memory<int64_t>(t.places.far_offsets)) {}

  // Channels beyond the last are zero, to whole fragments.
  __device__ __forceinline__ void fill(int channels) const {
    const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp;
    const int pairs = (channels + kMmaDepth - 1) / kMmaDepth * (kMmaDepth / 2);
    const int64_t stride = images_.channel_stride;
    const E* const data = static_cast<const E*>(images_.data) + first_ * stride;
    if (runs_through_channels(images_)) {
      const bool in_pairs = stride == 1 && channels % 2 == 0 && reinterpret_cast<uintptr_t>(data) % 4 == 0 &&
                            (images_.image_stride | images_.row_stride | images_.column_stride) % 2 == 0;
      for (int cell = warp; cell < cells_; cell += kTapWarps) {
        const int64_t offset = offsets_[cell];
#pragma unroll 2
        for (int pair = lane; pair < pairs; pair += kWarp) {
          const E* const from = data + offset + 2 * pair * stride;
          const int count = offset >= 0 ? channels - 2 * pair : 0;
          put(cell, pair, in_pairs && count > 0 ? load<2, Cache::streaming>(from) : get(from, count));
        }
      }
      return;
    }
    for (int cell = lane; cell < cells_; cell += kWarp) {
      const int64_t offset = offsets_[cell];
      const E* from = data + offset + 2 * warp * stride;
#pragma unroll 4
      for (int pair = warp; pair < pairs; pair += kTapWarps, from += 2 * kTapWarps * stride) {
        put(cell, pair, get(from, offset >= 0 ? channels - 2 * pair : 0));
      }
    }
  }
  // Where a pair of channels of a cell is. Of pairs 4 i + j, what i adds is 4 i for every cell.
  __device__ __forceinline__ int word(int cell, int pair) const {
    return cell * pitch_ + (pair ^ (cell >> 3 & 3));
  }
  // Column `cell` of B, as this lane brings it.
  __device__ __forceinline__ Shared<MmaPair> column(int cell) const {
    return tile_.template as<MmaPair>() + word(cell, int(threadIdx.x) % 4);
  }
  __device__ __forceinline__ A operator()(int channel, int cell) const {
    return to_accumulator(E(tile_[2 * word(cell, channel / 2) + channel % 2]));
  }

 private:
  __device__ __forceinline__ Pack<E, 2> get(const E* from, int count) const {
    Pack<E, 2> pair{};
    if (count > 1) {
      pair = {{load<Cache::streaming>(from), load<Cache::streaming>(from + images_.channel_stride)}};
    } else if (count > 0) {
      pair[0] = load<Cache::streaming>(from);
    }
    return pair;
  }
  __device__ __forceinline__ void put(int cell, int pair, const Pack<E, 2>& values) const {
    tile_.template store<2>(2 * word(cell, pair), values);
  }

  const Images& images_;
  int64_t first_;
  int cells_, pitch_;
  Shared<E> tile_;
  Shared<int64_t> offsets_;
};

// A warp's share of a product: up to kTiles tiles of 16 rows from first_tile on, kTaskCells cells from first_cell on.
template <int kTiles>
struct MmaTask {
  int first_tile, tiles, first_cell;
  float sum[kTiles][kTaskColumns][4] = {};

  __device__ MmaTask(int first_tile, int tiles, int first_cell)
      : first_tile(first_tile), tiles(tiles), first_cell(first_cell) {}

  // The cells, up to `last`, whose columns of B this lane brings.
  __device__ __forceinline__ int cell(int column, int last) const {
    return min(first_cell + column * kMmaColumns + int(threadIdx.x) % kWarp / 4, last);
  }
  // Of two tiles that are summands of the same rows.
  __device__ __forceinline__ void add_second_tile() {
#pragma unroll
    for (int j = 0; j < kTaskColumns; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) sum[0][j][e] += sum[1][j][e];
    }
    tiles = 1;
  }
  // Calls body(row, cell, its sum, the next cell's sum) for what this lane holds of the result.
  template <class Body>
  __device__ __forceinline__ void each_sum(const Body& body) const {
    const int lane = int(threadIdx.x) % kWarp;
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      if (i >= tiles) break;
#pragma unroll
      for (int j = 0; j < kTaskColumns; ++j) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          body((first_tile + i) * kMmaRows + half * 8 + lane / 4, first_cell + j * kMmaColumns + lane % 4 * 2,
               sum[i][j][2 * half], sum[i][j][2 * half + 1]);
        }
      }
    }
  }
};

// What brings the columns of B of a task: get(step, pairs) those of one step.
//
// Of cells whose rows are side by side, in pairs: column j begins at make(j), and slabs(step) says where from there a
// step's two halves are, in words.
template <class Slabs>
struct PairColumns {
  Shared<MmaPair> of[kTaskColumns];
  Slabs slabs;

  template <class Make>
  __device__ __forceinline__ PairColumns(const Slabs& slabs, const Make& make)
      : of{make(0), make(1), make(2), make(3)}, slabs(slabs) {
    static_assert(kTaskColumns == 4, "PairColumns: expected four columns");
  }
  __device__ __forceinline__ void get(int step, MmaPair (&pairs)[kTaskColumns][2]) const {
    const Pack<int, 2> slab = slabs(step);
#pragma unroll
    for (int j = 0; j < kTaskColumns; ++j) pairs[j][0] = of[j][slab[0]], pairs[j][1] = of[j][slab[1]];
  }
};

// The two halves where they are side by side.
struct AdjacentSlabs {
  __device__ __forceinline__ Pack<int, 2> operator()(int step) const { return {{8 * step, 8 * step + 4}}; }
};

// Of rows whose cells are side by side: E [rows][pitch].
template <class E>
struct RowColumns {
  Shared<E> data;
  int last_row, pitch, row, cells[kTaskColumns / 2];

  __device__ __forceinline__ RowColumns(Shared<E> data, int rows, int pitch, int first_cell)
      : data(data), last_row(rows - 1), pitch(pitch), row(int(threadIdx.x) % 16) {
#pragma unroll
    for (int j = 0; j < kTaskColumns / 2; ++j) {  // beyond the pitch nobody asks for the result
      const int cell = first_cell + (2 * j + int(threadIdx.x) % kWarp / 16) * kMmaColumns;
      cells[j] = min(cell, pitch - kMmaColumns);
    }
  }
  __device__ __forceinline__ void get(int step, MmaPair (&pairs)[kTaskColumns][2]) const {
    const int from =
        min(step * kMmaDepth + row, last_row) * pitch;  // factors of rows beyond the last are zero
#pragma unroll
    for (int j = 0; j < kTaskColumns / 2; ++j) {
      MmaPair both[4];
      load_columns(both, data, from + cells[j]);
#pragma unroll
      for (int i = 0; i < 4; ++i) pairs[2 * j + i / 2][i % 2] = both[i];
    }
  }
};

// Shares a product of that many tiles of rows and cells out to the block's warps.
template <int kTiles, class Body>
__device__ __forceinline__ void each_task(int tiles, int cells, const Body& body) {
  const int across = (cells + kTaskCells - 1) / kTaskCells, tasks = (tiles + kTiles - 1) / kTiles * across;
  for (int i = int(threadIdx.x) / kWarp; i < tasks; i += kTapWarps) {
    const int down = i / across, first = down * kTiles;
    MmaTask<kTiles> task(first, min(kTiles, tiles - first), (i - down * across) * kTaskCells);
    body(task);
  }
}

// One group's fragments of a matrix.
template <class E>
struct TapFragments {
  const E* data;  // this lane's of the first tile
  int tiles, steps;

  static constexpr int kSize = kWarp * 8;  // elements

  __device__ TapFragments(const DeviceTapMma& mma, const DeviceFragments& part, int group)
      : data(static_cast<const E*>(mma.data) + part.begin + int64_t(group) * part.tiles * part.steps * kSize +
             int(threadIdx.x) % kWarp * 8),
        tiles(part.tiles),
        steps(part.steps) {}
};

// task.sum += its tiles of rows, `steps` deep from first_step on, times columns of B.
template <int kCount, int kTiles, class E, class Columns>
__device__ __forceinline__ void add_tiles(const E* rows, int tile_size, int steps, const Columns& columns,
                                          MmaTask<kTiles>& task) {
  if constexpr (kCount > 1) {  // how many tiles there are is known to the compiler in each of these loops
    if (task.tiles < kCount) return add_tiles<kCount - 1>(rows, tile_size, steps, columns, task);
  }
#pragma unroll(kCount > 2 ? 1 : 2)
  for (int step = 0; step < steps; ++step) {
    Pack<E, 8> a[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) a[i] = load<8>(rows + i * tile_size + step * TapFragments<E>::kSize);
    MmaPair pairs[kTaskColumns][2];
    columns.get(step, pairs);
#pragma unroll
    for (int j = 0; j < kTaskColumns; ++j) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) mma<E>(task.sum[i][j], a[i], pairs[j]);
    }
  }
}

template <int kTiles, class E, class Columns>
__device__ __forceinline__ void add_product(const TapFragments<E>& a, int first_step, int steps,
                                            const Columns& columns, MmaTask<kTiles>& task) {
  const E* const rows = a.data + (int64_t(task.first_tile) * a.steps + first_step) * a.kSize;
  add_tiles<kTiles>(rows, a.steps * a.kSize, steps, columns, task);
}

// One value of `inner` [cells][inner_pitch].
template <class E>
__device__ __forceinline__ void put_inner(const TapTiles& t, int row, int cell, E value) {
  shared_memory<E>(t.places.inner)[cell * t.inner_pitch + row] = value;
}

// A column of `inner`, as this lane brings it.
__device__ __forceinline__ Shared<MmaPair> inner_column(const TapTiles& t, int cell) {
  return shared_memory<MmaPair>(t.places.inner) + (cell * (t.inner_pitch / 2) + int(threadIdx.x) % 4);
}

// ------------------------------------------------------------------------------------ forward

// Where the slabs of `expand` are, in words from a far cell's: those of the taps one after the other.
__device__ __forceinline__ void place_slabs(const TapTiles& t, const DeviceTapMma& mma) {
  const Shared<int> slabs = shared_memory<int>(t.places.slabs);
  const int each = mma.rows / kMmaSlab, taps = t.rows.kernel * t.columns.kernel;
  for (int i = int(threadIdx.x); i < 2 * mma.expand.steps; i += kTapThreads) {
    const int tap = i / each, a = tap / t.columns.kernel, b = tap - a * t.columns.kernel;
    const int shift = a * t.rows.dilation * t.columns.far + b * t.columns.dilation;
    slabs[i] =
        tap < taps ? shift * (t.inner_pitch / 2) + (i - tap * each) * 4 : 0;  // beyond, factors are zero
  }
}

template <class E>
__device__ __forceinline__ void reduce_on_tensor_cores(const TapTiles& t, const DeviceTapMma& mma, int group,
                                                       int channels) {
  const TapFragments<E> a(mma, mma.reduce, group);
  each_task<kTaskTiles>(a.tiles, t.far_cells, [&](auto& task) __attribute__((always_inline)) {
    const RowColumns<E> columns(shared_memory<E>(t.places.tile), channels, t.far_pitch, task.first_cell);
    add_product(a, 0, a.steps, columns, task);
    task.add_second_tile();
    task.each_sum([&](int row, int cell, float first, float second) __attribute__((always_inline)) {
      row -= task.first_tile / 2 * kMmaRows;
      if (row >= mma.rows) return;
      if (cell < t.far_cells) put_inner(t, row, cell, from_accumulator<E>(first));
      if (cell + 1 < t.far_cells) put_inner(t, row, cell + 1, from_accumulator<E>(second));
    });
  });
}

// results [kMmaFilters][near_pitch] = alpha D patch of filters first .. first + kMmaFilters - 1.
template <class E>
__device__ __forceinline__ void expand_on_tensor_cores(const TapTiles& t, const DeviceTapMma& mma, int group,
                                                       int first, float alpha, Shared<float> results) {
  TapFragments<E> a(mma, mma.expand, group);
  const Shared<int> slabs = shared_memory<int>(t.places.slabs);
  const Shared<int16_t> first_cells = shared_memory<int16_t>(t.places.first_cells);
  const int tiles = min(kMmaFilters / kMmaRows, a.tiles - first / kMmaRows);
  a.data += int64_t(first / kMmaRows) * a.steps * a.kSize;
  auto slabs_of = [=](int step) __attribute__((always_inline)) { return slabs.load<2>(2 * step); };
  each_task<kExpandTiles>(tiles, t.near_cells, [&](auto& task) __attribute__((always_inline)) {
    const PairColumns columns(slabs_of, [&](int j) __attribute__((always_inline)) {
      return inner_column(t, int16_t(first_cells[task.cell(j, t.near_cells - 1)]));
    });
    add_product(a, 0, a.steps, columns, task);
    task.each_sum([&](int row, int cell, float s0, float s1) __attribute__((always_inline)) {
      if (cell < t.near_cells) results.store<2>(row * t.near_pitch + cell, {{alpha * s0, alpha * s1}});
    });
  });
}

// ------------------------------------------------------------------------------------ backward

// `inner` [rounded, rest][rows] = sum over taps and filters of U^T dy: rounded once, these would be all that dx is made of.
template <class E>
__device__ __forceinline__ void gather_on_tensor_cores(const TapTiles& t, const DeviceTapMma& mma, int group,
                                                       const FarTile<E, TapForm::tensor>& dy) {
  const TapFragments<E> a(mma, mma.gather, group);
  const int taps = t.rows.kernel * t.columns.kernel, steps = a.steps / taps;
  const Shared<int16_t> far_rows = shared_memory<int16_t>(t.places.far_rows);
  const Shared<int16_t> far_columns = shared_memory<int16_t>(t.places.far_cols);
  each_task<kTaskTiles>(a.tiles, t.near_cells, [&](auto& task) __attribute__((always_inline)) {
    int image[kTaskColumns], row[kTaskColumns], column[kTaskColumns];
    for (int j = 0; j < kTaskColumns; ++j) {
      const int cell = task.cell(j, t.near_cells - 1), line = cell / t.columns.near;
      image[j] = line / t.rows.near;
      row[j] = (line - image[j] * t.rows.near) * t.rows.kernel;
      column[j] = (cell - line * t.columns.near) * t.columns.kernel;
    }
    for (int tap = 0; tap < taps; ++tap) {
      const int down = tap / t.columns.kernel, across = tap - down * t.columns.kernel;
      const PairColumns columns(AdjacentSlabs{}, [&](int j) __attribute__((always_inline)) {
        const int y = int16_t(far_rows[row[j] + down]), x = int16_t(far_columns[column[j] + across]);
        const int cell = (image[j] * t.rows.far + y) * t.columns.far + x;
        return dy.column(y >= 0 && x >= 0 ? cell : t.far_cells);
      });
      add_product(a, tap * steps, steps, columns, task);
    }
    task.each_sum([&](int row, int cell, float first, float second) __attribute__((always_inline)) {
      if (row >= mma.rows) return;
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        if (cell + e >= t.near_cells) continue;
        const float sum = e ? second : first;
        const E rounded = from_accumulator<E>(sum);
        put_inner(t, row, cell + e, rounded);
        put_inner(t, mma.rows + row, cell + e, from_accumulator<E>(sum - to_accumulator(rounded)));
      }
    });
  });
}

// products [2][kTapFolds][near_pitch]: the two parts of D^T dy at folded channels from first_fold on.
template <class E>
__device__ __forceinline__ void unreduce_on_tensor_cores(const TapTiles& t, const DeviceTapMma& mma,
                                                         int group, int first_fold, Shared<float> products) {
  TapFragments<E> a(mma, mma.unreduce, group);
  const int slabs = mma.rows / kMmaSlab;
  a.data += int64_t(2 * first_fold / kMmaRows) * a.steps * a.kSize;
  auto slab_of = [=](int i)
                     __attribute__((always_inline)) {  // rounded, rest, rounded; beyond, factors are zero
                       return i < 2 * slabs ? 4 * i : i < 3 * slabs ? 4 * (i - 2 * slabs) : 0;
                     };
  auto slabs_of = [=](int step) __attribute__((always_inline)) {
    return Pack<int, 2>{{slab_of(2 * step), slab_of(2 * step + 1)}};
  };
  each_task<kTaskTiles>(
      2 * kTapFolds / kMmaRows, t.near_cells, [&](auto& task) __attribute__((always_inline)) {
        const PairColumns columns(slabs_of, [&](int j) __attribute__((always_inline)) {
          return inner_column(t, task.cell(j, t.near_cells - 1));
        });
        add_product(a, 0, a.steps, columns, task);
        task.each_sum([&](int row, int cell, float s0, float s1) __attribute__((always_inline)) {
          if (cell < t.near_cells) products.store<2>(row * t.near_pitch + cell, {{s0, s1}});
        });
      });
}

}  // namespace dctps
