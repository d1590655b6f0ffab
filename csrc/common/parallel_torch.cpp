// common/parallel.h on torch's intra-op thread pool.
#include <ATen/Parallel.h>

#include <exception>
#include <mutex>

#include "common/parallel.h"

#if AT_PARALLEL_OPENMP
// torch's own OpenMP runtime, called by name. at::parallel_for is a template: without -fopenmp it runs on one thread,
// and with it a second runtime may be linked beside torch's, with threads of its own. GNU's and LLVM's runtimes both
// have these entries, and the loader takes those of the library that torch itself has loaded.
extern "C" {
void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned flags);
int omp_get_thread_num();
int omp_get_num_threads();
}
#endif

namespace dctps {

int max_workers() { return at::in_parallel_region() ? 1 : at::get_num_threads(); }

void run_workers(int workers, void (*body)(void*, int), void* context) {
#if AT_PARALLEL_OPENMP
  struct Region {
    int workers;
    void (*body)(void*, int);
    void* context;
    std::mutex mutex;
    std::exception_ptr failure;
  } region{workers, body, context, {}, {}};
  if (workers == 1) return body(context, 0);
  GOMP_parallel(
      [](void* data) {
        auto& shared = *static_cast<Region*>(data);
        try {
          for (int w = omp_get_thread_num(); w < shared.workers; w += omp_get_num_threads())
            shared.body(shared.context, w);
        } catch (...) {  // an exception must not leave the region
          std::lock_guard<std::mutex> lock(shared.mutex);
          shared.failure = std::current_exception();
        }
      },
      &region, unsigned(workers), 0);
  if (region.failure) std::rethrow_exception(region.failure);
#else
  at::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) body(context, int(worker));
  });
#endif
}

}  // namespace dctps
