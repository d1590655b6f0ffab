// Large pages for large results.
#pragma once

#include "common/check.h"

namespace dctps {

// Asks for 2 MiB pages behind a tensor just allocated on the CPU, before it is first written: where the allocator hands
// out fresh pages, taking 4 KiB ones costs several times as long as the writing. A hint: it may do nothing.
void hint_huge_pages(const Tensor& fresh);

}  // namespace dctps
