// The steps of the tap form on tensor cores, for 16-bit types: a tile whose cells hold their channels side by side, and the
// products of device_taps.h with it. Expansion and sums over taps are one product of depth taps * rows.
#pragma once

#include "common/mma.cuh"
#include "patch/tap_tile.cuh"

namespace dctps {

constexpr int kMmaFilters = 64;                         // at a time
constexpr int kTaskTiles = 2, kTaskColumns = 4;         // of 16 rows, of 8 cells: a warp's share of a product
constexpr int kTaskCells = kTaskColumns * kMmaColumns;  // of each such share

// The far cells of all channels of a group in shared memory, in pairs of channels: [far_cells + 1][tile_pitch], the
// last cell zero. The pitch is an odd multiple of four words, so that fragments (eight cells of four words) are in
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
    const bool through_channels = runs_through_channels(images_);
    const int outer = through_channels ? cells_ : pairs, inner = through_channels ? pairs : cells_;
    const E* const data = static_cast<const E*>(images_.data) + first_ * images_.channel_stride;
    const bool in_pairs = images_.channel_stride == 1 && channels % 2 == 0 &&
                          reinterpret_cast<uintptr_t>(data) % 4 == 0 &&
                          (images_.image_stride | images_.row_stride | images_.column_stride) % 2 == 0;
    for (int o = warp; o < outer; o += kTapWarps) {
#pragma unroll 4
      for (int i = lane; i < inner; i += kWarp) {
        const int cell = through_channels ? o : i, channel = 2 * (through_channels ? i : o);
        const int64_t offset = offsets_[cell];
        const E* const from = data + offset + channel * images_.channel_stride;
        Pack<E, 2> pair{};
        if (offset >= 0 && in_pairs && channel < channels) {
          pair = load<2, Cache::streaming>(from);
        } else if (offset >= 0) {
          if (channel < channels) pair[0] = load<Cache::streaming>(from);
          if (channel + 1 < channels) pair[1] = load<Cache::streaming>(from + images_.channel_stride);
        }
        tile_.template store<2>(2 * word(cell, channel / 2), pair);
      }
    }
  }
  // Where a pair of channels of a cell is. Of pairs 4 i + j, what i adds is 4 i for every cell.
  __device__ __forceinline__ int word(int cell, int pair) const {
    return cell * pitch_ + (pair ^ (cell >> 3 & 3));
  }
  __device__ __forceinline__ Shared<MmaPair> words() const { return tile_.template as<MmaPair>(); }
  __device__ __forceinline__ A operator()(int channel, int cell) const {
    return to_accumulator(E(tile_[2 * word(cell, channel / 2) + channel % 2]));
  }

 private:
  const Images& images_;
  int64_t first_;
  int cells_, pitch_;
  Shared<E> tile_;
  Shared<int64_t> offsets_;
};

// A warp's share of a product: kTaskTiles tiles of rows from first_tile on, kTaskCells cells from first_cell on.
struct MmaTask {
  int first_tile, first_cell;

