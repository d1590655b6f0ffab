// One vector of accumulators, in the width of the instruction set this file is compiled for, and its moves:
// conversion on load and store, transposition of a square of vectors, sums over lanes.
#pragma once

#include <type_traits>
#include <utility>

#include "common/types.h"
#ifdef __F16C__
#include <immintrin.h>
#endif

#ifndef DCTPS_ISA
#define DCTPS_ISA baseline
#endif
#define DCTPS_INLINE inline __attribute__((always_inline))
// For what is long and not worth a copy in each of its many callers: such copies were half of the linear kernels' code.
#define DCTPS_NOINLINE __attribute__((noinline))

namespace dctps {
namespace DCTPS_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class A>
constexpr int kLanes = kVectorBytes / int(sizeof(A));

template <class A>
struct VectorOf {
  typedef A type __attribute__((vector_size(kVectorBytes)));
};
template <class A>
using Vec = typename VectorOf<A>::type;

// ---- loads and stores of kLanes consecutive elements, any alignment

template <class E>
DCTPS_INLINE Vec<Accumulator<E>> load(const E* from) {
  using A = Accumulator<E>;
  Vec<A> result;
  if constexpr (sizeof(E) == sizeof(A)) {
    __builtin_memcpy(&result, from, sizeof(result));
  } else {
    for (int l = 0; l < kLanes<A>; ++l) result[l] = to_accumulator(from[l]);
  }
  return result;
}

template <class E>
DCTPS_INLINE void store(E* to, Vec<Accumulator<E>> value) {
  using A = Accumulator<E>;
  if constexpr (sizeof(E) == sizeof(A)) {
    __builtin_memcpy(to, &value, sizeof(value));
  } else {
    for (int l = 0; l < kLanes<A>; ++l) to[l] = from_accumulator<E>(value[l]);
  }
}

typedef uint16_t Bits16 __attribute__((vector_size(kVectorBytes / 2)));
typedef uint32_t Bits32 __attribute__((vector_size(kVectorBytes)));

template <>
DCTPS_INLINE Vec<float> load<BFloat16>(const BFloat16* from) {
  Bits16 narrow;
  __builtin_memcpy(&narrow, from, sizeof(narrow));
  return Vec<float>(__builtin_convertvector(narrow, Bits32) << 16);
}

// As from_accumulator<BFloat16>.
template <>
DCTPS_INLINE void store<BFloat16>(BFloat16* to, Vec<float> value) {
  const Bits32 wide = Bits32(value), nan = Bits32(value != value);
  const Bits32 rounded = wide + 0x7fffu + ((wide >> 16) & 1u);
  const Bits16 narrow =
      __builtin_convertvector(((rounded & ~nan) | ((wide | 0x400000u) & nan)) >> 16, Bits16);
  __builtin_memcpy(to, &narrow, sizeof(narrow));
}

// The processor's own float16 conversions, where it has them. (maskz: GCC 12 warns about the plain AVX-512
// form's "undefined".)
#if defined(__AVX512F__)
template <>
DCTPS_INLINE Vec<float> load<Half>(const Half* from) {
  return Vec<float>(
      _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
}
template <>
DCTPS_INLINE void store<Half>(Half* to, Vec<float> value) {
  const __m256i narrow = _mm512_maskz_cvtps_ph(0xffff, __m512(value), _MM_FROUND_TO_NEAREST_INT);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), narrow);
}
#elif defined(__F16C__)
template <>
DCTPS_INLINE Vec<float> load<Half>(const Half* from) {
  return Vec<float>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}
template <>
DCTPS_INLINE void store<Half>(Half* to, Vec<float> value) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(__m256(value), _MM_FROUND_TO_NEAREST_INT));
}
#endif

// The same vector, of which a compiler knows no longer how it was made. It reads an operand that it sees in memory again
// for each of its uses, and what lies across two cache lines takes the time of two reads; and it joins a product with the
// sum that takes it, in one copy of a loop and not in another, whose bits then differ.
template <class V>
DCTPS_INLINE V in_register(V value) {
#if defined(__x86_64__)
  asm("" : "+v"(value));  // as x without AVX-512
#elif defined(__aarch64__)
  asm("" : "+w"(value));
#else
  asm("" : "+m"(value));
#endif
  return value;
}

// ---- the first `count` <= kLanes elements only

// Copies count < kLanes without a call.
template <class E>
DCTPS_INLINE void copy_partial(const E* from, int count, E* to) {
  auto copy = [&](auto size) {
    if constexpr (size < kLanes<Accumulator<E>>) {
      if (!(count & size)) return;
      __builtin_memcpy(to, from, size * sizeof(E));
      from += size, to += size;
    }
  };
  copy(std::integral_constant<int, 8>{});
  copy(std::integral_constant<int, 4>{});
  copy(std::integral_constant<int, 2>{});
  copy(std::integral_constant<int, 1>{});
}

