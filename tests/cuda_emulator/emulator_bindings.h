// The emulator as functions of the Python module _C, in the emulated build alone.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "common/device.h"
#include "emulator.h"

namespace dctps::emulator {

inline std::vector<pybind11::dict> counters_as_dicts() {
  using pybind11::literals::operator""_a;
  std::vector<pybind11::dict> launches;
  for (const LaunchCounters& launch : counters()) {
    std::vector<pybind11::dict> sites;
    for (const SiteCounters& site : launch.sites) {
      sites.push_back(pybind11::dict("place"_a = site.place, "kind"_a = site.kind,
                                     "requests"_a = site.requests, "worst"_a = site.worst,
                                     "mean"_a = site.sum / double(site.requests)));
    }
    pybind11::dict memory;
    for (const auto& [name, traffic] : launch.memory) {
      memory[name.c_str()] = pybind11::dict("loaded"_a = traffic.loaded, "stored"_a = traffic.stored);
    }
    launches.push_back(pybind11::dict(
        "kernel"_a = launch.kernel, "blocks"_a = launch.blocks, "threads"_a = launch.threads,
        "shared_bytes"_a = launch.shared_bytes, "loaded"_a = launch.loaded, "stored"_a = launch.stored,
        "shared_loaded"_a = launch.shared_loaded, "shared_stored"_a = launch.shared_stored,
        "mma"_a = launch.mma, "memory"_a = memory, "sites"_a = sites));
  }
  return launches;
}

inline void bind(pybind11::module_& module) {
  module.def(
      "emulator_counters", &counters_as_dicts,
      "The launches since emulator_reset(), in order: kernel, blocks, threads, shared_bytes; bytes of global "
      "memory loaded and stored, of shared memory shared_loaded and shared_stored; mma: products of "
      "fragments by "
      "a warp; sites: for each line, "
      "kind "
      "of access, requests by warps, worst and mean degree of bank conflicts (of global memory: sectors over "
      "the fewest possible), taken from the first 8 blocks and the last.");
  module.def("emulator_reset", &reset_counters, "Forgets the launches counted so far.");
  module.def("emulator_seed", &set_seed, pybind11::arg("seed"),
             "The order of threads and blocks from now on (DCTPS_EMULATOR_SEED: from the start).");
  module.def("emulator_most_blocks", &set_most_blocks, pybind11::arg("blocks"),
             "The widest grid before block numbers go on in its second dimension; 2^31-1 on a GPU.");
  module.def(
      "emulator_limits",
      [](int major, int minor, int sm_count, int shared_bytes_per_block, int shared_bytes_per_sm) {
        set_emulated_limits({.major = major,
                             .minor = minor,
                             .sm_count = sm_count,
                             .shared_bytes_per_block = shared_bytes_per_block,
                             .shared_bytes_per_sm = shared_bytes_per_sm});
        set_most_shared_bytes(shared_bytes_per_block);
      },
      pybind11::arg("major") = 9, pybind11::arg("minor") = 0, pybind11::arg("sm_count") = 132,
      pybind11::arg("shared_bytes_per_block") = 232448, pybind11::arg("shared_bytes_per_sm") = 233472,
      "The GPU that the emulator stands in for from now on; by default an H200.");
}

}  // namespace dctps::emulator
