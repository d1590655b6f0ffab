// The engine of emulator.h: fibers, their scheduler, the record of who touched which shared memory, counters.
#include "emulator.h"

#include <cuda_runtime.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <utility>

#include "common/parallel.h"

// DCTPS_ASAN: the kernels are instrumented, and this file, which runs for each of their accesses, is not.
#if defined(__SANITIZE_ADDRESS__) || DCTPS_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define WITH_ASAN 1
#endif

#ifndef __x86_64__
#error "tests/cuda_emulator: the switch between fibers is written for x86-64 only"
#endif

// Saves the callee's registers on the stack, its pointer in *save, and goes on where `load` was saved.
extern "C" void dctps_switch_fiber(void** save, void* load);
asm(R"(
.text
.type dctps_switch_fiber,@function
.hidden dctps_switch_fiber
.globl dctps_switch_fiber
dctps_switch_fiber:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size dctps_switch_fiber,.-dctps_switch_fiber
)");

namespace dctps::emulator {
namespace {

constexpr int kWarp = 32;
constexpr int kMostThreads = 1024;
constexpr int kMostSharedBytes = 227 << 10;
constexpr int64_t kSampledBlocks = 8;  // of a launch, for SiteCounters; the last block comes on top
constexpr int kGranule = 2;            // bytes of shared memory whose users are known together
constexpr size_t kStackBytes = 256 << 10, kGuardBytes = 4096;
constexpr uint16_t kNobody = 0xffff;

// ------------------------------------------------------------------------------------ what the host sets and asks

using Tables = std::map<uintptr_t, Memory::Range>;  // by where they begin

struct Settings {
  std::atomic<uint64_t> seed{0};
  std::atomic<int64_t> most_blocks{(int64_t(1) << 31) - 1};
  std::atomic<int> most_shared_bytes{kMostSharedBytes};
  std::mutex mutex;
  std::vector<LaunchCounters> counters;
  std::shared_ptr<const Tables> tables = std::make_shared<const Tables>();

  Settings() {
    if (const char* text = std::getenv("DCTPS_EMULATOR_SEED")) seed = std::strtoull(text, nullptr, 0);
  }
};
Settings settings;

thread_local const Memory* memory_in_force = nullptr;

struct Random {
  uint64_t state;
  explicit Random(uint64_t seed) : state(seed) {}
  uint64_t next() {  // splitmix64
    uint64_t z = (state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  }
  uint32_t below(uint32_t bound) { return uint32_t(((next() >> 32) * bound) >> 32); }
};

std::string place(const Site& site) {
  const std::string file = site.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(site.line());
}

// ------------------------------------------------------------------------------------ fibers

// One mapping with a stack per thread of a block, each above a page that nobody may touch.
class Stacks {
 public:
  ~Stacks() { release(); }
  void resize(size_t count) {
    if (count <= count_) return;
    release();
    count_ = count;
    void* memory = mmap(nullptr, count * kStackBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
      count_ = 0;
      throw std::bad_alloc();
    }
    base_ = static_cast<char*>(memory);
    for (size_t i = 0; i < count; ++i) mprotect(base_ + i * kStackBytes, kGuardBytes, PROT_NONE);
  }
  char* bottom(size_t i) const { return base_ + i * kStackBytes + kGuardBytes; }
  static constexpr size_t kBytes = kStackBytes - kGuardBytes;

 private:
  void release() {
    if (!base_) return;
#if WITH_ASAN
    __asan_unpoison_memory_region(base_, count_ * kStackBytes);  // what comes to lie there next is not marked
#endif
    munmap(base_, count_ * kStackBytes);
    base_ = nullptr;
  }

