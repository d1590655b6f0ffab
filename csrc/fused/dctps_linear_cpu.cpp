// The fused linear layer on CPU: a tile of kLanes rows or two at a time, x and dy read once, y and dx written once.
#include "fused/dctps_linear.h"

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "common/integers.h"
#include "common/parallel.h"
#include "common/tile_io.h"
#include "common/workspace.h"
#include "dct/dct_tile.h"
#include "sparse/sparse_tile.h"

namespace dctps {
namespace DCTPS_ISA {
namespace {

// The rows first .. first + kLanes - 1 of a batch of `rows`, those past its end null.
template <class E>
Lanes<E> lanes_of(const Rows& matrix, int64_t first, int64_t rows) {
  Lanes<E> result;
  result.stride = matrix.stride;
  E* const data = static_cast<E*>(matrix.data);
  const int64_t block = matrix.block ? matrix.block : rows;
  int64_t number = first / block, row = first % block;  // of the next lane
  for (int l = 0; l < kLanes<Accumulator<E>>; ++l) {
    const bool present = data && first + l < rows;
    result.lane[l] = present ? data + number * matrix.block_stride + row * matrix.row_stride : nullptr;
    if (++row == block) row = 0, ++number;
  }
  return result;
}

// The tiles N * number .. N * number + N - 1.
template <class E, int N>
Tiles<E, N> tiles_of(const Rows& matrix, int64_t number, int64_t rows, bool streaming = false) {
  Tiles<E, N> tiles;
  for (int t = 0; t < N; ++t) {
    tiles[size_t(t)] = lanes_of<E>(matrix, (number * N + t) * kLanes<Accumulator<E>>, rows);
    tiles[size_t(t)].streaming = streaming;
  }
  return tiles;
}

// What N tiles have in one place: of values side by side, and of two separate ones.
template <int N, class V>
auto side_by_side(const V* values) {
  if constexpr (N == 1) {
    return values;
  } else {
    return Interleaved<V>{values};
  }
}
template <int N, class V>
auto one_behind_the_other(const V* values, int64_t size) {
  if constexpr (N == 1) {
    return values;
  } else {
    return InTwo<V>{values, values + size};
  }
}

// Whether neighbouring rows are neighbours in memory, as the pixels of a channels-first image are: two tiles of them share
// cache lines. (Not by strides alone, which bits of sums may not depend on.)
bool are_pixels(const Rows& rows) { return rows.block > 0 && rows.row_stride == 1; }

// How many of N tiles are loaded when it is the turn of tile t: its own, or all with the first one.
template <int N>
int tiles_to_load(const Rows& rows, int t) {
  return !are_pixels(rows) ? 1 : t == 0 ? N : 0;
}

// The tile that this thread will probably load after tile t of a step, with which it loads so many.
template <int N>
int64_t tile_after(int64_t step, int t, int loads, int64_t next_step) {
  return loads == 1 && t + 1 < N ? step * N + t + 1 : next_step * N;
}

// Whether results, rows x columns, are written past the caches: those that would push everything else out, and those
// whose rows lie a multiple of kAliasBytes apart, so that the lines of a tile's rows share one set of a cache. (Measured
// with the copying of the result after it: streaming gains up to 15%, and loses below these sizes.)
constexpr int64_t kStreamBytes = 4 << 20, kAliasedStreamBytes = 1 << 20, kAliasBytes = 4096;

template <class E>
bool streams(const Rows& results, int64_t rows, int64_t columns) {
  const bool aliased = results.row_stride * int64_t(sizeof(E)) % kAliasBytes == 0;
  return rows * columns * int64_t(sizeof(E)) >= (aliased ? kAliasedStreamBytes : kStreamBytes);
}

// The rows that this thread will probably take next are fetched while the current ones are transformed, unless that is
// more than this: it would push the current ones out of the cache.
constexpr int64_t kPrefetchBytes = 384 << 10;

// Tiles first .. end - 1, both multiples of N, N at a time.
template <class E, int N>
void forward(const LinearForwardArgs& args, int64_t first, int64_t end) {
  using A = Accumulator<E>;
  using V = Vec<A>;
  constexpr int L = kLanes<A>;
  const int64_t q = args.m > args.n ? args.m : args.n;
  const auto plan = args.has_dct ? get_plan<A>(q) : nullptr;
  const A* bias = static_cast<const A*>(args.bias);
  const A alpha = args.alpha ? *static_cast<const A*>(args.alpha) : A(1);
  const bool streaming = streams<E>(args.y, args.rows, args.m);
  const int64_t chunks = (end - first) / N;

  auto make_worker = [&] {
    const int64_t work_size = plan ? plan->work_size : 0;
    V* const x = static_cast<V*>(thread_workspace(size_t(N * (q + work_size)) * sizeof(V)));
    V* const work = x + N * q;
    for (int64_t i = args.n * N; i < q * N; ++i) x[i] = V{};

    auto load = [&args, &plan, x, work, work_size](int64_t chunk) {
      const auto rows = tiles_of<const E, N>(args.x, chunk, args.rows);
      if (!plan) return load_tiles(rows, args.n, x);
      const bool prefetches = args.n * L * int64_t(sizeof(E)) <= kPrefetchBytes;
      for (int t = 0; t < N; ++t) {
        const int loads = tiles_to_load<N>(args.x, t);
        Prefetch<A> prefetch;
        if (prefetches && loads) {
          prefetch.add(lanes_of<const E>(args.x, tile_after<N>(chunk, t, loads, chunk + 1) * L, args.rows),
                       args.n);
        }
        const RowSquares<E, N> squares(&rows[size_t(t)], loads, args.n, x + t, args.s.nnz > 0, !prefetches);
        TileTransform<A>(*plan).forward(squares, work + t * work_size, prefetch);
      }
    };
    auto store = [&args, &plan, bias, alpha](auto y, auto x_at, auto work_at) {
      // By value: for all that the compiler knows, a store to y may change what is behind a reference.
      auto sparse_and_bias = [s = args.s, x_at, bias](int64_t k) {
        decltype(x_at[0] * alpha) sum{};
        if (bias) fill(sum, bias[k]);
        return s.nnz ? sparse_row<A>(sum, s, k, x_at) : sum;
      };
      if (plan) {  // asked here and not for every value: that costs 3% of the whole
        const TileTransform<A> transform(*plan);
        if (args.s.nnz || bias) {
          store_tile(y, args.m, [=](int64_t k) {
            // Never joined with the sum, so that one tile and two have the same bits; looked up before it, to be there.
            const auto transformed = in_register(transform.finish(work_at, k) * alpha);
            return transformed + sparse_and_bias(k);
          });
        } else {
          store_tile(y, args.m, [=](int64_t k) { return transform.finish(work_at, k) * alpha; });
        }
      } else {
        store_tile(y, args.m, sparse_and_bias);
      }
    };
    return [=, &args](int64_t number) {
      const int64_t chunk = first / N + number;
      load(chunk);
      store(tiles_of<E, N>(args.y, chunk, args.rows, streaming), side_by_side<N, V>(x),
            one_behind_the_other<N, V>(work, work_size));
    };
  };
  parallel_chunks(chunks, make_worker, chunks_at_a_time(chunks));
}

// Entries of a column from which on S^T dy and the gradient of S's values look at dy together, column by column. Below,
// the gradient takes the entries of kLanes columns without a look at whose they are.
constexpr int64_t kLongColumn = 32;

// Where all tiles add to one set of sums, the columns of S are dealt with in this many sections.
constexpr int64_t kMostSections = 16;

// Adds up the sums of the chunks, [chunks][nnz + m], in order, and puts the values' into CSR order.
template <class A>
void add_up_chunks(const SparseMatrix& s, int64_t m, int64_t chunks, const A* parts, A* dvalues, A* dbias) {
  constexpr int64_t kBlock = 4096;
  auto total = [&](int64_t t) {
    A sum = parts[t];
    for (int64_t c = 1; c < chunks; ++c) sum += parts[c * (s.nnz + m) + t];
    return sum;
  };
  parallel_chunks(dvalues ? ceil_div(s.nnz, kBlock) : 0, [&] {
    return [&](int64_t block) {
      const int64_t end = (block + 1) * kBlock < s.nnz ? (block + 1) * kBlock : s.nnz;
      for (int64_t t = block * kBlock; t < end; ++t) dvalues[s.perm[t]] = total(t);
    };
  });
  for (int64_t k = 0; dbias && k < m; ++k) dbias[k] = total(s.nnz + k);
}

// N tiles at a time, which decides about the bits of the sums over the batch.
template <class E, int N>
void backward(const LinearBackwardArgs& args) {
  using A = Accumulator<E>;
  using V = Vec<A>;
  using T = std::conditional_t<N == 1, V, Two<V>>;  // a place of all N
  constexpr int L = kLanes<A>;
  const int64_t q = args.m > args.n ? args.m : args.n;
  A* const dvalues = static_cast<A*>(args.sums.dvalues);
  double* const dalpha = args.sums.dalpha;
  A* const dbias = static_cast<A*>(args.sums.dbias);
  const bool wants_dx = args.dx.data, wants_x = dvalues || dalpha;
  const bool transforms = args.has_dct && (wants_dx || dalpha);
  const auto plan = transforms ? get_plan<A>(q) : nullptr;
  const A alpha = args.alpha ? *static_cast<const A*>(args.alpha) : A(1);
  const SparseMatrix& s = args.s;
  const bool long_columns = s.nnz >= kLongColumn * s.n;  // whoever needs gradients: dx has the same bits
  const EntryPlaces places(static_cast<uint64_t*>(args.sums.scratch));
  if (dvalues && !long_columns) places.fill<A>(s);
  A* const values = static_cast<A*>(args.sums.scratch) + BatchSums::place_entries(s.nnz);  // in column order
  values_by_column(s, values);
  const int64_t workers = max_workers();
  const bool streaming = streams<E>(args.dx, args.rows, args.n);

  const BatchSums batch_sums(args.rows, s.nnz + args.m);
  const bool wants_sums = dvalues || dalpha || dbias;
  const bool in_chunks = wants_sums && batch_sums.chunks > 0, in_turns = wants_sums && !in_chunks;
  const int64_t tiles = ceil_div(args.rows, L), steps = ceil_div(tiles, N);
  const int64_t chunks = in_chunks ? batch_sums.chunks : steps;
  const int64_t chunk_blocks = ceil_div(args.rows, BatchSums::kChunkRows);
  A* const parts = values + s.nnz;
  std::vector<double> dalpha_parts(size_t(in_chunks ? chunks : 1));

  const int64_t column_blocks = ceil_div(args.n, L);
  const int64_t most = in_turns && dvalues ? kMostSections : 1;
  const int column_sections = int(column_blocks < most ? column_blocks : most);
  OrderedSections sections(in_turns ? column_sections + 1 : 0);  // the last one: dbias and dalpha

  auto make_worker = [&] {
    const int64_t work_size = plan ? plan->work_size : 0;
    const int64_t whole_squares = round_up(q, L);
    V* const loaded_dy =
        static_cast<V*>(thread_workspace(size_t(N * (whole_squares + work_size)) * sizeof(V)));
    V* const work = loaded_dy + N * whole_squares;
    for (int64_t i = args.m * N; i < q * N; ++i) loaded_dy[i] = V{};
    const auto dy = side_by_side<N, V>(loaded_dy);
    const auto transformed = one_behind_the_other<N, V>(work, work_size);

    auto load = [&, loaded_dy, work, work_size](int64_t step) {
      const auto rows = tiles_of<const E, N>(args.dy, step, args.rows);
      if (!plan) return load_tiles(rows, args.m, loaded_dy);
      const int64_t elements = (wants_x ? args.m + args.n : args.m) * L;
      const bool prefetches = elements * int64_t(sizeof(E)) <= kPrefetchBytes;
      for (int t = 0; t < N; ++t) {
        const int loads = tiles_to_load<N>(args.dy, t);
        if (step * N + t >= tiles) {  // all absent, which adds zeros to the sums
          if (loads) load_tile<E, N>(rows[size_t(t)], args.m, loaded_dy + t);
          std::fill_n(work + t * work_size, work_size, V{});
          break;
        }
        const int64_t next_step = in_turns ? step + workers : step + 1;
        const int64_t next_tile = tile_after<N>(step, t, loads, next_step);
        Prefetch<A> prefetch;
        if (prefetches && loads) {
          prefetch.add(lanes_of<const E>(args.dy, next_tile * L, args.rows), args.m);
          if (wants_x) prefetch.add(lanes_of<const E>(args.x, next_tile * L, args.rows), args.n);
        }
        const RowSquares<E, N> squares(&rows[size_t(t)], loads, args.m, loaded_dy + t, s.nnz || dbias,
                                       !prefetches);
        TileTransform<A>(*plan).adjoint(squares, work + t * work_size, prefetch);
      }
    };

    // One tile, or N; what it adds to the sums goes to the given places.
    auto add_tiles = [&, load, dy, transformed](int64_t step, A* dvalues_sum, A* dbias_sum,
                                                double* dalpha_sum) {
      auto adding = [&](int section, const auto& body) {
        in_turns ? sections.in_turn(section, step, body) : body();
      };
      const auto x = tiles_of<const E, N>(args.x, step, args.rows);
      const auto dx = tiles_of<E, N>(args.dx, step, args.rows, streaming);
      load(step);

      double dalpha_part = 0;
      // Columns begin .. end - 1 of dx, and what they add to dvalues and dalpha.
      auto columns = [&, s = s, values = values](int64_t begin, int64_t end) {  // by value: see forward
        DoubleVec<A> dalpha_lanes{};
        EntrySums<A> entry_sums(dvalues ? dvalues_sum + s.ccol[begin] : nullptr);
        V loaded_x[N * L] = {}, products{};  // products: of a square, for dalpha
        T sparse[L] = {};
        const auto x_square = side_by_side<N, V>(loaded_x);
        auto before = [&](int64_t first, int here) {
          dalpha_lanes += __builtin_convertvector(products, DoubleVec<A>);
          products = V{};
          for (int t = 0; t < N && wants_x; ++t) {
            load_square<E, N>(x[size_t(t)], first, here, loaded_x + t);
          }
          if (long_columns) {
            for (int c = 0; c < here; ++c) {
              sparse[c] = dvalues ? sparse_column<A>(T{}, s, values, first + c, dy, x_square[c], entry_sums)
                                  : sparse_column<A>(T{}, s, values, first + c, dy);
            }
          } else if (dvalues) {
            entry_sums.add(s.ccol[first], s.ccol[first + here], [&](V* to, int64_t t, int count) {
              const uint64_t columns_of = places.from(t);
#pragma GCC unroll 16
              for (int e = 0; e < count; ++e) {
                to[e] = sum_of(dy[s.row[t + e]] * x_square[columns_of >> e * places.kBits & (L - 1)]);
              }
            });
          }
        };
        SparseMatrix rest = s;  // what has not been looked at before
        if (long_columns) rest.nnz = 0;
        auto sparse_part = [&sparse, rest, values, dy](T start, int64_t k, int c) {
          start += sparse[c];
          return rest.nnz ? sparse_column<A>(start, rest, values, k, dy) : start;
        };
        if (plan) {
          const TileTransform<A> transform(*plan);
          store_squares(dx, begin, end, before, [&, sparse_part, alpha = alpha](int64_t k, int c) {
            const T gradient = transform.adjoint_finish(transformed, k);
            products += sum_of(gradient * x_square[c]);
            return sparse_part(in_register(gradient * alpha), k, c);  // see forward
          });
        } else if (wants_dx) {
          store_squares(dx, begin, end, before,
                        [sparse_part](int64_t k, int c) { return sparse_part(T{}, k, c); });
        } else {
          for (int64_t c = begin; c < end; c += L) before(c, end - c < L ? int(end - c) : L);
        }
        dalpha_lanes += __builtin_convertvector(products, DoubleVec<A>);
        dalpha_part += lane_sum<A>(dalpha_lanes);
        if (dvalues) entry_sums.finish();
      };
      if (dvalues) {
        for (int part = 0; part < column_sections; ++part) {
          const int64_t begin = part * column_blocks / column_sections * L;
          const int64_t end = (part + 1) * column_blocks / column_sections * L;
          adding(part, [&] { columns(begin, end < args.n ? end : args.n); });
        }
      } else if (plan && !s.nnz && !dalpha) {  // D^T dy alone
        const TileTransform<A> transform(*plan);
        store_tile(dx, args.n, [=, alpha = alpha](int64_t k) {
          return transform.adjoint_finish(transformed, k) * alpha;
        });
      } else if (wants_dx || dalpha) {
        columns(0, args.n);
      }
      if (dbias || dalpha) {
        adding(column_sections, [&] {
          if (dbias) add_lane_sums<A>(dy, args.m, dbias_sum);
          *dalpha_sum += dalpha_part;
        });
      }
    };

    static_assert(BatchSums::kChunkRows % (N * L) == 0, "a chunk of the batch begins with a step");
    return [&, add_tiles](int64_t chunk) {
      if (!in_chunks) return add_tiles(chunk, dvalues, dbias, dalpha_parts.data());
      A* const sums = parts + chunk * (s.nnz + args.m);
      std::memset(sums, 0, size_t(s.nnz + args.m) * sizeof(A));
      const int64_t first = chunk * chunk_blocks / chunks * BatchSums::kChunkRows / (N * L);
      const int64_t last = (chunk + 1) * chunk_blocks / chunks * BatchSums::kChunkRows / (N * L);
      for (int64_t step = first; step < last && step < steps; ++step) {
        add_tiles(step, sums, sums + s.nnz, &dalpha_parts[size_t(chunk)]);
      }
    };
  };
  if (in_turns) {
    parallel_chunks_in_order(chunks, make_worker);
  } else {
    parallel_chunks(chunks, make_worker, in_chunks ? 1 : chunks_at_a_time(chunks));
  }

  if (in_chunks) {
    add_up_chunks(s, args.m, chunks, parts, dvalues, dbias);
  } else if (dvalues) {
    to_csr_order(s, values, dvalues);
  }
  if (dalpha) {
    for (double part : dalpha_parts) *dalpha += part;
  }
}

// Two tiles go through S together, so that one look at its entries serves both, where it has so many a row, because the
// second tile's values wait in memory for it, and where what is looked up in both stays in the L2 cache. On AVX2, whose
// vectors are half a cache line, backward too, and wherever all of both is near or two tiles share their lines.
constexpr int64_t kPairedEntries = 8, kPairedBytes = 512 << 10, kPairedBackwardBytes = 128 << 10,
                  kNearBytes = 32 << 10;
constexpr bool kHasHalfLines = kVectorBytes == 32;

// Whether a pass does that which reads rows of `from`, and sums S's entries for each of `results` values of a row.
bool goes_in_twos(const SparseMatrix& s, int64_t results, const Rows& from, int64_t most_bytes) {
  if (!s.nnz) return false;  // the second tile is looked up where S needs it
  const int64_t bytes = 2 * std::max(s.m, s.n) * kVectorBytes;
  if (kHasHalfLines && (bytes <= kNearBytes || are_pixels(from))) return true;
  return s.nnz >= kPairedEntries * results && bytes <= most_bytes;
}

}  // namespace

void linear_forward_cpu(const LinearForwardArgs& args) {
  if (!args.rows) return;
  dispatch(args.dtype, [&](auto element) {
    using E = decltype(element);
    const int64_t tiles = ceil_div(args.rows, kLanes<Accumulator<E>>);
    const bool in_twos = tiles >= 2 * max_workers() && goes_in_twos(args.s, args.m, args.x, kPairedBytes);
    const int64_t paired = in_twos ? tiles / 2 * 2 : 0;
    if (paired) forward<E, 2>(args, 0, paired);
    if (paired < tiles) forward<E, 1>(args, paired, tiles);
  });
}

void linear_backward_cpu(const LinearBackwardArgs& args) {
  if (!args.rows) return;
  dispatch(args.dtype, [&](auto element) {
    using E = decltype(element);
    if constexpr (kHasHalfLines) {
      // The bits of sums depend on this, so that the number of threads may not decide about it where there are some.
      const bool has_sums = args.sums.dvalues || args.sums.dalpha || args.sums.dbias;
      const int64_t tiles = ceil_div(args.rows, kLanes<Accumulator<E>>);
      if (tiles >= (has_sums ? 2 : 2 * max_workers()) &&
          goes_in_twos(args.s, args.n, args.dy, kPairedBackwardBytes)) {
        return backward<E, 2>(args);
      }
    }
    backward<E, 1>(args);
  });
}

}  // namespace DCTPS_ISA
}  // namespace dctps
