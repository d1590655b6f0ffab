// Tells the emulator what memory the convolution kernels are given, from their arguments.
#pragma once

#include "fused/dctps_conv2d.h"
#include "linear_memory.h"

namespace dctps::emulator {

// From an image's first element to its last: what lies between rows of a cropped tensor is not out of bounds.
inline void tell_images(Memory& memory, const char* name, const Images& images, int64_t batch, DType dtype,
                        Memory::Access access) {
  if (!images.data) return;
  const int64_t last = (batch - 1) * images.image_stride + (images.height - 1) * images.row_stride +
                       (images.width - 1) * images.column_stride +
                       (images.channels - 1) * images.channel_stride;
  memory.add(name, images.data, (last + 1) * element_bytes(dtype), access);
}

inline void tell(Memory& memory, const Conv2dForwardArgs& args) {
  const int64_t bytes = accumulator_bytes(args.dtype);
  tell_images(memory, "x", args.x, args.batch, args.dtype, Memory::Access::read);
  tell_images(memory, "y", args.y, args.batch, args.dtype, Memory::Access::read_write);
  tell_sparse(memory, args.s, args.dtype);
  if (args.alpha) memory.add("alpha", args.alpha, bytes, Memory::Access::read);
  if (args.bias) memory.add("bias", args.bias, args.s.m * bytes, Memory::Access::read);
}

inline void tell(Memory& memory, const Conv2dBackwardArgs& args) {
  const int64_t bytes = accumulator_bytes(args.dtype);
  tell_images(memory, "dy", args.dy, args.batch, args.dtype, Memory::Access::read);
  tell_images(memory, "x", args.x, args.batch, args.dtype, Memory::Access::read);
  tell_images(memory, "dx", args.dx, args.batch, args.dtype, Memory::Access::read_write);
  tell_sparse(memory, args.s, args.dtype);
  if (args.alpha) memory.add("alpha", args.alpha, bytes, Memory::Access::read);
  if (args.sums.dvalues)
    memory.add("dvalues", args.sums.dvalues, args.s.nnz * bytes, Memory::Access::read_write);
  if (args.sums.dalpha) memory.add("dalpha", args.sums.dalpha, sizeof(double), Memory::Access::read_write);
}

}  // namespace dctps::emulator
