// Launches the kernels of linear layers with a sparse part or sums over the batch, fused with the DCT or behind it.
#include "fused/layer_cuda.h"

#include <algorithm>

#include "common/integers.h"
#include "common/launch.cuh"
#include "fused/layer_kernel.cuh"
#include "fused/linear_rule.h"

namespace dctps {
namespace {

// Where the next part of a piece of memory may begin.
constexpr int64_t align(int64_t bytes) { return round_up(bytes, 16); }

// Of what the DCT part leaves for the second pass, where that cannot lie in the output: so much at a time, which a
// large GPU's L2 holds.
constexpr int64_t kSlabBytes = int64_t(32) << 20;

template <class E>
constexpr int kMostRows = sizeof(E) == 8 ? 4 : 8;  // a thread keeps a few values of each in registers
int64_t most_rows(DType dtype) { return dtype == DType::f64 ? kMostRows<double> : kMostRows<float>; }

int64_t tile_bytes(DType dtype, int64_t size) {
  int64_t result = 0;
  dispatch(dtype, [&](auto element) { result = RowTile<decltype(element), 1>::bytes(int(size)); });
  return result;
}

bool takes_transform(const LinearBackwardArgs& args) {
  return args.has_dct && (args.dx.data || args.sums.dalpha);
}
bool sums_batch(const LinearBackwardArgs& args) {
  return args.sums.dvalues || args.sums.dalpha || args.sums.dbias;
}

LayerRule forward_rule(const LinearForwardArgs& args, const DeviceLimits& limits) {
  const int64_t e = element_bytes(args.dtype), a = accumulator_bytes(args.dtype),
                q = std::max(args.m, args.n);
  const DevicePlan plan = args.has_dct ? device_plan_layout(q) : DevicePlan{};
  return LayerRule({.rows = args.rows,
                    .size = q,
                    .most_rows = most_rows(args.dtype),
                    .tile_bytes = args.s.nnz || args.has_dct ? tile_bytes(args.dtype, args.n) : 0,
                    .transform_bytes = args.has_dct ? 2 * a * plan.slots : 0,
                    .transform_points = plan.size,
                    .extra_bytes = 0,
                    .fused_bytes = (args.n + args.m) * e,
                    .separate_bytes = 2 * (args.n * e + args.m * a) + args.m * e,
                    .csr_bytes = args.s.nnz * (4 + a) + args.m * 4,
                    .rows_in_turn = 0,
                    .blocks = 0,
                    .can_fuse = true},
                   limits);
}

ChunkedSums chunked_sums(const LinearBackwardArgs& args) {
  return ChunkedSums(args.rows, (2 * args.n + args.m) * element_bytes(args.dtype),
                     (args.s.nnz + args.m) * accumulator_bytes(args.dtype), args.n);
}

LayerRule backward_rule(const LinearBackwardArgs& args, const DeviceLimits& limits) {
  const int64_t e = element_bytes(args.dtype), a = accumulator_bytes(args.dtype),
                q = std::max(args.m, args.n);
  const bool transforms = takes_transform(args), has_sums = sums_batch(args);
  const DevicePlan plan = transforms ? device_plan_layout(q) : DevicePlan{};
  const ChunkedSums cut = chunked_sums(args);
  const int64_t x_bytes = args.sums.dvalues || args.sums.dalpha ? args.n * e : 0;
  const int64_t dx_bytes = args.dx.data ? args.n * e : 0;
  return LayerRule({.rows = args.rows,
                    .size = q,
                    .most_rows = most_rows(args.dtype),
                    .tile_bytes = tile_bytes(args.dtype, args.m),
                    .transform_bytes = transforms ? 2 * a * plan.slots : 0,
                    .transform_points = plan.size,
                    .extra_bytes = args.sums.dalpha ? kRowSumsValues * a + 16 : 0,
                    .fused_bytes = args.m * e + x_bytes + dx_bytes,
                    .separate_bytes = 2 * (args.m * e + args.n * a) + x_bytes + dx_bytes,
                    .csr_bytes = args.s.nnz * (4 + a + (args.sums.dvalues ? 2 * a : 0)) + args.n * 4,
                    .rows_in_turn = has_sums ? cut.chunk_rows : 0,
                    .blocks = cut.chunks * cut.sections,
                    .can_fuse = !has_sums || cut.sections == 1},
                   limits);
}

// Places in CudaContext::scratch, in bytes.
struct ForwardScratch {
  int64_t slab = 0, slab_rows, bytes;

