// The emulator's side of common/mma.cuh, which includes this file: the warp's lanes bring their fragments together.
#pragma once

#include "emulator.h"

namespace dctps {

template <class E>
void mma(float (&d)[4], const Pack<E, 8>& a, const MmaPair (&b)[2] DCTPS_SITE) {
  static_assert(sizeof(E) == 2, "mma: tensor cores are used for 16-bit types alone");
  emulator::MmaLane lane{};
  for (int i = 0; i < 8; ++i) lane.a[i] = to_accumulator(a[i]);
  E pairs[4];
  std::memcpy(pairs, b, sizeof(pairs));
  for (int i = 0; i < 4; ++i) lane.b[i] = to_accumulator(pairs[i]);
  lane.d = d;
  emulator::warp_step(emulator::WarpStep::mma, reinterpret_cast<uint64_t>(&lane), 0, kAllLanes, site);
}

}  // namespace dctps
