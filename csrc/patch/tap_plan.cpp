// Makes and caches the factors of tap_plan.h: thin factors by a pivoted QR decomposition and Jacobi's SVD of its small
// triangle.
#include "patch/tap_plan.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <tuple>
#include <utility>

#include "plan/fourier.h"
#include "plan/plan_cache.h"

namespace dctps {
namespace {

struct Matrix {
  int64_t rows, columns;
  std::vector<double> entries;

  Matrix(int64_t r, int64_t c) : rows(r), columns(c), entries(size_t(r * c)) {}
  double* row(int64_t r) { return entries.data() + r * columns; }
  const double* row(int64_t r) const { return entries.data() + r * columns; }
};

double dot(const double* a, const double* b, int64_t count) {
  return std::inner_product(a, a + count, b, 0.0);
}

// transposed(U) [rank, M.rows] and V [rank, M.columns] with M = U V up to `tolerance` in the norm of every row of M;
// empty where that takes as many multiply-adds as M itself.
struct ThinFactors {
  std::vector<std::vector<double>> left, right;

  ThinFactors(const Matrix& m, double tolerance) {
    decompose(m, 0.1 * tolerance);
    if (left.empty()) return;
    diagonalise();
    truncate(m.rows, tolerance);
    if (!is_useful(m, int64_t(left.size()))) left.clear(), right.clear();
  }

 private:
  static bool is_useful(const Matrix& m, int64_t rank) {
    return rank * (m.rows + m.columns) < m.rows * m.columns;
  }

  // QR with column pivoting, by Gram-Schmidt with each column orthogonalised twice, until what is left is small.
  void decompose(const Matrix& m, double tolerance) {
    std::vector<std::vector<double>> columns(static_cast<size_t>(m.columns));
    for (int64_t c = 0; c < m.columns; ++c) {
      for (int64_t r = 0; r < m.rows; ++r) columns[size_t(c)].push_back(m.row(r)[c]);
    }
    for (;;) {
      std::vector<double> row_error(static_cast<size_t>(m.rows));
      size_t pivot = 0;
      double largest = 0;
      for (size_t c = 0; c < columns.size(); ++c) {
        double square = 0;
        for (size_t r = 0; r < row_error.size(); ++r) {
          const double entry = columns[c][r] * columns[c][r];
          row_error[r] += entry;
          square += entry;
        }
        if (square > largest) largest = square, pivot = c;
      }
      if (largest == 0 || *std::max_element(row_error.begin(), row_error.end()) <= tolerance * tolerance)
        return;
      if (!is_useful(m, int64_t(left.size()) - 8)) {  // the SVD below may still win a few
        left.clear(), right.clear();
        return;
      }
      std::vector<double> direction = columns[pivot];
      for (const auto& known : left) {
        const double part = dot(known.data(), direction.data(), m.rows);
        for (size_t r = 0; r < direction.size(); ++r) direction[r] -= part * known[r];
      }
      const double norm = std::sqrt(dot(direction.data(), direction.data(), m.rows));
      for (double& entry : direction) entry /= norm;
      std::vector<double> projections;
      for (auto& column : columns) {
        const double part = dot(direction.data(), column.data(), m.rows);
        for (size_t r = 0; r < column.size(); ++r) column[r] -= part * direction[r];
        projections.push_back(part);
      }
      left.push_back(std::move(direction));
      right.push_back(std::move(projections));
    }
  }

  // Rotates pairs of rows of `right` until all are orthogonal: its SVD. `left` stays orthonormal.
  void diagonalise() {
    const int64_t columns = int64_t(right[0].size());
    auto rotate = [](std::vector<double>& a, std::vector<double>& b, double c, double s) {
      for (size_t i = 0; i < a.size(); ++i) {
        const double first = c * a[i] - s * b[i];
        b[i] = s * a[i] + c * b[i];
        a[i] = first;
      }
    };
    constexpr int kMostSweeps = 30;
    bool rotated = true;
    for (int sweep = 0; sweep < kMostSweeps && rotated; ++sweep) {
      rotated = false;
      for (size_t i = 0; i < right.size(); ++i) {
        for (size_t j = i + 1; j < right.size(); ++j) {
          const double aa = dot(right[i].data(), right[i].data(), columns);
          const double bb = dot(right[j].data(), right[j].data(), columns);
          const double ab = dot(right[i].data(), right[j].data(), columns);
          if (std::abs(ab) <= 1e-14 * std::sqrt(aa * bb)) continue;
          rotated = true;
          const double ratio = (bb - aa) / (2 * ab);
          const double t = (ratio < 0 ? -1 : 1) / (std::abs(ratio) + std::sqrt(1 + ratio * ratio));
          const double c = 1 / std::sqrt(1 + t * t);
          rotate(right[i], right[j], c, c * t);
          rotate(left[i], left[j], c, c * t);
        }
      }
    }
  }

