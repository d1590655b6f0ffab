// common/parallel.h on std::thread, for the library that CMake builds without torch. DCTPS_NUM_THREADS sets
// their number.
#include <cstdlib>
#include <exception>
#include <mutex>
#include <system_error>
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
  std::mutex mutex;
  std::exception_ptr failure;
  auto guarded = [&](int worker) {
    try {
      body(context, worker);
    } catch (...) {
      std::lock_guard<std::mutex> lock(mutex);
      failure = std::current_exception();
    }
  };
  std::vector<std::thread> threads;
  try {
    for (int worker = 1; worker < workers; ++worker) threads.emplace_back(guarded, worker);
  } catch (const std::system_error&) {
    // No more threads to be had: those there are do all the work.
  }
  guarded(0);
  for (auto& thread : threads) thread.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace dctps