// The other lanes are zero.
template <class E>
DCTPS_INLINE Vec<Accumulator<E>> load_partial(const E* from, int count) {
  constexpr int L = kLanes<Accumulator<E>>;
  alignas(L * sizeof(E)) E padded[L] = {};
#if defined(__AVX512F__)
  const uint32_t mask = (1u << count) - 1;
  if constexpr (sizeof(E) == 8) {
    _mm512_store_si512(padded, _mm512_maskz_loadu_epi64(__mmask8(mask), from));
  } else if constexpr (sizeof(E) == 4) {
    _mm512_store_si512(padded, _mm512_maskz_loadu_epi32(__mmask16(mask), from));
  } else {
    _mm256_store_si256(reinterpret_cast<__m256i*>(padded), _mm256_maskz_loadu_epi16(__mmask16(mask), from));
  }
#else
  if (count == L) return load(from);
  copy_partial(from, count, padded);
#endif
  return load(padded);
}

template <class E>
DCTPS_INLINE void store_partial(E* to, Vec<Accumulator<E>> value, int count) {
  constexpr int L = kLanes<Accumulator<E>>;
  alignas(L * sizeof(E)) E padded[L];
  store(padded, value);
#if defined(__AVX512F__)
  const uint32_t mask = (1u << count) - 1;
  if constexpr (sizeof(E) == 8) {
    _mm512_mask_storeu_epi64(to, __mmask8(mask), _mm512_load_si512(padded));
  } else if constexpr (sizeof(E) == 4) {
    _mm512_mask_storeu_epi32(to, __mmask16(mask), _mm512_load_si512(padded));
  } else {
    _mm256_mask_storeu_epi16(to, __mmask16(mask),
                             _mm256_load_si256(reinterpret_cast<const __m256i*>(padded)));
  }
#else
  if (count == L) return store(to, value);
  copy_partial(padded, count, to);
#endif
}

// ---- the first lanes to chosen ones and back, where there are instructions for it

constexpr bool kMovesLanes = kVectorBytes == 64;

// The first lanes of `value` in the places that `lanes` has bits for, zero in the others; and the other way round.
template <class A>
Vec<A> expand_lanes(Vec<A> value, uint32_t lanes);
template <class A>
Vec<A> compress_lanes(Vec<A> value, uint32_t lanes);

#ifdef __AVX512F__
template <>
DCTPS_INLINE Vec<float> expand_lanes<float>(Vec<float> value, uint32_t lanes) {
  return Vec<float>(_mm512_maskz_expand_ps(__mmask16(lanes), __m512(value)));
}
template <>
DCTPS_INLINE Vec<double> expand_lanes<double>(Vec<double> value, uint32_t lanes) {
  return Vec<double>(_mm512_maskz_expand_pd(__mmask8(lanes), __m512d(value)));
}
template <>
DCTPS_INLINE Vec<float> compress_lanes<float>(Vec<float> value, uint32_t lanes) {
  return Vec<float>(_mm512_maskz_compress_ps(__mmask16(lanes), __m512(value)));
}
template <>
DCTPS_INLINE Vec<double> compress_lanes<double>(Vec<double> value, uint32_t lanes) {
  return Vec<double>(_mm512_maskz_compress_pd(__mmask8(lanes), __m512d(value)));
}
#endif

// ---- chosen lanes only, where that costs nothing

constexpr bool kMasksLanes = kVectorBytes == 64;
using LaneMask = uint16_t;  // a bit for each lane

// sum + x y in these lanes, sum in the others; elsewhere in all.
template <class A>
DCTPS_INLINE Vec<A> add_product(Vec<A> sum, Vec<A> x, Vec<A> y, LaneMask lanes) {
#ifdef __AVX512F__
  if constexpr (sizeof(A) == 8) {
    return Vec<A>(_mm512_mask3_fmadd_pd(__m512d(x), __m512d(y), __m512d(sum), __mmask8(lanes)));
  }
  if constexpr (sizeof(A) == 4) {
    return Vec<A>(_mm512_mask3_fmadd_ps(__m512(x), __m512(y), __m512(sum), lanes));
  }
#endif
  static_cast<void>(lanes);
  return sum + x * y;
}
template <class A>
DCTPS_INLINE Vec<A> add_product(Vec<A> sum, Vec<A> x, A factor, LaneMask lanes) {
  return add_product<A>(sum, x, factor - Vec<A>{}, lanes);  // minus, because of which nothing is computed
}

// ---- stores past the caches, for results too large to be read again from them

// Only whole cache lines go past: a partial one costs more than an ordinary store.
template <class E>
constexpr bool kCanStream = kVectorBytes == 64 && sizeof(E) == sizeof(Accumulator<E>);

// As store(), past the caches; `to` is the start of a cache line. Other threads see it after parallel_chunks.
template <class E>
DCTPS_INLINE void stream_line(E* to, Vec<Accumulator<E>> value) {
#ifdef __AVX512F__
  if constexpr (kCanStream<E>) return _mm512_stream_si512(reinterpret_cast<__m512i*>(to), __m512i(value));
#endif
  store(to, value);
}

// The same where `to` is the start of a cache line, as store() elsewhere.
template <class E>
DCTPS_INLINE void stream(E* to, Vec<Accumulator<E>> value) {
  reinterpret_cast<uintptr_t>(to) % 64 == 0 ? stream_line(to, value) : store(to, value);
}

