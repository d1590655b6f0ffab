// Product of a small matrix with rows of vectors, blocked in registers: what a library GEMM does, but on operands that
// are made as they are read and used as they are made.
#pragma once

#include "common/simd.h"

namespace dctps {
namespace DCTPS_ISA {

// A block of the result held in registers: kBlockRows x kBlockVectors sums, with their operands.
constexpr int kBlockRows = 4;
constexpr int kBlockVectors = kVectorBytes == 64 ? 6 : kVectorBytes == 32 ? 3 : 2;

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

template <int Vectors, class A, class Load, class Store>
void product_rows(const Factors<A>& factors, int64_t rows, int64_t depth, int64_t vector, const Load& load,
                  const Store& store) {
  // Blocks of about the same height: a last one of a single row would use a quarter of the registers.
  const int64_t blocks = (rows + kBlockRows - 1) / kBlockRows;
  for (int64_t b = 0, row = 0; b < blocks; ++b) {
    const int64_t end = (b + 1) * rows / blocks;
    switch (end - row) {
      case 4:
        product_block<4, Vectors, A>(factors, row, depth, vector, load, store);
        break;
      case 3:
        product_block<3, Vectors, A>(factors, row, depth, vector, load, store);
        break;
      case 2:
        product_block<2, Vectors, A>(factors, row, depth, vector, load, store);
        break;
      default:
        product_block<1, Vectors, A>(factors, row, depth, vector, load, store);
    }
    row = end;
  }
}

// For rows 0 .. rows-1 and vectors 0 .. vectors-1: store(row, vector, sum over d < depth of factors(row, d) * load(d,
// vector)). Each lane's sum is taken in the order of d.
template <class A, class Load, class Store>
void product(const Factors<A>& factors, int64_t rows, int64_t depth, int64_t vectors, const Load& load,
             const Store& store) {
  const int64_t panels = (vectors + kBlockVectors - 1) / kBlockVectors;
  for (int64_t p = 0, vector = 0; p < panels; ++p) {
    const int64_t end = (p + 1) * vectors / panels;
    switch (end - vector) {
      case kBlockVectors:
        product_rows<kBlockVectors, A>(factors, rows, depth, vector, load, store);
        break;
      case kBlockVectors - 1:
        product_rows<kBlockVectors - 1, A>(factors, rows, depth, vector, load, store);
        break;
      default:
        for (int64_t v = vector; v < end; ++v) product_rows<1, A>(factors, rows, depth, v, load, store);
    }
    vector = end;
  }
}

}  // namespace DCTPS_ISA
}  // namespace dctps
