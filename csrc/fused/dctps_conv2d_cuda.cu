// Launches the kernels of a convolution in the tap form: which rectangle of pixels a block makes, and where its parts lie
// in shared memory.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>

#include "common/integers.h"
#include "common/launch.cuh"
#include "fused/cuda_context.h"
#include "fused/dctps_conv2d_kernel.cuh"
#include "fused/linear_rule.h"
#include "sparse/sparse_kernel.cuh"

namespace dctps {
namespace {

// Of rows of cells: an odd number of quads, so that eight rows' quads are in all banks.
constexpr int64_t cell_pitch(int64_t cells) { return (ceil_div(cells, kQuad) | 1) * kQuad; }
// Of rows of 16-bit values whose eighths are fragments: an odd number of these, so that they are in all banks.
constexpr int64_t fragment_pitch(int64_t values) { return (ceil_div(values, kMmaSlab) | 1) * kMmaSlab; }
// Of rows of results, stored as pairs of cells, four by four: an odd number of eight cells, so that those are in all banks;
// or of four, where 16 rows are read at once.
constexpr int64_t result_pitch(int64_t cells, bool through_channels) {
  const int64_t fragments = ceil_div(cells, kMmaColumns);
  return through_channels ? cell_pitch(fragments * kMmaColumns) : (fragments | 1) * kMmaColumns;
}

// One axis of a convolution in cells, without the cut into tiles. `size`: of the input and of the output.
TapAxisTile make_axis(int64_t kernel, int64_t stride, int64_t dilation, int64_t padding) {
  const int64_t step = kernel > 1 ? std::gcd(stride, dilation) : stride;
  return {.kernel = int(kernel),
          .stride = int(stride / step),
          .dilation = kernel > 1 ? int(dilation / step) : 1,
          .step = int(step),
          .padding = int(padding),
          .near = 1,
          .far = 1,
          .tiles = 0,
          .first = 0,
          .is_transposed = false};
}

// Cells of the lattice that lie in an input of that size, from axis.first on.
int64_t set_transposed(TapAxisTile& axis, int64_t size) {
  axis.is_transposed = true;
  axis.first = int(ceil_div(axis.padding, axis.step));
  return (size - 1 + axis.padding) / axis.step - axis.first + 1;
}

// Cuts `total` near cells into tiles of about the same size, of at most `most`.
void cut(TapAxisTile& axis, int64_t total, int64_t most) {
  axis.tiles = int(ceil_div(total, most));
  axis.near = axis.tiles ? int(ceil_div(total, axis.tiles)) : 1;
  const int64_t reach = int64_t(axis.kernel - 1) * axis.dilation;
  axis.far = int(axis.is_transposed ? (axis.near - 1 + reach) / axis.stride + 1
                                    : int64_t(axis.near - 1) * axis.stride + reach + 1);
}

struct TileWork {
  DType dtype;
  int64_t batch, near_rows, near_columns;  // near cells of an image
  int64_t far_channels, near_channels;     // of a group
  int64_t groups;
  int64_t inner_rows;       // 0: no thin product
  const DeviceTapMma* mma;  // null: not in the tensor form
  bool has_dct, wants_x, is_transposed;
  bool through_channels;  // the output's layout
};

// The tensor form's tables where a call takes it: by the type, the device and the shape (tensor_products).
const DeviceTapMma* tensor_form(DType dtype, const DeviceTapPlan* taps, bool has_dct,
                                const DeviceLimits& limits) {
  return has_dct && has_tensor_form(dtype, limits) && taps->mma.rows ? &taps->mma : nullptr;
}

// Rows of the real and the imaginary part that a tile of a group's filters goes through.
int64_t inner_size(const TileWork& w) {
  return w.inner_rows ? w.inner_rows : w.is_transposed ? w.near_channels : w.far_channels;
}

void place(TapTiles& t, const TileWork& w, TapForm form) {
  const int64_t e = element_bytes(w.dtype), a = accumulator_bytes(w.dtype);
  const int64_t pitch = w.is_transposed ? t.near_pitch : t.far_pitch;
  const bool on_tensor_cores = form == TapForm::tensor;
  if (on_tensor_cores) {
    t.tile_pitch = int(fragment_pitch(round_up(w.far_channels, kMmaDepth)));
    t.inner_pitch = int(fragment_pitch(w.is_transposed ? 2 * w.mma->rows : w.mma->rows));
  }
  int64_t bytes = 0;
  auto take = [&](int64_t size) {
    const int64_t begin = bytes;
    bytes += round_up(size, 16);
    return int(std::min<int64_t>(begin, std::numeric_limits<int>::max()));
  };
  t.places.row_taps = take(2 * int64_t(t.rows.far) * t.strips * kStrip);
  t.places.far_rows = take(2 * int64_t(t.rows.near) * t.rows.kernel);
  t.places.far_cols = take(2 * int64_t(t.columns.near) * t.columns.kernel);
  t.places.far_offsets = take(8 * t.far_pitch);
  t.places.near_offsets = take(8 * t.near_pitch);
  t.places.dx_offsets = take(w.is_transposed ? 8 * t.near_pitch : 0);
  t.places.first_cells = take(w.is_transposed ? 0 : 2 * t.near_pitch);
  t.places.tile = take(form == TapForm::in_place            ? 0
                       : on_tensor_cores && w.is_transposed ? (t.far_cells + 1) * int64_t(t.tile_pitch) * e
                                                            : w.far_channels * t.far_pitch * e);
  t.places.inner = take(on_tensor_cores ? (w.is_transposed ? t.near_cells : t.far_cells) * t.inner_pitch * e
                                        : w.inner_rows * pitch * a);
  t.places.slabs = take(on_tensor_cores && !w.is_transposed ? 8 * w.mma->expand.steps : 0);
  const bool has_sums = w.has_dct && !on_tensor_cores;
  t.places.combined = take(has_sums ? 2 * kTapFilters * pitch * a : 0);
  const int64_t filters =
      on_tensor_cores ? std::min<int64_t>(kMmaFilters, round_up(w.near_channels, kMmaRows)) : kTapFilters;
  t.places.results = take((w.is_transposed ? 2 * kTapFolds : filters) * t.near_pitch * a);
  t.places.x = take(w.wants_x ? 2 * kTapFolds * t.near_pitch * e : 0);
  t.places.weights = take(has_sums ? 2 * kTapFilters * int64_t(t.rows.kernel + t.columns.kernel) * a : 0);
  t.places.bytes = int(std::min<int64_t>(bytes, std::numeric_limits<int>::max()));
}

// Estimated instructions of a thread for a tile in the tensor form.
double tensor_cost(const TapTiles& t, const TileWork& w) {
  auto rounds = [](double items, double each) { return std::ceil(items / each); };
  auto product = [&](const DeviceFragments& a, double tiles, double each, double cells) {
    const double step = 16 + 6 * each;  // of a task, one fragment deep
    return rounds(rounds(tiles, each) * rounds(cells, kTaskCells), kTapWarps) * (100 + a.steps * step);
  };
  double cost = 600 + 8 * rounds(double(w.far_channels) / 2 * t.far_cells, kTapThreads) +
                10 * rounds(double(w.near_channels * t.near_cells), kTapThreads);
  if (w.is_transposed) {
    const double chunks = rounds(double(w.near_channels), 2 * kTapFolds);
    cost += product(w.mma->gather, w.mma->gather.tiles, kTaskTiles, t.near_cells) +
            chunks * (100 + product(w.mma->unreduce, 2, kTaskTiles, t.near_cells));
  } else {
    const double chunks = rounds(double(w.near_channels), kMmaFilters);
    const double tiles = std::min(kMmaFilters / kMmaRows, w.mma->expand.tiles);
    cost += product(w.mma->reduce, w.mma->reduce.tiles, kTaskTiles, t.far_cells) +
            chunks * (100 + product(w.mma->expand, tiles, kExpandTiles, t.near_cells));
  }
  return cost;
}

// Estimated instructions of a thread for a tile: nothing was measured.
double tile_cost(const TapTiles& t, const TileWork& w) {
  auto rounds = [](double items) { return std::ceil(items / kTapThreads); };
  const double filters = double(w.is_transposed ? w.far_channels : w.near_channels);
  const double channels = double(w.is_transposed ? w.near_channels : w.far_channels);
  const double chunks = std::ceil(filters / kTapFilters), inner = double(inner_size(w));
  const double quads = double(w.is_transposed ? t.near_pitch : t.far_pitch) / kQuad;
  constexpr double kStep = kTapRows * kQuad + 6;  // of a product, one of its depth
  const double strip_rows =
      w.is_transposed ? double(kStrip - 1 + (t.rows.kernel - 1) * t.rows.dilation) / t.rows.stride + 1
                      : (kStrip - 1) * t.rows.stride + (t.rows.kernel - 1) * t.rows.dilation + 1;
  double cost = 600 + 100 * chunks + 6 * rounds(double(w.far_channels * t.far_pitch)) +
                6 * rounds(double(w.near_channels * t.near_pitch));
  if (!w.has_dct) return cost;
  cost += chunks * rounds(kTapFilters * double(t.images * t.strips * t.columns.near)) *
          (40 + strip_rows * (10 + 8.0 * t.columns.kernel));
  if (w.is_transposed) {
    cost += chunks * rounds(inner / kTapRows * quads) * kTapFilters * kStep;
    if (w.inner_rows) cost += std::ceil(channels / (2 * kTapFolds)) * rounds(4 * quads) * inner / 2 * kStep;
  } else {
    cost += chunks * rounds(2.0 * kTapFilters / kTapRows * quads) * inner / 2 * kStep;
    if (w.inner_rows) cost += rounds(inner / kTapRows * quads) * channels / 2 * kStep;
  }
  return cost;
}

struct TileRule {
  TapTiles tiles = {};
  TapForm form = TapForm::in_shared;

