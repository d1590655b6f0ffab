// Choice of the instruction set at run time: asks the processor once, lets the environment or a test
// override.
#include "common/isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace dctps {
namespace {

Isa initial_isa() {
  const char* name = std::getenv("DCTPS_ISA");
  return name && *name ? isa_from_name(name) : available_isas().back();
}

std::atomic<Isa>& selected() {
  static std::atomic<Isa> isa{initial_isa()};
  return isa;
}

}  // namespace

std::vector<Isa> available_isas() {
  std::vector<Isa> isas{Isa::baseline};
#ifdef DCTPS_HAVE_X86_ISAS
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    isas.push_back(Isa::avx2);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      isas.push_back(Isa::avx512);
    }
  }
#endif
  return isas;
}

Isa current_isa() { return selected().load(std::memory_order_relaxed); }

Isa isa_for_rows(int64_t rows, int64_t narrow_rows) {
  const Isa isa = current_isa();
  return isa == Isa::avx512 && rows <= narrow_rows ? Isa::avx2 : isa;
}

void set_isa(Isa isa) { selected().store(isa, std::memory_order_relaxed); }

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    case Isa::baseline:
      return "baseline";
  }
  return "unknown";
}

Isa isa_from_name(const std::string& name) {
  std::string known;
  for (Isa isa : available_isas()) {
    if (name == isa_name(isa)) return isa;
    known += (known.empty() ? "" : ", ") + std::string(isa_name(isa));
  }
  throw std::invalid_argument("DCTPS_ISA: expected one of " + known + " (what this processor runs), got '" +
                              name + "'");
}

}  // namespace dctps
