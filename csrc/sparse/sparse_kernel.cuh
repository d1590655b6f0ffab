// The sparse part of the linear kernels on a GPU: rows of the batch interleaved in shared memory, products with the rows
// of S and with its columns, the gradients of its values, sums over the batch.
//
// Order of sums. A row of S (a column, for the transpose) of up to `long_line` entries is summed by one thread in the
// order of its entries, a longer one by a warp in 32 strided partial sums and a fixed tree. `long_line` follows from the
// shape, so bits depend neither on the rows per block nor on the device. Sums over the batch run through the rows of a
// chunk in their order, chunks are added up in order: see ChunkedSums in fused/linear_rule.h.
#pragma once

#include <cuda_runtime.h>
#include <math.h>

#include <type_traits>

#include "common/launch.cuh"
#include "common/vec.cuh"
#include "fused/dctps_linear.h"
#include "fused/row_tile.cuh"

namespace dctps {

// N values in registers.
template <class A, int N>
struct Values {
  A of[N] = {};
};

// ------------------------------------------------------------------------------------ a tile of rows

// R rows of `size` elements in shared memory, R a power of two. Element i of up to 16 bytes' worth of rows lies in one
// piece, so that a gather of that element is one access; more rows are further planes of the same kind.
template <class E, int R>
class RowTile {
 public:
  using A = Accumulator<E>;
  static constexpr int kRows = R, kLogRows = R == 1 ? 0 : R == 2 ? 1 : R == 4 ? 2 : 3;
  static constexpr int kPack = R * int(sizeof(E)) < 16 ? R : 16 / int(sizeof(E)), kPlanes = R / kPack;
  static_assert(R == 1 << kLogRows, "RowTile: 1, 2, 4 or 8 rows, as a thread keeps the sums of all of them");

  static __host__ __device__ int padded(int size) { return (size + kChunk<E> - 1) / kChunk<E> * kChunk<E>; }
  static __host__ __device__ int64_t bytes(int size) {
    return int64_t(padded(size)) * R * int64_t(sizeof(E));
  }

  __device__ RowTile(Shared<E> data, int size) : data_(data), size_(padded(size)) {}

  // Fills it with a block's rows, with zeros where there are none, and calls also(i, values[R][kChunk]) for its chunks
  // and those that follow up to `end`. A barrier must follow.
  template <class Also>
  __device__ __forceinline__ void fill(const RowBlock<E>& from, int end, const Also& also) {
    for (int i = int(threadIdx.x) * kChunk<E>; i < max(size_, end); i += int(blockDim.x) * kChunk<E>) {
      E in[R][kChunk<E>];
#pragma unroll
      for (int r = 0; r < R; ++r) from.load_chunk(r, i, in[r]);
      also(i, in);
      if (i < size_) put(i, in);
    }
  }

  // Element i of all rows.
  __device__ __forceinline__ Values<A, R> operator()(int i) const {
    Values<A, R> values;
#pragma unroll
    for (int p = 0; p < kPlanes; ++p) {
      const auto in = data_.template load<kPack>((p * size_ + place(i)) * kPack);
#pragma unroll
      for (int r = 0; r < kPack; ++r) values.of[p * kPack + r] = to_accumulator(in[r]);
    }
    return values;
  }

 private:
  __device__ __forceinline__ void put(int i, const E (&in)[R][kChunk<E>]) const {
    if constexpr (R == 1) {
      constexpr int kWide = 16 / int(sizeof(E));
#pragma unroll
      for (int first = 0; first < kChunk<E>; first += kWide) {
        Pack<E, kWide> out;
#pragma unroll
        for (int e = 0; e < kWide; ++e) out[e] = in[0][first + e];
        data_.template store<kWide>(i + first, out);
      }
    } else {
#pragma unroll
      for (int e = 0; e < kChunk<E>; ++e) {
#pragma unroll
        for (int p = 0; p < kPlanes; ++p) {
          Pack<E, kPack> out;
#pragma unroll
          for (int r = 0; r < kPack; ++r) out[r] = in[p * kPack + r][e];
          data_.template store<kPack>((p * size_ + place(i + e)) * kPack, out);
        }
      }
    }
  }

  // Neighbouring threads of fill() store a chunk apart, which without this exchange would be in the same few banks.
  static __device__ __forceinline__ int place(int i) {
    constexpr int bits = kChunk<E> == 8 ? 3 : 2;
    return R == 1 ? i : i ^ (((i >> bits) ^ (i >> (bits + 1))) & (kChunk<E> - 1));
  }

