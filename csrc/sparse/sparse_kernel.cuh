// The sparse parts of the linear kernels on a GPU: a few rows of the batch interleaved in shared memory, products with the
// rows of S and with its columns, the gradients of its values. The phases here are those of the fused kernels and of the
// separate ones; what they are given of the DCT part is an `Offset`.
//
// Order of sums. A row of S (a column, for the transpose) of up to `long_line` entries is summed by one thread in the
// order of its entries, a longer one by a warp in 32 strided partial sums and a fixed tree. `long_line` follows from the
// shape, so bits depend neither on the rows per block nor on the device. Sums over the batch run through the rows of a
// chunk in their order, chunks are added up in order: see ChunkedSums.
#pragma once

#include <cuda_runtime.h>
#include <math.h>

#include <type_traits>

#include "common/vec.cuh"
#include "fused/dctps_linear.h"

namespace dctps {

constexpr int kMostThreads = 512;  // of a block: 128 registers each

// Elements of one 16-byte access.
template <class E>
constexpr int kWide = 16 / int(sizeof(E));

// N values in registers.
template <class A, int N>
struct Values {
  A of[N] = {};
};

// ------------------------------------------------------------------------------------ rows in global memory

// Row b of a matrix is data[b * row_stride + i * stride]. `wide`: rows start on 16 bytes and stride is 1.
template <class E>
struct RowsView {
  E* data;
  int64_t row_stride, stride;
  bool wide;

  explicit RowsView(const Rows& rows)
      : data(static_cast<E*>(rows.data)),
        row_stride(rows.row_stride),
        stride(rows.stride),
        wide(rows.stride == 1 && reinterpret_cast<uintptr_t>(rows.data) % 16 == 0 &&
             rows.row_stride * int64_t(sizeof(E)) % 16 == 0) {}

  __device__ E* at(int64_t row, int i) const { return data + row * row_stride + i * stride; }
};

// The elements i .. i + kWide - 1 of a row, those from `size` on zero.
template <class E>
__device__ __forceinline__ Pack<E, kWide<E>> load_wide(const RowsView<const E>& rows, int64_t row, int i, int size) {
  if (rows.wide && i + kWide<E> <= size) return load<kWide<E>>(rows.at(row, i));
  Pack<E, kWide<E>> pack{};
#pragma unroll
  for (int e = 0; e < kWide<E>; ++e) {
    if (i + e < size) pack[e] = load(rows.at(row, i + e));
  }
  return pack;
}

// ------------------------------------------------------------------------------------ a tile of rows

// R rows of `size` elements in shared memory, R a power of two. Element i of up to 16 bytes' worth of rows lies in one
// piece, so that a gather of that element is one access; more rows are further planes of the same kind.
template <class E, int R>
class RowTile {
 public:
  using A = Accumulator<E>;
  static constexpr int kPack = R < kWide<E> ? R : kWide<E>, kPlanes = R / kPack;

  static __host__ __device__ int padded(int size) { return (size + kWide<E> - 1) / kWide<E> * kWide<E>; }
  static __host__ __device__ int64_t bytes(int size) { return int64_t(padded(size)) * R * int64_t(sizeof(E)); }

  __device__ RowTile(Shared<E> data, int size) : data_(data), plane_(padded(size) * kPack), size_(size) {}

  // Fills it with the rows first .. first + R - 1, those from `rows` on as zeros. A barrier must follow.
  __device__ void fill(const RowsView<const E>& from, int64_t first, int64_t rows) const {
    for (int i = int(threadIdx.x) * kWide<E>; i < size_; i += int(blockDim.x) * kWide<E>) {
      Pack<E, kWide<E>> in[R];
#pragma unroll
      for (int r = 0; r < R; ++r) {
        in[r] = first + r < rows ? load_wide(from, first + r, i, size_) : Pack<E, kWide<E>>{};
      }
      if constexpr (R == 1) {
        data_.template store<kWide<E>>(i, in[0]);
      } else {
#pragma unroll
        for (int e = 0; e < kWide<E>; ++e) {
#pragma unroll
          for (int p = 0; p < kPlanes; ++p) {
            Pack<E, kPack> out;
#pragma unroll
            for (int r = 0; r < kPack; ++r) out[r] = in[p * kPack + r][e];
            data_.template store<kPack>(p * plane_ + place(i + e), out);
          }
        }
      }
    }
  }

  // Element i of all rows.
  __device__ __forceinline__ Values<A, R> operator()(int i) const {
    Values<A, R> values;
#pragma unroll
    for (int p = 0; p < kPlanes; ++p) {
      const auto in = data_.template load<kPack>(p * plane_ + place(i));
#pragma unroll
      for (int r = 0; r < kPack; ++r) values.of[p * kPack + r] = to_accumulator(in[r]);
    }
    return values;
  }

