// Element types of tensors, the types sums are kept in, and the dispatch from a runtime dtype to them.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

// Also for device code, where the processor's conversion instructions do the work.
#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define DCTPS_HOST_DEVICE __host__ __device__
#else
#define DCTPS_HOST_DEVICE
#endif

namespace dctps {

enum class DType { f64, f32, f16, bf16 };

constexpr int64_t element_bytes(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }
constexpr int64_t accumulator_bytes(DType dtype) { return dtype == DType::f64 ? 8 : 4; }

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// Sums are kept in double for double, in float32 for everything else.
template <class Element>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <class Element>
struct AccumulatorOf<const Element> : AccumulatorOf<Element> {};
template <class Element>
using Accumulator = typename AccumulatorOf<Element>::type;

DCTPS_HOST_DEVICE inline float to_accumulator(BFloat16 value) {
  const uint32_t wide = uint32_t(value.bits) << 16;
  float result;
  std::memcpy(&result, &wide, sizeof(result));
  return result;
}

DCTPS_HOST_DEVICE inline float to_accumulator(Half value) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(value.bits));
#else
  const uint32_t sign = uint32_t(value.bits & 0x8000u) << 16;
  const uint32_t magnitude = value.bits & 0x7fffu;
  uint32_t wide;
  if (magnitude >= 0x7c00u) {  // inf, nan
    wide = 0x7f800000u | ((magnitude & 0x3ffu) << 13);
  } else if (magnitude >= 0x0400u) {
    wide = (magnitude << 13) + (uint32_t(127 - 15) << 23);
  } else {  // zero and subnormals: magnitude * 2^-24 is exact in float32
    const float small = float(magnitude) * 5.9604644775390625e-8f;
    std::memcpy(&wide, &small, sizeof(wide));
  }
  wide |= sign;
  float result;
  std::memcpy(&result, &wide, sizeof(result));
  return result;
#endif
}

DCTPS_HOST_DEVICE inline float to_accumulator(float value) { return value; }
DCTPS_HOST_DEVICE inline double to_accumulator(double value) { return value; }

template <class Element>
DCTPS_HOST_DEVICE Element from_accumulator(Accumulator<Element> value) {
  return value;
}

// Round to nearest, ties to even; every NaN becomes a quiet one.
template <>
DCTPS_HOST_DEVICE inline BFloat16 from_accumulator<BFloat16>(float value) {
#ifdef __CUDA_ARCH__
  return {__bfloat16_as_ushort(__float2bfloat16_rn(value))};
#else
  uint32_t wide;
  std::memcpy(&wide, &value, sizeof(wide));
  if ((wide & 0x7fffffffu) > 0x7f800000u) return {uint16_t((wide >> 16) | 0x40u)};
  return {uint16_t((wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16)};
#endif
}

template <>
DCTPS_HOST_DEVICE inline Half from_accumulator<Half>(float value) {
#ifdef __CUDA_ARCH__
  return {__half_as_ushort(__float2half_rn(value))};
#else
  uint32_t wide;
  std::memcpy(&wide, &value, sizeof(wide));
  const uint32_t sign = (wide >> 16) & 0x8000u;
  wide &= 0x7fffffffu;
  if (wide > 0x7f800000u) return {uint16_t(sign | 0x7e00u)};
  if (wide >= 0x477ff000u) return {uint16_t(sign | 0x7c00u)};  // rounds past 65504
  if (wide < 0x38800000u) {  // below 2^-14: adding 0.5 leaves the subnormal's bits, rounded, at the bottom
    float magnitude;
    std::memcpy(&magnitude, &wide, sizeof(magnitude));
    magnitude += 0.5f;
    uint32_t shifted;
    std::memcpy(&shifted, &magnitude, sizeof(shifted));
    return {uint16_t(sign | (shifted - 0x3f000000u))};
  }
  return {uint16_t(sign | ((wide - (uint32_t(127 - 15) << 23) + 0xfffu + ((wide >> 13) & 1u)) >> 13))};
#endif
}

// Calls body with a value of the element type that `dtype` stands for.
template <class Body>
void dispatch(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::f64:
      return body(double{});
    case DType::f32:
      return body(float{});
    case DType::f16:
      return body(Half{});
    case DType::bf16:
      return body(BFloat16{});
  }
  __builtin_unreachable();
}

// The same for a dtype whose sums are known to be kept in A.
template <class A, class Body>
void dispatch_to(DType dtype, const Body& body) {
  dispatch(dtype, [&](auto element) {
    if constexpr (std::is_same_v<Accumulator<decltype(element)>, A>) return body(element);
    __builtin_unreachable();
  });
}

// Calls body with a value of the type that sums are kept in.
template <class Body>
void dispatch_accumulator(DType dtype, const Body& body) {
  dtype == DType::f64 ? body(double{}) : body(float{});
}

}  // namespace dctps
