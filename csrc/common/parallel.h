// Threads, in one place: inside torch its own thread pool runs the work, in the plain library std::thread
// does.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

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

// Calls worker(chunk) for every chunk 0 .. count-1, where make_worker(), called once on each thread, returns worker: that
// is where a thread keeps its scratch memory. The chunks are cut into `shares` of neighbours, a thread's own and then
// those of others, and are taken `together` at a time. Whatever is stored is in memory at the end, stores past the
// caches too.
template <class MakeWorker>
void share_chunks(int64_t count, const MakeWorker& make_worker, int64_t together, int64_t shares) {
  if (count <= 0) return;
  struct alignas(64) Share {  // a cache line of its own: neighbours are written by other threads
    std::atomic<int64_t> next;
    int64_t end;
  };
  struct Shared {
    const MakeWorker& make_worker;
    int64_t together;
    std::vector<Share> shares;
  } shared{make_worker, together, std::vector<Share>(size_t(shares))};
  for (int64_t s = 0; s < shares; ++s) {
    shared.shares[size_t(s)].next = s * count / shares;
    shared.shares[size_t(s)].end = (s + 1) * count / shares;
  }
  run_workers(
      int(std::min(count, int64_t(max_workers()))),
      [](void* context, int number) {
        auto& state = *static_cast<Shared*>(context);
        auto worker =
            state.make_worker();  // before a chunk is taken: if this throws, nobody waits for that chunk
        for (size_t s = 0; s < state.shares.size(); ++s) {
          Share& share = state.shares[(size_t(number) + s) % state.shares.size()];
          for (;;) {
            const int64_t first = share.next.fetch_add(state.together, std::memory_order_relaxed);
            if (first >= share.end) break;
            const int64_t end = std::min(first + state.together, share.end);
            for (int64_t chunk = first; chunk < end; ++chunk) worker(chunk);
          }
        }
        std::atomic_thread_fence(
            std::memory_order_seq_cst);  // a weaker one would let stores past the caches lag
      },
      &shared);
}

// The chunks in any order: each thread begins with neighbours, the same for the same count, as torch's own operations
// do, so that it finds in its cache what it wrote there before.
template <class MakeWorker>
void parallel_chunks(int64_t count, const MakeWorker& make_worker, int64_t together = 1) {
  share_chunks(count, make_worker, together, std::min(count, int64_t(max_workers())));
}

// The chunks in rising order, each to whoever is free, as OrderedSections wants them.
template <class MakeWorker>
void parallel_chunks_in_order(int64_t count, const MakeWorker& make_worker) {
  share_chunks(count, make_worker, 1, 1);
}

// Lets the chunks of parallel_chunks_in_order add to shared sums in the order of their numbers, so that the sums have
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
