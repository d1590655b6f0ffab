// The kernels of a linear layer with a sparse part or sums over the batch: fused with the DCT, or given its result.
#pragma once

#include "dct/dct_kernel.cuh"
#include "fused/row_tile.cuh"
#include "sparse/sparse_kernel.cuh"

namespace dctps {

// What the kernel adds to the product with S: nothing, rows that were transformed before, or its own transform.
enum class DctPart { none, given, fused };

template <class Element, int rows_, DctPart part>
struct LayerConfig {
  using E = Element;
  using A = Accumulator<E>;
  // Rows at a time, of which a thread keeps the sums in registers; 0: one row, left in global memory.
  static constexpr int rows = rows_ ? rows_ : 1;
  static constexpr DctPart dct = part;
  using Tile = std::conditional_t<rows_ == 0, RowInPlace<E>, RowTile<E, rows>>;
  static_assert(rows_ || part != DctPart::fused,
                "LayerConfig: rows that are transformed are in shared memory");
  static constexpr int most_threads = 512;  // so that a thread has 128 registers
};

// Shared memory: the rows being transformed, the tile, what RowSums needs.
struct SharedPlaces {
  int tile, row_sums, bytes;
};

struct LayerShape {
  int log_row_threads;  // threads that transform a row
  int turns;            // of RowSums
  bool input_vectors;   // whether the tile's rows can be loaded 16 bytes at a time
  SharedPlaces places;
};

template <class E>
struct LayerForwardArgs {
  using A = Accumulator<E>;
  int64_t rows;
  int m, n;
  Rows x;
  E* y;            // [rows][m]
  const A* given;  // [rows][m]: alpha D x
  const A* alpha;  // [1]; null: 1
  const A* bias;   // [m]; null: none
  Lines<A> s_rows;
  DevicePlan plan;
  LayerShape shape;
};

template <class E>
struct LayerBackwardArgs {
  using A = Accumulator<E>;
  int64_t rows;
  int64_t chunk_rows;  // a block takes the rows of a chunk ...
  int64_t first_chunk;
  int sections;  // ... and one section of the columns
  int m, n;
  Rows dy, x;      // x: null where neither dvalues nor dalpha are wanted
  E* dx;           // [rows][n]; null: not wanted
  const A* given;  // [rows from that chunk on][n]: D^T dy
  const A* alpha;
  Lines<A> s_columns;
  // Sums of each chunk, null where not wanted.
  A* dvalues;           // at chunk * sums_stride
  A* dbias;             // likewise
  int64_t sums_stride;  // nnz + m
  double* dalpha;       // [chunks][sections]
  DevicePlan plan;
  LayerShape shape;
};

// ------------------------------------------------------------------------------------ the DCT part

template <class Config, class Args>
__device__ __forceinline__ auto shared_row(const Args& args, int row) {
  return SharedRow<typename Config::A>(args.plan, shared_memory<typename Config::A>(), row);
}

// The transform of the block's rows, each by its group of threads.
template <class Config, class Args>
__device__ __forceinline__ auto dct_rows(const Args& args) {
  const int threads = 1 << args.shape.log_row_threads, thread = int(threadIdx.x);
  const auto row = shared_row<Config>(args, thread >> args.shape.log_row_threads);
  return DctRow<typename Config::A, decltype(row)>(args.plan, row, thread & (threads - 1), threads);
}

// Element i of the rows from `first` on, as the DCT part left it: in shared memory, at a part of the row ...
template <class Config, class Args>
__device__ __forceinline__ Values<typename Config::A, Config::rows> transformed(const Args& args, int part) {
  Values<typename Config::A, Config::rows> result;
#pragma unroll
  for (int r = 0; r < Config::rows; ++r) result.of[r] = shared_row<Config>(args, r).get_part(part);
  return result;
}

// ... or in global memory, [rows][size].
template <int R, class A>
__device__ __forceinline__ Values<A, R> given(const A* data, int64_t first, int64_t end, int64_t size,
                                              int i) {
  Values<A, R> result;
#pragma unroll
  for (int r = 0; r < R; ++r) {
    if (first + r < end) result.of[r] = load<Cache::streaming>(data + (first + r) * size + i);
  }
  return result;
}

// ------------------------------------------------------------------------------------ forward

template <class Config>
__global__ void __launch_bounds__(Config::most_threads, 1)
    layer_forward_kernel(const __grid_constant__ LayerForwardArgs<typename Config::E> args) {
  using E = typename Config::E;
  using A = typename Config::A;
  constexpr int R = Config::rows;
  const int64_t first = block_index() * R;
  if (first >= args.rows) return;

  typename Config::Tile x(shared_memory<E>(args.shape.places.tile), args.n);
  const RowBlock<E> from(args.x, first, args.rows, Config::Tile::kLogRows, args.n, args.shape.input_vectors);
  if constexpr (Config::dct == DctPart::fused) {
    x.fill(from, args.plan.length, [&](int i, const E(&in)[R][kChunk<E>]) {
#pragma unroll
      for (int r = 0; r < R; ++r) put_time_chunk(args.plan, shared_row<Config>(args, r), i, in[r]);
    });
    sync_block();
    dct_rows<Config>(args).forward(args.alpha ? load(args.alpha) : A(1), false, [](int, A(&)[4]) {});
    sync_block();
  } else if (args.s_rows.entries) {
    x.fill(from, 0, [](int, const auto&) {});
    sync_block();
  }

  for_each_line(0, args.m, [&](int k) {
    Values<A, R> y;
    if (args.s_rows.entries) {
      NoEach each;
      y = line_product<R>(args.s_rows, k, args.m, x, each);
    }
    if (k >= args.m) return;
    if constexpr (Config::dct != DctPart::none) {
      Values<A, R> dct;
      if constexpr (Config::dct == DctPart::fused)
        dct = transformed<Config>(args, frequency_part(args.plan, k));
      if constexpr (Config::dct == DctPart::given) dct = given<R>(args.given, first, args.rows, args.m, k);
#pragma unroll
      for (int r = 0; r < R; ++r) y.of[r] += dct.of[r];
    }
    const A bias = args.bias ? load(args.bias + k) : A(0);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if (first + r >= args.rows) break;
      store<Cache::streaming>(args.y + (first + r) * args.m + k, from_accumulator<E>(y.of[r] + bias));
    }
  });
}

