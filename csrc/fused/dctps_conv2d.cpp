// The op dctps_conv2d, a convolution with the filters alpha D + S, and its backward op.
#include "fused/dctps_conv2d.h"

#include <ATen/ops/conv2d.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sum.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <tuple>

#include "common/integers.h"
#include "fused/dense_form.h"
#include "fused/linear_rows.h"

#ifdef DCTPS_WITH_CUDA
#include "fused/on_gpu.h"
#include "patch/device_taps.h"
#endif

namespace dctps {
namespace {

Images images_of(const Tensor& tensor) {
  return {.data = tensor.numel() ? const_cast<void*>(tensor.const_data_ptr()) : nullptr,
          .channels = tensor.size(1),
          .height = tensor.size(2),
          .width = tensor.size(3),
          .image_stride = tensor.stride(0),
          .row_stride = tensor.stride(2),
          .column_stride = tensor.stride(3),
          .channel_stride = tensor.stride(1)};
}

// The format in which pixels are the rows of a linear layer: on a GPU rows are contiguous.
at::MemoryFormat pixel_format(const Tensor& like, at::MemoryFormat format) {
  return takes_cuda_kernels(like.device()) ? at::MemoryFormat::ChannelsLast : format;
}

// The pixels of a batch in one of torch's two formats as rows of channels.
Rows pixels_of(const Tensor& tensor) {
  const int64_t pixels = tensor.size(2) * tensor.size(3);
  void* const data = tensor.numel() ? const_cast<void*>(tensor.const_data_ptr()) : nullptr;
  if (takes_cuda_kernels(tensor.device())) return {.data = data, .row_stride = tensor.size(1)};
  return {.data = data,
          .row_stride = tensor.is_contiguous() ? 1 : tensor.size(1),
          .stride = tensor.is_contiguous() ? pixels : 1,
          .block = pixels,
          .block_stride = tensor.size(1) * pixels};
}

// Checked arguments that forward and backward share.
struct Convolution {
  ConvGeometry geometry;
  TapShape taps;
  int64_t m, n, out_height, out_width;
  at::MemoryFormat format;  // x's, which the outputs take

  Convolution(const char* op, const Tensor& x, int64_t out_channels, at::IntArrayRef kernel_size,
              at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups)
      : m(out_channels), format(x.suggest_memory_format()) {
    TORCH_CHECK_VALUE(x.dim() == 4, op,
                      ": x: expected 4 dimensions [batch, channels, height, width], got shape ", x.sizes());
    constexpr int64_t kMost = int64_t(1) << 28;  // so that no product below overflows
    auto check_pair = [&](const char* name, at::IntArrayRef pair, int64_t least) {
      TORCH_CHECK_VALUE(pair.size() == 2 && pair[0] >= least && pair[1] >= least, op, ": ", name,
                        ": expected two integers of at least ", least, ", got ", pair);
      TORCH_CHECK_VALUE(pair[0] <= kMost && pair[1] <= kMost, op, ": ", name,
                        ": expected two integers of at most ", kMost, ", got ", pair);
    };
    check_pair("kernel_size", kernel_size, 1);
    check_pair("stride", stride, 1);
    check_pair("padding", padding, 0);
    check_pair("dilation", dilation, 1);
    TORCH_CHECK_VALUE(groups >= 1 && x.size(1) % groups == 0 && out_channels % groups == 0, op,
                      ": groups: expected a divisor of the input channels, ", x.size(1),
                      ", and the output channels, ", out_channels, ", got ", groups);
    check_size(op, "kernel_size's area", kernel_size[0] * kernel_size[1]);
    check_size(op, "x's channels", x.size(1));
    n = kernel_size[0] * kernel_size[1] * (x.size(1) / groups);
    geometry = {kernel_size[0], kernel_size[1], stride[0],   stride[1], padding[0],
                padding[1],     dilation[0],    dilation[1], groups};
    taps = {kernel_size[0], kernel_size[1], x.size(1) / groups, m, groups};
    auto output_size = [&](int d) {
      const int64_t span =
          x.size(2 + d) + 2 * padding[size_t(d)] - dilation[size_t(d)] * (kernel_size[size_t(d)] - 1) - 1;
      TORCH_CHECK_VALUE(span >= 0, op,
                        ": x: expected a padded input at least as large as the kernel, got input ", x.sizes(),
                        ", kernel_size ", kernel_size, ", dilation ", dilation, ", padding ", padding);
      return span / stride[size_t(d)] + 1;
    };
    out_height = output_size(0);
    out_width = output_size(1);
  }