 private:
  // Neighbouring threads of fill() store kWide elements apart, which without this would be in the same few banks.
  static __device__ __forceinline__ int place(int i) {
    if constexpr (R == 1) return i;
    constexpr int bits = kWide<E> == 2 ? 1 : kWide<E> == 4 ? 2 : 3;
    return (i ^ (((i >> bits) ^ (i >> (bits + 1))) & (kWide<E> - 1))) * kPack;
  }

  Shared<E> data_;
  int plane_, size_;
};

// The same of one row that is too long for shared memory: left where it is.
template <class E>
class RowInPlace {
 public:
  using A = Accumulator<E>;

  static __host__ __device__ int64_t bytes(int) { return 0; }

  __device__ RowInPlace(Shared<E>, int) {}
  __device__ void fill(const RowsView<const E>& from, int64_t first, int64_t) {
    row_ = from.at(first, 0);
    stride_ = from.stride;
  }
  __device__ __forceinline__ Values<A, 1> operator()(int i) const {
    return {{to_accumulator(load(row_ + i * stride_))}};
  }

 private:
  const E* row_ = nullptr;
  int64_t stride_ = 0;
};

// ------------------------------------------------------------------------------------ products with S

// The rows of S, or its columns: the entries starts[line] .. starts[line + 1] - 1, each at index[t] of the line.
template <class A>
struct Lines {
  int64_t entries;
  const int32_t* starts;  // one more than there are lines
  const int32_t* index;   // [entries]
  const A* values;        // [entries]; null: zeros
  int long_line;          // a line of more entries is a warp's work
};

// Where lines are few, threads are too, so a warp is put to a line sooner.
inline int long_line(int64_t lines) { return lines < 512 ? 16 : 128; }

// What else to do for each entry: nothing.
struct NoEach {
  struct Start {};
  __device__ void lend(int) {}
  __device__ void give_back() {}
  __device__ Start start(unsigned) const { return {}; }
  template <class V>
  __device__ void add(unsigned, Start, const V&) const {}
};

// sum += value * vectors(index) over the entries begin, begin + step, ... before end.
template <int R, class A, class Tile, class Each>
__device__ __forceinline__ void add_entries(const Lines<A>& lines, unsigned begin, unsigned end, unsigned step,
                                            const Tile& vectors, Each& each, Values<A, R>& sum) {
  constexpr int kAhead = R < 8 ? 4 : 2;  // entries asked for before the first is used
  for (unsigned t = begin; t < end; t += kAhead * step) {
    int index[kAhead];
    A value[kAhead];
    typename Each::Start start[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      if (t + j * step < end) {
        index[j] = load(lines.index + t + j * step);
        value[j] = lines.values ? load(lines.values + t + j * step) : A(0);
        start[j] = each.start(t + j * step);
      }
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      if (t + j * step < end) {
        const Values<A, R> v = vectors(index[j]);
#pragma unroll
        for (int r = 0; r < R; ++r) sum.of[r] = fma(value[j], v.of[r], sum.of[r]);
        each.add(t + j * step, start[j], v);
      }
    }
  }
}

// Line `line` times the R vectors. All lanes of a warp must call, with lines one behind the other; those from `limit` on
// are taken for empty.
template <int R, class A, class Tile, class Each>
__device__ __forceinline__ Values<A, R> line_product(const Lines<A>& lines, int line, int limit, const Tile& vectors,
                                                     Each& each) {
  const int lane = int(threadIdx.x) % kWarp;
  const int32_t begin = load(lines.starts + (line < limit ? line : limit));
  int32_t end = shuffle_down(begin, 1);
  if (lane == kWarp - 1) end = load(lines.starts + (line + 1 < limit ? line + 1 : limit));
  const bool is_long = end - begin > lines.long_line;

  Values<A, R> sum;
  if (!is_long) add_entries<R>(lines, unsigned(begin), unsigned(end), 1u, vectors, each, sum);
  unsigned pending = ballot(is_long);
  for (int owner = 0; pending; ++owner, pending >>= 1) {
    if (!(pending & 1)) continue;
    const int32_t first = shuffle(begin, owner), last = shuffle(end, owner);
    each.lend(owner);
    Values<A, R> part;
    add_entries<R>(lines, unsigned(first + lane), unsigned(last), unsigned(kWarp), vectors, each, part);
    each.give_back();
#pragma unroll
    for (int r = 0; r < R; ++r) {
      for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) part.of[r] += shuffle_xor(part.of[r], lanes);
      if (lane == owner) sum.of[r] = part.of[r];
    }
  }
  return sum;
}

