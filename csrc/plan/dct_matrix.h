// The entries of D as numbers, for layers so small that multiplying by them is the fastest transform.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace dctps {

// D in R^{m x n}, transposed, made in double.
template <class A>
struct DctMatrix {
  std::vector<A> entries;  // [n][m]

  int64_t bytes() const { return int64_t(entries.size() * sizeof(A)); }
};

// That of a shape, cached for the life of the process.
template <class A>
std::shared_ptr<const DctMatrix<A>> get_dct_matrix(int64_t m, int64_t n);

}  // namespace dctps
