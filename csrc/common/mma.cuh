// Products of small matrices of 16-bit numbers by a warp on tensor cores: wrappers for the two instructions (mma.sync, from
// sm_80 on; ldmatrix), and where their operands lie in the lanes.
//
// D [16 x 8] += A [16 x 16] B [16 x 8], sums in float32. With g = lane / 4 and t = lane % 4 a lane holds, of pairs of
// neighbours 2t, 2t + 1 (PTX ISA, "Matrix fragments for mma.m16n8k16"):
//   A   row g, columns 2t; row g + 8, columns 2t; row g, columns 2t + 8; row g + 8, columns 2t + 8
//   B   column g, rows 2t; column g, rows 2t + 8
//   D   row g, columns 2t; row g + 8, columns 2t
//
// load_columns: of four matrices [8 x 8] in shared memory, whose rows are eight neighbours each (lane 8 i + r brings where
// row r of matrix i is), column g, rows 2t. So each is half of a B whose columns, not rows, are side by side.
#pragma once

#include "common/vec.cuh"

namespace dctps {

constexpr int kMmaRows = 16, kMmaColumns = 8, kMmaDepth = 16;

// Two 16-bit neighbours of B, as they lie in memory.
struct MmaPair {
  uint32_t bits;
};

}  // namespace dctps

#if DCTPS_EMULATED
#include "mma_emulated.h"
#else

namespace dctps {

template <class E>
__device__ __forceinline__ void mma(float (&d)[4], const Pack<E, 8>& a, const MmaPair (&b)[2]) {
  static_assert(sizeof(E) == 2, "mma: tensor cores are used for 16-bit types alone");
#if __CUDA_ARCH__ >= 800
  uint32_t words[4];
  std::memcpy(words, &a, sizeof(words));
  if constexpr (std::is_same_v<E, Half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3]), "r"(b[0].bits), "r"(b[1].bits));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3]), "r"(b[0].bits), "r"(b[1].bits));
  }
#else
  __trap();  // launches ask for sm_80 first
#endif
}

template <class E>
__device__ __forceinline__ void load_columns(MmaPair (&columns)[4], Shared<E> from, int row) {
  static_assert(sizeof(E) == 2, "load_columns: 16-bit types alone");
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(columns[0].bits), "=r"(columns[1].bits), "=r"(columns[2].bits), "=r"(columns[3].bits)
               : "r"(from.address(row))
               : "memory");
}

}  // namespace dctps

#endif