  char* base_ = nullptr;
  size_t count_ = 0;
};

enum class State : uint8_t { ready, at_block_barrier, at_warp_step, done };

struct Access {
  Site site;
  uintptr_t address;
  uint8_t bytes;
  bool shared;
  Kind kind;
};

struct AsyncCopy {
  char* target;
  const void* source;
  int bytes, group;
  Site site;
};

struct Fiber {
  void* stack_pointer;
  State state;
  WarpStep step;
  unsigned mask;
  int argument;
  uint64_t value;
  Site site;                // where it waits
  std::vector<Access> log;  // since the last barrier, in sampled blocks
  std::vector<AsyncCopy> copies;
  int groups;  // of copies, closed so far
};

// D += A B with the fragments of mma.m16n8k16, float32 sums in order of the depth.
void multiply_fragments(const Fiber* lanes) {
  const auto fragment = [&](int lane) { return reinterpret_cast<const MmaLane*>(lanes[lane].value); };
  float a[16][16], b[16][8];
  for (int lane = 0; lane < kWarp; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 8; ++i) a[g + (i / 2 % 2) * 8][2 * t + i % 2 + (i / 4) * 8] = fragment(lane)->a[i];
    for (int i = 0; i < 4; ++i) b[2 * t + i % 2 + (i / 2) * 8][g] = fragment(lane)->b[i];
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    for (int i = 0; i < 4; ++i) {
      float& sum = fragment(lane)->d[i];
      const int row = lane / 4 + (i / 2) * 8, column = 2 * (lane % 4) + i % 2;
      for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
    }
  }
}

// ------------------------------------------------------------------------------------ shared memory's users

// Who used two bytes of shared memory. An epoch is what lies between two barriers of a block; epochs are numbered
// through all blocks of a runner, so that nothing needs to be cleared. Within an epoch, times order a warp's lanes.
struct Cell {
  uint32_t write_epoch = 0, write_time = 0;
  uint32_t read_epoch = 0, read_time = 0;
  uint32_t read_lanes = 0;  // of read_warp, unordered among themselves; read_time is the earliest
  uint16_t writer = kNobody;
  uint16_t read_warp = 0;
  uint16_t read_elsewhere = kNobody;  // a reader from another warp
  bool atomic = false;                // the write was one
  bool pending = false;               // the write is an asynchronous copy that is under way
  uint16_t last_reader = kNobody;     // who read at read_site
  Site write_site, read_site;
};

// ------------------------------------------------------------------------------------ runs blocks

struct SiteKey {
  const char* file;
  unsigned line, column;
  bool shared;
  Kind kind;
  auto operator<=>(const SiteKey&) const = default;
};
struct SiteSum {
  int64_t requests = 0;
  double worst = 0, sum = 0;
};

// One launch, on all OS threads.
struct Run {
  const Kernel& kernel;
  const Memory* memory;
  std::shared_ptr<const Tables> tables;
  uint64_t seed;
  unsigned grid_x, grid_y;
  std::atomic<bool> failed{false};
  std::mutex mutex = {};
  LaunchCounters counters = {};
  std::vector<Traffic> traffic = std::vector<Traffic>(memory ? memory->ranges().size() + 1 : 1);
  std::map<SiteKey, SiteSum> sites = {};
};

class Runner {
 public:
  void begin(Run& run);
  void run_block(int64_t block);
  void finish();  // adds this runner's counts to the run's

  void access_global(uintptr_t address, int bytes, Kind kind, Site site);
  void access_shared(const void* address, int bytes, Kind kind, Site site, bool pending = false);
  void copy_async(void* shared, const void* global, int bytes, Site site);
  void commit_async() { ++fibers_[current_].groups; }
  void wait_async(int pending, Site site);
  void* shared_memory(int byte_offset, Site site);
  void sync_block(Site site);
  uint64_t warp_step(WarpStep step, uint64_t value, int argument, unsigned mask, Site site);

  static void fiber_main();

 private:
  [[noreturn]] void fail(int thread, const Site& site, const std::string& what) const;
  [[noreturn]] void fail(const Site& site, const std::string& what) const { fail(current_, site, what); }
  void resume(int thread);
  void suspend(State state);
  void finish_warp_step(int thread);
  void release_block();
  bool ordered(int thread, uint32_t time) const;
  int known_range(uintptr_t address, int bytes, Kind kind) const;
  void check_write(const Cell& cell, int granule, int bytes, Kind kind, Site site) const;
  void note_read(Cell& cell, Site site) const;
  void evaluate_logs();
  void evaluate(const Access* const* accesses, int count);
  void evaluate_request(const Access* const* accesses, int count, SiteSum& sum) const;

  Run* run_ = nullptr;
  Stacks stacks_;
  std::vector<Fiber> fibers_;
  std::vector<uint16_t> order_;
  int threads_ = 0, current_ = 0;
  int64_t block_ = 0;
  bool sampled_ = false, stacks_dirty_ = false;
  std::exception_ptr failure_;
  void* scheduler_stack_pointer_ = nullptr;
  [[maybe_unused]] const void* scheduler_stack_ = nullptr;
  [[maybe_unused]] size_t scheduler_stack_bytes_ = 0;

  struct alignas(1024) SharedMemory {
    char bytes[kMostSharedBytes];
  };
  std::unique_ptr<SharedMemory> shared_ = std::make_unique<SharedMemory>();
  std::vector<Cell> cells_;
  uint32_t epoch_ = 0, first_epoch_ = 0;  // now, and this block's first
  // knows_[w][a][b]: the time up to which lane a of warp w has seen lane b's accesses; [a][a] is a's own time.
  std::vector<std::array<std::array<uint32_t, kWarp>, kWarp>> knows_;
  uint32_t time_ = 1;

