// The fused linear layer on CPU: a tile of kLanes rows at a time, x and dy read once, y and dx written once.
#include "fused/dctps_linear.h"

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

// Two tiles go through S together, so that one look at its entries serves both, where it has so many a row, because the
// second tile's values wait in memory for it, and where what is looked up in both stays in the L2 cache.
constexpr int64_t kPairedEntries = 8, kPairedBytes = 512 << 10;

template <class E>
void forward(const LinearForwardArgs& args) {
  using A = Accumulator<E>;
  using V = Vec<A>;
  constexpr int L = kLanes<A>;
  if (!args.rows) return;
  const int64_t q = args.m > args.n ? args.m : args.n;
  const auto plan = args.has_dct ? get_plan<A>(q) : nullptr;
  const A* bias = static_cast<const A*>(args.bias);
  const A alpha = args.alpha ? *static_cast<const A*>(args.alpha) : A(1);
  const bool streaming = streams<E>(args.y, args.rows, args.m);
  const int64_t tiles = ceil_div(args.rows, L);
  const bool in_pairs = args.s.nnz >= kPairedEntries * args.m && 2 * q * int64_t(sizeof(V)) <= kPairedBytes &&
                        tiles >= 2 * max_workers();
  const int64_t in_chunk = in_pairs ? 2 : 1, chunks = ceil_div(tiles, in_chunk);

  auto make_worker = [&] {
    const int64_t work_size = plan ? plan->work_size : 0;
    V* const scratch = static_cast<V*>(thread_workspace(size_t(in_chunk * (q + work_size)) * sizeof(V)));
    for (V* x = scratch; x < scratch + in_chunk * q; x += q) {
      for (int64_t i = args.n; i < q; ++i) x[i] = V{};
    }
    V* const scratch_work = scratch + in_chunk * q;

    auto load = [&args, &plan](int64_t tile, V* x, V* work, int64_t next_tile) {
      const Lanes<const E> rows = lanes_of<const E>(args.x, tile * L, args.rows);
      if (!plan) return load_tile<E>(rows, args.n, x);
      const Lanes<const E> next = lanes_of<const E>(args.x, next_tile * L, args.rows);
      const bool prefetches = args.n * L * int64_t(sizeof(E)) <= kPrefetchBytes;
      Prefetch<E> prefetch(next, args.n, prefetches);
      TileTransform<A>(*plan).forward(RowSquares<E>(rows, args.n, x, args.s.nnz > 0, !prefetches), work,
                                      [&](int64_t values) { prefetch.advance(values); });
    };
    auto outputs = [&args, streaming](int64_t tile) {
      Lanes<E> y = lanes_of<E>(args.y, tile * L, args.rows);
      y.streaming = streaming;
      return y;
    };
    // Of one tile, or of two, where x and work are InTwo.
    auto store = [&args, &plan, bias, alpha](auto y, auto x, auto work) {
      // By value: for all that the compiler knows, a store to y may change what is behind a reference.
      auto sparse_and_bias = [s = args.s, x, bias](int64_t k) {
        decltype(x[0] * alpha) sum{};
        if (bias) fill(sum, bias[k]);
        return s.nnz ? sparse_row<A>(sum, s, k, x) : sum;
      };
      if (plan) {  // asked here and not for every value: that costs 3% of the whole
        const TileTransform<A> transform(*plan);
        if (args.s.nnz || bias) {
          store_tile<E>(y, args.m, [=](int64_t k) {
            // Never joined with the sum, so that one tile and two have the same bits; looked up before it, to be there.
            const auto transformed = in_register(transform.finish(work, k) * alpha);
            return transformed + sparse_and_bias(k);
          });
        } else {
          store_tile<E>(y, args.m, [=](int64_t k) { return transform.finish(work, k) * alpha; });
        }
      } else {
        store_tile<E>(y, args.m, sparse_and_bias);
      }
    };
    return [=, x = scratch, work = scratch_work](int64_t chunk) {
      const int64_t tile = chunk * in_chunk, next = tile + in_chunk;
      if (in_pairs && tile + 1 < tiles) {
        V *const second_x = x + q, *const second_work = work + work_size;
        load(tile, x, work, tile + 1);
        load(tile + 1, second_x, second_work, next);
        store(Two<Lanes<E>>{outputs(tile), outputs(tile + 1)}, InTwo<V>{x, second_x},
              InTwo<V>{work, second_work});
      } else {
        load(tile, x, work, next);
        store(outputs(tile), static_cast<const V*>(x), static_cast<const V*>(work));
      }
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

template <class E>
void backward(const LinearBackwardArgs& args) {
  using A = Accumulator<E>;
  using V = Vec<A>;
  constexpr int L = kLanes<A>;
  if (!args.rows) return;
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
  const int64_t tiles = ceil_div(args.rows, L);
  const int64_t chunks = in_chunks ? batch_sums.chunks : tiles;
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
    V* dy = static_cast<V*>(thread_workspace(size_t(whole_squares + work_size) * sizeof(V)));
    V* work = dy + whole_squares;
    for (int64_t i = args.m; i < q; ++i) dy[i] = V{};

    // One tile; what it adds to the sums goes to the given places.
    auto add_tile = [&, dy, work](int64_t tile, A* dvalues_sum, A* dbias_sum, double* dalpha_sum) {
      auto adding = [&](int section, const auto& body) {
        in_turns ? sections.in_turn(section, tile, body) : body();
      };
      const Lanes<const E> rows = lanes_of<const E>(args.dy, tile * L, args.rows);
      const Lanes<const E> x = lanes_of<const E>(args.x, tile * L, args.rows);
      Lanes<E> dx = lanes_of<E>(args.dx, tile * L, args.rows);
      dx.streaming = streaming;
      if (plan) {
        const int64_t next_tile = (in_turns ? tile + workers : tile + 1) * L;
        const Lanes<const E> next_dy = lanes_of<const E>(args.dy, next_tile, args.rows);
        const Lanes<const E> next_x = lanes_of<const E>(args.x, next_tile, args.rows);
        const int64_t elements = (wants_x ? args.m + args.n : args.m) * L;
        const bool prefetches = elements * int64_t(sizeof(E)) <= kPrefetchBytes;
        Prefetch<E> prefetch_dy(next_dy, args.m, prefetches);
        Prefetch<E> prefetch_x(next_x, args.n, prefetches && wants_x);
        const TileTransform<A> transform(*plan);
        auto meanwhile = [&](int64_t count) {
          prefetch_dy.advance(count);
          prefetch_x.advance(count);
        };
        transform.adjoint(RowSquares<E>(rows, args.m, dy, s.nnz || dbias, !prefetches), work, meanwhile);
      } else {
        load_tile<E>(rows, args.m, dy);
      }

      double dalpha_part = 0;
      // Columns begin .. end - 1 of dx, and what they add to dvalues and dalpha.
      auto columns = [&, s = s, values = values](int64_t begin, int64_t end) {  // by value: see forward
        DoubleVec<A> dalpha_lanes{};
        EntrySums<A> entry_sums(dvalues ? dvalues_sum + s.ccol[begin] : nullptr);
        V x_square[L] = {}, sparse[L] = {}, products{};  // products: of a square, for dalpha
        auto before = [&](int64_t first, int here) {
          dalpha_lanes += __builtin_convertvector(products, DoubleVec<A>);
          products = V{};
          if (wants_x) load_square(x, first, here, x_square);
          if (long_columns) {
            for (int c = 0; c < here; ++c) {
              sparse[c] = dvalues ? sparse_column<A>(V{}, s, values, first + c, dy, x_square[c], entry_sums)
                                  : sparse_column<A>(V{}, s, values, first + c, dy);
            }
          } else if (dvalues) {
            entry_sums.add(s.ccol[first], s.ccol[first + here], [&](V* to, int64_t t, int count) {
              const uint64_t columns_of = places.from(t);
#pragma GCC unroll 16
              for (int e = 0; e < count; ++e) {
                to[e] = dy[s.row[t + e]] * x_square[columns_of >> e * places.kBits & (L - 1)];
              }
            });
          }
        };
        SparseMatrix rest = s;  // what has not been looked at before
        if (long_columns) rest.nnz = 0;
        auto sparse_part = [&sparse, rest, values, dy](V start, int64_t k, int c) {
          start += sparse[c];
          return rest.nnz ? sparse_column<A>(start, rest, values, k, dy) : start;
        };
        if (plan) {
          const TileTransform<A> transform(*plan);
          store_squares(dx, begin, end, before, [&, sparse_part, alpha = alpha](int64_t k, int c) {
            const V gradient = transform.adjoint_finish(work, k);
            products += gradient * x_square[c];
            return sparse_part(gradient * alpha, k, c);
          });
        } else if (wants_dx) {
          store_squares(dx, begin, end, before,
                        [sparse_part](int64_t k, int c) { return sparse_part(V{}, k, c); });
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
        store_tile<E>(dx, args.n,
                      [=, alpha = alpha](int64_t k) { return transform.adjoint_finish(work, k) * alpha; });
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

    return [&, add_tile](int64_t chunk) {
      if (!in_chunks) return add_tile(chunk, dvalues, dbias, dalpha_parts.data());
      A* const sums = parts + chunk * (s.nnz + args.m);
      std::memset(sums, 0, size_t(s.nnz + args.m) * sizeof(A));
      const int64_t first = chunk * chunk_blocks / chunks * BatchSums::kChunkRows / L;
      const int64_t last = (chunk + 1) * chunk_blocks / chunks * BatchSums::kChunkRows / L;
      for (int64_t tile = first; tile < last && tile < tiles; ++tile) {
        add_tile(tile, sums, sums + s.nnz, &dalpha_parts[size_t(chunk)]);
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

}  // namespace

void linear_forward_cpu(const LinearForwardArgs& args) {
  dispatch(args.dtype, [&](auto element) { forward<decltype(element)>(args); });
}

void linear_backward_cpu(const LinearBackwardArgs& args) {
  dispatch(args.dtype, [&](auto element) { backward<decltype(element)>(args); });
}

}  // namespace DCTPS_ISA
}  // namespace dctps
