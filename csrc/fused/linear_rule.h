// The rules of the linear kernels on a GPU: rows and threads per block, how sums over the batch are cut. Torch-free and
// CUDA-free. What bits depend on (threads, chunks, sections) follows from the shape alone; the constants are an H200's.
#pragma once

#include <cstdint>

#include "common/device_limits.h"

namespace dctps {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Threads of a block whose lines (outputs of a row) are dealt out to them: about four each.
inline int threads_for_lines(int64_t lines) {
  int threads = 64;
  while (threads < 512 && threads * 4 < lines) threads *= 2;
  return threads;
}

// How the backward pass sums over the batch: the rows in chunks, each summed row by row by one block (or, where chunks
// are few, one for each section of the columns), the chunks added up in order at the end.
struct ChunkedSums {
  static constexpr int64_t kMultiprocessors = 132, kMostWaves = 4;
  static constexpr int64_t kFewestRows = 4;
  // Writing and reading a chunk's sums may cost this share of moving x, dy and dx ...
  static constexpr int64_t kTrafficShare = 8;
  // ... and all of them together this much memory.
  static constexpr int64_t kMostBytes = int64_t(128) << 20;

  int64_t chunks, chunk_rows;
  int sections;

  // Of `rows` rows with `row_bytes` to move each; a chunk has `sums` sums of `sum_bytes` each, over `lines` columns.
  ChunkedSums(int64_t rows, int64_t row_bytes, int64_t sums, int64_t sum_bytes, int64_t lines) {
    const int64_t bytes = (sums > 0 ? sums : 1) * sum_bytes;
    const int64_t cheap = rows * row_bytes / (2 * kTrafficShare * bytes) / kMultiprocessors;
    int64_t most = kMultiprocessors * (cheap < 1 ? 1 : cheap > kMostWaves ? kMostWaves : cheap);
    if (most > kMostBytes / bytes) most = kMostBytes / bytes;
    if (most < 1) most = 1;
    chunk_rows = ceil_div(ceil_div(rows, most), kFewestRows) * kFewestRows;
    chunks = ceil_div(rows, chunk_rows);
    const int64_t wanted = ceil_div(2 * kMultiprocessors, chunks), possible = ceil_div(lines, 256);
    sections = chunks >= kMultiprocessors ? 1 : int(wanted < possible ? wanted : possible);
  }
};

// Rows of a tile that holds `row_bytes` for each: the most that leave room for two blocks on a multiprocessor and keep
// all of these busy; 0 where not even one row fits. `extra_bytes` go to a block whatever its rows.
inline int rows_per_block(int64_t rows, int most, int64_t row_bytes, int64_t extra_bytes, bool needs_all_busy,
                          const DeviceLimits& limits) {
  constexpr int64_t kReserved = 1024;  // of shared memory, by the system for each block
  for (int r = most; r > 1; r /= 2) {
    const bool fits = r * row_bytes + extra_bytes + kReserved <= limits.shared_bytes_per_sm / 2 &&
                      r * row_bytes + extra_bytes <= limits.shared_bytes_per_block;
    if (fits && (!needs_all_busy || ceil_div(rows, r) >= 2 * limits.sm_count)) return r;
  }
  return row_bytes + extra_bytes <= limits.shared_bytes_per_block ? 1 : 0;
}

}  // namespace dctps