  // The cells, up to `last`, whose columns of B this lane brings.
  __device__ __forceinline__ int cell(int column, int last) const {
    return min(first_cell + column * kMmaColumns + int(threadIdx.x) % kWarp / 4, last);
  }
  // Calls body(row, cell, its sum, the next cell's sum) for what this lane holds of the result.
  template <class Body>
  __device__ __forceinline__ void each_sum(const float (&sum)[kTaskTiles][kTaskColumns][4],
                                           const Body& body) const {
    const int lane = int(threadIdx.x) % kWarp;
#pragma unroll
    for (int i = 0; i < kTaskTiles; ++i) {
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

// Shares a product of that many tiles of rows and cells out to the block's warps.
template <class Body>
__device__ __forceinline__ void each_task(int tiles, int cells, const Body& body) {
  const int across = (cells + kTaskCells - 1) / kTaskCells;
  const int tasks = (tiles + kTaskTiles - 1) / kTaskTiles * across;
  for (int i = int(threadIdx.x) / kWarp; i < tasks; i += kTapWarps) {
    const int down = i / across;
    body(MmaTask{down * kTaskTiles, (i - down * across) * kTaskCells});
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

// sum += the task's tiles of rows, from their first_step on, times columns of B: the words `columns` for each, and
// where each step's two slabs are from there.
template <class E, class Slabs>
__device__ __forceinline__ void add_fragments(const TapFragments<E>& a, int first_tile, int first_step,
                                              int steps, Shared<MmaPair> words,
                                              const int (&columns)[kTaskColumns], const Slabs& slabs,
                                              float (&sum)[kTaskTiles][kTaskColumns][4]) {
  const E* from = a.data + (int64_t(first_tile) * a.steps + first_step) * a.kSize;
  const int tile_size = a.steps * a.kSize, tiles = a.tiles - first_tile;
  for (int step = 0; step < steps; ++step, from += a.kSize) {
    Pack<E, 8> rows[kTaskTiles];
#pragma unroll
    for (int i = 0; i < kTaskTiles; ++i) {
      if (i < tiles) rows[i] = load<8>(from + i * tile_size);
    }
    const Pack<int, 2> slab = slabs(step);
#pragma unroll
    for (int j = 0; j < kTaskColumns; ++j) {
      const MmaPair pairs[2] = {words[columns[j] + slab[0]], words[columns[j] + slab[1]]};
#pragma unroll
      for (int i = 0; i < kTaskTiles; ++i) {
        if (i < tiles) mma<E>(sum[i][j], rows[i], pairs);
      }
    }
  }
}

// The two slabs of a step where each cell's are side by side.
__device__ __forceinline__ Pack<int, 2> adjacent_slabs(int step) { return {{8 * step, 8 * step + 4}}; }

// `inner` [cells][inner_pitch] = a result of the given rows, rounded.
template <class E>
__device__ __forceinline__ void put_inner(const TapTiles& t, const MmaTask& task,
                                          const float (&sum)[kTaskTiles][kTaskColumns][4], int rows,
                                          int cells) {
  const Shared<E> inner = shared_memory<E>(t.places.inner);
  task.each_sum(sum, [&](int row, int cell, float first, float second) __attribute__((always_inline)) {
    if (row >= rows) return;
    if (cell < cells) inner[cell * t.inner_pitch + row] = from_accumulator<E>(first);
    if (cell + 1 < cells) inner[(cell + 1) * t.inner_pitch + row] = from_accumulator<E>(second);
  });
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
                                                       const FarTile<E, TapForm::tensor>& x) {
  const TapFragments<E> a(mma, mma.reduce, group);
  each_task(a.tiles, t.far_cells, [&](const MmaTask& task) __attribute__((always_inline)) {
    int columns[kTaskColumns];
    for (int j = 0; j < kTaskColumns; ++j)
      columns[j] = x.word(task.cell(j, t.far_cells - 1), threadIdx.x % 4);
    float sum[kTaskTiles][kTaskColumns][4] = {};
    add_fragments(a, task.first_tile, 0, a.steps, x.words(), columns, adjacent_slabs, sum);
    put_inner<E>(t, task, sum, mma.rows, t.far_cells);
  });
}

// results [kMmaFilters][near_pitch] = alpha D patch of filters first .. first + kMmaFilters - 1.
template <class E>
__device__ __forceinline__ void expand_on_tensor_cores(const TapTiles& t, const DeviceTapMma& mma, int group,
                                                       int first, float alpha, Shared<float> results) {
  const TapFragments<E> a(mma, mma.expand, group);
  const Shared<int> slabs = shared_memory<int>(t.places.slabs);
  const Shared<MmaPair> inner = shared_memory<MmaPair>(t.places.inner);
  const int tiles = min(kMmaFilters / kMmaRows, a.tiles - first / kMmaRows);
  each_task(tiles, t.near_cells, [&](const MmaTask& task) __attribute__((always_inline)) {
    int columns[kTaskColumns];
    for (int j = 0; j < kTaskColumns; ++j) {
      columns[j] = far_cell_of(t, task.cell(j, t.near_cells - 1)) * (t.inner_pitch / 2) + threadIdx.x % 4;
    }
    float sum[kTaskTiles][kTaskColumns][4] = {};
    add_fragments(
        a, first / kMmaRows + task.first_tile, 0, a.steps, inner, columns,
        [&](int step) __attribute__((always_inline)) { return slabs.load<2>(2 * step); }, sum);
    task.each_sum(sum, [&](int row, int cell, float s0, float s1) __attribute__((always_inline)) {
      if (cell < t.near_cells) results.store<2>(row * t.near_pitch + cell, {{alpha * s0, alpha * s1}});
    });
  });
}

// ------------------------------------------------------------------------------------ backward

// `inner` = sum over taps and filters of U^T dy.
template <class E>
__device__ __forceinline__ void gather_on_tensor_cores(const TapTiles& t, const DeviceTapMma& mma, int group,
                                                       const FarTile<E, TapForm::tensor>& dy) {
  const TapFragments<E> a(mma, mma.gather, group);
  const int taps = t.rows.kernel * t.columns.kernel, steps = a.steps / taps;
  const Shared<int16_t> far_rows = shared_memory<int16_t>(t.places.far_rows);
  const Shared<int16_t> far_columns = shared_memory<int16_t>(t.places.far_cols);
  each_task(a.tiles, t.near_cells, [&](const MmaTask& task) __attribute__((always_inline)) {
    int image[kTaskColumns], row[kTaskColumns], column[kTaskColumns];
    for (int j = 0; j < kTaskColumns; ++j) {
      const int cell = task.cell(j, t.near_cells - 1), line = cell / t.columns.near;
      image[j] = line / t.rows.near;
      row[j] = (line - image[j] * t.rows.near) * t.rows.kernel;
      column[j] = (cell - line * t.columns.near) * t.columns.kernel;
    }
    float sum[kTaskTiles][kTaskColumns][4] = {};
    for (int tap = 0; tap < taps; ++tap) {
      const int down = tap / t.columns.kernel, across = tap - down * t.columns.kernel;
      int columns[kTaskColumns];
      for (int j = 0; j < kTaskColumns; ++j) {
        const int y = int16_t(far_rows[row[j] + down]), x = int16_t(far_columns[column[j] + across]);
        const int cell = (image[j] * t.rows.far + y) * t.columns.far + x;
        columns[j] = dy.word(y >= 0 && x >= 0 ? cell : t.far_cells, threadIdx.x % 4);
      }
      add_fragments(a, task.first_tile, tap * steps, steps, dy.words(), columns, adjacent_slabs, sum);
    }
    put_inner<E>(t, task, sum, mma.rows, t.near_cells);
  });
}

// products [2][kTapFolds][near_pitch]: the two parts of D^T dy at folded channels from first_fold on.
template <class E>
__device__ __forceinline__ void unreduce_on_tensor_cores(const TapTiles& t, const DeviceTapMma& mma,
                                                         int group, int first_fold, Shared<float> products) {
  const TapFragments<E> a(mma, mma.unreduce, group);
  const Shared<MmaPair> inner = shared_memory<MmaPair>(t.places.inner);
  const int first_tile = 2 * first_fold / kMmaRows, slabs = mma.rows / kMmaSlab;
  each_task(2 * kTapFolds / kMmaRows, t.near_cells, [&](const MmaTask& task) __attribute__((always_inline)) {
    int columns[kTaskColumns];
    for (int j = 0; j < kTaskColumns; ++j) {
      columns[j] = task.cell(j, t.near_cells - 1) * (t.inner_pitch / 2) + threadIdx.x % 4;
    }
    float sum[kTaskTiles][kTaskColumns][4] = {};
    add_fragments(
        a, first_tile + task.first_tile, 0, a.steps, inner, columns,
        [&](int step) __attribute__((always_inline)) {
          return Pack<int, 2>{
              {8 * step, 2 * step + 1 < slabs ? 8 * step + 4 : 0}};  // beyond, factors are zero
        },
        sum);
    task.each_sum(sum, [&](int row, int cell, float s0, float s1) __attribute__((always_inline)) {
      if (cell < t.near_cells) products.store<2>(row * t.near_pitch + cell, {{s0, s1}});
    });
  });
}

}  // namespace dctps
