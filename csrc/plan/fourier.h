// What the tables of plans are made of, in double precision: roots of unity, the DCT's scale, a plain FFT.
#pragma once

#include <cmath>
#include <complex>
#include <cstdint>
#include <utility>
#include <vector>

namespace dctps {

using Complex = std::complex<double>;

// e^(-2 pi i numerator / denominator), the angle reduced exactly to an eighth of a turn first.
inline Complex unit_root(int64_t numerator, int64_t denominator) {
  numerator %= denominator;
  if (numerator < 0) numerator += denominator;
  const int64_t eighth = 8 * numerator / denominator;  // octant, counter-clockwise
  const int64_t rest = 8 * numerator - eighth * denominator;
  const bool mirrored = eighth & 1;
  const double angle = 2 * M_PI * double(mirrored ? denominator - rest : rest) / (8 * double(denominator));
  double c = std::cos(angle), s = std::sin(angle);
  if (mirrored) std::swap(c, s);
  switch (eighth / 2) {
    case 0:
      return {c, -s};
    case 1:
      return {-s, -c};
    case 2:
      return {-c, s};
    default:
      return {s, c};
  }
}

// c_k of the orthonormal DCT.
inline double dct_scale(int64_t k, int64_t q) { return std::sqrt((k == 0 ? 1.0 : 2.0) / double(q)); }

// Unnormalised FFT in double, of a length of small primes: for the spectra of Bluestein plans.
inline std::vector<Complex> small_prime_fft(const std::vector<Complex>& x) {
  const size_t n = x.size();
  if (n == 1) return x;
  size_t r = 2;
  while (n % r) ++r;
  const size_t m = n / r;
  std::vector<Complex> result(n);
  for (size_t k = 0; k < r; ++k) {
    std::vector<Complex> part(m);
    for (size_t j = 0; j < m; ++j) part[j] = x[j * r + k];
    part = small_prime_fft(part);
    for (size_t t = 0; t < n; ++t) result[t] += unit_root(int64_t(k * t % n), int64_t(n)) * part[t % m];
  }
  return result;
}

}  // namespace dctps