  TileRule(const TileWork& w, const TapAxisTile& rows, const TapAxisTile& columns,
           const DeviceLimits& limits) {
    static constexpr int64_t kSizes[] = {1, 2, 4, 6, 8, 12, 16, 20, 24, 32};
    static constexpr int64_t kImages[] = {1, 2, 4, 8, 16};
    constexpr int64_t kReserved = 1024;           // shared memory that the system takes for each block
    constexpr double kAlone = 1.3, kInPlace = 3;  // a block alone on its multiprocessor; far cells left in L2
    double least = std::numeric_limits<double>::infinity();
    for (TapForm f : {TapForm::tensor, TapForm::in_shared, TapForm::in_place}) {
      const bool on_tensor_cores = f == TapForm::tensor;
      if (on_tensor_cores && !w.mma) continue;
      for (int64_t height : kSizes) {
        for (int64_t width : kSizes) {
          for (int64_t images : kImages) {
            TapTiles t = {};
            t.rows = rows, t.columns = columns, t.images = int(images), t.batch = w.batch;
            cut(t.rows, w.near_rows, height);
            cut(t.columns, w.near_columns, width);
            if (images > 1 && (t.rows.tiles > 1 || t.columns.tiles > 1 || images >= 2 * w.batch)) continue;
            const int64_t near = images * t.rows.near * t.columns.near;
            const int64_t far = images * t.rows.far * int64_t(t.columns.far);
            if (near > kMostNearCells || far > std::numeric_limits<int16_t>::max()) continue;
            t.tiles = ceil_div(w.batch, images) * t.rows.tiles * t.columns.tiles;
            t.near_cells = int(near), t.far_cells = int(far);
            t.near_pitch = int(on_tensor_cores ? result_pitch(near, w.through_channels) : cell_pitch(near));
            t.far_pitch = int(on_tensor_cores ? fragment_pitch(far + w.is_transposed) : cell_pitch(far));
            t.strips = int(on_tensor_cores ? 0 : ceil_div(t.rows.near, kStrip));
            place(t, w, f);
            if (t.places.bytes > limits.shared_bytes_per_block) continue;
            const int64_t fitting =
                std::clamp<int64_t>(limits.shared_bytes_per_sm / (t.places.bytes + kReserved), 1, 2);
            const int64_t waves = ceil_div(t.tiles * w.groups, limits.sm_count * fitting);
            const double cost = double(waves * fitting) *
                                (on_tensor_cores ? tensor_cost(t, w) : tile_cost(t, w)) *
                                (fitting == 1 ? kAlone : 1) * (f == TapForm::in_place ? kInPlace : 1);
            if (cost < least) least = cost, tiles = t, form = f;
          }
        }
      }
      if (tiles.places.bytes) return;  // each form only where those before it are not possible
    }
    throw std::runtime_error("dctps_conv2d: a kernel of " + std::to_string(rows.kernel) + "x" +
                             std::to_string(columns.kernel) + " does not fit in " +
                             std::to_string(limits.shared_bytes_per_block) +
                             " bytes of shared memory; algorithm=\"dense\" takes it");
  }
};

TileRule forward_rule(const Conv2dForwardArgs& args, const DeviceTapPlan* taps, const DeviceLimits& limits) {
  const ConvGeometry& g = args.geometry;
  return TileRule({.dtype = args.dtype,
                   .batch = args.batch,
                   .near_rows = args.y.height,
                   .near_columns = args.y.width,
                   .far_channels = args.x.channels / g.groups,
                   .near_channels = args.y.channels / g.groups,
                   .groups = g.groups,
                   .inner_rows = args.alpha ? taps->inner_rows : 0,
                   .mma = tensor_form(args.dtype, taps, args.alpha, limits),
                   .has_dct = args.alpha != nullptr,
                   .wants_x = false,
                   .is_transposed = false,
                   .through_channels = runs_through_channels(args.y)},
                  make_axis(g.kernel_height, g.stride_y, g.dilation_y, g.padding_y),
                  make_axis(g.kernel_width, g.stride_x, g.dilation_x, g.padding_x), limits);
}

bool transforms(const Conv2dBackwardArgs& args) { return args.alpha && (args.dx.data || args.sums.dalpha); }
bool wants_x(const Conv2dBackwardArgs& args) { return args.sums.dvalues || args.sums.dalpha; }

// The tiles of the backward pass, in chunks with sums of their own, and places in CudaContext::scratch, in bytes.
struct BackwardRule {
  // As many chunks as keep a large GPU busy, fewer where their sums would not stay in its L2: from the shape alone.
  static constexpr int64_t kBlocks = 264, kMostBytes = int64_t(24) << 20;
  TileRule rule;
  int64_t chunk_tiles = 1, chunks, values, sums, dalpha, bytes;

