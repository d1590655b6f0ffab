// How the linear kernels move a tile of rows between global memory and the transform's rows in shared memory.
#pragma once

#include "dct/dct_kernel.cuh"
#include "fused/dctps_linear.h"

namespace dctps {

// Elements of a row that one thread moves at once: 16 bytes, and at least the four that Makhoul's order pairs up.
template <class E>
constexpr int kChunk = sizeof(E) < 4 ? 16 / int(sizeof(E)) : 4;

// Rows base .. base + rows - 1 of a matrix; `vectors`: chunks may be moved as 16 bytes.
template <class E>
struct RowBlock {
  E* data;
  int64_t row_stride, stride;
  int rows, length;  // rows that exist, elements that exist
  bool vectors;

  __device__ RowBlock(const Rows& matrix, int64_t base, int64_t all_rows, int log_rows, int64_t length,
                      bool vectors)
      : data(static_cast<E*>(matrix.data) + base * matrix.row_stride),
        row_stride(matrix.row_stride),
        stride(matrix.stride),
        rows(int(min(all_rows - base, int64_t(1) << log_rows))),
        length(int(length)),
        vectors(vectors) {}

  // Whether elements i .. i + kChunk - 1 of a row can be moved as 16 bytes.
  __device__ __forceinline__ bool is_whole(int row, int i) const {
    return vectors && row < rows && i + kChunk<E> <= length;
  }

  // A chunk as it comes from memory: of 2-byte types half the registers of its elements, and no use of them, which would
  // wait, before the next load.
  static constexpr int kWide = 16 / int(sizeof(E));
  struct Packed {
    Pack<E, kWide> packs[kChunk<E> / kWide];
    __device__ __forceinline__ E& operator[](int e) { return packs[e / kWide][e % kWide]; }
    __device__ __forceinline__ const E& operator[](int e) const { return packs[e / kWide][e % kWide]; }
  };

  // Elements i .. i + kChunk - 1 of a row, zeros where there are none.
  __device__ __forceinline__ Packed load_chunk(int row, int i DCTPS_SITE) const {
    Packed chunk;
    const E* source = data + row * row_stride + i * stride;
    if (is_whole(row, i)) {
#pragma unroll
      for (int p = 0; p < kChunk<E> / kWide; ++p) {
        chunk.packs[p] = load<kWide, Cache::streaming>(source + p * kWide DCTPS_AT);
      }
    } else {
      const int count = row < rows ? length - i : 0;
#pragma unroll
      for (int e = 0; e < kChunk<E>; ++e) chunk[e] = e < count ? load(source + e * stride DCTPS_AT) : E{};
    }
    return chunk;
  }
  __device__ __forceinline__ void load_chunk(int row, int i, E (&values)[kChunk<E>] DCTPS_SITE) const {
    const Packed chunk = load_chunk(row, i DCTPS_AT);
#pragma unroll
    for (int e = 0; e < kChunk<E>; ++e) values[e] = chunk[e];
  }

  __device__ __forceinline__ void store_chunk(int row, int i, const E (&values)[kChunk<E>] DCTPS_SITE) const {
    E* target = data + row * row_stride + i * stride;
    const int count = row < rows ? length - i : 0;
    if (is_whole(row, i)) {
#pragma unroll
      for (int first = 0; first < kChunk<E>; first += kWide) {
        Pack<E, kWide> pack;
#pragma unroll
        for (int e = 0; e < kWide; ++e) pack[e] = values[first + e];
        store<kWide, Cache::streaming>(target + first, pack DCTPS_AT);
      }
    } else {
#pragma unroll
      for (int e = 0; e < kChunk<E>; ++e) {
        if (e < count) store(target + e * stride, values[e] DCTPS_AT);
      }
    }
  }

  // Elements 4j .. 4j+3, as DctRow asks for them.
  __device__ __forceinline__ void load_quad(int row, int j, Accumulator<E> (&values)[4] DCTPS_SITE) const {
    constexpr int kPart = sizeof(E) == 8 ? 2 : 4;  // elements of one access: 16 bytes, of 2-byte types 8
    const E* source = data + row * row_stride + 4 * int64_t(j) * stride;
    const int count = row < rows ? length - 4 * j : 0;
    if (vectors && count >= 4) {
#pragma unroll
      for (int first = 0; first < 4; first += kPart) {
        const auto pack = load<kPart, Cache::streaming>(source + first DCTPS_AT);
#pragma unroll
        for (int e = 0; e < kPart; ++e) values[first + e] = to_accumulator(pack[e]);
      }
    } else {
#pragma unroll
      for (int e = 0; e < 4; ++e)
        values[e] = e < count ? to_accumulator(load(source + e * stride DCTPS_AT)) : 0;
    }
  }

  __device__ __forceinline__ void store_quad(int row, int j,
                                             const Accumulator<E> (&values)[4] DCTPS_SITE) const {
    constexpr int kPart = sizeof(E) == 8 ? 2 : 4;
    E* target = data + row * row_stride + 4 * int64_t(j) * stride;
    const int count = row < rows ? length - 4 * j : 0;
    if (vectors && count >= 4) {
#pragma unroll
      for (int first = 0; first < 4; first += kPart) {
        Pack<E, kPart> pack;
#pragma unroll
        for (int e = 0; e < kPart; ++e) pack[e] = from_accumulator<E>(values[first + e]);
        store<kPart, Cache::streaming>(target + first, pack DCTPS_AT);
      }
    } else {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (e < count) store(target + e * stride, from_accumulator<E>(values[e]) DCTPS_AT);
      }
    }
  }
};

