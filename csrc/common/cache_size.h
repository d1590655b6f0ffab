// How much the processor's last cache holds.
#pragma once

#include <cstdint>

namespace dctps {

// Bytes of the third-level cache that the calling thread's core has a share of, as the processor itself says: 0 where it
// has none or does not say. (What the C library tells adds up the caches of all cores on some processors.)
int64_t third_cache_bytes();

}  // namespace dctps