// Calls body(line) for all lines first .. end - 1 and a few more, the block's threads side by side, whole warps at once.
template <class Body>
__device__ __forceinline__ void for_each_line(int first, int end, const Body& body) {
  for (int line = first + int(threadIdx.x); line - int(threadIdx.x) % kWarp < end; line += int(blockDim.x)) body(line);
}

// dvalues[t] += sum over the R rows of dy[row t] x[col t], row by row. Entry t is always the same thread's.
template <class A, int R>
class EntryGradients {
 public:
  using Start = A;

  // sums [entries]; `fresh`: they count as zeros.
  __device__ EntryGradients(A* sums, bool fresh) : sums_(sums), fresh_(fresh) {}
  __device__ void set(const Values<A, R>& x) { x_ = own_ = x; }

  __device__ void lend(int owner) {
#pragma unroll
    for (int r = 0; r < R; ++r) x_.of[r] = shuffle(own_.of[r], owner);
  }
  __device__ void give_back() { x_ = own_; }
  __device__ A start(unsigned t) const { return fresh_ ? A(0) : load(sums_ + t); }
  __device__ void add(unsigned t, A sum, const Values<A, R>& dy) const {
#pragma unroll
    for (int r = 0; r < R; ++r) sum = fma(dy.of[r], x_.of[r], sum);
    store(sums_ + t, sum);
  }

 private:
  A* sums_;
  bool fresh_;
  Values<A, R> x_, own_;
};

// ------------------------------------------------------------------------------------ what is added to S x

// D x (or D^T dy) of some rows, computed before, in the accumulator's type. Null data: there is no such part.
template <class A>
struct Transformed {
  const A* data;  // [rows][size]
  int64_t first, rows, size;

  __device__ bool given() const { return data; }
  template <int R>
  __device__ __forceinline__ Values<A, R> values(int i) const {
    Values<A, R> result;
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if (first + r < rows) result.of[r] = load(data + (first + r) * size + i);
    }
    return result;
  }
};

// ------------------------------------------------------------------------------------ the forward phase

template <class E>
struct ForwardArgs {
  using A = Accumulator<E>;
  int64_t rows;
  int m, n;
  RowsView<const E> x;
  E* y;                 // [rows][m]
  const A* transformed;  // [rows][m], D x computed before; null: none
  const A* alpha;        // [1]; null: 1
  const A* bias;         // [m]; null: none
  Lines<A> s_rows;       // no entries: no sparse part
};

// y = alpha offset + S x + bias for the R rows from `first` on.
template <int R, class E, class Tile, class Offset>
__device__ __forceinline__ void store_products(const ForwardArgs<E>& args, int64_t first, const Tile& x,
                                               const Offset& offset) {
  using A = Accumulator<E>;
  const A alpha = args.alpha ? load(args.alpha) : A(1);
  for_each_line(0, args.m, [&](int k) {
    Values<A, R> sum;
    NoEach each;
    if (args.s_rows.entries) sum = line_product<R>(args.s_rows, k, args.m, x, each);
    if (k >= args.m) return;
    if (offset.given()) {
      const Values<A, R> transformed = offset.template values<R>(k);
#pragma unroll
      for (int r = 0; r < R; ++r) sum.of[r] = fma(alpha, transformed.of[r], sum.of[r]);
    }
    const A bias = args.bias ? load(args.bias + k) : A(0);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if (first + r < args.rows) {
        store<Cache::streaming>(args.y + (first + r) * args.m + k, from_accumulator<E>(sum.of[r] + bias));
      }
    }
  });
}

// ------------------------------------------------------------------------------------ the backward phase

template <class E>
struct BackwardArgs {
  using A = Accumulator<E>;
  int64_t rows;
  int64_t chunk_rows;    // a block's work are the rows of a chunk ...
  int64_t first_chunk;
  int sections;          // ... and one section of the columns
  int m, n;
  RowsView<const E> dy, x;  // x: null where neither dvalues nor dalpha are wanted
  E* dx;                 // [rows][n]; null: not wanted
  const A* transformed;  // [rows][n], D^T dy computed before; null: none
  const A* alpha;
  Lines<A> s_columns;
  A* dvalues;            // [chunks][nnz + m]: sums of the chunks; null: not wanted
  A* dbias;              // the same, from nnz on
  int64_t sums_stride;   // nnz + m
  double* dalpha;        // [chunks][sections]; null: not wanted
};

