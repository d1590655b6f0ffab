// Threads, in one place: inside torch its own thread pool runs the work, in the plain library std::thread
// does.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

#include "common/integers.h"

namespace dctps {

// The number of threads that run_workers may use now.
int max_workers();

// Calls body(context, worker) for worker = 0 .. workers-1, on up to that many threads; fewer threads run
// several workers one after the other.
void run_workers(int workers, void (*body)(void* context, int worker), void* context);

// How many small chunks a thread does well to take at a time: taking some waits until all that was stored before is in
// memory, which may be longer than the work on a chunk.
inline int64_t chunks_at_a_time(int64_t count) {
  const int64_t workers = max_workers();
  return workers == 1 ? std::max(count, int64_t(1))
                      : std::clamp(count / (16 * workers), int64_t(1), int64_t(8));
}

// Hands out the chunks 0 .. count-1 to the threads, in rising order, `together` at a time, to whoever is free.
// make_worker() is called once on each thread and returns what is then called with a chunk's number: that is where a
// thread keeps its scratch memory. Whatever it stores is in memory at the end, stores past the caches too.
template <class MakeWorker>
void parallel_chunks(int64_t count, const MakeWorker& make_worker, int64_t together = 1) {
  struct Shared {
    const MakeWorker& make_worker;
    int64_t count, together;
    std::atomic<int64_t> next{0};
  } shared{make_worker, count, together};
  const int64_t runs = ceil_div(count, together);
  const int64_t workers = std::min(runs, int64_t(max_workers()));
  if (workers <= 0) return;
  run_workers(
      int(workers),
      [](void* context, int) {
        auto& state = *static_cast<Shared*>(context);
        if (state.next.load(std::memory_order_relaxed) >= state.count) return;
        auto worker =
            state.make_worker();  // before a chunk is taken: if this throws, nobody waits for that chunk
        for (;;) {
          const int64_t first = state.next.fetch_add(state.together, std::memory_order_relaxed);
          if (first >= state.count) break;
          const int64_t end = std::min(first + state.together, state.count);
          for (int64_t chunk = first; chunk < end; ++chunk) worker(chunk);
        }
        std::atomic_thread_fence(
            std::memory_order_seq_cst);  // a weaker one would let stores past the caches lag
      },
      &shared);
}

// Lets the chunks of parallel_chunks add to shared sums in the order of their numbers, so that the sums have
// the same bits whatever the number of threads. The sums are split into sections that chunks pass one behind
// the other, like a wave. It cannot deadlock: chunks are handed out in order, so the chunk waited for is
// always already running.
class OrderedSections {
 public:
  explicit OrderedSections(int count) : turns_(new Turn[count]), count_(count) {}

  int count() const { return count_; }

  template <class Body>
  void in_turn(int section, int64_t chunk, const Body& body) {
    auto& turn = turns_[section].chunk;
    for (int spins = 0; turn.load(std::memory_order_acquire) != chunk; ++spins) {
      if (spins > kSpinsBeforeYield) std::this_thread::yield();
    }
    body();
    turn.store(chunk + 1, std::memory_order_release);
  }

 private:
  static constexpr int kSpinsBeforeYield = 2000;
  struct alignas(64) Turn {  // a cache line of its own: neighbours are written by other threads
    std::atomic<int64_t> chunk{0};
  };
  std::unique_ptr<Turn[]> turns_;
  int count_;
};

}  // namespace dctps
