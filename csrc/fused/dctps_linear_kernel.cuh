// The two kernels of the linear layer. A block takes a tile of rows: loads it, transforms it where it lies, stores it.
#pragma once

#include "fused/row_tile.cuh"

namespace dctps {

template <class Element_, class Output_, bool in_shared_>
struct LinearConfig {
  using Element = Element_;
  using Output = Output_;  // the element's type or the accumulator's
  using Accumulator = dctps::Accumulator<Element>;
  // Whether the rows being transformed are in shared memory; otherwise in global scratch memory.
  static constexpr bool in_shared = in_shared_;
  static constexpr int most_threads = 512;
  // What the compiler is told instead, so that it takes no more than 80 registers a thread, 128 in double and where few
  // threads run anyway.
  static constexpr int bounding_threads = sizeof(Accumulator) == 4 && in_shared ? 768 : 512;
};

// How a launch cuts the batch into tiles: rule in dctps_linear_cuda.cu.
struct LinearTiles {
  int log_rows;     // rows of a tile
  int log_threads;  // threads of a row
  int64_t tiles, blocks;
  Divisor by_chunks;  // chunks of a row of length q
  bool input_vectors, output_vectors;
  bool by_quads;  // whether the transform reads x, or writes dx, itself
};

template <class Layer>
struct LinearKernelArgs {
  Layer layer;
  DevicePlan plan;
  LinearTiles shape;
  void* scratch;  // not in_shared: [blocks][rows of a tile][slots] complex
};

// The transform's row of a tile.
template <class Config, class Layer>
__device__ __forceinline__ auto transform_row(const LinearKernelArgs<Layer>& args, int row) {
  using A = typename Config::Accumulator;
  if constexpr (Config::in_shared) {
    return SharedRow<A>(args.plan, shared_memory<A>(), row);
  } else {
    const int64_t place = (block_index() << args.shape.log_rows) + row;
    return GlobalRow<A>(static_cast<A*>(args.scratch) + 2 * place * args.plan.slots);
  }
}

// Calls body(row, i) for the chunks of a tile that are this thread's, i its first element; neighbours in a row for
// neighbouring threads. `part`: only of the first 1 / part of each row.
template <class E, class Body>
__device__ __forceinline__ void each_chunk(const LinearTiles& shape, int part, const Body& body) {
  const int chunks = int(shape.by_chunks.value) / part, count = chunks << shape.log_rows;
  for (int i = int(threadIdx.x); i < count; i += int(blockDim.x)) {
    const int row = int(shape.by_chunks.quotient(uint32_t(i * part)));
    body(row, (i - row * chunks) * kChunk<E>);
  }
}

// Stores as many results as a chunk of inputs has.
template <class Output, class A, int count>
__device__ __forceinline__ void store_results(const RowBlock<Output>& to, int row, int first,
                                              const A (&results)[count]) {
#pragma unroll
  for (int c = 0; c < count; c += kChunk<Output>) {
    Output values[kChunk<Output>];
#pragma unroll
    for (int e = 0; e < kChunk<Output>; ++e) values[e] = from_accumulator<Output>(results[c + e]);
    to.store_chunk(row, first + c, values);
  }
}

template <class Config, class Layer>
__device__ __forceinline__ auto dct_row(const LinearKernelArgs<Layer>& args) {
  const int threads = 1 << args.shape.log_threads, thread = int(threadIdx.x);
  const auto row = transform_row<Config>(args, thread >> args.shape.log_threads);
  return DctRow<typename Config::Accumulator, decltype(row)>(args.plan, row, thread & (threads - 1), threads);
}

template <class A, class Layer>
__device__ __forceinline__ A alpha_of(const Layer& layer) {
  return layer.alpha ? load(static_cast<const A*>(layer.alpha)) : A(1);
}

// How DctRow::forward takes x, and DctRow::adjoint gives dx. Everything is worked out on the spot: kept in registers while
// the passes run, it would push their values out. (No lambdas: these the compiler might call instead.)
template <class E>
struct LoadQuads {
  const LinearForwardArgs& layer;
  const LinearTiles& shape;
  int64_t tile;

  __device__ __forceinline__ void operator()(int j, Accumulator<E> (&values)[4]) const {
    RowBlock<E>(layer.x, tile << shape.log_rows, layer.rows, shape.log_rows, layer.n, shape.input_vectors)
        .load_quad(int(threadIdx.x) >> shape.log_threads, j, values);
  }
};

template <class E>  // of dx
struct StoreQuads {
  const LinearBackwardArgs& layer;
  const LinearTiles& shape;
  int64_t tile;

