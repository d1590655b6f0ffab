// Scratch memory of a thread: kept between calls, because fresh pages cost more than the work on a small
// batch.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dctps {

// At least `bytes` bytes, 64-byte aligned, uninitialised, owned by the calling thread and valid until its
// next call.
void* thread_workspace(size_t bytes);

// Bytes that all threads hold together, and the most they held since reset_workspace_peak().
int64_t workspace_bytes();
int64_t workspace_peak_bytes();
void reset_workspace_peak();
// Frees the calling thread's workspace.
void release_workspace();

}  // namespace dctps
