// Kernels with a planted fault each, and sound ones, for tests/test_cuda_emulator.py: `planted CASE SEEDS` runs one
// under that many seeds and prints what the emulator says. The lines at fault end in "planted". nvcc compiles it too.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "common/launch.cuh"
#include "common/mma.cuh"
#include "common/vec.cuh"

using namespace dctps;

struct Args {
  const float* x;  // [kFloats], read-only
  float* y;        // [kFloats]
  int* counts;     // [kFloats]
};

constexpr int kThreads = 64, kBlocks = 4, kFloats = 1024;

__device__ inline int tid() { return int(threadIdx.x); }
__device__ inline int lane() { return int(threadIdx.x) % kWarp; }
__device__ inline float* own(const Args& args) { return args.y + block_index() * kThreads + tid(); }

// ---- shared memory

__global__ void sound_reverse(Args args) {
  auto s = shared_memory<float>();
  s[tid()] = load(args.x + tid());
  sync_block();
  const float value = s[kThreads - 1 - tid()];
  sync_block();
  s[tid()] = value + 1;
  sync_block();
  store(own(args), s[kThreads - 1 - tid()]);
}

__global__ void missing_barrier(Args args) {
  auto s = shared_memory<float>();
  s[tid()] = 0.0f;
  sync_block();
  s[tid()] = load(args.x + tid());            // planted
  store(own(args), s[kThreads - 1 - tid()]);  // planted
}

__global__ void write_after_read(Args args) {
  auto s = shared_memory<float>();
  s[tid()] = load(args.x + tid());
  sync_block();
  const float value = s[(tid() + 1) % kThreads];  // planted
  s[tid()] = value;                               // planted
}

__global__ void two_writers(Args) {
  auto s = shared_memory<float>();
  s[tid() / 2] = 1.0f;  // planted
}

// The last reader is the writer itself, which must not hide the reader before it.
__global__ void own_read_hides_others(Args args) {
  auto s = shared_memory<float>();
  s[tid()] = load(args.x + tid());
  sync_block();
  float value = s[(tid() + 1) % kThreads];  // planted
  value += s[tid()];
  s[tid()] = value;  // planted
}

__global__ void sound_halves(Args args) {  // neighbours in one 4-byte word
  auto s = shared_memory<Half>();
  s[tid()] = from_accumulator<Half>(load(args.x + tid()));
  sync_block();
  store(own(args), to_accumulator(Half(s[tid() ^ 1])));
}

__global__ void never_written(Args args) {
  auto s = shared_memory<float>();
  s[tid()] = 1.0f;
  sync_block();
  store(own(args), s[tid() + 1]);  // planted
}

__global__ void shared_overrun(Args) {
  auto s = shared_memory<float>();
  s[tid() + 2] = 1.0f;  // planted
}

__global__ void shared_underrun(Args) {
  auto s = shared_memory<float>();
  s[tid() - 1] = 1.0f;  // planted
}

__global__ void shared_misaligned(Args) {
  auto s = shared_memory<float>();
  s.store<2>(tid(), {{1.0f, 2.0f}});  // planted
}

// ---- tensor cores

// A [16 x 16], B [16 x 8] of small integers, which 16 bits hold.
__device__ inline BFloat16 a_entry(int row, int k) {
  return from_accumulator<BFloat16>(float((row + 2 * k) % 5));
}
__device__ inline BFloat16 b_entry(int k, int column) {
  return from_accumulator<BFloat16>(float((3 * k + column * column) % 7));
}

struct Fragments {
  Pack<BFloat16, 8> a;
  MmaPair b[2];
  float d[4] = {1, 1, 1, 1};
};

__device__ inline Fragments fragments() {
  const int g = lane() / 4, t = lane() % 4;
  Fragments f;
  for (int i = 0; i < 2; ++i) {
    f.a[i] = a_entry(g, 2 * t + i), f.a[2 + i] = a_entry(g + 8, 2 * t + i);
    f.a[4 + i] = a_entry(g, 2 * t + 8 + i), f.a[6 + i] = a_entry(g + 8, 2 * t + 8 + i);
    const BFloat16 pair[2] = {b_entry(2 * t + 8 * i, g), b_entry(2 * t + 8 * i + 1, g)};
    std::memcpy(&f.b[i], pair, sizeof(pair));
  }
  return f;
}