  Shared<E> data_;
  int size_;  // in whole chunks
};

// The same of one row that is too long for shared memory: left where it is.
template <class E>
class RowInPlace {
 public:
  using A = Accumulator<E>;
  static constexpr int kRows = 1, kLogRows = 0;

  static __host__ __device__ int64_t bytes(int) { return 0; }

  __device__ RowInPlace(Shared<E>, int) {}
  template <class Also>
  __device__ void fill(const RowBlock<E>& from, int, const Also&) {
    row_ = from.data, stride_ = from.stride;
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
__device__ __forceinline__ void add_entries(const Lines<A>& lines, unsigned begin, unsigned end,
                                            unsigned step, const Tile& vectors, Each& each,
                                            Values<A, R>& sum) {
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
__device__ __forceinline__ Values<A, R> line_product(const Lines<A>& lines, int line, int limit,
                                                     const Tile& vectors, Each& each) {
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
  for (int line = first + int(threadIdx.x); line - int(threadIdx.x) % kWarp < end; line += int(blockDim.x))
    body(line);
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

// ------------------------------------------------------------------------------------ sums over the batch

// sums[k] += sum over the R rows of v[k], row by row; `fresh`: they count as zeros.
template <class Tile, class A>
__device__ __forceinline__ void add_rows(int size, const Tile& v, A* sums, bool fresh) {
  for (int k = int(threadIdx.x); k < size; k += int(blockDim.x)) {
    A sum = fresh ? A(0) : load(sums + k);
    const auto values = v(k);
#pragma unroll
    for (int r = 0; r < Tile::kRows; ++r) sum += values.of[r];
    store(sums + k, sum);
  }
}

constexpr int kRowSumsValues = 16 * 8;  // of shared memory: [classes / 32][R], of up to 512 classes

// The sum over all columns i of a[r][i] b[r][i], for each of R rows, in an order that does not depend on R: column i is
// of class i mod (turns * threads), the columns of a class are added up one after the other, and then the classes.
// A thread has up to kMostTurns classes, its turns.
template <class A, int R>
class RowSums {
 public:
  static constexpr int kMostTurns = 8 / R;

  __device__ __forceinline__ void add(int turn, const Values<A, R>& a, const Values<A, R>& b) {
#pragma unroll
    for (int t = 0; t < kMostTurns; ++t) {
#pragma unroll
      for (int r = 0; r < R; ++r) {
        if (t == turn) sums_[t].of[r] = fma(a.of[r], b.of[r], sums_[t].of[r]);
      }
    }
  }

  // Adds the rows' sums to `total` of thread 0, row by row. All threads call; barriers before and after are the
  // caller's, one is inside.
  __device__ __forceinline__ void finish(int turns, Shared<A> shared, double& total) const {
    const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp,
              warps = int(blockDim.x) / kWarp;
#pragma unroll
    for (int t = 0; t < kMostTurns; ++t) {
      if (t >= turns) break;
#pragma unroll
      for (int r = 0; r < R; ++r) {
        A sum = sums_[t].of[r];
        for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) sum += shuffle_xor(sum, lanes);
        if (lane == 0) shared[(t * warps + warp) * R + r] = sum;
      }
    }
    sync_block();
    if (warp > 0) return;
    A sum = 0;
    for (int w = 0; w < turns * warps && lane < R; ++w) sum += A(shared[w * R + lane]);
    for (int r = 0; r < R; ++r) total += double(shuffle(sum, r));
  }

 private:
  Values<A, R> sums_[kMostTurns];
};

// ------------------------------------------------------------------------------------ kernels before and after

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
  const A* sums;        // [chunks][entries + m]
  const int32_t* perm;  // [entries] CSR place of each entry
  A* dvalues;           // [entries] in CSR order; null: not wanted
  A* dbias;             // [m]; null: not wanted
  int64_t dalpha_parts;
  const double* parts;  // [dalpha_parts]
  double* dalpha;       // [1]; null: not wanted
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

template <class A>
void launch_gather_values(const GatherArgs<A>& args, void* stream) {
  constexpr int kThreads = 256;
  launch(gather_values_kernel<A>, "gather_values", {(args.count + kThreads - 1) / kThreads, kThreads}, stream,
         args);
}

template <class A>
void launch_add_up(const AddUpArgs<A>& args, void* stream) {
  constexpr int kWarps = 16;
  launch(add_up_kernel<A>, "add_up",
         {(args.entries + args.m + kWarp - 1) / kWarp + 1, kWarps * kWarp, kWarps * kWarp * int(sizeof(A))},
         stream, args);
}

}  // namespace dctps