  // Of the stride_y * stride_x pixels for each patch, how many some tap sees. The tap form does not come to the others.
  int64_t seen_pixels() const {
    const ConvGeometry& g = geometry;
    auto seen = [](int64_t kernel, int64_t stride, int64_t dilation) {
      return std::min(kernel, stride / std::gcd(stride, dilation));
    };
    return seen(g.kernel_height, g.stride_y, g.dilation_y) * seen(g.kernel_width, g.stride_x, g.dilation_x);
  }

  LayerWork work(int64_t batch, int64_t nnz, bool has_dct, bool is_backward) const {
    const ConvGeometry& g = geometry;
    auto padded = [](int64_t padding, int64_t stride, int64_t outputs) {
      return std::min(2.0 * double(ceil_div(padding, stride)) / double(outputs), 1.0);
    };
    return {
        .rows = batch * out_height * out_width,
        .m = m,
        .n = n,
        .nnz = nnz,
        .has_dct = has_dct,
        .is_backward = is_backward,
        .convolution = &taps,
        .pixels_per_row = seen_pixels(),
        .corners = padded(g.padding_y, g.stride_y, out_height) * padded(g.padding_x, g.stride_x, out_width)};
  }

  // Whether patches are single pixels, side by side: then this is a linear layer over pixels.
  bool is_linear() const {
    const ConvGeometry& g = geometry;
    return taps.is_pointwise() && g.stride_y == 1 && g.stride_x == 1 && g.padding_y == 0 && g.padding_x == 0;
  }

