// Per-thread scratch memory, with a process-wide count of its bytes.
#include "common/workspace.h"

#include <atomic>
#include <new>

namespace dctps {
namespace {

std::atomic<int64_t> held{0};
std::atomic<int64_t> peak{0};

constexpr std::align_val_t kAlignment{64};

struct Workspace {
  void* data = nullptr;
  size_t bytes = 0;

  void resize(size_t wanted) {
    if (data) {
      ::operator delete(data, kAlignment);
      held -= int64_t(bytes);
    }
    data = nullptr;
    bytes = 0;
    if (!wanted) return;
    data = ::operator new(wanted, kAlignment);
    bytes = wanted;
    const int64_t now = held += int64_t(bytes);
    int64_t before = peak.load();
    while (before < now && !peak.compare_exchange_weak(before, now)) {
    }
  }

  ~Workspace() { resize(0); }
};

thread_local Workspace workspace;

}  // namespace

void* thread_workspace(size_t bytes) {
  if (bytes > workspace.bytes) workspace.resize(bytes);
  return workspace.data;
}

int64_t workspace_bytes() { return held.load(); }
int64_t workspace_peak_bytes() { return peak.load(); }
void reset_workspace_peak() { peak.store(held.load()); }
void release_workspace() { workspace.resize(0); }

}  // namespace dctps