  LaunchCounters counters_;
  std::vector<Traffic> traffic_;  // of the known ranges, the tables last
  std::map<SiteKey, SiteSum> sites_;
};

constinit thread_local Runner* runner __attribute__((tls_model("initial-exec"))) = nullptr;

void Runner::begin(Run& run) {
  run_ = &run;
  threads_ = run.kernel.threads;
  stacks_.resize(size_t(threads_));
  fibers_.resize(size_t(threads_));
  order_.resize(size_t(threads_));
  cells_.resize(std::max(cells_.size(), size_t(run.kernel.shared_bytes + kGranule - 1) / kGranule));
  while (knows_.size() < size_t(threads_ / kWarp)) {
    auto& lanes = knows_.emplace_back();
    for (auto& lane : lanes) lane.fill(0);
    for (int a = 0; a < kWarp; ++a) lanes[a][a] = ++time_;
  }
  counters_ = {};
  traffic_.assign(run.traffic.size(), {});
  sites_.clear();
  blockDim = {unsigned(threads_), 1, 1};
  gridDim = {run.grid_x, run.grid_y, 1};
}

void Runner::finish() {
  std::lock_guard<std::mutex> lock(run_->mutex);
  for (size_t i = 0; i < traffic_.size(); ++i) {
    run_->traffic[i].loaded += traffic_[i].loaded;
    run_->traffic[i].stored += traffic_[i].stored;
  }
  run_->counters.shared_loaded += counters_.shared_loaded;
  run_->counters.shared_stored += counters_.shared_stored;
  run_->counters.mma += counters_.mma;
  for (const auto& [key, sum] : sites_) {
    SiteSum& total = run_->sites[key];
    total.requests += sum.requests;
    total.worst = std::max(total.worst, sum.worst);
    total.sum += sum.sum;
  }
}

void Runner::fail(int thread, const Site& site, const std::string& what) const {
  throw Error("kernel " + std::string(run_->kernel.name) + ", block " + std::to_string(block_) + ", thread " +
              std::to_string(thread) + ", " + place(site) + ": " + what);
}

// ---- the scheduler

void Runner::fiber_main() {
  Runner& self = *runner;
#if WITH_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &self.scheduler_stack_, &self.scheduler_stack_bytes_);
#endif
  try {
    self.run_->kernel.body(self.run_->kernel.context);
  } catch (...) {
    self.failure_ = std::current_exception();
  }
  self.suspend(State::done);
  std::abort();  // nobody resumes it
}

void Runner::resume(int thread) {
  current_ = thread;
  threadIdx = {unsigned(thread), 0, 0};
#if WITH_ASAN
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, stacks_.bottom(size_t(thread)), Stacks::kBytes);
#endif
  dctps_switch_fiber(&scheduler_stack_pointer_, fibers_[size_t(thread)].stack_pointer);
#if WITH_ASAN
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

void Runner::suspend(State state) {
  Fiber& fiber = fibers_[size_t(current_)];
  fiber.state = state;
#if WITH_ASAN
  void* fake_stack = nullptr;  // of a fiber that is done, it goes
  __sanitizer_start_switch_fiber(state == State::done ? nullptr : &fake_stack, scheduler_stack_,
                                 scheduler_stack_bytes_);
#endif
  dctps_switch_fiber(&fiber.stack_pointer, scheduler_stack_pointer_);
#if WITH_ASAN
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

void Runner::run_block(int64_t block) {
  block_ = block;
  blockIdx = {unsigned(block % run_->grid_x), unsigned(block / run_->grid_x), 0};
  sampled_ = block < kSampledBlocks || block == run_->kernel.blocks - 1;
  first_epoch_ = ++epoch_;
  Random random(run_->seed * 0x9e3779b97f4a7c15ull + uint64_t(block));
  for (int t = 0; t < threads_; ++t) {
    Fiber& fiber = fibers_[size_t(t)];
    char* const bottom = stacks_.bottom(size_t(t));
#if WITH_ASAN
    // The marks of frames that were never left: those of fiber_main, and after a failure all.
    const size_t marked = stacks_dirty_ ? Stacks::kBytes : 4096;
    __asan_unpoison_memory_region(bottom + Stacks::kBytes - marked, marked);
#endif
    // What dctps_switch_fiber takes off: six registers and the address to go on at, which finds the stack as
    // after a call.
    void** top = reinterpret_cast<void**>(bottom + Stacks::kBytes) - 1;
    *top = nullptr;
    *--top = reinterpret_cast<void*>(&Runner::fiber_main);
    top -= 6;
    std::fill(top, top + 6, nullptr);
    fiber.stack_pointer = top;
    fiber.state = State::ready;
    fiber.groups = 0;
    fiber.log.clear();
    fiber.copies.clear();
    order_[size_t(t)] = uint16_t(t);
  }
  stacks_dirty_ = true;
  runner = this;
  for (;;) {
    for (size_t i = order_.size() - 1; i > 0; --i) {
      std::swap(order_[i], order_[random.below(uint32_t(i) + 1)]);
    }
    bool progress = false;
    for (const int t : order_) {
      Fiber& fiber = fibers_[size_t(t)];
      if (fiber.state != State::ready) continue;
      progress = true;
      resume(t);
      if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
      if (fiber.state == State::at_warp_step) finish_warp_step(t);
    }
    if (progress) continue;
    if (std::all_of(fibers_.begin(), fibers_.end(), [](auto& f) { return f.state == State::done; })) break;
    release_block();
  }
  if (sampled_) evaluate_logs();
  stacks_dirty_ = false;
}

// Nobody can go on: either all wait at one barrier of the block, or never all will.
void Runner::release_block() {
  const auto name = [this](size_t t) {
    return "thread " + std::to_string(t) +
           (fibers_[t].state == State::done
                ? " has returned"
                : (fibers_[t].state == State::at_block_barrier ? " waits at the block's barrier at "
                                                               : " waits for its warp at ") +
                      place(fibers_[t].site));
  };
  for (size_t t = 0; t < fibers_.size(); ++t) {
    const Fiber& fiber = fibers_[t];
    if (fiber.state != State::at_warp_step) continue;
    for (size_t lane = 0; lane < kWarp; ++lane) {
      const size_t other = t / kWarp * kWarp + lane;
      if ((fiber.mask >> lane & 1) && fibers_[other].state != State::at_warp_step) {
        fail(int(t), fiber.site,
             "a step of the warp that not every lane of its mask reaches: " + name(other));
      }
    }
  }
  const size_t first = size_t(std::find_if(fibers_.begin(), fibers_.end(),
                                           [](auto& f) { return f.state == State::at_block_barrier; }) -
                              fibers_.begin());
  for (size_t t = 0; t < fibers_.size(); ++t) {
    const Fiber& fiber = fibers_[t];
    const Site& site = fibers_[first].site;
    if (fiber.state != State::at_block_barrier) {
      fail(int(first), site, "a barrier that not every thread of the block reaches: " + name(t));
    }
    if (fiber.site.line() != site.line() || fiber.site.column() != site.column()) {
      fail(int(first), site, "a divergent barrier: " + name(t));
    }
  }
  if (sampled_) evaluate_logs();
  ++epoch_;
  for (Fiber& fiber : fibers_) fiber.state = State::ready;
}

void Runner::sync_block(Site site) {
  fibers_[size_t(current_)].site = site;
  suspend(State::at_block_barrier);
}

uint64_t Runner::warp_step(WarpStep step, uint64_t value, int argument, unsigned mask, Site site) {
  Fiber& fiber = fibers_[size_t(current_)];
  if (!(mask >> (current_ % kWarp) & 1)) fail(site, "a step of the warp whose mask leaves out the caller");
  fiber.step = step;
  fiber.value = value;
  fiber.argument = argument;
  fiber.mask = mask;
  fiber.site = site;
  suspend(State::at_warp_step);
  return fiber.value;
}

// If `thread` is the last of its mask to arrive: gives every lane its result and lets them all go on.
void Runner::finish_warp_step(int thread) {
  const int warp = thread / kWarp;
  Fiber* const lanes = &fibers_[size_t(warp) * kWarp];
  const Fiber& own = lanes[thread % kWarp];
  const auto takes_part = [&](int lane) { return own.mask >> lane & 1; };
  for (int lane = 0; lane < kWarp; ++lane) {
    if (!takes_part(lane)) continue;
    const Fiber& other = lanes[lane];
    if (other.state != State::at_warp_step) return;
    if (other.step != own.step || other.mask != own.mask || other.site.line() != own.site.line() ||
        other.site.column() != own.site.column()) {
      fail(thread, own.site,
           "a divergent step of the warp: thread " + std::to_string(warp * kWarp + lane) + " is at " +
               place(other.site) + (other.mask == own.mask ? "" : " with another mask"));
    }
  }
  std::array<uint64_t, kWarp> results{};
  for (int lane = 0; lane < kWarp; ++lane) {
    if (!takes_part(lane)) continue;
    const int argument = lanes[lane].argument;
    int source = lane;
    switch (own.step) {
      case WarpStep::sync:
        break;
      case WarpStep::shuffle:
        source = argument & (kWarp - 1);
        break;
      case WarpStep::shuffle_xor:
        source = (lane ^ argument) & (kWarp - 1);
        break;
      case WarpStep::shuffle_down:
        source = lane + argument < kWarp ? lane + argument : lane;
        break;
      case WarpStep::ballot:
        for (int from = 0; from < kWarp; ++from) {
          if (takes_part(from) && lanes[from].value) results[size_t(lane)] |= uint64_t(1) << from;
        }
        continue;
      case WarpStep::mma:
        break;
    }
    if (!takes_part(source)) {
      fail(warp * kWarp + lane, own.site,
           "a shuffle from lane " + std::to_string(source) + ", which its mask leaves out");
    }
    results[size_t(lane)] = lanes[source].value;
  }
  if (own.step == WarpStep::mma) {
    if (own.mask != ~0u) fail(thread, own.site, "a product of matrices that does not take the whole warp");
    multiply_fragments(lanes);
    ++counters_.mma;
  }
  if (own.step == WarpStep::sync) {
    auto& knows = knows_[size_t(warp)];
    std::array<uint32_t, kWarp> all{};
    for (int lane = 0; lane < kWarp; ++lane) {
      if (!takes_part(lane)) continue;
      for (int from = 0; from < kWarp; ++from) {
        all[size_t(from)] = std::max(all[size_t(from)], knows[size_t(lane)][size_t(from)]);
      }
    }
    ++time_;
    for (int lane = 0; lane < kWarp; ++lane) {
      if (!takes_part(lane)) continue;
      knows[size_t(lane)] = all;
      knows[size_t(lane)][size_t(lane)] = time_;
    }
  }
  const unsigned mask = own.mask;
  for (int lane = 0; lane < kWarp; ++lane) {
    if (!(mask >> lane & 1)) continue;
    lanes[lane].value = results[size_t(lane)];
    lanes[lane].state = State::ready;
  }
}

// ---- shared memory

void* Runner::shared_memory(int byte_offset, Site site) {
  if (byte_offset < 0 || byte_offset > run_->kernel.shared_bytes) {
    fail(site, "shared memory from byte " + std::to_string(byte_offset) + ", but the block has " +
                   std::to_string(run_->kernel.shared_bytes));
  }
  return shared_->bytes + byte_offset;
}

// Whether the current thread comes after what `thread`, another one, did at that time of this epoch.
bool Runner::ordered(int thread, uint32_t time) const {
  return thread / kWarp == current_ / kWarp &&
         knows_[size_t(current_ / kWarp)][size_t(current_ % kWarp)][size_t(thread % kWarp)] >= time;
}

std::string bytes_text(int first, int bytes) {
  return "shared bytes " + std::to_string(first) + " to " + std::to_string(first + bytes - 1);
}

void Runner::check_write(const Cell& cell, int granule, int bytes, Kind kind, Site site) const {
  int other = kNobody;
  if (cell.read_epoch == epoch_) {
    const int warp = current_ / kWarp;
    if (cell.read_warp != warp) {
      other = cell.read_warp * kWarp + __builtin_ctz(cell.read_lanes);
    } else if (cell.read_elsewhere != kNobody) {
      other = cell.read_elsewhere;
    } else {
      for (uint32_t lanes = cell.read_lanes & ~(1u << (current_ % kWarp)); lanes; lanes &= lanes - 1) {
        const int thread = warp * kWarp + __builtin_ctz(lanes);
        if (!ordered(thread, cell.read_time)) other = thread;
      }
    }
  }
  const char* what = kind == Kind::atomic ? "an atomic on " : "a write of ";
  if (other != kNobody) {
    fail(site, what + bytes_text(granule * kGranule, bytes) + ", which thread " + std::to_string(other) +
                   " read" + (other == cell.last_reader ? " at " + place(cell.read_site) : "") +
                   " with no barrier in between");
  }
  if (cell.write_epoch == epoch_ && cell.writer != current_ && !(kind == Kind::atomic && cell.atomic) &&
      !ordered(cell.writer, cell.write_time)) {
    fail(site, what + bytes_text(granule * kGranule, bytes) + ", which thread " +
                   std::to_string(cell.writer) + " wrote at " + place(cell.write_site) +
                   " with no barrier in between");
  }
}

void Runner::note_read(Cell& cell, Site site) const {
  const uint16_t warp = uint16_t(current_ / kWarp);
  const uint32_t lane = 1u << (current_ % kWarp);
  const uint32_t now = knows_[warp][size_t(current_ % kWarp)][size_t(current_ % kWarp)];
  if (cell.read_epoch != epoch_) {
    cell.read_epoch = epoch_;
    cell.read_time = now;
    cell.read_lanes = lane;
    cell.read_warp = warp;
    cell.read_elsewhere = kNobody;
  } else if (cell.read_warp != warp) {
    cell.read_elsewhere = uint16_t(current_);
  } else if (cell.read_time == now) {
    cell.read_lanes |= lane;
  } else {
    // Readers that come before this one need no record: whoever comes after this one comes after them.
    uint32_t concurrent = 0;
    for (uint32_t lanes = cell.read_lanes & ~lane; lanes; lanes &= lanes - 1) {
      if (!ordered(warp * kWarp + __builtin_ctz(lanes), cell.read_time)) concurrent |= lanes & -lanes;
    }
    cell.read_lanes = concurrent | lane;
    cell.read_time = concurrent ? std::min(cell.read_time, now) : now;
  }
  cell.last_reader = uint16_t(current_);
  cell.read_site = site;
}

void Runner::access_shared(const void* address, int bytes, Kind kind, Site site, bool pending) {
  const int64_t offset =
      int64_t(reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(shared_->bytes));
  const char* what = kind == Kind::load    ? "a read of "
                     : kind == Kind::store ? "a write of "
                                           : "an atomic on ";
  if (offset < 0 || offset + bytes > run_->kernel.shared_bytes) {
    fail(site, std::string(what) + std::to_string(bytes) + " bytes out of bounds: shared byte " +
                   std::to_string(offset) + ", but the block has " +
                   std::to_string(run_->kernel.shared_bytes));
  }
  if (offset % bytes) {
    fail(site, what + bytes_text(int(offset), bytes) + ", misaligned: " + std::to_string(bytes) +
                   " bytes must start at a multiple of " + std::to_string(bytes));
  }
  if (bytes < kGranule) fail(site, what + bytes_text(int(offset), bytes) + ": expected two bytes or more");
  const uint32_t now = knows_[size_t(current_ / kWarp)][size_t(current_ % kWarp)][size_t(current_ % kWarp)];
  for (int granule = int(offset) / kGranule; granule * kGranule < offset + bytes; ++granule) {
    Cell& cell = cells_[size_t(granule)];
    if (kind != Kind::store) {
      if (cell.write_epoch < first_epoch_) {
        fail(site, what + bytes_text(granule * kGranule, kGranule) + ", which nobody has written");
      }
      if (cell.pending) {
        fail(site, what + bytes_text(granule * kGranule, kGranule) +
                       ", for which the asynchronous copy of thread " + std::to_string(cell.writer) + " at " +
                       place(cell.write_site) + " was not waited for");
      }
    }
    if (kind == Kind::load) {
      if (cell.write_epoch == epoch_ && cell.writer != current_ && !ordered(cell.writer, cell.write_time)) {
        fail(site, what + bytes_text(granule * kGranule, kGranule) + ", which thread " +
                       std::to_string(cell.writer) + " wrote at " + place(cell.write_site) +
                       " with no barrier in between");
      }
      note_read(cell, site);
    } else {
      check_write(cell, granule, kGranule, kind, site);
      cell.write_epoch = epoch_;
      cell.write_time = now;
      cell.writer = uint16_t(current_);
      cell.atomic = kind == Kind::atomic;
      cell.pending = pending;
      cell.read_epoch = 0;
      cell.write_site = site;
    }
  }
  if (kind != Kind::store) counters_.shared_loaded += bytes;
  if (kind != Kind::load) counters_.shared_stored += bytes;
  if (sampled_)
    fibers_[size_t(current_)].log.push_back({site, uintptr_t(offset), uint8_t(bytes), true, kind});
}

void Runner::copy_async(void* shared, const void* global, int bytes, Site site) {
  access_global(reinterpret_cast<uintptr_t>(global), bytes, Kind::load, site);
  access_shared(shared, bytes, Kind::store, site, true);
  Fiber& fiber = fibers_[size_t(current_)];
  fiber.copies.push_back({static_cast<char*>(shared), global, bytes, fiber.groups, site});
}

// Data arrives here and no sooner: the latest that the hardware may be.
void Runner::wait_async(int pending, Site site) {
  Fiber& fiber = fibers_[size_t(current_)];
  const int last = fiber.groups - pending;  // groups before this one have arrived
  auto arrived = [&](const AsyncCopy& copy) {
    if (copy.group >= last) return false;
    std::memcpy(copy.target, copy.source, size_t(copy.bytes));
    const int64_t first = (copy.target - shared_->bytes) / kGranule;
    for (int64_t granule = first; granule < first + copy.bytes / kGranule; ++granule) {
      Cell& cell = cells_[size_t(granule)];
      if (cell.writer != current_ || !cell.pending) {
        fail(site, "the asynchronous copy at " + place(copy.site) + " to " +
                       bytes_text(int(granule) * kGranule, kGranule) + " met a write by thread " +
                       std::to_string(cell.writer) + " at " + place(cell.write_site));
      }
      cell.pending = false;
      cell.write_epoch = epoch_;
      cell.write_time = knows_[size_t(current_ / kWarp)][size_t(current_ % kWarp)][size_t(current_ % kWarp)];
    }
    return true;
  };
  std::erase_if(fiber.copies, arrived);
}

// ---- global memory

// Which of the known ranges holds the access: their number, that of the ranges for a table, or -1.
int Runner::known_range(uintptr_t address, int bytes, Kind kind) const {
  const std::vector<Memory::Range>& ranges = run_->memory->ranges();
  for (size_t i = 0; i < ranges.size(); ++i) {
    if (ranges[i].contains(address, bytes) &&
        (kind == Kind::load || ranges[i].access == Memory::Access::read_write)) {
      return int(i);
    }
  }
  const auto after = run_->tables->upper_bound(address);
  const bool in_table = kind == Kind::load && after != run_->tables->begin() &&
                        std::prev(after)->second.contains(address, bytes);
  return in_table ? int(ranges.size()) : -1;
}

void Runner::access_global(uintptr_t address, int bytes, Kind kind, Site site) {
  const auto text = [&] {
    return std::string(kind == Kind::load    ? "a load of "
                       : kind == Kind::store ? "a store of "
                                             : "an atomic on ") +
           std::to_string(bytes) + " bytes";
  };
  if (address % uintptr_t(bytes)) {
    fail(site, text() + ", misaligned: the address is " + std::to_string(address % uintptr_t(bytes)) +
                   " past a multiple of " + std::to_string(bytes));
  }
  const int range = run_->memory ? known_range(address, bytes, kind) : -1;
  if (run_->memory && range < 0) {
    const Memory::Range* nearest = nullptr;
    const auto distance = [&](const Memory::Range& range) {
      return address < range.begin   ? range.begin - address
             : address < range.end() ? 0
                                     : address - range.end() + 1;
    };
    for (const Memory::Range& range : run_->memory->ranges()) {
      if (!nearest || distance(range) < distance(*nearest)) nearest = &range;
    }
    if (!nearest) fail(site, text() + " out of bounds: no memory is known");
    fail(site, text() + " out of bounds: at byte " + std::to_string(int64_t(address - nearest->begin)) +
                   " of " + nearest->name +
                   (nearest->contains(address, bytes)
                        ? ", which is read-only"
                        : ", which ends at byte " + std::to_string(nearest->end() - nearest->begin)));
  }
#if WITH_ASAN
  if (const void* bad = __asan_region_is_poisoned(reinterpret_cast<void*>(address), size_t(bytes))) {
    fail(site, text() + " out of bounds: byte " + std::to_string(reinterpret_cast<uintptr_t>(bad) - address) +
                   " of it is in no allocation");
  }
#endif
  Traffic& traffic = traffic_[size_t(std::max(range, 0))];
  if (kind != Kind::store) traffic.loaded += bytes;
  if (kind != Kind::load) traffic.stored += bytes;
  if (sampled_) fibers_[size_t(current_)].log.push_back({site, address, uint8_t(bytes), false, kind});
}

// ---- how well a warp's accesses fit the hardware

// Puts together what the lanes of a warp did since the last barrier: the lane with most left to tell leads, and those
// whose next access stands in the same line belong to the same request.
void Runner::evaluate_logs() {
  for (int warp = 0; warp < threads_ / kWarp; ++warp) {
    Fiber* const lanes = &fibers_[size_t(warp) * kWarp];
    std::array<size_t, kWarp> next{};
    for (;;) {
      int leader = 0;
      const auto left = [&](int lane) { return lanes[lane].log.size() - next[size_t(lane)]; };
      for (int lane = 1; lane < kWarp; ++lane) {
        if (left(lane) > left(leader)) leader = lane;
      }
      if (!left(leader)) break;
      const Access& lead = lanes[leader].log[next[size_t(leader)]];
      std::array<const Access*, kWarp> together;
      int count = 0;
      for (int lane = 0; lane < kWarp; ++lane) {
        if (!left(lane)) continue;
        const Access& access = lanes[lane].log[next[size_t(lane)]];
        if (access.site.line() != lead.site.line() || access.site.column() != lead.site.column() ||
            access.bytes != lead.bytes || access.shared != lead.shared || access.kind != lead.kind) {
          continue;
        }
        together[size_t(count++)] = &access;
        ++next[size_t(lane)];
      }
      evaluate(together.data(), count);
    }
    for (int lane = 0; lane < kWarp; ++lane) lanes[lane].log.clear();
  }
}

void Runner::evaluate(const Access* const* accesses, int count) {
  const Access& first = *accesses[0];
  SiteSum& sum =
      sites_[{first.site.file_name(), first.site.line(), first.site.column(), first.shared, first.kind}];
  // Of shared memory, half a warp of 8-byte accesses is served at once, a quarter warp of 16-byte ones.
  const int at_once = first.shared && first.bytes > 4 ? kWarp * 4 / first.bytes : kWarp;
  for (int begin = 0; begin < count; begin += at_once) {
    evaluate_request(accesses + begin, std::min(at_once, count - begin), sum);
  }
}

void Runner::evaluate_request(const Access* const* accesses, int count, SiteSum& sum) const {
  constexpr int kWord = 4, kBanks = 32, kSector = 32;
  const uintptr_t unit = accesses[0]->shared ? kWord : kSector;
  std::array<uintptr_t, kWarp * 4> units;  // words or sectors
  size_t used = 0;
  int64_t bytes = 0;
  for (int i = 0; i < count; ++i) {
    const uintptr_t last = accesses[i]->address + accesses[i]->bytes - 1;
    for (uintptr_t u = accesses[i]->address / unit; u <= last / unit; ++u) units[used++] = u;
    bytes += accesses[i]->bytes;
  }
  std::sort(units.begin(), units.begin() + used);
  used = size_t(std::unique(units.begin(), units.begin() + used) - units.begin());
  double cost;
  if (accesses[0]->shared) {
    std::array<int, kBanks> words{};
    for (size_t i = 0; i < used; ++i) ++words[units[i] % kBanks];
    cost = *std::max_element(words.begin(), words.end());
  } else {
    cost = double(used) / double((bytes + kSector - 1) / kSector);
  }
  ++sum.requests;
  sum.worst = std::max(sum.worst, cost);
  sum.sum += cost;
}

}  // namespace

// ------------------------------------------------------------------------------------ the host's side

Memory::Memory() : before_(memory_in_force) { memory_in_force = this; }
Memory::~Memory() { memory_in_force = before_; }

void add_table(const void* data, int64_t bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(data);
  std::lock_guard<std::mutex> lock(settings.mutex);
  auto tables = std::make_shared<Tables>(*settings.tables);
  (*tables)[begin] = {"tables", begin, 1, 1, 0, bytes, 1, Memory::Access::read};
  settings.tables = std::move(tables);
}

void Memory::add(const char* name, const void* data, int64_t bytes, Access access) {
  add_matrix(name, data, 1, 1, 0, bytes, 1, access);
}

void Memory::add_matrix(const char* name, const void* data, int64_t element_bytes, int64_t rows,
                        int64_t row_stride, int64_t columns, int64_t column_stride, Access access) {
  if (rows <= 0 || columns <= 0) return;
  if (row_stride == 0) rows = 1;  // expanded: all in one place
  if (column_stride == 0) columns = 1;
  if (rows == 1) row_stride = 0;
  if (columns == 1) column_stride = element_bytes;
  if (column_stride > row_stride && rows > 1) {
    std::swap(rows, columns);
    std::swap(row_stride, column_stride);
  }
  if (rows > 1 &&
      row_stride < (columns - 1) * column_stride + element_bytes) {  // rows overlap: no gaps to look after
    columns = ((rows - 1) * row_stride + (columns - 1) * column_stride) / element_bytes + 1;
    rows = 1;
    column_stride = element_bytes;
  }
  ranges_.push_back({name, reinterpret_cast<uintptr_t>(data), element_bytes, rows, row_stride, columns,
                     column_stride, access});
}

bool Memory::Range::contains(uintptr_t address, int64_t bytes) const {
  if (address < begin) return false;
  int64_t offset = int64_t(address - begin);
  if (outer > 1) {
    if (offset / outer_stride >= outer) return false;
    offset %= outer_stride;
  }
  if (inner_stride == element_bytes) return offset + bytes <= inner * element_bytes;
  return offset / inner_stride < inner && offset % inner_stride + bytes <= element_bytes;
}

uintptr_t Memory::Range::end() const {
  return begin + uintptr_t((outer - 1) * outer_stride + (inner - 1) * inner_stride + element_bytes);
}

std::vector<LaunchCounters> counters() {
  std::lock_guard<std::mutex> lock(settings.mutex);
  return settings.counters;
}

void reset_counters() {
  std::lock_guard<std::mutex> lock(settings.mutex);
  settings.counters.clear();
}

void set_seed(uint64_t seed) { settings.seed = seed; }
void set_most_blocks(int64_t blocks) { settings.most_blocks = blocks; }
void set_most_shared_bytes(int bytes) { settings.most_shared_bytes = std::min(bytes, kMostSharedBytes); }

void run(const Kernel& kernel) {
  if (kernel.threads < kWarp || kernel.threads > kMostThreads || kernel.threads % kWarp ||
      kernel.shared_bytes < 0 || kernel.shared_bytes > settings.most_shared_bytes) {
    throw Error("kernel " + std::string(kernel.name) + ": expected whole warps of up to " +
                std::to_string(kMostThreads) + " threads and up to " +
                std::to_string(settings.most_shared_bytes) + " bytes of shared memory, got " +
                std::to_string(kernel.threads) + " threads and " + std::to_string(kernel.shared_bytes) +
                " bytes");
  }
  const int64_t most = settings.most_blocks;
  const int64_t grid_y = (kernel.blocks + most - 1) / most, grid_x = (kernel.blocks + grid_y - 1) / grid_y;
  std::unique_lock<std::mutex> lock(settings.mutex);
  const auto tables = settings.tables;
  lock.unlock();
  Run launch{kernel, memory_in_force, tables, settings.seed, unsigned(grid_x), unsigned(grid_y)};
  const int64_t count = grid_x * grid_y;
  // Blocks in an order of their own too. The prime has no factor in common with any count below it.
  constexpr uint64_t kPrime = 2654435761u;
  const uint64_t shift = Random(launch.seed).next() >> 32;
  parallel_chunks(count, [&] {
    static thread_local Runner own;
    own.begin(launch);
    struct Finish {
      Runner* runner;
      explicit Finish(Runner* runner) : runner(runner) {}
      Finish(Finish&& other) : runner(std::exchange(other.runner, nullptr)) {}
      ~Finish() {
        if (runner) runner->finish();
      }
    };
    return [&launch, count, shift, finish = Finish(&own)](int64_t i) {
      if (launch.failed) return;
      try {
        finish.runner->run_block(int64_t((uint64_t(i) * kPrime + shift) % uint64_t(count)));
      } catch (...) {
        launch.failed = true;
        throw;
      }
    };
  });
  LaunchCounters& result = launch.counters;
  result.kernel = kernel.name;
  result.blocks = kernel.blocks;
  result.threads = kernel.threads;
  result.shared_bytes = kernel.shared_bytes;
  for (size_t i = 0; i < launch.traffic.size(); ++i) {
    const Traffic& traffic = launch.traffic[i];
    result.loaded += traffic.loaded;
    result.stored += traffic.stored;
    if (!launch.memory) break;
    const auto& ranges = launch.memory->ranges();
    Traffic& total = result.memory[i < ranges.size() ? ranges[i].name : "tables"];
    total.loaded += traffic.loaded;
    total.stored += traffic.stored;
  }
  for (const auto& [key, sum] : launch.sites) {
    const std::string file = key.file;
    const char* kind = key.kind == Kind::load ? "load" : key.kind == Kind::store ? "store" : "atomic";
    result.sites.push_back({file.substr(file.rfind('/') + 1) + ":" + std::to_string(key.line),
                            std::string(key.shared ? "shared " : "global ") + kind, sum.requests, sum.worst,
                            sum.sum});
  }
  lock.lock();
  settings.counters.push_back(std::move(result));
}

void access_global(const void* address, int bytes, Kind kind, Site site) {
  runner->access_global(reinterpret_cast<uintptr_t>(address), bytes, kind, site);
}
void access_shared(const void* address, int bytes, Kind kind, Site site) {
  runner->access_shared(address, bytes, kind, site);
}
void copy_async(void* shared, const void* global, int bytes, Site site) {
  runner->copy_async(shared, global, bytes, site);
}
void commit_async() { runner->commit_async(); }
void wait_async(int pending, Site site) { runner->wait_async(pending, site); }
void* shared_memory(int byte_offset, Site site) { return runner->shared_memory(byte_offset, site); }
void sync_block(Site site) { runner->sync_block(site); }
uint64_t warp_step(WarpStep step, uint64_t value, int argument, unsigned mask, Site site) {
  return runner->warp_step(step, value, argument, mask, site);
}

}  // namespace dctps::emulator
