// What of a GPU the launch rules depend on. Torch-free and CUDA-free, so that the rules can be tested anywhere.
#pragma once

namespace dctps {

struct DeviceLimits {
  int major = 0, minor = 0;        // compute capability
  int sm_count = 0;                // multiprocessors
  int shared_bytes_per_block = 0;  // of dynamic shared memory, opted in to
  int shared_bytes_per_sm = 0;
};

}  // namespace dctps
