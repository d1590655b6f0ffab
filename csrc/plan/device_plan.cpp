// Plans of CUDA kernels: made once per length, type and device, their tables kept in a tensor.
#include "plan/device_plan.h"

#include <ATen/ATen.h>

#include <cstring>
#include <map>
#include <mutex>
#include <tuple>

#ifdef DCTPS_EMULATED
#include "emulator.h"
#endif

namespace dctps {
namespace {

struct Cached {
  at::Tensor tables;  // uint8, on the device
  DevicePlan plan;
};

}  // namespace

std::shared_ptr<const DevicePlan> get_device_plan(int64_t q, DType dtype, const at::Tensor& like) {
  static std::mutex mutex;
  // Never destroyed: at the end of the process the device may be gone before this is.
  static auto* plans =
      new std::map<std::tuple<int64_t, bool, c10::DeviceType, c10::DeviceIndex>, std::shared_ptr<Cached>>;
  const bool is_double = dtype == DType::f64;
  const std::lock_guard<std::mutex> lock(mutex);
  std::shared_ptr<Cached>& cached = (*plans)[{q, is_double, like.device().type(), like.device().index()}];
  if (!cached) {
    const HostTables host = make_device_tables(q, is_double);
    const at::Tensor bytes = at::empty({int64_t(host.bytes.size())}, at::kByte);
    std::memcpy(bytes.mutable_data_ptr(), host.bytes.data(), host.bytes.size());
    const at::Tensor tables = bytes.to(like.device());
    cached = std::make_shared<Cached>(Cached{tables, relocated(host.plan, tables.const_data_ptr())});
#ifdef DCTPS_EMULATED
    emulator::add_table(tables.const_data_ptr(), tables.numel());
#endif
  }
  return {cached, &cached->plan};
}

}  // namespace dctps