  __device__ __forceinline__ void operator()(int j, const Accumulator<E> (&values)[4]) const {
    const auto alpha = alpha_of<Accumulator<E>>(layer);
    RowBlock<E>(layer.dx, tile << shape.log_rows, layer.rows, shape.log_rows, layer.n, shape.output_vectors)
        .store_quad(int(threadIdx.x) >> shape.log_threads, j,
                    {alpha * values[0], alpha * values[1], alpha * values[2], alpha * values[3]});
  }
};

template <class Config>
__global__ void __launch_bounds__(Config::bounding_threads)
    linear_forward_kernel(const __grid_constant__ LinearKernelArgs<LinearForwardArgs> args) {
  using E = typename Config::Element;
  using Output = typename Config::Output;
  using A = typename Config::Accumulator;
  const auto& layer = args.layer;
  const DevicePlan& plan = args.plan;
  const LinearTiles& shape = args.shape;
  const A alpha = alpha_of<A>(layer);
  const A* bias = static_cast<const A*>(layer.bias);

  for (int64_t tile = block_index(); tile < shape.tiles; tile += shape.blocks) {
    if (tile != block_index()) sync_block();
    if (!shape.by_quads) {
      const RowBlock<E> x(layer.x, tile << shape.log_rows, layer.rows, shape.log_rows, layer.n,
                          shape.input_vectors);
      each_chunk<E>(shape, 1, [&](int row, int i) {
        E values[kChunk<E>];
        x.load_chunk(row, i, values);
        put_time_chunk(plan, transform_row<Config>(args, row), i, values);
      });
      sync_block();
    }
    dct_row<Config>(args).forward(alpha, shape.by_quads, LoadQuads<E>{layer, shape, tile});
    sync_block();
    const RowBlock<Output> y(layer.y, tile << shape.log_rows, layer.rows, shape.log_rows, layer.m,
                             shape.output_vectors);
    auto add_bias_and_store = [&](int row, int first, A(&values)[kChunk<E>]) __attribute__((always_inline)) {
      if (row >= y.rows || first >= y.length) return;
#pragma unroll
      for (int e = 0; bias && e < kChunk<E>; ++e) {
        if (first + e < y.length) values[e] += load(bias + first + e);
      }
      store_results(y, row, first, values);
    };
    if (in_pairs<E>(plan)) {
      each_chunk<E>(shape, 2, [&](int row, int first) {
        A low[kChunk<E>], high[kChunk<E>];
        get_chunk_pair(plan, transform_row<Config>(args, row), first, low, high);
        add_bias_and_store(row, first, low);
        add_bias_and_store(row, plan.length - first - kChunk<E>, high);
      });
    } else {
      each_chunk<E>(shape, 1, [&](int row, int first) {
        const auto result = transform_row<Config>(args, row);
        A values[kChunk<E>]{};
        each_frequency_part<kChunk<E>>(plan, first,
                                       [&](int e, int part) { values[e] = result.get_part(part); });
        add_bias_and_store(row, first, values);
      });
    }
  }
}

template <class Config>
__global__ void __launch_bounds__(Config::bounding_threads)
    linear_backward_kernel(const __grid_constant__ LinearKernelArgs<LinearBackwardArgs> args) {
  using E = typename Config::Element;
  using Output = typename Config::Output;
  using A = typename Config::Accumulator;
  const auto& layer = args.layer;
  const DevicePlan& plan = args.plan;
  const LinearTiles& shape = args.shape;

  for (int64_t tile = block_index(); tile < shape.tiles; tile += shape.blocks) {
    if (tile != block_index()) sync_block();
    const RowBlock<E> dy(layer.dy, tile << shape.log_rows, layer.rows, shape.log_rows, layer.m,
                         shape.input_vectors);
    if (in_pairs<E>(plan)) {
      each_chunk<E>(shape, 2, [&](int row, int first) {
        const auto low = dy.load_chunk(row, first);
        const auto high = dy.load_chunk(row, plan.length - first - kChunk<E>);
        put_chunk_pair<kChunk<E>>(plan, transform_row<Config>(args, row), first, low, high);
      });
    } else {
      each_chunk<E>(shape, 1, [&](int row, int first) {
        E values[kChunk<E>];
        dy.load_chunk(row, first, values);
        const auto start = transform_row<Config>(args, row);
        each_frequency_part<kChunk<E>>(
            plan, first, [&](int e, int part) { start.put_part(part, to_accumulator(values[e])); });
      });
    }
    sync_block();
    dct_row<Config>(args).adjoint(shape.by_quads, StoreQuads<Output>{layer, shape, tile});
    if (shape.by_quads) continue;
    sync_block();
    const A alpha = alpha_of<A>(layer);
    const RowBlock<Output> dx(layer.dx, tile << shape.log_rows, layer.rows, shape.log_rows, layer.n,
                              shape.output_vectors);
    each_chunk<E>(shape, 1, [&](int row, int first) {
      if (row >= dx.rows || first >= dx.length) return;
      A values[kChunk<E>]{};
      get_time_chunk<E>(plan, transform_row<Config>(args, row), first, values);
#pragma unroll
      for (int e = 0; e < kChunk<E>; ++e) values[e] *= alpha;
      store_results(dx, row, first, values);
    });
  }
}

}  // namespace dctps
