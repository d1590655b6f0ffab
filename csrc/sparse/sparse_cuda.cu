// Launches the sparse kernels.
#include "sparse/sparse_cuda.h"

#include "common/launch.cuh"
#include "fused/linear_rule.h"
#include "sparse/sparse_kernel.cuh"

namespace dctps {
namespace {

constexpr int kAddUpWarps = 16;

template <class E>
constexpr int kMostRows = sizeof(E) == 8 ? 4 : 8;  // a thread keeps a few values of each in registers

// Calls body(SparseConfig<E, rows>{}).
template <class E, class Body>
void with_rows(int rows, const Body& body) {
  switch (rows) {
    case 0:
      return body(SparseConfig<E, 0>{});
    case 1:
      return body(SparseConfig<E, 1>{});
    case 2:
      return body(SparseConfig<E, 2>{});
    case 4:
      return body(SparseConfig<E, 4>{});
    case 8:
      if constexpr (kMostRows<E> >= 8) return body(SparseConfig<E, 8>{});
  }
  __builtin_unreachable();
}

// Places in CudaContext::scratch, in bytes. What holds sums over the batch is there where those are wanted.
struct BackwardScratch {
  ChunkedSums cut;
  int64_t dalpha = 0, values, sums, bytes;

  explicit BackwardScratch(const LinearBackwardArgs& args)
      : cut(args.rows, (2 * args.n + args.m) * (args.dtype == DType::f64 ? 8 : args.dtype == DType::f32 ? 4 : 2),
            args.s.nnz + args.m, args.dtype == DType::f64 ? 8 : 4, args.n) {
    const int64_t a = args.dtype == DType::f64 ? 8 : 4;
    const bool per_chunk = args.sums.dvalues || args.sums.dbias;
    values = args.sums.dalpha ? cut.chunks * cut.sections * int64_t(sizeof(double)) : 0;
    sums = values + args.s.nnz * a;
    bytes = sums + (per_chunk ? cut.chunks * (args.s.nnz + args.m) * a : 0);
  }
};

template <class E>
void forward(const LinearForwardArgs& args, const void* transformed, const CudaContext& context) {
  using A = Accumulator<E>;
  const SparseMatrix& s = args.s;
  const ForwardArgs<E> call{.rows = args.rows,
                            .m = int(args.m),
                            .n = int(args.n),
                            .x = RowsView<const E>(args.x),
                            .y = static_cast<E*>(args.y.data),
                            .transformed = static_cast<const A*>(transformed),
                            .alpha = static_cast<const A*>(args.alpha),
                            .bias = static_cast<const A*>(args.bias),
                            .s_rows = {s.nnz, s.crow, s.col, static_cast<const A*>(s.values), long_line(args.m)}};
  const int64_t row_bytes = s.nnz ? RowTile<E, 1>::bytes(call.n) : 0;
  with_rows<E>(rows_per_block(args.rows, kMostRows<E>, row_bytes, 0, true, context.limits), [&](auto config) {
    using Config = decltype(config);
    constexpr int R = Config::kTileRows;
    const int64_t shared_bytes = s.nnz ? Config::Tile::bytes(call.n) : 0;
    launch(sparse_forward_kernel<Config>, "sparse_forward",
           {ceil_div(args.rows, R), threads_for_lines(args.m), int(shared_bytes)}, context.stream, call);
  });
}

template <class E>
void backward(const LinearBackwardArgs& args, const void* transformed, const CudaContext& context) {
  using A = Accumulator<E>;
  const SparseMatrix& s = args.s;
  const BackwardScratch scratch(args);
  char* const memory = static_cast<char*>(context.scratch);
  double* const dalpha = reinterpret_cast<double*>(memory + scratch.dalpha);
  A* const values = reinterpret_cast<A*>(memory + scratch.values);
  A* const sums = reinterpret_cast<A*>(memory + scratch.sums);
  const bool per_chunk = args.sums.dvalues || args.sums.dbias || args.sums.dalpha;
  const bool wants_x = args.sums.dvalues || args.sums.dalpha;
  if (s.values && s.nnz) {
    launch(gather_values_kernel<A>, "gather_values", {ceil_div(s.nnz, 256), 256}, context.stream,
           GatherArgs<A>{s.nnz, s.perm, static_cast<const A*>(s.values), values});
  }
  BackwardArgs<E> call{
      .rows = args.rows,
      .chunk_rows = scratch.cut.chunk_rows,
      .first_chunk = 0,
      .sections = per_chunk ? scratch.cut.sections : 1,
      .m = int(args.m),
      .n = int(args.n),
      .dy = RowsView<const E>(args.dy),
      .x = RowsView<const E>(wants_x ? args.x : Rows{}),
      .dx = static_cast<E*>(args.dx.data),
      .transformed = static_cast<const A*>(transformed),
      .alpha = static_cast<const A*>(args.alpha),
      .s_columns = {s.nnz, s.ccol, s.row, s.values ? values : nullptr, long_line(args.n)},
      .dvalues = args.sums.dvalues ? sums : nullptr,
      .dbias = args.sums.dbias ? sums + s.nnz : nullptr,
      .sums_stride = s.nnz + args.m,
      .dalpha = args.sums.dalpha ? dalpha : nullptr};
  const int threads = threads_for_lines(args.n);
  const int64_t row_bytes = RowTile<E, 1>::bytes(call.m), row_sums_bytes = kWarp * kMostRows<E> * int64_t(sizeof(A));
  const int rows = rows_per_block(per_chunk ? scratch.cut.chunk_rows : args.rows, kMostRows<E>, row_bytes,
                                  row_sums_bytes, !per_chunk, context.limits);
  with_rows<E>(rows, [&](auto config) {
    using Config = decltype(config);
    constexpr int R = Config::kTileRows;
    if (!per_chunk) call.chunk_rows = R;
    const Grid grid{ceil_div(args.rows, call.chunk_rows) * call.sections, threads,
                    int(Config::Tile::bytes(call.m) + row_sums_bytes)};
    launch(args.sums.dvalues && s.nnz ? sparse_backward_kernel<Config, true> : sparse_backward_kernel<Config, false>,
           "sparse_backward", grid, context.stream, call);
  });
  if (!per_chunk) return;
  AddUpArgs<A> add_up{.chunks = scratch.cut.chunks,
                      .entries = s.nnz,
                      .m = args.m,
                      .sums = sums,
                      .perm = s.perm,
                      .dvalues = static_cast<A*>(args.sums.dvalues),
                      .dbias = static_cast<A*>(args.sums.dbias),
                      .dalpha_parts = scratch.cut.chunks * scratch.cut.sections,
                      .parts = dalpha,
                      .dalpha = args.sums.dalpha};
  launch(add_up_kernel<A>, "add_up",
         {ceil_div(s.nnz + args.m, kWarp) + 1, kAddUpWarps * kWarp, kAddUpWarps * kWarp * int(sizeof(A))},
         context.stream, add_up);
}

}  // namespace

void sparse_forward_cuda(const LinearForwardArgs& args, const void* transformed, const CudaContext& context) {
  dispatch(args.dtype, [&](auto element) { forward<decltype(element)>(args, transformed, context); });
}

int64_t sparse_backward_scratch(const LinearBackwardArgs& args) { return BackwardScratch(args).bytes; }

void sparse_backward_cuda(const LinearBackwardArgs& args, const void* transformed, const CudaContext& context) {
  dispatch(args.dtype, [&](auto element) { backward<decltype(element)>(args, transformed, context); });
}

}  // namespace dctps
