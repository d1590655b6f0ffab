// Plans of CUDA kernels: made once per length, type and device, their tables kept in a tensor.
#include "plan/device_plan.h"

#include <ATen/ops/empty.h>

#include <cstring>
#include <tuple>

#include "plan/plan_cache.h"
#ifdef DCTPS_EMULATED
#include "emulator.h"
#endif

namespace dctps {
namespace {

struct OnDevice {
  at::Tensor tables;  // uint8
  DevicePlan plan;
  int64_t bytes() const { return tables.numel(); }
};

}  // namespace

at::Tensor upload_table(const std::vector<char>& bytes, const at::Tensor& like) {
  const at::Tensor host = at::empty({int64_t(bytes.size())}, at::kByte);
  std::memcpy(host.mutable_data_ptr(), bytes.data(), bytes.size());
  const at::Tensor table = host.to(like.device());
#ifdef DCTPS_EMULATED
  emulator::add_table(table.const_data_ptr(), table.numel());
#endif
  return table;
}

std::shared_ptr<const DevicePlan> get_device_plan(int64_t q, DType dtype, const at::Tensor& like) {
  static PlanCache<std::tuple<int64_t, bool, c10::DeviceType, c10::DeviceIndex>, OnDevice> cache;
  const bool is_double = dtype == DType::f64;
  const auto made = cache.get({q, is_double, like.device().type(), like.device().index()}, [&] {
    const HostTables host = make_device_tables(q, is_double);
    const at::Tensor tables = upload_table(host.bytes, like);
    return std::make_shared<const OnDevice>(OnDevice{tables, relocated(host.plan, tables.const_data_ptr())});
  });
  return {made, &made->plan};
}

}  // namespace dctps
