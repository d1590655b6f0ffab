// Every op's schema, and the Python module _C: build information, choice of instruction set, memory counts.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/library.h>

#include <mutex>
#include <set>
#include <thread>

#include "common/device.h"
#include "common/isa.h"
#include "common/parallel.h"
#include "common/workspace.h"
#include "plan/plan.h"

#ifdef DCTPS_EMULATED
#include "emulator_bindings.h"
#endif

// `index` is Support.index: crow [m+1], col [nnz], ccol [n+1], row [nnz], perm [nnz], one int32 tensor.
// Gradients that output_mask leaves out come back with no elements.
TORCH_LIBRARY(dctps_ext, library) {
  library.def("dct(Tensor x, SymInt out_features) -> Tensor");
  library.def("idct(Tensor v, SymInt in_features) -> Tensor");
  library.def("sparse_linear(Tensor x, Tensor values, Tensor index, SymInt m, SymInt n) -> Tensor");
  library.def(
      "sparse_linear_transposed(Tensor v, Tensor values, Tensor index, SymInt m, SymInt n) -> Tensor");
  library.def("sddmm(Tensor v, Tensor x, Tensor index, SymInt m, SymInt n) -> Tensor");
  library.def(
      "dctps_linear(Tensor x, Tensor values, Tensor index, Tensor? alpha, Tensor? bias, SymInt m, SymInt n, "
      "str algorithm) -> Tensor");
  library.def(
      "dctps_linear_backward(Tensor dy, Tensor x, Tensor values, Tensor index, Tensor? alpha, SymInt m, "
      "SymInt n, str algorithm, bool[4] output_mask) -> (Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "dctps_conv2d(Tensor x, Tensor values, Tensor index, Tensor? alpha, Tensor? bias, SymInt out_channels, "
      "SymInt[2] kernel_size, SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, SymInt groups, "
      "str algorithm) -> Tensor");
  library.def(
      "dctps_conv2d_backward(Tensor dy, Tensor x, Tensor values, Tensor index, Tensor? alpha, "
      "SymInt out_channels, SymInt[2] kernel_size, SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, "
      "SymInt groups, str algorithm, bool[4] output_mask) -> (Tensor, Tensor, Tensor, Tensor)");
}

namespace {

#ifdef DCTPS_EMULATED
// In the tests' build the CUDA kernels, run on the host, are one more instruction set.
constexpr const char* kEmulated = "emulated";
#endif

std::string isa() {
#ifdef DCTPS_EMULATED
  if (dctps::emulated()) return kEmulated;
#endif
  return dctps::isa_name(dctps::current_isa());
}

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (dctps::Isa isa : dctps::available_isas()) names.emplace_back(dctps::isa_name(isa));
#ifdef DCTPS_EMULATED
  names.emplace_back(kEmulated);
#endif
  return names;
}

void set_isa(const std::string& name) {
#ifdef DCTPS_EMULATED
  dctps::set_emulated(name == kEmulated);
  if (dctps::emulated()) return;
#endif
  dctps::set_isa(dctps::isa_from_name(name));
}

int threads_at_work() {
  struct Seen {
    std::mutex mutex;
    std::set<std::thread::id> ids;
  } seen;
  dctps::run_workers(
      dctps::max_workers(),
      [](void* context, int) {
        auto& shared = *static_cast<Seen*>(context);
        std::lock_guard<std::mutex> lock(shared.mutex);
        shared.ids.insert(std::this_thread::get_id());
      },
      &seen);
  return int(seen.ids.size());
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() =
      "Compiled part of dctps_ext: registers the torch ops dctps_ext::* and tells about the build.";
  module.def("isa", &isa, "The instruction set whose CPU kernels are in use.");
  module.def("isas", &isas, "The instruction sets that this build and this processor offer, slowest first.");
  module.def("set_isa", &set_isa, pybind11::arg("name"),
             "Uses another instruction set's kernels from now on (the environment variable DCTPS_ISA does so "
             "from the start).");
  module.def(
      "threads_at_work", &threads_at_work,
      "The number of different threads that run the kernels' work now; torch.get_num_threads() of them.");
  module.def("workspace_bytes", &dctps::workspace_bytes, "Bytes of scratch memory that all threads hold.");
  module.def("workspace_peak_bytes", &dctps::workspace_peak_bytes,
             "The most bytes of scratch memory held since reset_workspace_peak().");
  module.def("reset_workspace_peak", &dctps::reset_workspace_peak);
  module.def("release_workspace", &dctps::release_workspace, "Frees the calling thread's scratch memory.");
  module.def("plan_bytes", &dctps::cached_plan_bytes,
             "Bytes of tables (twiddles, orders) that cached plans hold.");
#ifdef DCTPS_EMULATED
  dctps::emulator::bind(module);
#endif
}
