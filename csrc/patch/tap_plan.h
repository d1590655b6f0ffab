// The factors of a patch DCT in its tap form: made once in double precision for each shape and shared by all layers of
// that shape, by both directions and every device.
//
// Tap s = a kw + b of a patch holds C channels, so that with theta_k = pi k / (2q), centred channels c' = c - (C-1)/2 and
// Z[p,k] = sum_c x[p,c] e^(2i theta_k c'), one transform for each pixel p,
//     (D patch)[k] = c_k Re sum_s e^(i theta_k C (2s+1)) Z[p+s,k].
// Channels: Re Z = expand reduce (x[c] + x[C-1-c]) and Im Z = expand reduce (x[c] - x[C-1-c]), c < C/2, as products of
// thin matrices where those have low numerical rank, else as one matrix.
// Taps, from the middle one (a0, b0) = (kh/2, kw/2): H = sum_b e^(2i theta_k C (b-b0)) Z[b], then the part of
// sum_a e^(2i theta_k C kw (a-a0)) H[a] that e^(i theta_k C (2s0+1)) turns into a real one. Where n >= m and kh kw is odd
// that turn is i^k: the real part, or the imaginary one, with no multiplication.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <type_traits>
#include <vector>

namespace dctps {

// The shape of the patch DCT: its filters are rows of D in R^{filters x kernel_height*kernel_width*channels}.
struct TapShape {
  int64_t kernel_height, kernel_width;
  int64_t channels;  // of one group
  int64_t filters;   // of all groups
  int64_t groups;

  // Whether a patch is one whole pixel, so that the layer is linear over pixels, or over those that strides leave.
  bool is_pointwise() const { return groups == 1 && kernel_height * kernel_width == 1; }
};

template <class A>
struct TapPlan {
  // Channels to the real or the imaginary part of Z, for one group's filters.
  struct Part {
    int64_t depth = 0;      // folded channels
    int64_t rank = 0;       // 0: no reduction, `expand` takes the folded channels
    std::vector<A> reduce;  // [rank][depth]
    std::vector<A> expand;  // [filters of the group][rank, or depth]; scaled by c_k and the turn

    int64_t inner() const { return rank ? rank : depth; }
  };
  std::vector<std::array<Part, 2>> parts;  // [groups]: real, imaginary
  std::vector<A> across;                   // [filters][kernel_width] {cos, sin} of 2 theta_k C (b - b0)
  // [filters][kernel_height] {u, v}: D patch = sum_a u P[a] + v Q[a], with u = 1 at a0.
  std::vector<A> down;
  std::vector<uint8_t>
      swaps;           // [filters]: P is the imaginary part of H and Q the real one, else the other way round
  bool turns = false;  // whether some v is not 0 at a0

  double cost;  // multiply-adds for each pixel and output pixel, taken as equally many
  int64_t bytes() const;
};

// Error of thin factors, of the norm of a row of [cos; sin]: adds nothing to the rounding errors of a sum in A.
template <class A>
constexpr double kRankTolerance = std::is_same_v<A, float> ? 1e-7 : 1e-14;

// The plan for a shape, cached for the life of the process.
template <class A>
std::shared_ptr<const TapPlan<A>> get_tap_plan(const TapShape& shape, double tolerance = kRankTolerance<A>);

}  // namespace dctps
