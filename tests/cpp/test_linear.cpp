// The torch-free linear kernels against naive double sums, on every instruction set, and their exact
// repeatability.
#include <algorithm>
#include <cmath>

#include "check.h"
#include "common/cache_size.h"
#include "common/workspace.h"
#include "fused/dctps_linear.h"

namespace {

using namespace dctps;

double entry(int64_t k, int64_t i, int64_t q) {
  return std::sqrt((k ? 2.0 : 1.0) / double(q)) *
         std::cos(M_PI * double(k * (2 * i + 1) % (4 * q)) / (2.0 * double(q)));
}

// A diagonal-like support: entry t in row t, column (3 t) mod n, for t < m.
struct Diagonal {
  std::vector<int32_t> crow, col, ccol, row, perm;

  Diagonal(int64_t m, int64_t n) {
    for (int32_t r = 0; r <= m; ++r) crow.push_back(r);
    for (int32_t r = 0; r < m; ++r) col.push_back(int32_t(3 * int64_t(r) % n));
    ccol.push_back(0);
    for (int32_t c = 0; c < n; ++c) {
      for (int32_t r = 0; r < m; ++r) {
        if (col[size_t(r)] == c) row.push_back(r), perm.push_back(r);
      }
      ccol.push_back(int32_t(row.size()));
    }
  }

  template <class T>
  SparseMatrix matrix(const std::vector<T>& values) const {
    return {int64_t(crow.size()) - 1,
            int64_t(ccol.size()) - 1,
            int64_t(col.size()),
            crow.data(),
            col.data(),
            ccol.data(),
            row.data(),
            perm.data(),
            values.data()};
  }
};

template <class T>
bool close(double expected, T got, double scale) {
  return std::abs(expected - double(got)) <= (sizeof(T) == 8 ? 1e-12 : 2e-6) * scale;
}

template <class T>
void test_against_naive_sums(int64_t m, int64_t n, DType dtype) {
  const int64_t rows = 19, q = std::max(m, n);
  const Diagonal support(m, n);
  const auto x = check::values<T>(rows * n, 1), dy = check::values<T>(rows * m, 2);
  const auto values = check::values<T>(m, 3), bias = check::values<T>(m, 4);
  const T alpha = T(0.75);
  std::vector<T> y(x.size() / size_t(n) * size_t(m)), dx(x.size()), dvalues(values.size()),
      dbias(bias.size());
  std::vector<T> scratch(size_t(BatchSums(rows, 2 * m).scratch_entries(m, m)));
  double dalpha = 0;
  linear_forward_cpu({.dtype = dtype,
                      .rows = rows,
                      .m = m,
                      .n = n,
                      .x = {const_cast<T*>(x.data()), n, 1},
                      .y = {y.data(), m, 1},
                      .has_dct = true,
                      .alpha = &alpha,
                      .s = support.matrix(values),
                      .bias = bias.data()});
  linear_backward_cpu({.dtype = dtype,
                       .rows = rows,
                       .m = m,
                       .n = n,
                       .dy = {const_cast<T*>(dy.data()), m, 1},
                       .x = {const_cast<T*>(x.data()), n, 1},
                       .dx = {dx.data(), n, 1},
                       .has_dct = true,
                       .alpha = &alpha,
                       .s = support.matrix(values),
                       .sums = {scratch.data(), dvalues.data(), &dalpha, dbias.data()}});

  double expected_dalpha = 0;
  std::vector<double> expected_dvalues(values.size()), expected_dbias(bias.size());
  for (int64_t b = 0; b < rows; ++b) {
    for (int64_t k = 0; k < m; ++k) {
      const int32_t c = support.col[size_t(k)];
      double sum = double(bias[size_t(k)]) + double(values[size_t(k)]) * double(x[size_t(b * n + c)]);
      for (int64_t i = 0; i < n; ++i) {
        const double term = entry(k, i, q) * double(x[size_t(b * n + i)]);
        sum += double(alpha) * term;
        expected_dalpha += term * double(dy[size_t(b * m + k)]);
      }
      CHECK(close(sum, y[size_t(b * m + k)], 1));
      expected_dvalues[size_t(k)] += double(dy[size_t(b * m + k)]) * double(x[size_t(b * n + c)]);
      expected_dbias[size_t(k)] += double(dy[size_t(b * m + k)]);
    }
    for (int64_t i = 0; i < n; ++i) {
      double sum = 0;
      for (int64_t k = 0; k < m; ++k) {
        const double weight =
            double(alpha) * entry(k, i, q) + (support.col[size_t(k)] == i ? double(values[size_t(k)]) : 0.0);
        sum += weight * double(dy[size_t(b * m + k)]);
      }
      CHECK(close(sum, dx[size_t(b * n + i)], 1));
    }
  }
  for (size_t k = 0; k < values.size(); ++k) {
    CHECK(close(expected_dvalues[k], dvalues[k], double(rows)));
    CHECK(close(expected_dbias[k], dbias[k], double(rows)));
  }
  CHECK(close(expected_dalpha, T(dalpha), double(rows * q)));
}

// The wave of chunks through the shared sums must leave the same bits every time, however threads interleave.
void test_sums_repeat_exactly() {
  const int64_t rows = 700, q = 96;
  const Diagonal support(q, q);
  const auto x = check::values<float>(rows * q, 5), dy = check::values<float>(rows * q, 6);
  const auto values = check::values<float>(q, 7);
  std::vector<float> first;
  for (int run = 0; run < 20; ++run) {
    std::vector<float> scratch(size_t(BatchSums(rows, 2 * q).scratch_entries(q, q))), dvalues(size_t(q), 0.f);
    linear_backward_cpu({.dtype = DType::f32,
                         .rows = rows,
                         .m = q,
                         .n = q,
                         .dy = {const_cast<float*>(dy.data()), q, 1},
                         .x = {const_cast<float*>(x.data()), q, 1},
                         .s = support.matrix(values),
                         .sums = {.scratch = scratch.data(), .dvalues = dvalues.data()}});
    if (run == 0) first = dvalues;
    CHECK(dvalues == first);
  }
}

// Of whatever processor: what it says is a cache of whole lines, larger than the second one may be, or nothing.
void test_the_third_cache_is_none_or_of_a_likely_size() {
  const int64_t bytes = third_cache_bytes();
  CHECK(bytes == 0 || (bytes % 64 == 0 && bytes >= 1 << 20 && bytes <= int64_t(4) << 30));
}

void test_workspace_is_counted() {
  release_workspace();
  const int64_t before = workspace_bytes();
  void* memory = thread_workspace(1000);
  CHECK(reinterpret_cast<uintptr_t>(memory) % 64 == 0);
  CHECK(workspace_bytes() == before + 1000);
  CHECK(thread_workspace(500) == memory);
  release_workspace();
  CHECK(workspace_bytes() == before);
}

}  // namespace

int main() {
  for (Isa isa : available_isas()) {
    set_isa(isa);
    CHECK(isa_from_name(isa_name(isa)) == isa);
    for (int64_t m : {1, 2, 3, 4, 5, 7, 8, 9, 12, 16, 18, 27, 32, 41, 60, 82, 97, 128, 131, 150, 257}) {
      for (int64_t n : {m, int64_t(1), int64_t(7), int64_t(33), m / 2 + 1, 2 * m}) {
        test_against_naive_sums<double>(m, n, DType::f64);
        test_against_naive_sums<float>(m, n, DType::f32);
      }
    }
    test_sums_repeat_exactly();
  }
  test_the_third_cache_is_none_or_of_a_likely_size();
  test_workspace_is_counted();
  return check::failures != 0;
}
