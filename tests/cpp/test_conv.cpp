// Native tests of the convolution: its forms against plain sums over taps, on every instruction set; the thin factors of
// the tap form and their cache.
#include <algorithm>
#include <cmath>

#include "check.h"
#include "fused/dctps_conv2d.h"
#include "patch/tap_plan.h"
#include "plan/plan.h"
#include "plan/plan_cache.h"

namespace {

using namespace dctps;

struct Problem {
  int64_t batch, channels, filters, height, width;
  ConvGeometry g;

  int64_t out(int64_t in, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) const {
    return (in + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1;
  }
  int64_t out_height() const { return out(height, g.kernel_height, g.stride_y, g.padding_y, g.dilation_y); }
  int64_t out_width() const { return out(width, g.kernel_width, g.stride_x, g.padding_x, g.dilation_x); }
  int64_t n() const { return g.kernel_height * g.kernel_width * channels / g.groups; }

  // channels_last or not
  static Images images(void* data, int64_t channels, int64_t height, int64_t width, bool last) {
    return {data,
            channels,
            height,
            width,
            channels * height * width,
            last ? width * channels : width,
            last ? channels : 1,
            last ? 1 : height * width};
  }
};

int64_t place(const Images& i, int64_t image, int64_t channel, int64_t row, int64_t column) {
  return image * i.image_stride + channel * i.channel_stride + row * i.row_stride + column * i.column_stride;
}

struct Form {
  void (*forward)(const Conv2dForwardArgs&);
  void (*backward)(const Conv2dBackwardArgs&);
};
constexpr Form kForms[] = {{conv2d_forward_cpu, conv2d_backward_cpu},
                           {conv2d_taps_forward_cpu, conv2d_taps_backward_cpu},
                           {conv2d_direct_forward_cpu, conv2d_direct_backward_cpu}};

template <class T>
void test_against_plain_sums(const Problem& p, DType dtype, bool last, const Form& form) {
  const ConvGeometry& g = p.g;
  const int64_t n = p.n(), m = p.filters, q = m > n ? m : n, oh = p.out_height(), ow = p.out_width();
  auto x = check::values<T>(p.batch * p.channels * p.height * p.width, 1);
  auto dy = check::values<T>(p.batch * m * oh * ow, 2);
  const auto bias = check::values<T>(m, 3);
  std::vector<T> y(dy.size()), dx(x.size());
  const T alpha = T(0.7);

  // Two nonzeros in each row.
  std::vector<int32_t> crow{0}, col, ccol(size_t(n + 1)), row, perm;
  for (int64_t k = 0; k < m; ++k) {
    const int64_t a = (5 * k) % n, b = (5 * k + 3 * n / 4) % n;
    for (int64_t c : {std::min(a, b), std::max(a, b)}) {
      if (c == a || a != b) col.push_back(int32_t(c));
      if (a == b) break;
    }
    crow.push_back(int32_t(col.size()));
  }
  for (int64_t c = 0; c < n; ++c) {
    for (int64_t k = 0; k < m; ++k) {
      for (int32_t t = crow[size_t(k)]; t < crow[size_t(k + 1)]; ++t) {
        if (col[size_t(t)] == c) row.push_back(int32_t(k)), perm.push_back(t);
      }
    }
    ccol[size_t(c + 1)] = int32_t(row.size());
  }
  const auto values = check::values<T>(int64_t(col.size()), 4);
  const SparseMatrix s{m,           n,          int64_t(col.size()), crow.data(),  col.data(),
                       ccol.data(), row.data(), perm.data(),         values.data()};
  std::vector<double> weight(size_t(m * n)), dct(size_t(m * n));
  for (int64_t k = 0; k < m; ++k) {
    for (int64_t i = 0; i < n; ++i) {
      const double scale = std::sqrt((k ? 2.0 : 1.0) / double(q));
      dct[size_t(k * n + i)] = scale * std::cos(M_PI * double(k * (2 * i + 1) % (4 * q)) / (2 * double(q)));
      weight[size_t(k * n + i)] = double(alpha) * dct[size_t(k * n + i)];
    }
    for (int32_t t = crow[size_t(k)]; t < crow[size_t(k + 1)]; ++t) {
      weight[size_t(k * n + col[size_t(t)])] += double(values[size_t(t)]);
    }
  }

  const Images x_images = Problem::images(x.data(), p.channels, p.height, p.width, last);
  const Images y_images = Problem::images(y.data(), m, oh, ow, last);
  Images dy_images = y_images, dx_images = x_images;
  dy_images.data = dy.data();
  dx_images.data = dx.data();
  std::vector<T> dvalues(col.size()), dbias(static_cast<size_t>(m)), scratch(col.size());
  double dalpha = 0;
  const Conv2dForwardArgs forward{.dtype = dtype,
                                  .batch = p.batch,
                                  .geometry = g,
                                  .x = x_images,
                                  .y = y_images,
                                  .alpha = &alpha,
                                  .s = s,
                                  .bias = bias.data()};
  const Conv2dBackwardArgs backward{
      .dtype = dtype,
      .batch = p.batch,
      .geometry = g,
      .dy = dy_images,
      .x = x_images,
      .dx = dx_images,
      .alpha = &alpha,
      .s = s,
      .sums = {
          .scratch = scratch.data(), .dvalues = dvalues.data(), .dalpha = &dalpha, .dbias = dbias.data()}};
  form.forward(forward);
  form.backward(backward);

  const int64_t group_channels = p.channels / g.groups, group_filters = m / g.groups;
  std::vector<double> want_dx(x.size()), want_dweight(size_t(m * n)), want_dbias(static_cast<size_t>(m));
  double want_dalpha = 0;
  auto close = [](double a, double b, double terms) {
    return std::abs(a - b) <= (sizeof(T) == 8 ? 1e-13 : 2e-6) * (1 + std::sqrt(terms));
  };
  for (int64_t image = 0; image < p.batch; ++image) {
    for (int64_t k = 0; k < m; ++k) {
      for (int64_t r = 0; r < oh; ++r) {
        for (int64_t c = 0; c < ow; ++c) {
          double sum = double(bias[size_t(k)]);
          const double v = double(dy[size_t(place(dy_images, image, k, r, c))]);
          want_dbias[size_t(k)] += v;
          for (int64_t i = 0; i < n; ++i) {
            const int64_t tap = i / group_channels;
            const int64_t channel = k / group_filters * group_channels + i % group_channels;
            const int64_t row_in = r * g.stride_y - g.padding_y + tap / g.kernel_width * g.dilation_y;
            const int64_t column_in = c * g.stride_x - g.padding_x + tap % g.kernel_width * g.dilation_x;
            if (row_in < 0 || row_in >= p.height || column_in < 0 || column_in >= p.width) continue;
            const size_t at = size_t(place(x_images, image, channel, row_in, column_in));
            sum += weight[size_t(k * n + i)] * double(x[at]);
            want_dx[at] += weight[size_t(k * n + i)] * v;
            want_dweight[size_t(k * n + i)] += double(x[at]) * v;
          }
          CHECK(close(sum, double(y[size_t(place(y_images, image, k, r, c))]), 1));
        }
      }
    }
  }
  for (size_t i = 0; i < dx.size(); ++i) CHECK(close(want_dx[i], double(dx[i]), 1));
  const double pixels = double(p.batch * oh * ow);
  for (int64_t k = 0; k < m; ++k) {
    CHECK(close(want_dbias[size_t(k)], double(dbias[size_t(k)]), pixels));
    for (int32_t t = crow[size_t(k)]; t < crow[size_t(k + 1)]; ++t) {
      CHECK(close(want_dweight[size_t(k * n + col[size_t(t)])], double(dvalues[size_t(t)]), pixels));
    }
  }
  for (size_t i = 0; i < dct.size(); ++i) want_dalpha += dct[i] * want_dweight[i];
  CHECK(close(want_dalpha, dalpha, pixels * double(m)));
}

// reduce and expand must give back [cos; sin], whose rows have the norm sqrt(C/2) together.
template <class A>
void test_thin_factors(const TapShape& shape, bool expects_thin) {
  const auto plan = get_tap_plan<A>(shape);
  CHECK(plan == get_tap_plan<A>(shape));
  const int64_t c = shape.channels, n = shape.kernel_height * shape.kernel_width * c;
  const int64_t q = shape.filters > n ? shape.filters : n;
  for (int odd : {0, 1}) {
    const auto& part = plan->parts[0][size_t(odd)];
    CHECK((part.rank > 0) == expects_thin);
    double worst = 0;
    for (int64_t k = 0; k < shape.filters; ++k) {
      double error = 0, scale = 0;
      for (int64_t j = 0; j < part.depth; ++j) {
        const double angle = M_PI * double(k) * double(2 * j - (c - 1)) / (2 * double(q));
        const double wanted = odd ? std::sin(angle) : std::cos(angle);
        double entry = 0;
        if (part.rank == 0) entry = double(part.expand[size_t(k * part.depth + j)]);
        for (int64_t r = 0; r < part.rank; ++r) {
          entry += double(part.expand[size_t(k * part.rank + r)]) *
                   double(part.reduce[size_t(r * part.depth + j)]);
        }
        const double norm = std::sqrt((k ? 2.0 : 1.0) / double(q));
        error += std::pow(std::abs(entry) / norm - std::abs(wanted), 2);
        scale += 1;
      }
      worst = std::max(worst, std::sqrt(error / scale));
    }
    CHECK(worst < (sizeof(A) == 8 ? 1e-13 : 1e-6));
  }
}

// The table of docs/kernels-cpu-conv.md: 3x3 kernels with as many filters as channels.
void test_counts_of_the_notes() {
  struct Row {
    int64_t channels, even, odd, even_f64, odd_f64, products, kilobytes;
  };
  for (const Row& row : {Row{64, 9, 9, 13, 13, 2496, 10}, Row{128, 14, 13, 18, 18, 6720, 27},
                         Row{256, 22, 21, 27, 27, 19584, 79}, Row{512, 37, 37, 44, 43, 62976, 252}}) {
    const TapShape shape{3, 3, row.channels, row.channels, 1};
    const auto plan = get_tap_plan<float>(shape);
    const auto& [even, odd] = plan->parts[0];
    CHECK(even.rank == row.even && odd.rank == row.odd);
    CHECK(plan->cost == double(row.products));
    CHECK((plan->bytes() + 500) / 1000 == row.kilobytes);
    const auto& [even_f64, odd_f64] = get_tap_plan<double>(shape)->parts[0];
    CHECK(even_f64.rank == row.even_f64 && odd_f64.rank == row.odd_f64);
  }
  CHECK(get_plan<float>(9 * 64)->cost == 13309.5 && get_plan<float>(9 * 256)->cost == 64717.5);
}

}  // namespace

int main() {
  const Problem problems[] = {
      {2, 6, 5, 7, 6, {3, 3, 1, 1, 1, 1, 1, 1, 1}},    {3, 40, 70, 5, 9, {3, 3, 1, 1, 1, 1, 1, 1, 1}},
      {2, 5, 24, 6, 7, {1, 1, 1, 1, 0, 0, 1, 1, 1}},   {1, 8, 12, 11, 9, {3, 2, 2, 3, 1, 2, 2, 1, 2}},
      {2, 3, 90, 9, 9, {2, 4, 1, 1, 0, 3, 1, 1, 1}},   {2, 4, 8, 8, 8, {3, 3, 2, 2, 1, 1, 1, 1, 4}},
      {5, 64, 64, 4, 4, {3, 3, 1, 1, 1, 1, 1, 1, 1}},  {1, 2, 3, 40, 50, {5, 7, 1, 1, 2, 3, 1, 1, 1}},
      {2, 48, 48, 9, 7, {3, 3, 1, 1, 1, 1, 1, 1, 48}}, {1, 37, 37, 60, 70, {3, 5, 2, 1, 1, 2, 1, 1, 37}},
  };
  for (Isa isa : available_isas()) {
    set_isa(isa);
    for (const Problem& problem : problems) {
      for (bool last : {false, true}) {
        for (const Form& form : kForms) {
          test_against_plain_sums<double>(problem, DType::f64, last, form);
          test_against_plain_sums<float>(problem, DType::f32, last, form);
        }
      }
    }
  }
  const int64_t before = cached_plan_bytes();
  test_thin_factors<float>({3, 3, 96, 96, 1}, true);
  CHECK(cached_plan_bytes() > before);
  test_thin_factors<double>({3, 3, 96, 96, 1}, true);
  test_thin_factors<float>({1, 1, 32, 32, 1}, false);
  test_counts_of_the_notes();
  return check::failures != 0;
}