__global__ void sound_product(Args args) {  // every warp stores A B + 1 [16 x 8]
  Fragments f = fragments();
  mma<BFloat16>(f.d, f.a, f.b);
  float* const to =
      args.y + (block_index() * kThreads + tid()) / kWarp * 128 + lane() / 4 * 8 + lane() % 4 * 2;
  for (int i = 0; i < 2; ++i) store(to + i, f.d[i]), store(to + 64 + i, f.d[2 + i]);
}

__global__ void product_in_a_branch(Args args) {
  Fragments f = fragments();
  if (lane() < 31) mma<BFloat16>(f.d, f.a, f.b);  // planted
  store(own(args), f.d[0]);
}

// ---- warps

__global__ void sound_warp_exchange(Args args) {
  auto s = shared_memory<float>();
  s[tid()] = load(args.x + tid());
  sync_warp();
  const float value = s[tid() ^ 1];
  sync_warp();
  s[tid()] = value;
  const unsigned half = lane() < 16 ? 0x0000ffffu : 0xffff0000u;
  sync_warp(half);
  store(own(args), s[tid() ^ 8]);
}

__global__ void missing_warp_barrier(Args args) {
  auto s = shared_memory<float>();
  s[tid()] = 0.0f;
  sync_warp();
  s[tid()] = load(args.x + tid());  // planted
  store(own(args), s[tid() ^ 1]);   // planted
}

__global__ void warp_barrier_between_warps(Args args) {
  auto s = shared_memory<float>();
  s[tid()] = 0.0f;
  sync_block();
  s[tid()] = load(args.x + tid());  // planted
  sync_warp();
  store(own(args), s[tid() ^ 32]);  // planted
}

__global__ void half_warp_barrier_for_whole(Args args) {
  auto s = shared_memory<float>();
  s[tid()] = 0.0f;
  sync_warp();
  s[tid()] = load(args.x + tid());  // planted
  sync_warp(lane() < 16 ? 0x0000ffffu : 0xffff0000u);
  store(own(args), s[tid() ^ 16]);  // planted
}

// A shuffle orders no memory.
__global__ void shuffle_for_barrier(Args args) {
  auto s = shared_memory<float>();
  s[tid()] = 0.0f;
  sync_warp();
  s[tid()] = load(args.x + tid());  // planted
  const float value = shuffle_xor(1.0f, 1);
  store(own(args), value + s[tid() ^ 1]);  // planted
}

__global__ void sound_shuffles(Args args) {
  const int xored = shuffle_xor(tid(), 5), down = shuffle_down(tid(), 3);
  const double from = shuffle(double(tid()), 7);
  const unsigned odd = dctps::ballot(lane() % 2 == 1);
  const bool right = xored == (tid() ^ 5) && down == (lane() < 29 ? tid() + 3 : tid()) &&
                     from == tid() - lane() + 7 && odd == 0xaaaaaaaau;
  int in_half = 0;
  if (lane() < 16) in_half = shuffle_xor(tid(), 1, 0x0000ffffu) - (tid() ^ 1);
  store(own(args), right && in_half == 0 ? 1.0f : 0.0f);
}

__global__ void shuffle_not_reached(Args args) {
  float value = 1;
  if (lane() < 31) value = shuffle_xor(value, 1);  // planted
  store(own(args), value);
}

__global__ void shuffle_after_return(Args args) {
  if (tid() == 40) return;
  store(own(args), shuffle_xor(1.0f, 1));  // planted
}

__global__ void shuffle_from_outside(Args args) {
  float value = 1;
  if (lane() < 16) value = shuffle_xor(value, 16, 0x0000ffffu);  // planted
  store(own(args), value);
}

__global__ void mask_without_caller(Args) {
  sync_warp(0xfffffffeu);  // planted
}

__global__ void divergent_shuffle(Args args) {
  float value = 1;
  if (lane() < 16) {
    value = shuffle_xor(value, 1);  // planted
  } else {
    value = shuffle_xor(value, 1);  // planted
  }
  store(own(args), value);
}

// ---- barriers

__global__ void barrier_after_return(Args) {
  if (tid() == 5) return;
  sync_block();  // planted
}

__global__ void barrier_in_a_branch(Args) {
  if (tid() >= kWarp) sync_block();  // planted
}

__global__ void divergent_barrier(Args) {
  if (tid() < kWarp) {
    sync_block();  // planted
  } else {
    sync_block();  // planted
  }
}

