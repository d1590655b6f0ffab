// The two kernels of a convolution in the tap form. A block makes a rectangle of pixels of all channels of one group from
// the pixels that its taps see, which it loads once; no patch is ever formed.
#pragma once

#include "patch/tap_mma.cuh"
#include "patch/tap_tile.cuh"

namespace dctps {

template <class Element, TapForm form_>
struct TapConfig {
  using E = Element;
  using A = Accumulator<E>;
  static constexpr TapForm form = form_;
  static constexpr int filters = form == TapForm::tensor ? kMmaFilters : kTapFilters;  // at a time
  using Tile = FarTile<E, form>;
  // Forward, products on tensor cores take cells side by side.
  using ForwardTile = FarTile<E, form == TapForm::tensor ? TapForm::in_shared : form>;
  static_assert(form != TapForm::tensor || sizeof(E) == 2, "tensor cores multiply 16-bit types");
};

template <class E>
struct TapForwardArgs {
  using A = Accumulator<E>;
  Images x, y;
  int channels, filters, groups;  // channels, filters of a group
  const A* alpha;                 // [1]; null: no DCT part
  const A* bias;                  // [m]; null: none
  int64_t nnz;
  const int32_t *crow, *col;
  const A* values;
  DeviceTapPlan plan;
  TapTiles tiles;
};

template <class E>
struct TapBackwardArgs {
  using A = Accumulator<E>;
  Images dy, x, dx;  // x.data, dx.data: null where not wanted
  int channels, filters, groups;
  const A* alpha;  // null: no DCT part, or one that nothing asks for
  int64_t nnz;
  const int32_t *ccol, *row;  // S by columns
  const A* values;            // [nnz] in that order
  // Sums of each chunk of tiles, null where not wanted.
  int64_t chunk_tiles;
  A* dvalues;      // [chunks][nnz], in the order of columns
  double* dalpha;  // [chunks][groups]
  DeviceTapPlan plan;
  TapTiles tiles;
};

// One group's factors. What a part is made of is loaded where it is used: kept, it would be in local memory, as which
// part a thread is at is not known when this is compiled.
template <class A>
struct TapFactors {
  const DeviceTapPart* parts;
  const A* data;
  bool is_thin;
  int second;  // row of `inner` where the second part begins