// Columns begin .. end - 1 of dx for the R rows from `first` on, those before end_row, and what they add to dvalues and, for each row, to
// <D^T dy, x>.
template <int R, bool kEntryGradients, class E, class Tile, class Offset>
__device__ __forceinline__ void backward_columns(const BackwardArgs<E>& args, int64_t first, int64_t end_row,
                                                 int begin, int end, const Tile& dy, const Offset& offset,
                                                 EntryGradients<Accumulator<E>, R>& gradients,
                                                 Values<Accumulator<E>, R>& dalpha) {
  using A = Accumulator<E>;
  const A alpha = args.alpha ? load(args.alpha) : A(1);
  for_each_line(begin, end, [&](int i) {
    Values<A, R> x, transformed, sum;
    if (i < end && args.x.data) {
#pragma unroll
      for (int r = 0; r < R; ++r) {
        if (first + r < end_row) x.of[r] = to_accumulator(load(args.x.at(first + r, i)));
      }
    }
    if (i < end && offset.given()) transformed = offset.template values<R>(i);
    if (args.s_columns.entries) {
      if constexpr (kEntryGradients) {
        gradients.set(x);
        sum = line_product<R>(args.s_columns, i, end, dy, gradients);
      } else {
        NoEach each;
        sum = line_product<R>(args.s_columns, i, end, dy, each);
      }
    }
    if (i >= end) return;
#pragma unroll
    for (int r = 0; r < R; ++r) {
      dalpha.of[r] = fma(transformed.of[r], x.of[r], dalpha.of[r]);
      if (args.dx && first + r < end_row) {
        const A dx = offset.given() ? fma(alpha, transformed.of[r], sum.of[r]) : sum.of[r];
        store<Cache::streaming>(args.dx + (first + r) * args.n + i, from_accumulator<E>(dx));
      }
    }
  });
}

// sums[k] += sum over the R rows of dy[k], row by row.
template <int R, class A, class Tile>
__device__ __forceinline__ void add_bias_gradient(int m, const Tile& dy, A* sums, bool fresh) {
  for (int k = int(threadIdx.x); k < m; k += int(blockDim.x)) {
    A sum = fresh ? A(0) : load(sums + k);
    const Values<A, R> v = dy(k);
#pragma unroll
    for (int r = 0; r < R; ++r) sum += v.of[r];
    store(sums + k, sum);
  }
}

// Adds the rows' sums over all threads to `sum` of thread 0, row by row. sums [kWarp][R]: shared memory; barriers
// before and after are the caller's, and one is inside.
template <int R, class A>
__device__ __forceinline__ void add_row_sums(const Values<A, R>& own, Shared<A> sums, double& sum) {
  const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp, warps = int(blockDim.x) / kWarp;
#pragma unroll
  for (int r = 0; r < R; ++r) {
    A value = own.of[r];
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) value += shuffle_xor(value, lanes);
    if (lane == 0) sums[warp * R + r] = value;
  }
  sync_block();
  if (warp > 0) return;
  A row_sum = 0;
  for (int w = 0; w < warps && lane < R; ++w) row_sum += A(sums[w * R + lane]);
  for (int r = 0; r < R; ++r) sum += double(shuffle(row_sum, r));
}

// ------------------------------------------------------------------------------------ kernels of their own

template <class Element, int rows>
struct SparseConfig {
  using E = Element;
  static constexpr int kRows = rows;  // per block; 0: one row, left in global memory
  using Tile = std::conditional_t<rows != 0, RowTile<E, rows ? rows : 1>, RowInPlace<E>>;
  static constexpr int kTileRows = rows ? rows : 1;
  static_assert(rows == 0 || rows == 1 || rows == 2 || rows == 4 || rows == 8,
                "SparseConfig: a tile has 1, 2, 4 or 8 rows, as a thread keeps the sums of all of them");
};

// y = alpha transformed + S x + bias, kTileRows rows a block.
template <class Config>
__global__ void __launch_bounds__(kMostThreads, 1) sparse_forward_kernel(ForwardArgs<typename Config::E> args) {
  using E = typename Config::E;
  constexpr int R = Config::kTileRows;
  const int64_t first = block_index() * R;
  if (first >= args.rows) return;
  typename Config::Tile x(shared_memory<E>(), args.n);
  if (args.s_rows.entries) x.fill(args.x, first, args.rows);
  sync_block();
  store_products<R>(args, first, x, Transformed<Accumulator<E>>{args.transformed, first, args.rows, args.m});
}

