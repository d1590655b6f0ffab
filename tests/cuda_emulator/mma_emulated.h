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

template <class E>
void load_columns(MmaPair (&columns)[4], Shared<E> from, int row DCTPS_SITE) {
  static_assert(sizeof(E) == 2, "load_columns: 16-bit types alone");
  const Pack<E, 8> own = from.template load<8>(row, site);
  uint64_t words[2];
  std::memcpy(words, &own, sizeof(words));
  const int lane = int(threadIdx.x) % kWarp, g = lane / 4, t = lane % 4;
  for (int i = 0; i < 4; ++i) {
    E pair[2];
    for (int e = 0; e < 2; ++e) {
      const int source = 8 * i + 2 * t + e;
      const uint64_t halves[2] = {shuffle(words[0], source, kAllLanes, site),
                                  shuffle(words[1], source, kAllLanes, site)};
      std::memcpy(&pair[e], reinterpret_cast<const char*>(halves) + 2 * g, sizeof(E));
    }
    std::memcpy(&columns[i], pair, sizeof(pair));
  }
}

}  // namespace dctps