  BackwardRule(const Conv2dBackwardArgs& args, const DeviceTapPlan* taps, const DeviceLimits& limits)
      : rule(make_rule(args, taps, limits)) {
    const int64_t a = accumulator_bytes(args.dtype), tiles = rule.tiles.tiles;
    if (wants_x(args)) {
      int64_t most = std::max<int64_t>(kBlocks / args.geometry.groups, 1);
      if (args.s.nnz) most = std::clamp<int64_t>(kMostBytes / (args.s.nnz * a), 1, most);
      chunk_tiles = std::max<int64_t>(ceil_div(tiles, most), 1);
    }
    chunks = ceil_div(tiles, chunk_tiles);
    values = 0;
    sums = round_up(args.s.nnz * a, 16);
    dalpha = sums + round_up(args.sums.dvalues ? chunks * args.s.nnz * a : 0, 16);
    bytes = dalpha + (args.sums.dalpha ? chunks * args.geometry.groups * int64_t(sizeof(double)) : 0);
  }

 private:
  static TileRule make_rule(const Conv2dBackwardArgs& args, const DeviceTapPlan* taps,
                            const DeviceLimits& limits) {
    const ConvGeometry& g = args.geometry;
    TapAxisTile rows = make_axis(g.kernel_height, g.stride_y, g.dilation_y, g.padding_y);
    TapAxisTile columns = make_axis(g.kernel_width, g.stride_x, g.dilation_x, g.padding_x);
    const int64_t near_rows = set_transposed(rows, args.x.height);
    const int64_t near_columns = set_transposed(columns, args.x.width);
    return TileRule({.dtype = args.dtype,
                     .batch = args.batch,
                     .near_rows = std::max<int64_t>(near_rows, 0),
                     .near_columns = std::max<int64_t>(near_columns, 0),
                     .far_channels = args.dy.channels / g.groups,
                     .near_channels = args.x.channels / g.groups,
                     .groups = g.groups,
                     .inner_rows = transforms(args) ? taps->inner_rows : 0,
                     .mma = tensor_form(args.dtype, taps, transforms(args), limits),
                     .has_dct = transforms(args),
                     .wants_x = wants_x(args),
                     .is_transposed = true,
                     .through_channels = runs_through_channels(args.dx)},
                    rows, columns, limits);
  }
};

// Launches the kernel of a form; `kernel` makes it from a config.
template <class E, class Args, class Kernel>
void launch_form(TapForm form, const char* name, const Grid& grid, void* stream, const Args& args,
                 const Kernel& kernel) {
  if constexpr (sizeof(E) == 2) {
    if (form == TapForm::tensor)
      return launch(kernel(TapConfig<E, TapForm::tensor>{}), name, grid, stream, args);
  }
  launch(form == TapForm::in_shared ? kernel(TapConfig<E, TapForm::in_shared>{})
                                    : kernel(TapConfig<E, TapForm::in_place>{}),
         name, grid, stream, args);
}

template <class E>
void launch_forward(const Conv2dForwardArgs& args, const CudaContext& context) {
  using A = Accumulator<E>;
  const TileRule rule = forward_rule(args, context.taps, context.limits);
  const TapForwardArgs<E> call{.x = args.x,
                               .y = args.y,
                               .channels = int(args.x.channels / args.geometry.groups),
                               .filters = int(args.y.channels / args.geometry.groups),
                               .groups = int(args.geometry.groups),
                               .alpha = static_cast<const A*>(args.alpha),
                               .bias = static_cast<const A*>(args.bias),
                               .nnz = args.s.nnz,
                               .crow = args.s.crow,
                               .col = args.s.col,
                               .values = static_cast<const A*>(args.s.values),
                               .plan = context.taps ? *context.taps : DeviceTapPlan{},
                               .tiles = rule.tiles};
  launch_form<E>(rule.form, "conv2d_forward",
                 {rule.tiles.tiles * call.groups, kTapThreads, rule.tiles.places.bytes}, context.stream, call,
                 [](auto config) { return tap_forward_kernel<decltype(config)>; });
}

template <class E>
void launch_backward(const Conv2dBackwardArgs& args, const CudaContext& context) {
  using A = Accumulator<E>;
  const BackwardRule backward(args, context.taps, context.limits);
  const TapTiles& tiles = backward.rule.tiles;
  const SparseMatrix& s = args.s;
  char* const memory = static_cast<char*>(context.scratch);
  A* const values = reinterpret_cast<A*>(memory + backward.values);
  A* const sums = reinterpret_cast<A*>(memory + backward.sums);
  double* const dalpha = reinterpret_cast<double*>(memory + backward.dalpha);
  if (s.values && s.nnz) {
    launch_gather_values<A>({s.nnz, s.perm, static_cast<const A*>(s.values), values}, context.stream);
  }
  Images x = args.x;
  if (!wants_x(args)) x.data = nullptr;
  const TapBackwardArgs<E> call{.dy = args.dy,
                                .x = x,
                                .dx = args.dx,
                                .channels = int(args.x.channels / args.geometry.groups),
                                .filters = int(args.dy.channels / args.geometry.groups),
                                .groups = int(args.geometry.groups),
                                .alpha = transforms(args) ? static_cast<const A*>(args.alpha) : nullptr,
                                .nnz = s.nnz,
                                .ccol = s.ccol,
                                .row = s.row,
                                .values = s.values ? values : nullptr,
                                .chunk_tiles = backward.chunk_tiles,
                                .dvalues = args.sums.dvalues ? sums : nullptr,
                                .dalpha = args.sums.dalpha ? dalpha : nullptr,
                                .plan = context.taps ? *context.taps : DeviceTapPlan{},
                                .tiles = tiles};
  launch_form<E>(backward.rule.form, "conv2d_backward",
                 {backward.chunks * call.groups, kTapThreads, tiles.places.bytes}, context.stream, call,
                 [](auto config) { return tap_backward_kernel<decltype(config)>; });
  if (!wants_x(args)) return;
  launch_add_up<A>({.chunks = backward.chunks,
                    .entries = s.nnz,
                    .m = 0,
                    .sums = sums,
                    .perm = s.perm,
                    .dvalues = static_cast<A*>(args.sums.dvalues),
                    .dbias = nullptr,
                    .dalpha_parts = backward.chunks * args.geometry.groups,
                    .parts = dalpha,
                    .dalpha = args.sums.dalpha},
                   context.stream);
}

}  // namespace

void conv2d_forward_cuda(const Conv2dForwardArgs& args, const CudaContext& context) {
  dispatch(args.dtype, [&](auto element) { launch_forward<decltype(element)>(args, context); });
}

int64_t conv2d_backward_cuda_scratch(const Conv2dBackwardArgs& args, const DeviceTapPlan* taps,
                                     const DeviceLimits& limits) {
  return BackwardRule(args, taps, limits).bytes;
}

void conv2d_backward_cuda(const Conv2dBackwardArgs& args, const CudaContext& context) {
  dispatch(args.dtype, [&](auto element) { launch_backward<decltype(element)>(args, context); });
}

}  // namespace dctps