// dx = alpha transformed + S^T dy, and the sums of dvalues, dbias and dalpha over the rows of the block's chunk.
// Shared memory: the tile, then [kWarp][kTileRows] for dalpha.
template <class Config, bool kEntryGradients>
__global__ void __launch_bounds__(kMostThreads, 1) sparse_backward_kernel(BackwardArgs<typename Config::E> args) {
  using E = typename Config::E;
  using A = Accumulator<E>;
  constexpr int R = Config::kTileRows;
  const int64_t part = args.first_chunk * args.sections + block_index(), chunk = part / args.sections;
  const int section = int(part % args.sections);
  const int64_t end_row = min(args.rows, (chunk + 1) * args.chunk_rows);
  if (chunk * args.chunk_rows >= args.rows) return;
  // Whole warps' worth of columns, so that the lanes' columns stay side by side.
  const int warps = (args.n + kWarp - 1) / kWarp;
  const int begin = int(int64_t(warps) * section / args.sections) * kWarp;
  const int end = min(args.n, int(int64_t(warps) * (section + 1) / args.sections) * kWarp);

  typename Config::Tile dy(shared_memory<E>(), args.m);
  const Shared<A> row_sums = shared_memory<A>(int(Config::Tile::bytes(args.m)));
  double dalpha = 0;
  for (int64_t first = chunk * args.chunk_rows; first < end_row; first += R) {
    const bool fresh = first == chunk * args.chunk_rows;
    dy.fill(args.dy, first, end_row);
    sync_block();
    const Transformed<A> offset{args.transformed, first, end_row, args.n};
    EntryGradients<A, R> gradients(kEntryGradients ? args.dvalues + chunk * args.sums_stride : nullptr, fresh);
    Values<A, R> row_dalpha;
    backward_columns<R, kEntryGradients>(args, first, end_row, begin, end, dy, offset, gradients, row_dalpha);
    if (args.dbias && section == 0) add_bias_gradient<R>(args.m, dy, args.dbias + chunk * args.sums_stride, fresh);
    if (args.dalpha) {
      add_row_sums<R>(row_dalpha, row_sums, dalpha);
    } else {
      sync_block();  // before the tile is filled again
    }
  }
  if (args.dalpha && threadIdx.x == 0) store(args.dalpha + part, dalpha);
}

// ---- before and after

template <class A>
struct GatherArgs {
  int64_t count;
  const int32_t* perm;  // [count]
  const A* values;      // [count]
  A* gathered;          // [count]: values[perm[t]]
};

template <class A>
__global__ void gather_values_kernel(GatherArgs<A> args) {
  const int64_t t = block_index() * blockDim.x + threadIdx.x;
  if (t < args.count) store(args.gathered + t, load(args.values + load(args.perm + t)));
}

template <class A>
struct AddUpArgs {
  int64_t chunks, entries, m;
  const A* sums;          // [chunks][entries + m]
  const int32_t* perm;    // [entries] CSR place of each entry
  A* dvalues;             // [entries] in CSR order; null: not wanted
  A* dbias;               // [m]; null: not wanted
  int64_t dalpha_parts;
  const double* parts;    // [dalpha_parts]
  double* dalpha;         // [1]; null: not wanted
};

// Adds up the chunks' sums in order. A block takes kWarp neighbouring sums, each of its warps a share of the chunks; the
// last block adds up dalpha. Shared memory: [warps][kWarp].
template <class A>
__global__ void add_up_kernel(AddUpArgs<A> args) {
  const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp, warps = int(blockDim.x) / kWarp;
  const int64_t stride = args.entries + args.m, first = block_index() * kWarp, t = first + lane;
  if (first >= stride) {
    if (warp > 0 || !args.dalpha) return;
    double sum = 0;
    for (int64_t i = lane; i < args.dalpha_parts; i += kWarp) sum += load(args.parts + i);
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) sum += shuffle_xor(sum, lanes);
    if (lane == 0) store(args.dalpha, sum);
    return;
  }
  const bool wanted = t < args.entries ? args.dvalues != nullptr : t < stride && args.dbias != nullptr;
  A sum = 0;
  if (wanted) {
    const int64_t end = args.chunks * (warp + 1) / warps;
#pragma unroll 4
    for (int64_t c = args.chunks * warp / warps; c < end; ++c) sum += load(args.sums + c * stride + t);
  }
  const Shared<A> shares = shared_memory<A>();
  shares[warp * kWarp + lane] = sum;
  sync_block();
  if (warp > 0 || !wanted) return;
  for (int w = 1; w < warps; ++w) sum += A(shares[w * kWarp + lane]);
  store(t < args.entries ? args.dvalues + load(args.perm + t) : args.dbias + (t - args.entries), sum);
}

}  // namespace dctps
