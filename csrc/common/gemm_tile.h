// Product of a small matrix with rows of vectors, blocked in registers: what a library GEMM does, but on operands that
// are made as they are read and used as they are made.
#pragma once

#include <algorithm>

#include "common/integers.h"
#include "common/simd.h"

namespace dctps {
namespace DCTPS_ISA {

// A block of the result held in registers: kBlockRows x kBlockVectors sums, with their operands. Rather high than wide,
// because vectors come from the second-level cache and factors from the first.
constexpr int kBlockRows = kVectorBytes == 64 ? 8 : 4;
constexpr int kBlockVectors = kVectorBytes == 16 ? 2 : 3;

// A matrix of scalars by strides, so that its transpose is one too.
template <class A>
struct Factors {
  const A* data;
  int64_t row_stride, column_stride;
};

template <int Rows, int Vectors, class A, class Load, class Store>
DCTPS_INLINE void product_block(const Factors<A>& factors, int64_t row, int64_t depth, int64_t vector,
                                const Load& load, const Store& store) {
  Vec<A> sums[Rows][Vectors] = {};
  const A* at = factors.data + row * factors.row_stride;
  for (int64_t d = 0; d < depth; ++d, at += factors.column_stride) {
    Vec<A> operands[Vectors];
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) operands[v] = load(d, vector + v);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const A factor = at[r * factors.row_stride];
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) sums[r][v] += operands[v] * factor;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) store(row + r, vector + v, sums[r][v]);
  }
}

template <int Most, int Vectors, class A, class Load, class Store>
DCTPS_INLINE void product_block_of(int64_t count, const Factors<A>& factors, int64_t row, int64_t depth,
                                   int64_t vector, const Load& load, const Store& store) {
  if (count == Most) {
    product_block<Most, Vectors, A>(factors, row, depth, vector, load, store);
  } else if constexpr (Most > 1) {
    product_block_of<Most - 1, Vectors, A>(count, factors, row, depth, vector, load, store);
  }
}

template <int Vectors, class A, class Load, class Store>
DCTPS_INLINE void product_rows(const Factors<A>& factors, int64_t rows, int64_t height, int64_t higher,
                               int64_t depth, int64_t vector, const Load& load, const Store& store) {
  for (int64_t b = 0, row = 0; row < rows; ++b) {
    const int64_t count = height + (b < higher);
    product_block_of<kBlockRows, Vectors, A>(count, factors, row, depth, vector, load, store);
    row += count;
  }
}

// For rows 0 .. rows-1 and vectors 0 .. vectors-1: store(row, vector, sum over d < depth of factors(row, d) * load(d,
// vector)). Each lane's sum is taken in the order of d. (By value: for all that the compiler knows, what is stored may
// change what is behind a reference.)
template <class A, class Load, class Store>
void product(Factors<A> factors, int64_t rows, int64_t depth, int64_t vectors, Load load, Store store) {
  // Blocks of about the same height: a last one of a single row would use an eighth of the registers.
  const int64_t blocks = std::max(ceil_div(rows, kBlockRows), int64_t(1));
  const int64_t height = rows / blocks, higher = rows % blocks;
  int64_t vector = 0;
  for (; vector + kBlockVectors <= vectors; vector += kBlockVectors) {
    product_rows<kBlockVectors, A>(factors, rows, height, higher, depth, vector, load, store);
  }
  for (; vector < vectors; ++vector) {
    product_rows<1, A>(factors, rows, height, higher, depth, vector, load, store);
  }
}

}  // namespace DCTPS_ISA
}  // namespace dctps
