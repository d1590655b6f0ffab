// Runs CUDA kernels on the host, one fiber per thread of a block, and checks every step that common/vec.cuh takes.
//
// Between two barriers the threads run in an order drawn from a seed. An Error, with kernel, block, thread and line, is
// - a barrier, shuffle or vote that not every thread reaches, or that threads reach at different lines;
// - an access to shared memory that conflicts with one by another thread since the last barrier between the two
//   (write after read, read after write, write after write; a warp's barriers count within the warp);
// - an access to shared memory out of bounds or misaligned, a read of what nobody wrote in this block or of an
//   asynchronous copy not yet waited for;
// - an access to global memory misaligned, outside of what Memory tells, or a write to what is read-only there.
#pragma once

#include <cstdint>
#include <map>
#include <source_location>
#include <stdexcept>
#include <string>
#include <vector>

namespace dctps::emulator {

using Site = std::source_location;  // a line of a kernel

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// ------------------------------------------------------------------------------------ for the host's side

// What the kernels that this thread launches may touch, for as long as the object lives. Without one: anything.
class Memory {
 public:
  enum class Access { read, read_write };

  Memory();
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  void add(const char* name, const void* data, int64_t bytes, Access access);
  // The elements (r, c), 0 <= r < rows, 0 <= c < columns, at data + r * row_stride + c * column_stride, strides in
  // bytes; what lies between them is out of bounds.
  void add_matrix(const char* name, const void* data, int64_t element_bytes, int64_t rows, int64_t row_stride,
                  int64_t columns, int64_t column_stride, Access access);

  struct Range {
    const char* name;
    uintptr_t begin;
    int64_t element_bytes, outer, outer_stride, inner, inner_stride;
    Access access;
    bool contains(uintptr_t address, int64_t bytes) const;
    uintptr_t end() const;
  };
  const std::vector<Range>& ranges() const { return ranges_; }

 private:
  std::vector<Range> ranges_;
  const Memory* before_;  // in force again when this one goes
};

// Memory that every kernel may read from now on.
void add_table(const void* data, int64_t bytes);

// How well the warps' accesses of one line fit the hardware. Taken from the first blocks of a launch and its last.
struct SiteCounters {
  std::string place, kind;  // "dct_kernel.cuh:120", "shared load"
  int64_t requests = 0;     // by a warp, or by the half or quarter warp that the hardware serves at once
  // Shared memory: the most different 4-byte words of a request in one bank, 1 without conflicts. Global memory: the
  // 32-byte sectors of a request over the fewest that could hold its bytes.
  double worst = 0, sum = 0;
};

struct Traffic {
  int64_t loaded = 0, stored = 0;  // bytes
};

struct LaunchCounters {
  std::string kernel;
  int64_t blocks = 0, threads = 0, shared_bytes = 0;
  int64_t loaded = 0, stored = 0;         // bytes of global memory
  std::map<std::string, Traffic> memory;  // the same by the names in Memory; "tables": those of add_table
  int64_t shared_loaded = 0, shared_stored = 0;  // bytes of shared memory
  int64_t mma = 0;                               // products of fragments by a warp
  std::vector<SiteCounters> sites;
};

std::vector<LaunchCounters> counters();  // of the launches since the last reset, in order
void reset_counters();
void set_seed(uint64_t seed);           // of the order of threads; from the start DCTPS_EMULATOR_SEED, or 0
void set_most_blocks(int64_t blocks);   // of gridDim.x, 2^31-1 by default, so that a test can go beyond
void set_most_shared_bytes(int bytes);  // of a block, 227 KiB by default

struct Kernel {
  const char* name;
  int64_t blocks;
  int threads, shared_bytes;
  void (*body)(const void* context);  // one thread's run
  const void* context;
};
void run(const Kernel& kernel);

template <class Args>
void launch(void (*kernel)(Args), const char* name, int64_t blocks, int threads, int shared_bytes,
            const Args& args) {
  struct Call {
    void (*kernel)(Args);
    const Args& args;
  } call{kernel, args};
  auto body = [](const void* context) {
    const Call& call = *static_cast<const Call*>(context);
    call.kernel(call.args);
  };
  run({name, blocks, threads, shared_bytes, body, &call});
}

// ------------------------------------------------------------------------------------ for vec_emulated.h

enum class Kind : uint8_t { load, store, atomic };

void access_global(const void* address, int bytes, Kind kind, Site site);
void access_shared(const void* address, int bytes, Kind kind, Site site);
void copy_async(void* shared, const void* global, int bytes, Site site);
void commit_async();
void wait_async(int pending, Site site);
void* shared_memory(int byte_offset, Site site);

enum class WarpStep : uint8_t { sync, shuffle, shuffle_xor, shuffle_down, ballot, mma };

// What a lane brings to a product of matrices, as a pointer for its value: fragments of common/mma.cuh.
struct MmaLane {
  float a[8], b[4];
  float* d;
};

void sync_block(Site site);
// What a lane gets from a step that all lanes of the mask take together.
uint64_t warp_step(WarpStep step, uint64_t value, int argument, unsigned mask, Site site);

}  // namespace dctps::emulator