__global__ void barrier_against_shuffle(Args args) {
  float value = 1;
  if (tid() == 0) {
    sync_block();
  } else {
    value = shuffle_xor(value, 1);  // planted
    sync_block();
  }
  store(own(args), value);
}

// ---- global memory

__global__ void global_overread(Args args) { load(args.x + kFloats - 63 + tid()); }                 // planted
__global__ void global_overrun(Args args) { store(args.y + kFloats - 1 + tid(), 1.0f); }            // planted
__global__ void global_underrun(Args args) { store(args.y - 2, 1.0f); }                             // planted
__global__ void vector_overrun(Args args) { load<4>(args.x + kFloats - 4 + 4 * (tid() / kWarp)); }  // planted
__global__ void global_misaligned(Args args) { load<4>(args.x + 1 + tid()); }                       // planted
__global__ void writes_read_only(Args args) { store(const_cast<float*>(args.x), 1.0f); }            // planted
__global__ void sound_rows(Args args) { store(args.y + 16 * tid() + 11, 1.0f); }
__global__ void between_rows(Args args) { store(args.y + 16 * tid() + 12, 1.0f); }  // planted
__global__ void sound_columns(Args args) { store(args.y + 2 + 64 * (tid() % 16), 1.0f); }
__global__ void between_columns(Args args) { store(args.y + 3 + 64 * (tid() % 16), 1.0f); }  // planted
__global__ void vector_over_columns(Args args) { load<2>(args.y + 2); }                      // planted
__global__ void sound_expanded(Args args) { store(args.y + tid() % 16, 1.0f); }
__global__ void past_expanded(Args args) { store(args.y + 1 + tid() % 16, 1.0f); }  // planted

// ---- asynchronous copies

__global__ void sound_async(Args args) {
  auto s = shared_memory<float>();
  copy_async<4>(s, 4 * tid(), args.x + 4 * tid());
  commit_async();
  copy_async<1>(s + 4 * kThreads, tid(), args.x + tid());
  commit_async();
  wait_async<1>();
  float value = s[4 * tid()];
  wait_async();
  sync_block();
  value += s[4 * kThreads + (tid() ^ 32)];
  store(own(args), value);
}

__global__ void async_not_waited(Args args) {
  auto s = shared_memory<float>();
  copy_async<4>(s, 4 * tid(), args.x + 4 * tid());
  commit_async();
  sync_block();
  store(own(args), s[tid()]);  // planted
}

__global__ void async_other_group(Args args) {
  auto s = shared_memory<float>();
  copy_async<1>(s, tid(), args.x + tid());
  commit_async();
  copy_async<1>(s + kThreads, tid(), args.x + tid());
  commit_async();
  wait_async<1>();
  store(own(args), s[kThreads + tid()]);  // planted
}

__global__ void async_without_barrier(Args args) {
  auto s = shared_memory<float>();
  copy_async<1>(s, tid(), args.x + tid());  // planted
  commit_async();
  wait_async();
  store(own(args), s[tid() ^ 32]);  // planted
}

__global__ void async_into_readers(Args args) {
  auto s = shared_memory<float>();
  s[tid()] = 1.0f;
  sync_block();
  const float value = s[tid() ^ 32];        // planted
  copy_async<1>(s, tid(), args.x + tid());  // planted
  commit_async();
  wait_async();
  store(own(args), value);
}

// ---- atomics, blocks, order

__global__ void sound_atomics(Args args) {
  auto s = shared_memory<int>();
  if (tid() == 0) s[0] = 0;
  sync_block();
  s.atomic_add(0, 2);
  sync_block();
  if (tid() == 0) atomic_add(args.counts, int(s[0]));
}

__global__ void atomic_and_write(Args) {
  auto s = shared_memory<int>();
  if (tid() == 0) s[0] = 0;  // planted
  s.atomic_add(0, 1);        // planted
}

__global__ void sound_block_numbers(Args args) {
  if (block_index() >= kBlocks) return;  // of a rounded-up launch
  if (tid() == 0) atomic_add(args.counts + block_index(), 1);
}

__global__ void sound_order(
    Args args) {  // counts[1 ...]: the threads of block 0 in the order in which they ran
  if (block_index() == 0) store(args.counts + 1 + atomic_add(args.counts, 1), tid());
}

// ---- what is counted

