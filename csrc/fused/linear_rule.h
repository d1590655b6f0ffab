// The rules of linear layers with a sparse part on a GPU: fused with the DCT or separate, rows and threads of a block,
// how sums over the batch are cut. Torch-free and CUDA-free. What bits depend on (threads, chunks, sections) follows from
// the shape alone. Nothing here was measured: the constants are counts, and where they stand for a device, an H200's.
#pragma once

#include <cstdint>

#include "common/device_limits.h"
#include "common/integers.h"

namespace dctps {

inline int ceil_log2(int64_t value) {
  int log = 0;
  while (int64_t(1) << log < value) ++log;
  return log;
}

// How the backward pass sums over the batch: the rows in chunks, each summed row by row by one block (or, where chunks
// are few, one for each section of the columns), the chunks added up in order at the end.
struct ChunkedSums {
  static constexpr int64_t kMultiprocessors = 132, kMostWaves = 4, kFewestRows = 4, kFewestColumns = 64;
  // More chunks than multiprocessors only as long as writing and reading their sums costs no more than this share of
  // moving x, dy and dx.
  static constexpr int64_t kTrafficShare = 2;
  // Of all chunks' sums: a block adds to its own after every few rows, so they should stay in L2.
  static constexpr int64_t kMostBytes = int64_t(24) << 20;

  int64_t chunks, chunk_rows;
  int sections;

  // Of `rows` rows, for each of which row_bytes are moved; a chunk's sums take chunk_bytes.
  ChunkedSums(int64_t rows, int64_t row_bytes, int64_t chunk_bytes, int64_t columns) {
    const int64_t waves = rows * row_bytes / (2 * kTrafficShare * chunk_bytes) / kMultiprocessors;
    int64_t most = kMultiprocessors * (waves < 1 ? 1 : waves > kMostWaves ? kMostWaves : waves);
    if (most > kMostBytes / chunk_bytes) most = kMostBytes / chunk_bytes;
    if (most < 1) most = 1;
    chunk_rows = ceil_div(ceil_div(rows, most), kFewestRows) * kFewestRows;
    chunks = ceil_div(rows, chunk_rows);
    const int64_t wanted = ceil_div(2 * kMultiprocessors, chunks),
                  possible = ceil_div(columns, kFewestColumns);
    sections = chunks >= kMultiprocessors / 2 ? 1 : int(wanted < possible ? wanted : possible);
  }
};

// What the rule is asked about.
struct TileWork {
  int64_t rows;
  int64_t size;              // q: max(m, n)
  int64_t most_rows;         // of a block
  int64_t tile_bytes;        // of a row, for the sparse product
  int64_t transform_bytes;   // of a row; 0: no DCT part
  int64_t transform_points;  // complex values of a row's transform
  int64_t extra_bytes;       // of shared memory, whatever the rows
  int64_t fused_bytes;       // of global memory that a row moves, fused ...
  int64_t separate_bytes;    // ... and in two passes
  int64_t csr_bytes;         // that a block reads and writes for S, whatever its rows
  int64_t rows_in_turn;      // a block takes that many rows in turn; 0: one tile of rows
  int64_t blocks;            // that there are then
  bool can_fuse;
};

struct LayerRule {
  static constexpr int64_t kReserved = 1024;  // shared memory that the system takes for each block
  static constexpr int kValuesPerThread = 16;
  static constexpr int kFewestThreads = 64, kMostThreads = 512;

  bool fused;
  int rows;             // of a block at a time; 0: one that does not fit shared memory
  int threads;          // of a block
  int log_row_threads;  // fused: threads of a row's transform
  int turns;            // of RowSums: classes / threads

  LayerRule(const TileWork& work, const DeviceLimits& limits) {
    // A thread for about four columns: it is also the number of classes in RowSums.
    int log_classes = ceil_log2((work.size + 3) / 4);
    while (1 << log_classes < kFewestThreads) ++log_classes;
    while (1 << log_classes > kMostThreads) --log_classes;
    const int classes = 1 << log_classes;

    // A thread for every 16 values of a row, as far as four rows still find threads, or, of long rows, as many as fit.
    log_row_threads = ceil_log2(ceil_div(work.transform_points, kValuesPerThread));
    const int log_fitting = ceil_log2((work.size + 1) / 2 / kValuesPerThread);
    const int log_most = log_fitting > log_classes - 2 ? log_fitting : log_classes - 2;
    if (log_row_threads > log_most) log_row_threads = log_most;
    if (log_row_threads > log_classes) log_row_threads = log_classes;
    while (work.most_rows << log_row_threads < classes) ++log_row_threads;

    const int fused_rows =
        work.can_fuse && work.transform_bytes > 0
            ? fitting_rows(classes >> log_row_threads, work.tile_bytes + work.transform_bytes, work, limits)
            : 0;
    const int separate_rows = fitting_rows(int(work.most_rows), work.tile_bytes, work, limits);
    // S is read again for every block: with its share, the form that moves fewer bytes.
    fused =
        fused_rows > 0 && work.fused_bytes + work.csr_bytes / fused_rows <=
                              work.separate_bytes + work.csr_bytes / (separate_rows > 0 ? separate_rows : 1);
    rows = fused ? fused_rows : separate_rows;
    // A small batch: fewer rows a block, so that there are two blocks for every multiprocessor; but whole warps.
    while (rows > 1 &&
           (work.rows_in_turn ? rows > work.rows_in_turn : ceil_div(work.rows, rows) < 2 * limits.sm_count)) {
      if (fused && rows / 2 << log_row_threads < kFewestThreads) break;
      rows /= 2;
    }
    threads = fused ? rows << log_row_threads : classes;
    turns = classes / threads;
  }

 private:
  // The most rows, a power of two, that leave room for two blocks on a multiprocessor, if there are so many; or one row;
  // or none.
  static int fitting_rows(int most, int64_t row_bytes, const TileWork& work, const DeviceLimits& limits) {
    const int blocks = work.rows_in_turn && work.blocks <= limits.sm_count ? 1 : 2;
    for (int r = most; r > 1; r /= 2) {
      const int64_t bytes = r * row_bytes + work.extra_bytes;
      if (blocks * (bytes + kReserved) <= limits.shared_bytes_per_sm &&
          bytes <= limits.shared_bytes_per_block)
        return r;
    }
    return row_bytes + work.extra_bytes <= limits.shared_bytes_per_block ? 1 : 0;
  }
};

}  // namespace dctps
