// common/parallel.h on torch's intra-op thread pool.
#include <ATen/Parallel.h>

#include "common/parallel.h"

namespace dctps {

int max_workers() { return at::in_parallel_region() ? 1 : at::get_num_threads(); }

void run_workers(int workers, void (*body)(void*, int), void* context) {
  at::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) body(context, int(worker));
  });
}

}  // namespace dctps
