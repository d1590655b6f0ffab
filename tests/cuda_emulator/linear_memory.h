// Tells the emulator what memory the linear kernels are given, each tensor with its strides, from their arguments.
#pragma once

#include "emulator.h"
#include "fused/dctps_linear.h"

namespace dctps::emulator {

inline void tell_rows(Memory& memory, const char* name, const Rows& rows, int64_t count, int64_t columns,
                      DType dtype, Memory::Access access) {
  const int64_t bytes = element_bytes(dtype);
  if (!rows.data) return;
  memory.add_matrix(name, rows.data, bytes, count, rows.row_stride * bytes, columns, rows.stride * bytes,
                    access);
}

inline void tell_sparse(Memory& memory, const SparseMatrix& s, DType dtype) {
  const auto tell = [&](const char* name, const void* data, int64_t entries, int64_t bytes) {
    if (data) memory.add(name, data, entries * bytes, Memory::Access::read);
  };
  tell("crow", s.crow, s.m + 1, 4);
  tell("col", s.col, s.nnz, 4);
  tell("ccol", s.ccol, s.n + 1, 4);
  tell("row", s.row, s.nnz, 4);
  tell("perm", s.perm, s.nnz, 4);
  tell("values", s.values, s.nnz, accumulator_bytes(dtype));
}

inline void tell(Memory& memory, const LinearForwardArgs& args) {
  const int64_t bytes = accumulator_bytes(args.dtype);
  tell_rows(memory, "x", args.x, args.rows, args.n, args.dtype, Memory::Access::read);
  tell_rows(memory, "y", args.y, args.rows, args.m, args.dtype, Memory::Access::read_write);
  tell_sparse(memory, args.s, args.dtype);
  if (args.alpha) memory.add("alpha", args.alpha, bytes, Memory::Access::read);
  if (args.bias) memory.add("bias", args.bias, args.m * bytes, Memory::Access::read);
}

inline void tell(Memory& memory, const LinearBackwardArgs& args) {
  const int64_t bytes = accumulator_bytes(args.dtype);
  tell_rows(memory, "dy", args.dy, args.rows, args.m, args.dtype, Memory::Access::read);
  tell_rows(memory, "x", args.x, args.rows, args.n, args.dtype, Memory::Access::read);
  tell_rows(memory, "dx", args.dx, args.rows, args.n, args.dtype, Memory::Access::read_write);
  tell_sparse(memory, args.s, args.dtype);
  if (args.alpha) memory.add("alpha", args.alpha, bytes, Memory::Access::read);
  if (args.sums.dvalues)
    memory.add("dvalues", args.sums.dvalues, args.s.nnz * bytes, Memory::Access::read_write);
  if (args.sums.dalpha) memory.add("dalpha", args.sums.dalpha, sizeof(double), Memory::Access::read_write);
  if (args.sums.dbias) memory.add("dbias", args.sums.dbias, args.m * bytes, Memory::Access::read_write);
}

}  // namespace dctps::emulator
