// Which instruction sets the kernels were built for, and the one in use.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace dctps {

enum class Isa { baseline, avx2, avx512 };

// The instruction sets that this build holds kernels for and this processor runs, slowest first.
std::vector<Isa> available_isas();

// The one in use: the best available, or what DCTPS_ISA in the environment names, or the last set_isa.
Isa current_isa();
void set_isa(Isa isa);

// The one for a tile of few rows: `narrow_rows` rows fill a vector of AVX2, and would leave half of an AVX-512 one, and
// of the caches, to zeros. That is a quarter faster, and a row's result has the same bits.
Isa isa_for_rows(int64_t rows, int64_t narrow_rows);

// Whose kernel takes a call; kernels that take rows overload this.
template <class Args>
Isa isa_for(const Args&) {
  return current_isa();
}

const char* isa_name(Isa isa);
Isa isa_from_name(const std::string& name);  // throws std::invalid_argument, naming the available ones

}  // namespace dctps

// A kernel entry point, compiled once per instruction set: declares all of them and a function of the same
// name that calls the one that isa_for(args) names.
#ifdef DCTPS_HAVE_X86_ISAS
#define DCTPS_CPU_KERNEL(name, Args)   \
  namespace baseline {                 \
  void name(const Args& args);         \
  }                                    \
  namespace avx2 {                     \
  void name(const Args& args);         \
  }                                    \
  namespace avx512 {                   \
  void name(const Args& args);         \
  }                                    \
  inline void name(const Args& args) { \
    switch (isa_for(args)) {           \
      case Isa::avx512:                \
        return avx512::name(args);     \
      case Isa::avx2:                  \
        return avx2::name(args);       \
      case Isa::baseline:              \
        return baseline::name(args);   \
    }                                  \
  }
#else
#define DCTPS_CPU_KERNEL(name, Args) \
  namespace baseline {               \
  void name(const Args& args);       \
  }                                  \
  inline void name(const Args& args) { return baseline::name(args); }
#endif
