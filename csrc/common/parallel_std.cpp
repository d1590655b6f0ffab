// common/parallel.h on std::thread, for the library that CMake builds without torch. DCTPS_NUM_THREADS sets
// their number.
#include <cstdlib>
#include <thread>
#include <vector>

#include "common/parallel.h"

namespace dctps {

int max_workers() {
  static const int workers = [] {
    const char* wanted = std::getenv("DCTPS_NUM_THREADS");
    const int number = wanted ? std::atoi(wanted) : int(std::thread::hardware_concurrency());
    return number > 0 ? number : 1;
  }();
  return workers;
}

void run_workers(int workers, void (*body)(void*, int), void* context) {
  std::vector<std::thread> threads;
  for (int worker = 1; worker < workers; ++worker) threads.emplace_back(body, context, worker);
  body(context, 0);
  for (auto& thread : threads) thread.join();
}

}  // namespace dctps
