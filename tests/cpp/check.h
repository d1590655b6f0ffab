// The little that native tests need: report a failed check with its place, count failures, fill arrays.
#pragma once

#include <cstdint>
#include <cstdio>
#include <vector>

namespace check {

inline int failures = 0;

inline void that(bool holds, const char* what, const char* file, int line) {
  if (holds) return;
  ++failures;
  std::fprintf(stderr, "%s:%d: failed: %s\n", file, line, what);
}

// Reproducible values in [-0.5, 0.5).
template <class T>
std::vector<T> values(int64_t count, uint64_t seed) {
  std::vector<T> result(static_cast<size_t>(count));
  for (T& value : result) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    value = T(double(seed >> 11) / 9007199254740992.0 - 0.5);
  }
  return result;
}

}  // namespace check

#define CHECK(condition) check::that((condition), #condition, __FILE__, __LINE__)