  ForwardScratch(const LinearForwardArgs& args, const LayerRule& rule, const DeviceLimits& limits)
      : slab_rows(args.rows), bytes(0) {
    if (!args.has_dct || rule.fused) return;
    bytes = slab = align(dct_forward_scratch(args, limits));
    const int64_t row_bytes = args.m * accumulator_bytes(args.dtype);
    if (element_bytes(args.dtype) == accumulator_bytes(args.dtype)) return;  // y itself
    slab_rows = std::min(args.rows, std::max<int64_t>(kSlabBytes / row_bytes, 1));
    bytes += slab_rows * row_bytes;
  }
};

struct BackwardScratch {
  ChunkedSums cut;
  int64_t slab = 0, slab_rows, dalpha, values, sums, bytes;
  bool in_dx = false;  // the slab

  BackwardScratch(const LinearBackwardArgs& args, const LayerRule& rule, const DeviceLimits& limits)
      : cut(chunked_sums(args)), slab_rows(args.rows), bytes(0) {
    const int64_t a = accumulator_bytes(args.dtype);
    if (!sums_batch(args)) {
      cut.sections = 1;
      cut.chunk_rows = std::max(rule.rows, 1);
      cut.chunks = ceil_div(args.rows, cut.chunk_rows);
    }
    if (takes_transform(args) && !rule.fused) {
      bytes = slab = align(dct_backward_scratch(args, limits));
      in_dx = args.dx.data && element_bytes(args.dtype) == a;
      if (!in_dx) {
        const int64_t chunks = kSlabBytes / (args.n * a * cut.chunk_rows);
        slab_rows = std::min(args.rows, std::max<int64_t>(chunks, 1) * cut.chunk_rows);
        bytes += align(slab_rows * args.n * a);
      }
    }
    dalpha = bytes;
    bytes += args.sums.dalpha ? align(cut.chunks * cut.sections * int64_t(sizeof(double))) : 0;
    values = bytes;
    bytes += align(args.s.nnz * a);
    sums = bytes;
    bytes += args.sums.dvalues || args.sums.dbias ? cut.chunks * (args.s.nnz + args.m) * a : 0;
  }
};

// Calls body(LayerConfig<E, rows, part>{}).
template <class E, DctPart part, class Body>
void with_rows(int rows, const Body& body) {
  switch (rows) {
    case 0:
      if constexpr (part != DctPart::fused) return body(LayerConfig<E, 0, part>{});
      break;
    case 1:
      return body(LayerConfig<E, 1, part>{});
    case 2:
      return body(LayerConfig<E, 2, part>{});
    case 4:
      return body(LayerConfig<E, 4, part>{});
    case 8:
      if constexpr (kMostRows<E> >= 8) return body(LayerConfig<E, 8, part>{});
      break;
  }
  __builtin_unreachable();
}
template <class E, class Body>
void with_config(const LayerRule& rule, bool has_dct, const Body& body) {
  if (!has_dct) return with_rows<E, DctPart::none>(rule.rows, body);
  if (rule.fused) return with_rows<E, DctPart::fused>(rule.rows, body);
  with_rows<E, DctPart::given>(rule.rows, body);
}

// The shape of a block whose tile has rows of `size` elements.
template <class Config>
LayerShape layer_shape(const LayerRule& rule, const DevicePlan& plan, const Rows& input, int64_t rows,
                       DType dtype, int64_t tile_bytes, bool sums_rows) {
  using A = typename Config::A;
  const int64_t transform =
      Config::dct == DctPart::fused ? Config::rows * plan.slots * 2 * int64_t(sizeof(A)) : 0;
  const int64_t tile = align(transform), row_sums = align(tile + tile_bytes);
  const int64_t bytes = row_sums + (sums_rows ? kRowSumsValues * int64_t(sizeof(A)) : 0);
  return {.log_row_threads = rule.log_row_threads,
          .turns = rule.turns,
          .input_vectors = takes_vectors(input, rows, element_bytes(dtype)),
          .places = {.tile = int(tile), .row_sums = int(row_sums), .bytes = int(bytes)}};
}

// ------------------------------------------------------------------------------------ forward

template <class E>
void launch_forward(const LinearForwardArgs& args, const void* given, const LayerRule& rule,
                    const CudaContext& context) {
  using A = Accumulator<E>;
  const SparseMatrix& s = args.s;
  with_config<E>(rule, args.has_dct, [&](auto config) {
    using Config = decltype(config);
    LayerForwardArgs<E> call{
        .rows = args.rows,
        .m = int(args.m),
        .n = int(args.n),
        .x = args.x,
        .y = static_cast<E*>(args.y.data),
        .given = static_cast<const A*>(given),
        .alpha = static_cast<const A*>(args.alpha),
        .bias = static_cast<const A*>(args.bias),
        .s_rows = {s.nnz, s.crow, s.col, static_cast<const A*>(s.values), long_line(args.m)},
        .plan = context.plan ? *context.plan : DevicePlan{},
        .shape = {}};
    const bool has_tile = s.nnz || Config::dct == DctPart::fused;
    call.shape = layer_shape<Config>(rule, call.plan, args.x, args.rows, args.dtype,
                                     has_tile ? Config::Tile::bytes(call.n) : 0, false);
    launch(layer_forward_kernel<Config>, "layer_forward",
           {ceil_div(args.rows, Config::rows), rule.threads, call.shape.places.bytes}, context.stream, call);
  });
}

// ------------------------------------------------------------------------------------ backward

// The chunks from first_chunk on, to the end of args.rows rows; `given` begins at the first of their rows.
template <class E>
void launch_backward(const LinearBackwardArgs& args, const void* given, int64_t first_chunk,
                     const BackwardScratch& scratch, const LayerRule& rule, const CudaContext& context) {
  using A = Accumulator<E>;
  const SparseMatrix& s = args.s;
  char* const memory = static_cast<char*>(context.scratch);
  A* const sums = reinterpret_cast<A*>(memory + scratch.sums);
  const bool wants_x = args.sums.dvalues || args.sums.dalpha;
  with_config<E>(rule, takes_transform(args), [&](auto config) {
    using Config = decltype(config);
    LayerBackwardArgs<E> call{
        .rows = args.rows,
        .chunk_rows = scratch.cut.chunk_rows,
        .first_chunk = first_chunk,
        .sections = scratch.cut.sections,
        .m = int(args.m),
        .n = int(args.n),
        .dy = args.dy,
        .x = wants_x ? args.x : Rows{},
        .dx = static_cast<E*>(args.dx.data),
        .given = static_cast<const A*>(given),
        .alpha = static_cast<const A*>(args.alpha),
        .s_columns = {s.nnz, s.ccol, s.row,
                      s.values ? reinterpret_cast<const A*>(memory + scratch.values) : nullptr,
                      long_line(args.n)},
        .dvalues = args.sums.dvalues ? sums : nullptr,
        .dbias = args.sums.dbias ? sums + s.nnz : nullptr,
        .sums_stride = s.nnz + args.m,
        .dalpha = args.sums.dalpha ? reinterpret_cast<double*>(memory + scratch.dalpha) : nullptr,
        .plan = context.plan ? *context.plan : DevicePlan{},
        .shape = {}};
    call.shape = layer_shape<Config>(rule, call.plan, args.dy, args.rows, args.dtype,
                                     Config::Tile::bytes(call.m), args.sums.dalpha);
    const int64_t chunks = ceil_div(args.rows, call.chunk_rows) - first_chunk;
    launch(layer_backward_kernel<Config>, "layer_backward",
           {chunks * call.sections, rule.threads, call.shape.places.bytes}, context.stream, call);
  });
}

// S's values in the order of its columns.
template <class A>
void launch_gather(const SparseMatrix& s, const BackwardScratch& scratch, const CudaContext& context) {
  if (!s.values || !s.nnz) return;
  const GatherArgs<A> call{s.nnz, s.perm, static_cast<const A*>(s.values),
                           reinterpret_cast<A*>(static_cast<char*>(context.scratch) + scratch.values)};
  launch_gather_values(call, context.stream);
}

template <class A>
void launch_add_up(const LinearBackwardArgs& args, const BackwardScratch& scratch,
                   const CudaContext& context) {
  if (!sums_batch(args)) return;
  const char* const memory = static_cast<const char*>(context.scratch);
  const AddUpArgs<A> call{.chunks = scratch.cut.chunks,
                          .entries = args.s.nnz,
                          .m = args.m,
                          .sums = reinterpret_cast<const A*>(memory + scratch.sums),
                          .perm = args.s.perm,
                          .dvalues = static_cast<A*>(args.sums.dvalues),
                          .dbias = static_cast<A*>(args.sums.dbias),
                          .dalpha_parts = scratch.cut.chunks * scratch.cut.sections,
                          .parts = reinterpret_cast<const double*>(memory + scratch.dalpha),
                          .dalpha = args.sums.dalpha};
  launch_add_up(call, context.stream);
}

// Rows first .. first + rows - 1 of a matrix.
Rows rows_from(const Rows& matrix, int64_t first, int64_t bytes) {
  if (!matrix.data) return matrix;
  return {static_cast<char*>(matrix.data) + first * matrix.row_stride * bytes, matrix.row_stride,
          matrix.stride};
}

}  // namespace

int64_t layer_forward_scratch(const LinearForwardArgs& args, const DeviceLimits& limits) {
  return ForwardScratch(args, forward_rule(args, limits), limits).bytes;
}

void layer_forward_cuda(const LinearForwardArgs& args, const CudaContext& context) {
  const LayerRule rule = forward_rule(args, context.limits);
  const ForwardScratch scratch(args, rule, context.limits);
  const int64_t e = element_bytes(args.dtype);
  for (int64_t first = 0; first < args.rows; first += scratch.slab_rows) {
    LinearForwardArgs piece = args;
    piece.rows = std::min(scratch.slab_rows, args.rows - first);
    piece.x = rows_from(args.x, first, e);
    piece.y = rows_from(args.y, first, e);
    void* given = nullptr;
    if (args.has_dct && !rule.fused) {
      const bool in_y = scratch.slab == scratch.bytes;
      given = in_y ? piece.y.data : static_cast<char*>(context.scratch) + scratch.slab;
      LinearForwardArgs dct = piece;
      dct.y = {given, args.m, 1};
      dct.s = {};
      dct.bias = nullptr;
      dct_forward_cuda(dct, true, context);
    }
    dispatch(args.dtype,
             [&](auto element) { launch_forward<decltype(element)>(piece, given, rule, context); });
  }
}

int64_t layer_backward_scratch(const LinearBackwardArgs& args, const DeviceLimits& limits) {
  return BackwardScratch(args, backward_rule(args, limits), limits).bytes;
}

void layer_backward_cuda(const LinearBackwardArgs& args, const CudaContext& context) {
  const LayerRule rule = backward_rule(args, context.limits);
  const BackwardScratch scratch(args, rule, context.limits);
  const int64_t e = element_bytes(args.dtype);
  dispatch(args.dtype, [&](auto element) {
    using E = decltype(element);
    launch_gather<Accumulator<E>>(args.s, scratch, context);
    for (int64_t first = 0; first < args.rows; first += scratch.slab_rows) {
      LinearBackwardArgs piece = args;
      piece.rows = std::min(scratch.slab_rows, args.rows - first);
      void* given = nullptr;
      if (takes_transform(args) && !rule.fused) {
        given = scratch.in_dx ? args.dx.data : static_cast<char*>(context.scratch) + scratch.slab;
        LinearBackwardArgs dct = piece;
        dct.dy = rows_from(args.dy, first, e);
        dct.x = {};
        dct.dx = {given, args.n, 1};
        dct.alpha = nullptr;
        dct.s = {};
        dct.sums = {};
        dct_backward_cuda(dct, true, context);
      }
      piece.rows += first;
      launch_backward<E>(piece, given, first / scratch.cut.chunk_rows, scratch, rule, context);
    }
    launch_add_up<Accumulator<E>>(args, scratch, context);
  });
}

}  // namespace dctps