__global__ void counted(Args args) {
  auto s = shared_memory<float>();
  const Pack<float, 4> four = load<4>(args.x + 4 * tid());
  s.store<4>(4 * tid(), four);
  sync_block();
  float sum = s[2 * tid()];
  if (tid() % 2 == 0) sum += s[3 * tid()];
  sum += load(args.x + 8 * tid());
  store(own(args), sum);
}

// How a warp's accesses meet the banks: the name says the distance between lanes, in 4-byte words.
template <int N, int words>
__device__ void banks(Shared<float> s) {
  Pack<float, N> pack = {};
  if (tid() < kWarp) s.store<N>(words * tid(), pack);
}
__global__ void banks_4_bytes(Args) {
  auto s = shared_memory<float>();
  banks<1, 1>(s), sync_block();
  banks<1, 2>(s), sync_block();
  banks<1, 33>(s), sync_block();
  banks<1, 32>(s);
}
__global__ void banks_8_bytes(Args) {
  auto s = shared_memory<float>();
  banks<2, 2>(s), sync_block();
  banks<2, 4>(s), sync_block();
  banks<2, 32>(s);
}
__global__ void banks_16_bytes(Args) {
  auto s = shared_memory<float>();
  banks<4, 4>(s), sync_block();
  banks<4, 8>(s), sync_block();
  banks<4, 36>(s), sync_block();
  banks<4, 32>(s);
}
__global__ void banks_broadcast(Args) {
  auto s = shared_memory<float>();
  if (tid() == 0) s[0] = 1.0f;
  sync_block();
  const float value = s[0];
  static_cast<void>(value);
}
__global__ void banks_2_bytes(Args) {
  auto s = shared_memory<Half>();
  s[tid()] = Half{};
}

// ---- the host's side

struct Case {
  const char* name;
  void (*kernel)(Args);
  int shared_bytes;
};

#define CASE(kernel, shared_bytes) {#kernel, kernel, shared_bytes}
Case cases[] = {
    // not const, as nvcc, which leaves main out, would call it unused
    CASE(sound_reverse, 4 * kThreads),
    CASE(missing_barrier, 4 * kThreads),
    CASE(write_after_read, 4 * kThreads),
    CASE(two_writers, 4 * kThreads),
    CASE(own_read_hides_others, 4 * kThreads),
    CASE(sound_halves, 2 * kThreads),
    CASE(never_written, 8 * kThreads),
    CASE(shared_overrun, 4 * kThreads),
    CASE(shared_underrun, 4 * kThreads),
    CASE(shared_misaligned, 8 * kThreads),
    CASE(sound_product, 0),
    CASE(product_in_a_branch, 0),
    CASE(sound_warp_exchange, 4 * kThreads),
    CASE(missing_warp_barrier, 4 * kThreads),
    CASE(warp_barrier_between_warps, 4 * kThreads),
    CASE(half_warp_barrier_for_whole, 4 * kThreads),
    CASE(shuffle_for_barrier, 4 * kThreads),
    CASE(sound_shuffles, 0),
    CASE(shuffle_not_reached, 0),
    CASE(shuffle_after_return, 0),
    CASE(shuffle_from_outside, 0),
    CASE(mask_without_caller, 0),
    CASE(divergent_shuffle, 0),
    CASE(barrier_after_return, 0),
    CASE(barrier_in_a_branch, 0),
    CASE(divergent_barrier, 0),
    CASE(barrier_against_shuffle, 0),
    CASE(global_overread, 0),
    CASE(global_overrun, 0),
    CASE(global_underrun, 0),
    CASE(vector_overrun, 0),
    CASE(global_misaligned, 0),
    CASE(writes_read_only, 0),
    CASE(sound_rows, 0),
    CASE(between_rows, 0),
    CASE(sound_columns, 0),
    CASE(between_columns, 0),
    CASE(vector_over_columns, 0),
    CASE(sound_expanded, 0),
    CASE(past_expanded, 0),
    CASE(sound_async, 20 * kThreads),
    CASE(async_not_waited, 16 * kThreads),
    CASE(async_other_group, 8 * kThreads),
    CASE(async_without_barrier, 4 * kThreads),
    CASE(async_into_readers, 4 * kThreads),
    CASE(sound_atomics, 4),
    CASE(atomic_and_write, 4),
    CASE(sound_block_numbers, 0),
    CASE(sound_order, 0),
    CASE(counted, 16 * kThreads),
    CASE(banks_4_bytes, 33 * 4 * kWarp),
    CASE(banks_8_bytes, 33 * 4 * kWarp),
    CASE(banks_16_bytes, 36 * 4 * kWarp),
    CASE(banks_broadcast, 4),
    CASE(banks_2_bytes, 2 * kThreads),
};

