"""What tools/cuda_link.py runs in the build's own Python: it imports, has CUDA kernels, is right on a CPU.

python tools/cuda_import.py <the _C.*.so that must be the one imported>
"""

import sys
from pathlib import Path

import torch

import dctps_ext
from dctps_ext import reference
from dctps_ext._load import summary

BOUNDS = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def check(condition: bool, what: str) -> None:
    """Not an assert statement, which -O would take away."""
    if not condition:
        raise SystemExit(f"cuda-link: {what}")


def main() -> None:
    module = Path(sys.argv[1]).resolve()
    found = Path(dctps_ext._C.__file__).resolve()
    check(found == module, f"expected to import {module}, got {found}")
    ops = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("dctps_ext::")]
    check(bool(ops), "no op of dctps_ext is registered")
    for op in ops:
        for key in ("CPU", "CUDA"):
            registered = torch._C._dispatch_has_kernel_for_dispatch_key(op, key)
            check(registered, f"{op} has no kernel for {key}")
    worst = 0.0
    for m, n in ((64, 97), (300, 256)):
        support = dctps_ext.Support.random(m, n, 3 * max(m, n))
        for dtype, bound in BOUNDS.items():
            generator = torch.Generator().manual_seed(m)
            x, values, bias, dy = (
                torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
                for shape in ((5, n), (support.nnz,), (m,), (5, m))
            )
            x.requires_grad_()
            y = dctps_ext.dctps_linear(x, values, support, 0.75, bias, algorithm="fast")
            y.backward(dy)
            weight = 0.75 * reference.dct_matrix(m, n) + reference.dense_sparse(values, support)
            expected = x.detach().double() @ weight.T + bias.double(), dy.double() @ weight
            for name, got, right in zip(("y", "dx"), (y.detach(), x.grad), expected, strict=True):
                error = ((got.double() - right).abs().max() / right.abs().max()).item()
                worst = max(worst, error / bound)
                check(
                    error < bound, f"{name} in {dtype}, {m} x {n}: off by {error:.1e}, expected {bound:.0e}"
                )
    check(not torch.cuda.is_initialized(), "importing and running on the CPU touched a GPU")
    print(f"{summary()}; {len(ops)} ops with CUDA kernels; CPU results at {worst:.2f} of their bounds")


if __name__ == "__main__":
    main()