  // Leaves out the smallest singular values, as many as every row allows.
  void truncate(int64_t rows, double tolerance) {
    std::vector<std::pair<double, size_t>> order;
    for (size_t i = 0; i < right.size(); ++i) {
      order.emplace_back(dot(right[i].data(), right[i].data(), int64_t(right[i].size())), i);
    }
    std::sort(order.begin(), order.end());
    std::vector<double> row_error(static_cast<size_t>(rows));
    size_t dropped = 0;
    for (; dropped < order.size(); ++dropped) {
      const auto [square, i] = order[dropped];
      double worst = 0;
      for (size_t r = 0; r < row_error.size(); ++r) {
        row_error[r] += square * left[i][r] * left[i][r];
        worst = std::max(worst, row_error[r]);
      }
      if (worst > tolerance * tolerance) break;
    }
    std::vector<std::vector<double>> kept_left, kept_right;
    for (size_t rank = order.size(); rank-- > dropped;) {
      kept_left.push_back(std::move(left[order[rank].second]));
      kept_right.push_back(std::move(right[order[rank].second]));
    }
    left = std::move(kept_left), right = std::move(kept_right);
  }
};

template <class A>
std::shared_ptr<const TapPlan<A>> make_plan(const TapShape& shape, double tolerance) {
  const int64_t c = shape.channels, kh = shape.kernel_height, kw = shape.kernel_width;
  const int64_t n = kh * kw * c, m = shape.filters, q = std::max(m, n);
  const int64_t a0 = kh / 2, b0 = kw / 2;
  // e^(i theta_k t) for an integer t: theta_k t = 2 pi k t / 4q
  auto phase = [&](int64_t k, int64_t t) { return unit_root(-(k * (t % (4 * q))), 4 * q); };
  auto plan = std::make_shared<TapPlan<A>>();

  std::vector<double> scale;
  for (int64_t k = 0; k < m; ++k) {
    for (int64_t b = 0; b < kw; ++b) {
      const auto root = phase(k, 2 * c * (b - b0));
      plan->across.push_back(A(root.real()));
      plan->across.push_back(A(root.imag()));
    }
    const auto turn = phase(k, c * (2 * (a0 * kw + b0) + 1));
    const bool swaps = std::abs(turn.real()) < std::abs(turn.imag());
    const double leading = swaps ? -turn.imag() : turn.real();
    plan->swaps.push_back(swaps);
    scale.push_back(std::sqrt((k == 0 ? 1.0 : 2.0) / double(q)) * leading);
    for (int64_t a = 0; a < kh; ++a) {
      const auto root = phase(k, c * (2 * (a * kw + b0) + 1));
      const double u = swaps ? -root.imag() : root.real(), v = swaps ? root.real() : -root.imag();
      plan->down.push_back(a == a0 ? A(1) : A(u / leading));
      plan->down.push_back(A(v / leading));
      if (a == a0 && v != 0) plan->turns = true;
    }
  }

  const int64_t filters = m / shape.groups;
  double products = 0;
  for (int64_t group = 0; group < shape.groups; ++group) {
    std::array<typename TapPlan<A>::Part, 2> parts;
    for (int odd : {0, 1}) {
      auto& part = parts[size_t(odd)];
      part.depth = odd ? c / 2 : (c + 1) / 2;
      Matrix matrix(filters, part.depth);
      for (int64_t f = 0; f < filters; ++f) {
        const int64_t k = group * filters + f;
        for (int64_t j = 0; j < part.depth; ++j) {
          const auto root = phase(k, 2 * j - (c - 1));
          const bool is_middle = 2 * j == c - 1;  // folded onto itself: counted twice
          matrix.row(f)[j] = odd ? root.imag() : is_middle ? root.real() / 2 : root.real();
        }
      }
      const ThinFactors thin(matrix, tolerance * std::sqrt(double(c) / 4));
      part.rank = int64_t(thin.left.size());
      for (const auto& row : thin.right) {
        for (double entry : row) part.reduce.push_back(A(entry));
      }
      for (int64_t f = 0; f < filters; ++f) {
        const double factor = scale[size_t(group * filters + f)];
        for (int64_t i = 0; i < part.inner(); ++i) {
          part.expand.push_back(A(factor * (part.rank ? thin.left[size_t(i)][size_t(f)] : matrix.row(f)[i])));
        }
      }
      products += double(part.rank * part.depth + filters * part.inner());
    }
    plan->parts.push_back(std::move(parts));
  }
  plan->cost = products + double(m) * double(4 * (kw - 1) + 2 * (kh - 1) + (plan->turns ? 1 : 0));
  return plan;
}

}  // namespace

template <class A>
int64_t TapPlan<A>::bytes() const {
  size_t total = (across.size() + down.size()) * sizeof(A) + swaps.size();
  for (const auto& group : parts) {
    for (const Part& part : group) total += (part.reduce.size() + part.expand.size()) * sizeof(A);
  }
  return int64_t(total);
}

template <class A>
std::shared_ptr<const TapPlan<A>> get_tap_plan(const TapShape& shape, double tolerance) {
  static PlanCache<std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, double>, TapPlan<A>> cache;
  return cache.get(
      {shape.kernel_height, shape.kernel_width, shape.channels, shape.filters, shape.groups, tolerance},
      [&] { return make_plan<A>(shape, tolerance); });
}

template struct TapPlan<float>;
template struct TapPlan<double>;
template std::shared_ptr<const TapPlan<float>> get_tap_plan<float>(const TapShape&, double);
template std::shared_ptr<const TapPlan<double>> get_tap_plan<double>(const TapShape&, double);

}  // namespace dctps
