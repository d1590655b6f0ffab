// Makes and caches the matrices of dct_matrix.h.
#include "plan/dct_matrix.h"

#include <algorithm>
#include <utility>

#include "plan/fourier.h"
#include "plan/plan_cache.h"

namespace dctps {

template <class A>
std::shared_ptr<const DctMatrix<A>> get_dct_matrix(int64_t m, int64_t n) {
  static PlanCache<std::pair<int64_t, int64_t>, DctMatrix<A>> cache;
  return cache.get({m, n}, [&] {
    const int64_t q = std::max(m, n);
    auto matrix = std::make_shared<DctMatrix<A>>();
    matrix->entries.reserve(size_t(m * n));
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t k = 0; k < m; ++k) {
        matrix->entries.push_back(A(dct_scale(k, q) * unit_root(k * (2 * i + 1) % (4 * q), 4 * q).real()));
      }
    }
    return matrix;
  });
}

template struct DctMatrix<float>;
template struct DctMatrix<double>;
template std::shared_ptr<const DctMatrix<float>> get_dct_matrix<float>(int64_t, int64_t);
template std::shared_ptr<const DctMatrix<double>> get_dct_matrix<double>(int64_t, int64_t);

}  // namespace dctps
