// How much the processor's last cache holds: cpuid's "deterministic cache parameters".
#include "common/cache_size.h"

#include <initializer_list>

#ifdef DCTPS_HAVE_X86_ISAS
#include <cpuid.h>
#endif

namespace dctps {
namespace {

int64_t read_third_cache_bytes() {
#ifdef DCTPS_HAVE_X86_ISAS
  // Intel's leaf and AMD's, which have the same fields; a list of caches ends with one of type 0.
  for (const unsigned leaf : {0x4u, 0x8000001du}) {
    unsigned a = 0, b = 0, c = 0, d = 0;
    for (unsigned cache = 0; __get_cpuid_count(leaf, cache, &a, &b, &c, &d) && a & 0x1f; ++cache) {
      const unsigned level = a >> 5 & 0x7;
      const int64_t line = (b & 0xfff) + 1, partitions = (b >> 12 & 0x3ff) + 1, ways = (b >> 22) + 1;
      if (level == 3) return line * partitions * ways * (int64_t(c) + 1);
    }
  }
#endif
  return 0;
}

}  // namespace

int64_t third_cache_bytes() {
  static const int64_t bytes = read_third_cache_bytes();
  return bytes;
}

}  // namespace dctps