// ------------------------------------------------------------------------------------ backward

template <class Config>
__global__ void __launch_bounds__(Config::most_threads, 1)
    layer_backward_kernel(const __grid_constant__ LayerBackwardArgs<typename Config::E> args) {
  using E = typename Config::E;
  using A = typename Config::A;
  constexpr int R = Config::rows;
  const int64_t part = args.first_chunk * args.sections + block_index(), chunk = part / args.sections;
  const int64_t first_row = chunk * args.chunk_rows, end_row = min(args.rows, first_row + args.chunk_rows);
  if (first_row >= end_row) return;
  // A section is whole warps' worth of columns, so that the lanes' columns stay side by side.
  const int section = int(part - chunk * args.sections), warps = (args.n + kWarp - 1) / kWarp;
  const int begin = int(int64_t(warps) * section / args.sections) * kWarp;
  const int end = min(args.n, int(int64_t(warps) * (section + 1) / args.sections) * kWarp);

  typename Config::Tile dy(shared_memory<E>(args.shape.places.tile), args.m);
  const A alpha = args.alpha ? load(args.alpha) : A(1);
  const int64_t given_row = args.first_chunk * args.chunk_rows;
  double dalpha = 0;

  for (int64_t first = first_row; first < end_row; first += R) {
    const bool fresh = first == first_row;
    const RowBlock<E> from(args.dy, first, end_row, Config::Tile::kLogRows, args.m, args.shape.input_vectors);
    if constexpr (Config::dct == DctPart::fused) {
      dy.fill(from, args.plan.length, [&](int i, const E(&in)[R][kChunk<E>]) {
        each_frequency_part<kChunk<E>>(args.plan, i, [&](int e, int place) {
#pragma unroll
          for (int r = 0; r < R; ++r) shared_row<Config>(args, r).put_part(place, to_accumulator(in[r][e]));
        });
      });
      sync_block();
      dct_rows<Config>(args).adjoint(false, [](int, const A(&)[4]) {});
    } else {
      dy.fill(from, 0, [](int, const auto&) {});
    }
    sync_block();

    EntryGradients<A, R> gradients(args.dvalues ? args.dvalues + chunk * args.sums_stride : nullptr, fresh);
    RowSums<A, R> row_sums;
    int turn = 0;
    for_each_line(begin, end, [&](int i) {
      Values<A, R> x, dct, dx;
      if (i < end && args.x.data) {
#pragma unroll
        for (int r = 0; r < R; ++r) {
          if (first + r >= end_row) break;
          x.of[r] = to_accumulator(load<Cache::streaming>(
              static_cast<const E*>(args.x.data) + (first + r) * args.x.row_stride + i * args.x.stride));
        }
      }
      if (args.s_columns.entries) {
        if (args.dvalues) {
          gradients.set(x);
          dx = line_product<R>(args.s_columns, i, end, dy, gradients);
        } else {
          NoEach each;
          dx = line_product<R>(args.s_columns, i, end, dy, each);
        }
      }
      if constexpr (Config::dct != DctPart::none) {
        if (i < end) {
          if constexpr (Config::dct == DctPart::fused)
            dct = transformed<Config>(args, time_part<true>(args.plan, i));
          if constexpr (Config::dct == DctPart::given)
            dct = given<R>(args.given, first - given_row, end_row - given_row, args.n, i);
        }
        if (args.dalpha) {
          row_sums.add(turn, dct, x);
          if (++turn == args.shape.turns) turn = 0;
        }
      }
      if (i >= end || !args.dx) return;
#pragma unroll
      for (int r = 0; r < R; ++r) {
        if (first + r >= end_row) break;
        const A value = Config::dct == DctPart::none ? dx.of[r] : fma(alpha, dct.of[r], dx.of[r]);
        store<Cache::streaming>(args.dx + (first + r) * args.n + i, from_accumulator<E>(value));
      }
    });
    if (args.dbias && section == 0) add_rows(args.m, dy, args.dbias + chunk * args.sums_stride, fresh);
    if (args.dalpha) row_sums.finish(args.shape.turns, shared_memory<A>(args.shape.places.row_sums), dalpha);
    if (!args.dalpha && first + R < end_row) sync_block();  // before the tile is filled again
  }
  if (args.dalpha && threadIdx.x == 0) store(args.dalpha + part, dalpha);
}

}  // namespace dctps
