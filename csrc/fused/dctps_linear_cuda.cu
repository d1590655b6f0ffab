// Launches the kernels of the linear layer: how many rows and threads a block has, and where its rows lie.
#include <algorithm>

#include "common/launch.cuh"
#include "fused/dctps_linear_kernel.cuh"
#include "fused/layer_cuda.h"

namespace dctps {
namespace {

// The rule. A row has a thread for every 16 complex values, which is one butterfly of radix 16 or two of radix 8 in
// each pass, up to 256 threads, or 512 where only one row fits a multiprocessor anyway. Short rows share a block of 128
// threads. Blocks are no larger than that needs: several of them on a multiprocessor overlap one's loads with
// another's arithmetic. Rows lie in shared memory where one fits, otherwise in scratch memory, for two blocks on each
// multiprocessor that take the tiles in turn. With fewer than 8 threads, and so less than 128 contiguous bytes at once,
// a row is loaded by neighbouring threads and not by its own.
struct Launch {
  static constexpr int kLogFewestThreads = 7, kLogQuadThreads = 3;
  static constexpr int kBlocksPerMultiprocessor = 2;  // of those with rows in scratch memory
  int log_rows = 0, log_threads = 0;
  int64_t tiles, blocks, row_bytes;
  bool in_shared;

  Launch(int64_t rows, const DevicePlan& plan, int64_t complex_bytes, const DeviceLimits& limits)
      : row_bytes(plan.slots * complex_bytes), in_shared(row_bytes <= limits.shared_bytes_per_block) {
    const int log_most = 2 * row_bytes > limits.shared_bytes_per_sm ? 9 : 8;
    while (log_threads < log_most && (kValuesPerThread << log_threads) < plan.size) ++log_threads;
    while (log_rows + log_threads < kLogFewestThreads) ++log_rows;
    while (in_shared && (row_bytes << log_rows) > limits.shared_bytes_per_block) --log_rows;
    tiles = (rows + (int64_t(1) << log_rows) - 1) >> log_rows;
    blocks = in_shared ? tiles : std::min<int64_t>(tiles, kBlocksPerMultiprocessor * limits.sm_count);
  }
  int64_t bytes() const { return row_bytes << log_rows; }  // of a block's rows
  int64_t scratch_bytes() const { return in_shared ? 0 : blocks * bytes(); }
};

int64_t complex_bytes(DType dtype) { return 2 * accumulator_bytes(dtype); }

template <class Layer>
int64_t scratch_bytes(const Layer& layer, const DeviceLimits& limits) {
  const DevicePlan plan = device_plan_layout(std::max(layer.m, layer.n));
  return Launch(layer.rows, plan, complex_bytes(layer.dtype), limits).scratch_bytes();
}

// kernel_of(config) is the kernel of a LinearConfig.
template <class E, class Output, class Layer, class KernelOf>
void launch_typed(const Layer& layer, const Rows& input, const Rows& output, const CudaContext& context,
                  const char* name, const KernelOf& kernel_of) {
  const DevicePlan& plan = *context.plan;
  const Launch shape(layer.rows, plan, complex_bytes(layer.dtype), context.limits);
  const LinearKernelArgs<Layer> args{
      layer,
      plan,
      {.log_rows = shape.log_rows,
       .log_threads = shape.log_threads,
       .tiles = shape.tiles,
       .blocks = shape.blocks,
       .by_chunks = Divisor(uint32_t((plan.length + kChunk<E> - 1) / kChunk<E>)),
       .input_vectors = takes_vectors(input, layer.rows, sizeof(E)),
       .output_vectors = takes_vectors(output, layer.rows, sizeof(Output)),
       .by_quads = plan.starts_paired && shape.log_threads >= Launch::kLogQuadThreads},
      context.scratch};
  const Grid grid{shape.blocks, 1 << (shape.log_rows + shape.log_threads),
                  shape.in_shared ? int(shape.bytes()) : 0};
  if (shape.in_shared) {
    launch(kernel_of(LinearConfig<E, Output, true>{}), name, grid, context.stream, args);
  } else {
    launch(kernel_of(LinearConfig<E, Output, false>{}), name, grid, context.stream, args);
  }
}

template <class Layer, class KernelOf>
void launch_dct(const Layer& layer, const Rows& input, const Rows& output, bool wide,
                const CudaContext& context, const char* name, const KernelOf& kernel_of) {
  dispatch(layer.dtype, [&](auto element) {
    using E = decltype(element);
    if (wide) {
      launch_typed<E, Accumulator<E>>(layer, input, output, context, name, kernel_of);
    } else {
      launch_typed<E, E>(layer, input, output, context, name, kernel_of);
    }
  });
}

bool is_dct_alone(const LinearForwardArgs& args) { return args.has_dct && args.s.nnz == 0; }
bool is_dct_alone(const LinearBackwardArgs& args) {
  const ParameterSums& sums = args.sums;
  return args.has_dct && args.s.nnz == 0 && args.dx.data && !sums.dvalues && !sums.dalpha && !sums.dbias;
}

}  // namespace

int64_t dct_forward_scratch(const LinearForwardArgs& args, const DeviceLimits& limits) {
  return scratch_bytes(args, limits);
}
void dct_forward_cuda(const LinearForwardArgs& args, bool wide, const CudaContext& context) {
  launch_dct(args, args.x, args.y, wide, context, "linear_forward",
             [](auto config) { return &linear_forward_kernel<decltype(config)>; });
}
int64_t dct_backward_scratch(const LinearBackwardArgs& args, const DeviceLimits& limits) {
  return scratch_bytes(args, limits);
}
void dct_backward_cuda(const LinearBackwardArgs& args, bool wide, const CudaContext& context) {
  launch_dct(args, args.dy, args.dx, wide, context, "linear_backward",
             [](auto config) { return &linear_backward_kernel<decltype(config)>; });
}

int64_t linear_forward_cuda_scratch(const LinearForwardArgs& args, const DeviceLimits& limits) {
  return is_dct_alone(args) ? dct_forward_scratch(args, limits) : layer_forward_scratch(args, limits);
}
void linear_forward_cuda(const LinearForwardArgs& args, const CudaContext& context) {
  is_dct_alone(args) ? dct_forward_cuda(args, false, context) : layer_forward_cuda(args, context);
}
int64_t linear_backward_cuda_scratch(const LinearBackwardArgs& args, const DeviceLimits& limits) {
  return is_dct_alone(args) ? dct_backward_scratch(args, limits) : layer_backward_scratch(args, limits);
}
void linear_backward_cuda(const LinearBackwardArgs& args, const CudaContext& context) {
  is_dct_alone(args) ? dct_backward_cuda(args, false, context) : layer_backward_cuda(args, context);
}

}  // namespace dctps