  __device__ TapFactors(const DeviceTapPlan& plan, int group)
      : parts(plan.parts + 2 * group), data(static_cast<const A*>(plan.factors)), second(padded_rank(0)) {
    is_thin = second > 0;
  }
  __device__ __forceinline__ int rank(int p) const { return load(&parts[p].rank); }
  __device__ __forceinline__ int depth(int p) const { return load(&parts[p].depth); }
  __device__ __forceinline__ int padded_rank(int p) const {
    return (rank(p) + kTapRows - 1) / kTapRows * kTapRows;
  }
  __device__ __forceinline__ int inner_rows() const { return second + padded_rank(1); }
  __device__ __forceinline__ const A* reduce(int p) const { return data + load(&parts[p].reduce); }
  __device__ __forceinline__ const A* unreduce(int p) const { return data + load(&parts[p].unreduce); }
  __device__ __forceinline__ const A* expand(int p) const { return data + load(&parts[p].expand); }
  __device__ __forceinline__ const A* unexpand(int p) const { return data + load(&parts[p].unexpand); }
};

// ------------------------------------------------------------------------------------ forward

// Channels c and C-1-c of four cells, added or subtracted.
template <class A, class Tile>
__device__ __forceinline__ Quad<A> folded(const Tile& x, int channels, int c, int cell, A sign) {
  Quad<A> low = x.quad(c, cell);
  const Quad<A> high = x.quad(channels - 1 - c, cell);
#pragma unroll
  for (int e = 0; e < kQuad; ++e) low.of[e] = fma(sign, high.of[e], low.of[e]);
  return low;
}

// The transform of a tile's pixels, as far as the filters share it.
template <class A, class Tile>
__device__ __forceinline__ void reduce(const TapTiles& t, const TapFactors<A>& factors, int channels,
                                       const Tile& x, Shared<A> inner) {
  each_block(factors.inner_rows(), t.far_pitch, [&](int row, int cell) __attribute__((always_inline)) {
    const int p = row >= factors.second, first = p ? row - factors.second : row;
    const A sign = p ? A(-1) : A(1);
    A sum[kTapRows][kQuad] = {};
    add_product(
        factors.reduce(p) + first, factors.padded_rank(p), factors.depth(p),
        [&](int c) __attribute__((always_inline)) { return folded(x, channels, c, cell, sign); }, sum);
#pragma unroll
    for (int r = 0; r < kTapRows; ++r) put_quad(inner, (row + r) * t.far_pitch + cell, sum[r]);
  });
}

// z [count][re, im][far_pitch] of filters first .. first + count - 1, in whole kTapRows.
template <class A, class Tile>
__device__ __forceinline__ void expand(const TapTiles& t, const TapFactors<A>& factors,
                                       const DeviceTapPlan& plan, int channels, const Tile& x,
                                       Shared<A> inner, int first, int count, Shared<A> z) {
  const int rows = (count + kTapRows - 1) / kTapRows * kTapRows;
  each_block(2 * rows, t.far_pitch, [&](int row, int cell) __attribute__((always_inline)) {
    const int p = row >= rows, filter = p ? row - rows : row;
    const A* const table = factors.expand(p) + first + filter;
    A sum[kTapRows][kQuad] = {};
    if (factors.is_thin) {
      const int begin = p ? factors.second : 0;
      add_product(
          table, plan.filter_rows, factors.rank(p),
          [&](int i)
              __attribute__((always_inline)) { return get_quad(inner, (begin + i) * t.far_pitch + cell); },
          sum);
    } else {
      const A sign = p ? A(-1) : A(1);
      add_product(
          table, plan.filter_rows, factors.depth(p),
          [&](int c) __attribute__((always_inline)) { return folded(x, channels, c, cell, sign); }, sum);
    }
#pragma unroll
    for (int r = 0; r < kTapRows; ++r) put_quad(z, (2 * (filter + r) + p) * t.far_pitch + cell, sum[r]);
  });
}

// results [count][near_pitch] (+)= S patch + bias: a warp for each filter, its lanes side by side along the near cells.
template <class E, class Tile>
__device__ __forceinline__ void add_sparse_and_bias(const TapForwardArgs<E>& args, const Tile& x, int first,
                                                    int count, Shared<Accumulator<E>> results) {
  using A = Accumulator<E>;
  const TapTiles& t = args.tiles;
  const int lane = int(threadIdx.x) % kWarp;
  const Shared<int16_t> first_cells = shared_memory<int16_t>(t.places.first_cells);
  int far_cell[kLaneCells];  // of the tap (0, 0)
#pragma unroll
  for (int i = 0; i < kLaneCells; ++i) {
    const int cell = lane + i * kWarp;
    far_cell[i] = cell < t.near_cells ? int16_t(first_cells[cell]) : 0;
  }
  for (int f = int(threadIdx.x) / kWarp; f < count; f += kTapWarps) {
    const int64_t row = first + f;
    A sum[kLaneCells];
    const A bias = shuffle(args.bias && lane == 0 ? load(args.bias + row) : A(0), 0);
#pragma unroll
    for (int i = 0; i < kLaneCells; ++i) {
      const int cell = lane + i * kWarp;
      sum[i] = args.alpha && cell < t.near_cells ? bias + A(results[f * t.near_pitch + cell]) : bias;
    }
    const int32_t limit = args.nnz && lane < 2 ? load(args.crow + row + lane) : 0;
    const int32_t end = shuffle(limit, 1);
    for (int32_t begin = shuffle(limit, 0); begin < end; begin += kWarp) {
      int channel = 0, shift = 0;
      A value = 0;
      if (begin + lane < end) {
        const int column = load(args.col + begin + lane), tap = column / args.channels;
        const int a = tap / t.columns.kernel;
        channel = column - tap * args.channels;
        shift = a * t.rows.dilation * t.columns.far + (tap - a * t.columns.kernel) * t.columns.dilation;
        value = load(args.values + begin + lane);
      }
      for (int e = 0; e < min(kWarp, end - begin); ++e) {
        const int entry_channel = shuffle(channel, e), entry_shift = shuffle(shift, e);
        const A entry_value = shuffle(value, e);
#pragma unroll
        for (int i = 0; i < kLaneCells; ++i) {
          if (i * kWarp < t.near_cells)
            sum[i] = fma(entry_value, x(entry_channel, entry_shift + far_cell[i]), sum[i]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kLaneCells; ++i) {
      const int cell = lane + i * kWarp;
      if (cell < t.near_cells) results[f * t.near_pitch + cell] = sum[i];
    }
  }
}

template <class Config>
__global__ void __launch_bounds__(kTapThreads, 2)
    tap_forward_kernel(const __grid_constant__ TapForwardArgs<typename Config::E> args) {
  using E = typename Config::E;
  using A = typename Config::A;
  const TapTiles& t = args.tiles;
  const int64_t tile = block_index() / args.groups;
  const int group = int(block_index() - tile * args.groups);
  if (tile >= t.tiles) return;

  const Shared<int64_t> near_offsets = shared_memory<int64_t>(t.places.near_offsets);
  place_far_cells(t, TapPosition(t, tile), args.x);
  place_near_cells(t, TapPosition(t, tile), args.y, near_offsets);
  sync_block();
  const typename Config::ForwardTile x(t, args.x, int64_t(group) * args.channels);
  x.fill(args.channels);
  sync_block();

  const Shared<A> inner = shared_memory<A>(t.places.inner), z = shared_memory<A>(t.places.combined),
                  results = shared_memory<A>(t.places.results);
  const TapWeights<A> weights(t);
  const A alpha = args.alpha ? load(args.alpha) : A(0);
  const int64_t first_filter = int64_t(group) * args.filters;
  if constexpr (Config::form == TapForm::tensor) {
    place_slabs(t, args.plan.mma);
    reduce_on_tensor_cores<E>(t, args.plan.mma, group, args.channels);
    sync_block();
  } else if (args.alpha) {
    const TapFactors<A> factors(args.plan, group);
    if (factors.is_thin) {
      reduce(t, factors, args.channels, x, inner);
      sync_block();
    }
  }
  for (int f = 0; f < args.filters; f += Config::filters) {
    const int count = min(Config::filters, args.filters - f);
    if constexpr (Config::form == TapForm::tensor) {
      expand_on_tensor_cores<E>(t, args.plan.mma, group, f, alpha, results);
      sync_block();
    } else if (args.alpha) {
      weights.fill(args.plan, first_filter + f, count);
      expand(t, TapFactors<A>(args.plan, group), args.plan, args.channels, x, inner, f, count, z);
      sync_block();
      combine(t, weights, count, z, alpha, results);
      sync_block();
    }
    if (args.nnz || args.bias || !args.alpha) {
      add_sparse_and_bias(args, x, int(first_filter) + f, count, results);
      sync_block();
    }
    store_cells<E>(args.y, near_offsets, t.near_cells, t.near_pitch, {first_filter + f, 1, count}, results);
    // By taps without tensor cores there are two more before `results` is in use again.
    if (Config::form == TapForm::tensor || !args.alpha) sync_block();
  }
}

// ------------------------------------------------------------------------------------ backward

// What all filters add to kTapRows rows of each thread: to `inner` of a thin product, else to the products of folded
// channels first_fold .. first_fold + kTapFolds - 1.
template <class E, class Tile>
__device__ __forceinline__ void gather(const TapBackwardArgs<E>& args, int group, const Tile& dy,
                                       int first_fold, Shared<Accumulator<E>> z, Shared<Accumulator<E>> to) {
  using A = Accumulator<E>;
  const TapTiles& t = args.tiles;
  const TapWeights<A> weights(t);
  for (int f = 0; f < args.filters; f += kTapFilters) {
    const int count = min(kTapFilters, args.filters - f);
    weights.fill(args.plan, int64_t(group) * args.filters + f, count);
    sync_block();
    spread(t, weights, f, count, dy, z);
    sync_block();
    const TapFactors<A> factors(args.plan, group);
    const int rows = factors.is_thin ? factors.inner_rows() : 2 * kTapFolds;
    const int second = factors.is_thin ? factors.second : kTapFolds;
    each_block(rows, t.near_pitch, [&](int row, int cell) __attribute__((always_inline)) {
      const int p = row >= second, first = p ? row - second : row;
      const int pitch = factors.is_thin ? factors.padded_rank(p) : args.plan.fold_rows;
      A sum[kTapRows][kQuad] = {};
      if (f > 0) {
#pragma unroll
        for (int r = 0; r < kTapRows; ++r) {
          const Quad<A> before = get_quad(to, (row + r) * t.near_pitch + cell);
#pragma unroll
          for (int e = 0; e < kQuad; ++e) sum[r][e] = before.of[e];
        }
      }
      add_product(
          factors.unexpand(p) + int64_t(f) * pitch + first + first_fold, pitch, count,
          [&](int k)
              __attribute__((always_inline)) { return get_quad(z, (2 * k + p) * t.near_pitch + cell); },
          sum);
#pragma unroll
      for (int r = 0; r < kTapRows; ++r) put_quad(to, (row + r) * t.near_pitch + cell, sum[r]);
    });
  }
}

// products [2][kTapFolds][near_pitch]: the two parts of D^T dy at folded channels from first_fold on.
template <class A>
__device__ __forceinline__ void unreduce(const TapTiles& t, const TapFactors<A>& factors,
                                         const DeviceTapPlan& plan, int first_fold, Shared<A> inner,
                                         Shared<A> products) {
  each_block(2 * kTapFolds, t.near_pitch, [&](int row, int cell) __attribute__((always_inline)) {
    const int p = row >= kTapFolds, fold = p ? row - kTapFolds : row, begin = p ? factors.second : 0;
    A sum[kTapRows][kQuad] = {};
    add_product(
        factors.unreduce(p) + first_fold + fold, plan.fold_rows, factors.rank(p),
        [&](int i)
            __attribute__((always_inline)) { return get_quad(inner, (begin + i) * t.near_pitch + cell); },
        sum);
#pragma unroll
    for (int r = 0; r < kTapRows; ++r) put_quad(products, (row + r) * t.near_pitch + cell, sum[r]);
  });
}

// One channel of a tile: a warp's work, its lanes side by side along the near cells.
template <class E>
struct ChannelCells {
  using A = Accumulator<E>;
  A x[kLaneCells], dx[kLaneCells];
  int16_t row[kLaneCells], column[kLaneCells];  // near ones; -1: no such cell
};

// dx += S^T dy of `channel`, and its entries' gradients.
template <class E, class Tile>
__device__ __forceinline__ void add_sparse_column(const TapBackwardArgs<E>& args, int group, int channel,
                                                  const Tile& dy, Accumulator<E>* dvalues, bool fresh,
                                                  ChannelCells<E>& cells) {
  using A = Accumulator<E>;
  const TapTiles& t = args.tiles;
  const int lane = int(threadIdx.x) % kWarp, taps = t.rows.kernel * t.columns.kernel;
  const int first_filter = group * args.filters;
  const Shared<int16_t> far_rows = shared_memory<int16_t>(t.places.far_rows);
  const Shared<int16_t> far_columns = shared_memory<int16_t>(t.places.far_cols);
  for (int first_tap = 0; first_tap < taps; first_tap += kWarp) {
    int32_t begin = 0, end = 0;  // of the tap that is this lane's
    if (first_tap + lane < taps) {
      const int32_t* const start = args.ccol + int64_t(first_tap + lane) * args.channels + channel;
      begin = load(start), end = load(start + 1);
    }
    unsigned pending = ballot(begin < end);
    for (int owner = 0; pending; ++owner, pending >>= 1) {
      if (!(pending & 1)) continue;
      const int tap = first_tap + owner, a = tap / t.columns.kernel, b = tap - a * t.columns.kernel;
      int far_cell[kLaneCells];
#pragma unroll
      for (int i = 0; i < kLaneCells; ++i) {
        far_cell[i] = -1;
        if (cells.row[i] < 0) continue;
        const int image = cells.row[i] / t.rows.near;
        const int row = int16_t(far_rows[(cells.row[i] - image * t.rows.near) * t.rows.kernel + a]);
        const int column = int16_t(far_columns[cells.column[i] * t.columns.kernel + b]);
        if (row >= 0 && column >= 0) far_cell[i] = (image * t.rows.far + row) * t.columns.far + column;
      }
      const int32_t last = shuffle(end, owner);
      for (int32_t first = shuffle(begin, owner); first < last; first += kWarp) {
        int filter = -1;
        A value = 0, gradient = 0;
        if (first + lane < last) {
          filter = load(args.row + first + lane) - first_filter;
          if (args.values) value = load(args.values + first + lane);
        }
        const bool is_ours = filter >= 0 && filter < args.filters;  // of this group
        unsigned ours = ballot(is_ours);
        for (int e = 0; ours; ++e, ours >>= 1) {
          if (!(ours & 1)) continue;
          const int entry_filter = shuffle(filter, e);
          const A entry_value = shuffle(value, e);
          A product = 0;
#pragma unroll
          for (int i = 0; i < kLaneCells; ++i) {
            if (far_cell[i] < 0) continue;
            const A v = dy(entry_filter, far_cell[i]);
            cells.dx[i] = fma(entry_value, v, cells.dx[i]);
            product = fma(cells.x[i], v, product);
          }
          if (dvalues) {
            for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) product += shuffle_xor(product, lanes);
            if (lane == e) gradient = product;
          }
        }
        if (dvalues && is_ours) {
          A* const sum = dvalues + first + lane;
          store(sum, fresh ? gradient : load(sum) + gradient);
        }
      }
    }
  }
}

// From the two parts of D^T dy to dx, in their place, with S^T dy; what the tile adds to dalpha and dvalues.
template <class E, class Tile>
__device__ __forceinline__ void finish_channels(const TapBackwardArgs<E>& args, int group, int first_fold,
                                                int folds, const Tile& dy, Accumulator<E> alpha,
                                                Accumulator<E>* dvalues, bool fresh, double& dalpha) {
  using A = Accumulator<E>;
  const TapTiles& t = args.tiles;
  const int lane = int(threadIdx.x) % kWarp;
  const Shared<A> products = shared_memory<A>(t.places.results);
  const Shared<E> x = shared_memory<E>(t.places.x);
  const Shared<int64_t> near_offsets = shared_memory<int64_t>(t.places.near_offsets);
  ChannelCells<E> cells;
#pragma unroll
  for (int i = 0; i < kLaneCells; ++i) {
    const int cell = lane + i * kWarp, line = cell / t.columns.near;
    const bool is_there = cell < t.near_cells && int64_t(near_offsets[cell]) >= 0;
    cells.row[i] = int16_t(is_there ? line : -1);
    cells.column[i] = int16_t(cell - line * t.columns.near);
  }
  // A channel and the one that it was folded with are the same warp's, one after the other.
  for (int i = int(threadIdx.x) / kWarp; i < folds; i += kTapWarps) {
    const int fold = first_fold + i, mirrored = args.channels - 1 - fold;
    const bool is_middle = fold == mirrored;  // folded onto itself
    A even[kLaneCells], odd[kLaneCells];
#pragma unroll
    for (int c = 0; c < kLaneCells; ++c) {
      even[c] = odd[c] = 0;
      if (!args.alpha || cells.row[c] < 0) continue;
      const int place = i * t.near_pitch + lane + c * kWarp;
      even[c] = products[place];
      odd[c] = is_middle ? even[c] : A(products[place + kTapFolds * t.near_pitch]);
    }
    for (int side = 0; side < (is_middle ? 1 : 2); ++side) {
      const int rows = (side ? kTapFolds + i : i) * t.near_pitch;
      A sum = 0;
#pragma unroll
      for (int c = 0; c < kLaneCells; ++c) {
        const bool is_there = cells.row[c] >= 0;
        const A part = side ? even[c] - odd[c] : even[c] + odd[c];
        cells.x[c] = is_there && args.x.data ? to_accumulator(E(x[rows + lane + c * kWarp])) : A(0);
        cells.dx[c] = alpha * part;
        if (is_there) sum = fma(part, cells.x[c], sum);
      }
      if (args.dalpha) dalpha += double(sum);
      if (args.nnz) add_sparse_column<E>(args, group, side ? mirrored : fold, dy, dvalues, fresh, cells);
#pragma unroll
      for (int c = 0; c < kLaneCells; ++c) {
        if (cells.row[c] >= 0) products[rows + lane + c * kWarp] = cells.dx[c];
      }
    }
  }
}

template <class Config>
__global__ void __launch_bounds__(kTapThreads, 2)
    tap_backward_kernel(const __grid_constant__ TapBackwardArgs<typename Config::E> args) {
  using E = typename Config::E;
  using A = typename Config::A;
  const TapTiles& t = args.tiles;
  const int64_t chunk = block_index() / args.groups;
  const int group = int(block_index() - chunk * args.groups);
  const int64_t first_tile = chunk * args.chunk_tiles, end_tile = min(t.tiles, first_tile + args.chunk_tiles);
  if (first_tile >= end_tile) return;

  const typename Config::Tile dy(t, args.dy, int64_t(group) * args.filters);
  const Shared<A> inner = shared_memory<A>(t.places.inner), z = shared_memory<A>(t.places.combined),
                  products = shared_memory<A>(t.places.results);
  const Shared<E> x = shared_memory<E>(t.places.x);
  const Shared<int64_t> x_offsets = shared_memory<int64_t>(t.places.near_offsets),
                        dx_offsets = shared_memory<int64_t>(t.places.dx_offsets);
  const A alpha = args.alpha ? load(args.alpha) : A(0);
  const int folds = (args.channels + 1) / 2;
  double dalpha = 0;

  for (int64_t tile = first_tile; tile < end_tile; ++tile) {
    place_far_cells(t, TapPosition(t, tile), args.dy);
    place_near_cells(t, TapPosition(t, tile), args.x, x_offsets);
    if (args.dx.data) place_near_cells(t, TapPosition(t, tile), args.dx, dx_offsets);
    sync_block();
    dy.fill(args.filters);
    sync_block();
    bool is_thin = false;
    if constexpr (Config::form == TapForm::tensor) {
      gather_on_tensor_cores(t, args.plan.mma, group, dy);
      sync_block();
    } else if (args.alpha && TapFactors<A>(args.plan, group).is_thin) {
      is_thin = true;
      gather(args, group, dy, 0, z, inner);
      sync_block();
    }
    for (int fold = 0; fold < folds; fold += kTapFolds) {
      const int count = min(kTapFolds, folds - fold);
      const int64_t first_channel = int64_t(group) * args.channels;
      const bool has_middle = fold + count == folds && args.channels % 2;  // folded onto itself
      const ChannelRange sides[2] = {{first_channel + fold, 1, count},
                                     {first_channel + args.channels - 1 - fold, -1, count - has_middle}};
      if constexpr (Config::form == TapForm::tensor) {
        unreduce_on_tensor_cores<E>(t, args.plan.mma, group, fold, products);
      } else if (is_thin) {
        unreduce(t, TapFactors<A>(args.plan, group), args.plan, fold, inner, products);
      } else if (args.alpha) {
        gather(args, group, dy, fold, z, products);
      }
      for (int side = 0; side < 2 && args.x.data; ++side) {
        load_cells(args.x, x_offsets, t.near_pitch, sides[side], x + side * kTapFolds * t.near_pitch);
      }
      sync_block();
      finish_channels(args, group, fold, count, dy, alpha,
                      args.dvalues ? args.dvalues + chunk * args.nnz : nullptr, tile == first_tile, dalpha);
      sync_block();
      for (int side = 0; side < 2 && args.dx.data; ++side) {
        store_cells<E>(args.dx, dx_offsets, t.near_cells, t.near_pitch, sides[side],
                       products + side * kTapFolds * t.near_pitch);
      }
      sync_block();
    }
  }
  if (!args.dalpha) return;
  const Shared<double> sums = shared_memory<double>();
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) dalpha += shuffle_xor(dalpha, lanes);
  if (int(threadIdx.x) % kWarp == 0) sums[int(threadIdx.x) / kWarp] = dalpha;
  sync_block();
  if (threadIdx.x > 0) return;
  for (int w = 1; w < kTapWarps; ++w) dalpha += double(sums[w]);
  store(args.dalpha + chunk * args.groups + group, dalpha);
}

}  // namespace dctps