// Calls body(e, part) for the elements i + e, 0 <= e < Count, of a row in time order, see time_part.
template <bool after_adjoint, int Count, class Body>
__device__ __forceinline__ void each_time_part(const DevicePlan& plan, int i, const Body& body) {
#pragma unroll
  for (int e = 0; e < Count; ++e) {
    if (i + e < plan.length) body(e, time_part<after_adjoint>(plan, i + e));
  }
}

// The same for frequencies, see frequency_part; where it can, with one look at the table for all.
template <int Count, class Body>
__device__ __forceinline__ void each_frequency_part(const DevicePlan& plan, int k, const Body& body) {
  if (plan.first_radix % Count == 0) {
    const DevicePass& pass = plan.passes[0];
    if (k < plan.points) {
      const int first = frequency_slot(plan, k);
#pragma unroll
      for (int e = 0; e < Count; ++e) body(e, 2 * (first ^ step(pass, e)));
    } else {  // y[q-k] is beside y[k]: downwards, the last one first
      const int last = frequency_slot(plan, plan.length - k - Count);
      body(0, frequency_part(plan, k));
#pragma unroll
      for (int e = 1; e < Count; ++e) body(e, 2 * (last ^ step(pass, Count - e)) + 1);
    }
    return;
  }
#pragma unroll
  for (int e = 0; e < Count; ++e) {
    if (k + e < plan.length) body(e, frequency_part(plan, k + e));
  }
}

// Where it can, y is moved in pairs of chunks, y[k .. k + kChunk - 1] and y[q - k - kChunk .. q - k - 1]: their values lie
// side by side, all but the first of each.
template <class E>
__device__ __forceinline__ bool in_pairs(const DevicePlan& plan) {
  return plan.first_radix % kChunk<E> == 0;
}

template <class Row, class A, int count>
__device__ __forceinline__ void get_chunk_pair(const DevicePlan& plan, const Row& row, int k, A (&low)[count],
                                               A (&high)[count]) {
  const int slot = frequency_slot(plan, k), next = k + count == plan.points ? 0 : k + count;
#pragma unroll
  for (int e = 1; e < count; ++e) {
    const auto both = row.get(slot ^ step(plan.passes[0], e));
    low[e] = both.re, high[count - e] = both.im;
  }
  low[0] = row.get_part(2 * slot);
  high[0] = row.get_part(2 * frequency_slot(plan, next) + 1);
}

template <int count, class Row, class Chunk>
__device__ __forceinline__ void put_chunk_pair(const DevicePlan& plan, const Row& row, int k,
                                               const Chunk& low, const Chunk& high) {
  const int slot = frequency_slot(plan, k), next = k + count == plan.points ? 0 : k + count;
#pragma unroll
  for (int e = 1; e < count; ++e) {
    row.put(slot ^ step(plan.passes[0], e), {to_accumulator(low[e]), to_accumulator(high[count - e])});
  }
  row.put_part(2 * slot, to_accumulator(low[0]));
  row.put_part(2 * frequency_slot(plan, next) + 1, to_accumulator(high[0]));
}

// Puts a chunk of x where DctRow::forward wants it.
template <class Row, class E>
__device__ __forceinline__ void put_time_chunk(const DevicePlan& plan, const Row& row, int i,
                                               const E (&values)[kChunk<E>]) {
  using A = Accumulator<E>;
  if (plan.length % kChunk<E> == 0) {
#pragma unroll
    for (int e = 0; e < kChunk<E>; e += 4) {
      const int j = (i + e) / 4;
      auto value = [&](int d) { return A(to_accumulator(values[e + d])); };
      row.put(plan.slot(j), {value(0), value(2)});
      row.put(plan.slot(plan.points - 1 - j), {value(3), value(1)});
    }
  } else {
    each_time_part<false, kChunk<E>>(plan, i, [&](int e, int part) {
      const A value = to_accumulator(values[e]);
      if (plan.is_odd) {
        row.put(part / 2, {value, 0});
      } else {
        row.put_part(part, value);
      }
    });
  }
}

// A chunk of what DctRow::adjoint left.
template <class E, class Row>
__device__ __forceinline__ void get_time_chunk(const DevicePlan& plan, const Row& row, int i,
                                               Accumulator<E> (&values)[kChunk<E>]) {
  if (plan.length % kChunk<E> == 0) {
#pragma unroll
    for (int e = 0; e < kChunk<E>; e += 4) {
      const int j = (i + e) / 4;
      const auto low = row.get(plan.slot(j)), high = row.get(plan.slot(plan.points - 1 - j));
      values[e] = low.im, values[e + 2] = low.re;
      values[e + 3] = high.im, values[e + 1] = high.re;
    }
  } else {
    each_time_part<true, kChunk<E>>(plan, i, [&](int e, int part) { values[e] = row.get_part(part); });
  }
}

}  // namespace dctps
