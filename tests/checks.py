"""What several test files check with: errors against oracles, and the accuracy that the package promises."""

import importlib.util
import sys
from pathlib import Path

import torch

import dctps_ext

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def relative_error(result: torch.Tensor, oracle: torch.Tensor) -> float:
    """Largest difference, relative to the oracle's largest magnitude."""
    assert result.shape == oracle.shape
    if not oracle.numel():
        return 0.0
    scale = oracle.abs().max().item()
    difference = (result.to(torch.float64) - oracle.to(torch.float64)).abs().max().item()
    return difference / scale if scale else difference


def assert_accurate(
    result: torch.Tensor, oracle: torch.Tensor, dtype: torch.dtype, torch_result: torch.Tensor | None = None
):
    """The package's promise: 1e-12 in float64, 2e-6 in float32, and in 16 bits within 2x of torch's own
    error on the same rounded inputs, or of the result's own rounding where torch is luckier than that."""
    error = relative_error(result, oracle)
    if dtype == torch.float64:
        assert error < 1e-12
    elif dtype == torch.float32:
        assert error < 2e-6
    else:
        rounding = relative_error(oracle.to(dtype), oracle)
        torch_error = 0.0 if torch_result is None else relative_error(torch_result, oracle)
        assert error <= 2 * max(torch_error, rounding)


def why_no_cuda() -> str | None:
    """Why the CUDA kernels cannot run here; None where they can."""
    if not torch._C._dispatch_has_kernel_for_dispatch_key("dctps_ext::dctps_linear", "CUDA"):
        return "this build has no CUDA kernels"
    return None if torch.cuda.is_available() else "torch finds no GPU"


def import_file(name: str):
    """A file of the repository that belongs to no package, as a module; its main() does not run."""
    path = Path(__file__).resolve().parents[1] / name
    spec = importlib.util.spec_from_file_location(f"dctps_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def random_support(m: int, n: int, density: float, seed: int = 0) -> dctps_ext.Support:
    return dctps_ext.Support.random(m, n, round(density * m * n), seed=seed)