// ---- transposition and sums over lanes, both by dealing out vectors at distance D = 1, 2, 4, ...

// Lane j of the result is lane Index[j] of a and b, counted through.
template <class A, int... Index>
DCTPS_INLINE Vec<A> shuffle(Vec<A> a, Vec<A> b) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, Index...);
#else
  typedef std::conditional_t<sizeof(A) == 8, int64_t, int32_t> Lane;
  typedef Lane Order __attribute__((vector_size(kVectorBytes)));
  return __builtin_shuffle(a, b, Order{Index...});
#endif
}

template <class A, int D, int... J>
DCTPS_INLINE Vec<A> partners(Vec<A> v, std::integer_sequence<int, J...>) {
  return shuffle<A, (J ^ D)...>(v, v);
}

// The sum of a vector's lanes.
template <class A, int D = kLanes<A> / 2>
DCTPS_INLINE A lanes_total(Vec<A> v) {
  if constexpr (D > 0) {
    return lanes_total<A, D / 2>(v + partners<A, D>(v, std::make_integer_sequence<int, kLanes<A>>{}));
  } else {
    return v[0];
  }
}

// One of the two results of deal().
template <class A, int D, bool High, int... J>
DCTPS_INLINE Vec<A> deal_half(Vec<A> a, Vec<A> b, std::integer_sequence<int, J...>) {
  constexpr int kBlock = 16 / int(sizeof(A));                // lanes of 128 bits
  constexpr int kUnit = D < kBlock ? 1 : kBlock;             // what is dealt
  constexpr int kSegment = D < kBlock ? kBlock : kLanes<A>;  // what it is dealt within
  constexpr int kHalf = kSegment / 2;
  return shuffle<A, (J / kSegment * kSegment + (J % kHalf / kUnit * 2 + High) * kUnit + J % kUnit +
                     (J / kHalf % 2 ? kLanes<A> : 0))...>(a, b);
}

// Puts the even-numbered lanes of a and b, side by side, into a, and the odd-numbered ones into b. That is done within
// each 128 bits for distances D below that, and with units of 128 bits for larger ones: single instructions, without
// the index vectors that a general shuffle takes.
template <class A, int D>
DCTPS_INLINE void deal(Vec<A>& a, Vec<A>& b) {
  using Lanes = std::make_integer_sequence<int, kLanes<A>>;
  const Vec<A> even = deal_half<A, D, false>(a, b, Lanes{});
  b = deal_half<A, D, true>(a, b, Lanes{});
  a = even;
}

template <class A, int D = 1>
DCTPS_INLINE void transpose(Vec<A> (&square)[kLanes<A>]) {
  if constexpr (D < kLanes<A>) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<A>; ++i) {
      if (!(i & D)) deal<A, D>(square[i], square[i + D]);
    }
    transpose<A, 2 * D>(square);
  }
}

// Lane l of the result: the sum of the lanes of rows[l]. Overwrites rows.
template <class A, int D = 1>
DCTPS_INLINE Vec<A> sum_lanes(Vec<A> (&rows)[kLanes<A>]) {
  if constexpr (D < kLanes<A>) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<A>; i += 2 * D) {
      deal<A, D>(rows[i], rows[i + D]);
      rows[i] += rows[i + D];
    }
    return sum_lanes<A, 2 * D>(rows);
  } else {
    return rows[0];
  }
}

// The same place of two tiles, which what is computed once for both is used on together; and where they are.
template <class V>
struct Two {
  V first, second;

  template <class A>
  friend DCTPS_INLINE Two operator*(Two two, A factor) {
    return {two.first * factor, two.second * factor};
  }
  friend DCTPS_INLINE Two operator*(Two a, Two b) { return {a.first * b.first, a.second * b.second}; }
  friend DCTPS_INLINE Two operator+(Two a, Two b) { return {a.first + b.first, a.second + b.second}; }
  DCTPS_INLINE Two& operator+=(Two other) { return *this = *this + other; }
};
template <class V>
DCTPS_INLINE Two<V> in_register(Two<V> two) {
  return {in_register(two.first), in_register(two.second)};
}
template <class V, class A>
DCTPS_INLINE void fill(V& v, A value) {
  v = value - V{};  // minus, because of which nothing is computed
}
template <class V, class A>
DCTPS_INLINE void fill(Two<V>& two, A value) {
  fill(two.first, value);
  fill(two.second, value);
}
template <class V>
DCTPS_INLINE V sum_of(V v) {
  return v;
}
template <class V>
DCTPS_INLINE V sum_of(Two<V> two) {
  return two.first + two.second;
}
template <class V>
struct InTwo {
  const V *first, *second;

  DCTPS_INLINE Two<V> operator[](int64_t i) const { return {first[i], second[i]}; }
};
// The same where each place has both side by side.
template <class V>
struct Interleaved {
  const V* both;

  DCTPS_INLINE Two<V> operator[](int64_t i) const { return {both[2 * i], both[2 * i + 1]}; }
};

}  // namespace DCTPS_ISA
}  // namespace dctps
