// The sparse matrix S of a layer: a fixed support in compressed rows and, for the transpose, in compressed
// columns.
#pragma once

#include <cstdint>

namespace dctps {

// S [m x n]. Entries are numbered in CSR order. Values are in the accumulator's type.
struct SparseMatrix {
  int64_t m = 0, n = 0, nnz = 0;
  const int32_t* crow = nullptr;  // [m + 1] first entry of each row
  const int32_t* col = nullptr;   // [nnz] column of each entry
  const int32_t* ccol = nullptr;  // [n + 1] first place of each column in row, perm
  const int32_t* row = nullptr;   // [nnz] row of each entry, column by column
  const int32_t* perm = nullptr;  // [nnz] number of that entry
  const void* values = nullptr;   // [nnz]
};

// The words of 64 bits that hold 4 bits for each entry (EntryPlaces in sparse_tile.h), and one more.
constexpr int64_t place_words(int64_t nnz) { return nnz / 16 + 2; }

}  // namespace dctps