  // What dense_weight is to count as taps, so that its matrix is the filters' memory in x's format: torch chooses the
  // format of a convolution by its filters too.
  int64_t taps_of_filters() const {
    return format == at::MemoryFormat::Contiguous ? geometry.kernel_height * geometry.kernel_width : 1;
  }
  // The filters [m, C/groups, kernel_height, kernel_width] that such a matrix is, and back.
  Tensor filters_of(const Tensor& matrix) const {
    const ConvGeometry& g = geometry;
    if (format == at::MemoryFormat::Contiguous)
      return matrix.view({m, taps.channels, g.kernel_height, g.kernel_width});
    return matrix.view({m, g.kernel_height, g.kernel_width, taps.channels}).permute({0, 3, 1, 2});
  }
  Tensor matrix_of(const Tensor& filters) const {
    return (format == at::MemoryFormat::Contiguous ? filters : filters.permute({0, 2, 3, 1})).reshape({m, n});
  }
};

// A GPU has one kernel for convolutions, by taps, beside that for linear layers.
void run_forward(const char* op, const Tensor& like, const Convolution& conv, Form form,
                 const Conv2dForwardArgs& args) {
  if (!args.batch) return;
#ifdef DCTPS_WITH_CUDA
  if (takes_cuda_kernels(like.device())) {
    const auto taps = args.alpha ? get_device_taps(conv.taps, args.dtype, like) : nullptr;
    return on_gpu(
        op, like, args, nullptr, taps.get(), [](const auto&) { return int64_t(0); }, conv2d_forward_cuda);
  }
#endif
  static_cast<void>(op), static_cast<void>(like), static_cast<void>(conv);
  if (form == Form::direct) return conv2d_direct_forward_cpu(args);
  form == Form::taps ? conv2d_taps_forward_cpu(args) : conv2d_forward_cpu(args);
}

void run_backward(const char* op, const Tensor& dy, const Convolution& conv, Form form,
                  const ParameterGradients& gradients, const SparseOperand& s, Conv2dBackwardArgs args) {
  if (!args.batch) return;
#ifdef DCTPS_WITH_CUDA
  if (takes_cuda_kernels(dy.device())) {
    if (Tensor dbias = gradients.dbias; dbias.defined()) {
      at::sum_out(dbias, dy, {0, 2, 3}, /*keepdim=*/false, dbias.scalar_type());
    }
    const bool transforms = args.alpha && (args.dx.data || args.sums.dalpha);
    const auto taps = transforms ? get_device_taps(conv.taps, args.dtype, dy) : nullptr;
    return on_gpu(
        op, dy, args, nullptr, taps.get(),
        [&](const auto& limits) { return conv2d_backward_cuda_scratch(args, taps.get(), limits); },
        conv2d_backward_cuda);
  }
#endif
  static_cast<void>(op), static_cast<void>(dy), static_cast<void>(conv), static_cast<void>(gradients);
  if (form == Form::direct) return conv2d_direct_backward_cpu(args);
  const Tensor scratch = at::empty({s.matrix.nnz}, s.values.options());
  args.sums.scratch = scratch.mutable_data_ptr();
  form == Form::taps ? conv2d_taps_backward_cpu(args) : conv2d_backward_cpu(args);
}

}  // namespace

Tensor dctps_conv2d(const Tensor& x, const Tensor& values, const Tensor& index, const OptionalTensor& alpha,
                    const OptionalTensor& bias, int64_t out_channels, at::IntArrayRef kernel_size,
                    at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                    c10::string_view algorithm) {
  const char* op = "dctps_conv2d";
  const DType dtype = check_dtype(op, "x", x);
  const Convolution conv(op, x, out_channels, kernel_size, stride, padding, dilation, groups);
  const SparseOperand s(op, values, index, conv.m, conv.n, x);
  const Operand alpha_operand(op, "alpha", alpha, {}, x), bias_operand(op, "bias", bias, {conv.m}, x);
  const Form form =
      choose_form(op, algorithm, conv.work(x.size(0), s.matrix.nnz, alpha_operand.given(), false), x);
  if (form == Form::dense) {
    const NoAutocast guard;
    const Tensor filters = conv.filters_of(dense_weight(s, alpha_operand, x, conv.taps_of_filters()));
    return at::conv2d(x, filters, bias, stride, padding, dilation, groups).contiguous(conv.format);
  }
  const bool is_linear = form == Form::rows && conv.is_linear();
  const auto format = is_linear ? pixel_format(x, conv.format) : conv.format;
  const Tensor y =
      at::empty({x.size(0), conv.m, conv.out_height, conv.out_width}, x.options().memory_format(format));
  hint_huge_pages(y);
  if (is_linear) {
    const Tensor pixels = x.contiguous(format);
    linear_forward(op, x,
                   {.dtype = dtype,
                    .rows = x.size(0) * conv.out_height * conv.out_width,
                    .m = conv.m,
                    .n = conv.n,
                    .x = pixels_of(pixels),
                    .y = pixels_of(y),
                    .has_dct = alpha_operand.given(),
                    .alpha = alpha_operand.data(),
                    .s = s.matrix,
                    .bias = bias_operand.data()});
    return y.contiguous(conv.format);
  }
  const Conv2dForwardArgs args{.dtype = dtype,
                               .batch = x.size(0),
                               .geometry = conv.geometry,
                               .x = images_of(x),
                               .y = images_of(y),
                               .alpha = alpha_operand.data(),
                               .s = s.matrix,
                               .bias = bias_operand.data()};
  run_forward(op, x, conv, form, args);
  return y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> dctps_conv2d_backward(
    const Tensor& dy, const Tensor& x, const Tensor& values, const Tensor& index, const OptionalTensor& alpha,
    int64_t out_channels, at::IntArrayRef kernel_size, at::IntArrayRef stride, at::IntArrayRef padding,
    at::IntArrayRef dilation, int64_t groups, c10::string_view algorithm, std::array<bool, 4> output_mask) {
  const char* op = "dctps_conv2d_backward";
  const DType dtype = check_dtype(op, "dy", dy);
  check_like(op, "x", x, "dy", dy);
  const Convolution conv(op, x, out_channels, kernel_size, stride, padding, dilation, groups);
  check_shape(op, "dy", dy, {x.size(0), conv.m, conv.out_height, conv.out_width});
  const SparseOperand s(op, values, index, conv.m, conv.n, dy);
  const Operand alpha_operand(op, "alpha", alpha, {}, dy);
  const bool wants_dx = output_mask[0];
  const Form form =
      choose_form(op, algorithm, conv.work(x.size(0), s.matrix.nnz, alpha_operand.given(), true), x);
  if (form == Form::dense) {
    const NoAutocast guard;
    const Tensor nothing = at::empty({0}, x.options());
    const bool wants_weight = output_mask[1] || output_mask[2];
    const auto [dx, d_filters, dbias] = at::convolution_backward(
        dy, x, conv.filters_of(dense_weight(s, alpha_operand, x, conv.taps_of_filters())),
        at::IntArrayRef{conv.m}, stride, padding, dilation,
        /*transposed=*/false, /*output_padding=*/{0, 0}, groups, {wants_dx, wants_weight, output_mask[3]});
    const auto [dvalues, dalpha] =
        gradients_of_dense_weight(wants_weight ? conv.matrix_of(d_filters) : nothing, s, alpha_operand,
                                  output_mask, conv.taps_of_filters());
    return {wants_dx ? dx.contiguous(conv.format) : nothing, dvalues, dalpha,
            output_mask[3] ? dbias : nothing};
  }
  const bool is_linear = form == Form::rows && conv.is_linear();
  const auto format = is_linear ? pixel_format(x, conv.format) : conv.format;
  const Tensor dx =
      wants_dx ? at::empty(x.sizes(), x.options().memory_format(format)) : at::empty({0}, x.options());
  hint_huge_pages(dx);
  if (conv.seen_pixels() < conv.geometry.stride_y * conv.geometry.stride_x) dx.zero_();
  const ParameterGradients gradients(output_mask, s, alpha_operand.given(), dy);
  if (is_linear) {
    const Tensor pixels = x.contiguous(format), dy_pixels = dy.contiguous(format);
    linear_backward(op, x,
                    {.dtype = dtype,
                     .rows = x.size(0) * conv.out_height * conv.out_width,
                     .m = conv.m,
                     .n = conv.n,
                     .dy = pixels_of(dy_pixels),
                     .x = pixels_of(pixels),
                     .dx = wants_dx ? pixels_of(dx) : Rows{},
                     .has_dct = alpha_operand.given(),
                     .alpha = alpha_operand.data(),
                     .s = s.matrix,
                     .sums = gradients.sums()});
    return std::tuple_cat(std::make_tuple(wants_dx ? dx.contiguous(conv.format) : dx),
                          gradients.finished(dy));
  }
  const Conv2dBackwardArgs args{.dtype = dtype,
                                .batch = x.size(0),
                                .geometry = conv.geometry,
                                .dy = images_of(dy),
                                .x = images_of(x),
                                .dx = wants_dx ? images_of(dx) : Images{},
                                .alpha = alpha_operand.data(),
                                .s = s.matrix,
                                .sums = gradients.sums()};
  run_backward(op, dy, conv, form, gradients, s, args);
  return std::tuple_cat(std::make_tuple(dx), gradients.finished(dy));
}

DCTPS_REGISTER(library) {
  library.impl("dctps_conv2d", &dctps_conv2d);
  library.impl("dctps_conv2d_backward", &dctps_conv2d_backward);
}

}  // namespace dctps
