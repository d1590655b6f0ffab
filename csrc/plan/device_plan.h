// The plan of a DCT of one length for CUDA kernels: how the transform is cut into passes, and its tables in device
// memory.
//
// DCT-II of length q by Makhoul: v[j] = x[2j], v[q-1-j] = x[2j+1]. For even q the real v is read as N = q/2 complex
// values z[j] = v[2j] + i v[2j+1]; for odd q as N = q complex values with imaginary part zero. Z = FFT_N(z), in place
// in passes of radix 2 to 16, decimation in frequency: pass p replaces digit p of n = (n_1 n_2 .. n_P), most
// significant first, by digit p of k = (k_P .. k_2 k_1), so that Z[k] ends where the digits of k say (`places`).
// The finish takes Z[k], Z[N-k] to y[k], y[q-k], y[N-k], y[N+k], also in place. The adjoint (DCT-III) runs the
// transposed steps in reverse order on the same tables. A prime factor above 13 of N: FFT_N by Bluestein's
// convolution of length `size` >= 2N - 1, whose results are in natural order.
//
// Lengths with many factors 2 have shortcuts, because every pass costs a write and a read of shared memory:
// - starts_paired (N a power of two): Makhoul takes four neighbours x[4j .. 4j+3] to z[j] and z[N-1-j], which the first
//   pass, if one thread has its columns c and M-1-c, can take from global memory into registers.
// - ends_paired: the finish of Z[k] and Z[N-k] is done in the registers of the last pass, if one thread has its
//   columns c and N/R - c.
//
// Bank conflicts: the complex value n lies in slot n ^ s(n), where s(n) < 16 is linear over GF(2) in the bits of n, and
// chosen so that the 16 lanes that shared memory serves at once meet in no bank, in any pass.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "common/types.h"

namespace at {
class Tensor;
}

namespace dctps {

// Division of 0 <= n < 2^31 by a constant (Granlund and Montgomery, PLDI 1994, fig. 4.1).
struct Divisor {
  uint32_t value = 1, magic = 1, shift = 0;

  Divisor() = default;
  explicit Divisor(uint32_t divisor) : value(divisor) {
    while ((uint64_t(1) << shift) < divisor) ++shift;
    magic = uint32_t(((uint64_t(1) << 32) * ((uint64_t(1) << shift) - divisor)) / divisor + 1);
  }
  DCTPS_HOST_DEVICE uint32_t quotient(uint32_t n) const {
    return (uint32_t((uint64_t(n) * magic) >> 32) + n) >> shift;
  }
};

struct DevicePass {
  int radix = 1;
  int columns = 1;       // M: the product of the radices of later passes
  int64_t twiddles = 0;  // offset into DevicePlan::twiddles
  int steps[4] = {};     // of even radices: slot(M), slot(2M), slot(4M), slot(8M)
  Divisor by_columns;
};

struct DevicePlan {
  static constexpr int kMostPasses = 20, kSwizzles = 4;
  int length = 1;  // q
  int points = 1;  // N
  int size = 1;    // of the complex transform that the passes make: N, or more for Bluestein
  int slots = 1;   // complex values that a row takes up
  int pass_count = 0;
  bool is_odd = false, is_bluestein = false;
  bool starts_paired = false, ends_paired = false;
  int shifts[kSwizzles] = {}, masks[kSwizzles] = {};
  int row_shift = 0;  // row r of a tile has its slots exchanged by ^ (r << row_shift & 15)
  DevicePass passes[kMostPasses];
  // Z[k] is in slot places[k / first_radix] ^ slot(k % first_radix * passes[0].columns).
  int first_radix = 1;
  Divisor by_first_radix;

  // Tables; complex values of the accumulator's type, {re, im}. All 16-byte aligned.
  const int32_t* places = nullptr;  // [points / first_radix]
  const void* twiddles =
      nullptr;  // of a pass: [powers 1, 2, 4, 8 below R][M]: w^(j power), w = e^(-2 pi i / RM)
  const void* finish = nullptr;    // even q: [N/2 + 1]{a, b}; odd q: [N]; see Finish in dct/dct_kernel.cuh
  const void* chirp = nullptr;     // Bluestein: [points] e^(-pi i n^2 / N)
  const void* spectrum = nullptr;  // Bluestein: [size], by slot number before the exchange

  // Slot of the complex value n.
  DCTPS_HOST_DEVICE int slot(int n) const {
    return n ^ (n >> shifts[0] & masks[0]) ^ (n >> shifts[1] & masks[1]) ^ (n >> shifts[2] & masks[2]) ^
           (n >> shifts[3] & masks[3]);
  }
};

// Threads of a row: one for every 16 complex values.
constexpr int kValuesPerThread = 16;

// Without its tables.
DevicePlan device_plan_layout(int64_t q);

// The plan for q and the bytes of its tables; its pointers hold offsets into them until `relocated`.
struct HostTables {
  DevicePlan plan;
  std::vector<char> bytes;
};
HostTables make_device_tables(int64_t q, bool is_double);
DevicePlan relocated(DevicePlan plan, const void* tables);

// Tables in memory of like's device, for good.
at::Tensor upload_table(const std::vector<char>& bytes, const at::Tensor& like);

// The plan for q on like's device, with tables for the accumulator of `dtype`; cached for the life of the process.
std::shared_ptr<const DevicePlan> get_device_plan(int64_t q, DType dtype, const at::Tensor& like);

}  // namespace dctps