void run(const Case& chosen, const Args& args) {
  launch(chosen.kernel, chosen.name, Grid{kBlocks, kThreads, chosen.shared_bytes}, nullptr, args);
}

#if DCTPS_EMULATED

// What is said, by the kernel's name, about the memory; "unknown": nothing, so that the sanitizer alone looks.
void tell(emulator::Memory& memory, const std::string& name, const Args& args) {
  using Access = emulator::Memory::Access;
  memory.add("x", args.x, 4 * kFloats, Access::read);
  memory.add("counts", args.counts, 4 * kFloats, Access::read_write);
  if (name.find("rows") != std::string::npos) {  // [64, 12] of [64, 16]
    memory.add_matrix("y", args.y, 4, 64, 16 * 4, 12, 4, Access::read_write);
  } else if (name.find("columns") != std::string::npos) {  // [3, 16], transposed, of [16, 64]
    memory.add_matrix("y", args.y, 4, 3, 4, 16, 64 * 4, Access::read_write);
  } else if (name.find("expanded") != std::string::npos) {  // [16], expanded to [64, 16] and [16, 64]
    memory.add_matrix("y", args.y, 4, 64, 0, 16, 4, Access::read_write);
    memory.add_matrix("y", args.y, 4, 16, 4, 64, 0, Access::read_write);
  } else {
    memory.add("y", args.y, 4 * kFloats, Access::read_write);
  }
}

template <class T>
struct Memory {
  T* data;
  explicit Memory(int count) : data(static_cast<T*>(std::aligned_alloc(64, sizeof(T) * size_t(count)))) {
    std::fill(data, data + count, T(0));
  }
  ~Memory() { std::free(data); }
};

int main(int count, char** arguments) {
  if (count < 3) return 2;
  const std::string name = arguments[1];
  const Case* chosen = nullptr;
  for (const Case& one : cases) {
    if (name == one.name) chosen = &one;
  }
  if (!chosen) return 2;
  const bool unknown_memory = count > 3 && !std::strcmp(arguments[3], "unknown");
  if (name == "sound_block_numbers") emulator::set_most_blocks(3);
  for (int seed = 0; seed < std::atoi(arguments[2]); ++seed) {
    // y lies in the middle of its memory, so that what misses it by a little is nearest to it.
    constexpr int kMargin = 256;
    const Memory<float> x_memory(kFloats), y_memory(kFloats + 2 * kMargin);
    const Memory<int> counts_memory(kFloats);
    float *x = x_memory.data, *y = y_memory.data + kMargin;
    int* counts = counts_memory.data;
    for (int i = 0; i < kFloats; ++i) x[i] = float(i);
    const Args args{x, y, counts};
    emulator::set_seed(uint64_t(seed));
    emulator::reset_counters();
    try {
      if (unknown_memory) {
        run(*chosen, args);
      } else {
        emulator::Memory memory;
        tell(memory, name, args);
        run(*chosen, args);
      }
    } catch (const emulator::Error& error) {
      std::printf("error %s\n", error.what());
      continue;
    }
    std::printf("done");
    for (int i = 0; i < kFloats; ++i) std::printf(" %d", counts[i]);
    std::printf("\nresult");
    for (int i = 0; i < kBlocks * kThreads; ++i) std::printf(" %g", double(y[i]));
    std::printf("\n");
  }
  for (const emulator::LaunchCounters& launch : emulator::counters()) {
    std::printf("launch %s %lld %lld %lld %lld %lld %lld %lld\n", launch.kernel.c_str(),
                (long long)launch.blocks, (long long)launch.threads, (long long)launch.shared_bytes,
                (long long)launch.loaded, (long long)launch.stored, (long long)launch.shared_loaded,
                (long long)launch.shared_stored);
    for (const emulator::SiteCounters& site : launch.sites) {
      std::printf("site %s %s %lld %g %g\n", site.place.c_str(), site.kind.c_str(), (long long)site.requests,
                  site.worst, site.sum);
    }
  }
}

#endif
