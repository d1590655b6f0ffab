// Large pages for large results: transparent huge pages, which most Linux systems give to those who ask.
#include "common/huge_pages.h"

#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace dctps {

void hint_huge_pages(const Tensor& fresh) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kPage = 2 << 20;
  if (!fresh.is_cpu() || fresh.nbytes() < 2 * kPage) return;
  // Whole pages inside the tensor, so that it takes no more memory than without.
  const auto data = reinterpret_cast<uintptr_t>(fresh.const_data_ptr());
  const uintptr_t begin = (data + kPage - 1) & ~(kPage - 1), end = (data + fresh.nbytes()) & ~(kPage - 1);
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  static_cast<void>(fresh);
#endif
}

}  // namespace dctps
