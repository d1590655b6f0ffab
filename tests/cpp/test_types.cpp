// Conversions of 16-bit types: every one of the 65536 values, rounding to nearest even, and the processor's
// own conversions.
#include <cmath>
#include <cstring>

#include "check.h"
#include "common/types.h"

namespace {

using namespace dctps;

template <class E>
void test_every_value_survives_a_round_trip() {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const E element{uint16_t(bits)};
    const float wide = to_accumulator(element);
    const E back = from_accumulator<E>(wide);
    if (std::isnan(wide)) {
      CHECK(std::isnan(to_accumulator(back)));
    } else {
      CHECK(back.bits == element.bits);
    }
  }
}

// Between two neighbours the nearer one is taken, and at the middle the even one.
template <class E>
void test_rounding(uint16_t last_finite) {
  for (uint32_t bits = 0; bits < last_finite; ++bits) {
    const float low = to_accumulator(E{uint16_t(bits)}), high = to_accumulator(E{uint16_t(bits + 1)});
    const float middle = low + (high - low) / 2;
    CHECK(from_accumulator<E>(middle).bits == (bits % 2 ? bits + 1 : bits));
    CHECK(from_accumulator<E>(std::nextafterf(middle, 0)).bits == (middle > 0 ? bits : 0));
    CHECK(from_accumulator<E>(std::nextafterf(middle, high)).bits == bits + 1);
    CHECK(from_accumulator<E>(-middle).bits == (0x8000u | (bits % 2 ? bits + 1 : bits)));
  }
}

void test_extremes() {
  CHECK(from_accumulator<Half>(65519.f).bits == 0x7bff);
  CHECK(from_accumulator<Half>(65520.f).bits == 0x7c00);
  CHECK(from_accumulator<Half>(1e-8f).bits == 0);
  CHECK(from_accumulator<Half>(INFINITY).bits == 0x7c00);
  CHECK(from_accumulator<BFloat16>(-INFINITY).bits == 0xff80);
  CHECK(from_accumulator<BFloat16>(3.4e38f).bits == 0x7f80);
}

}  // namespace

int main() {
  test_every_value_survives_a_round_trip<Half>();
  test_every_value_survives_a_round_trip<BFloat16>();
  test_rounding<Half>(0x7bff);
  test_rounding<BFloat16>(0x7f7f);
  test_extremes();
  return check::failures != 0;
}
