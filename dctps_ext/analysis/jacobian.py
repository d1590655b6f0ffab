"""Leading singular values of a network's input-output Jacobian, without forming it (the paper's Figure 4)."""

import copy
import math

import torch
from torch import Tensor, nn

from ..support import check_int, check_module, describe

# Columns of a block beyond k; a usual choice (Halko, Martinsson & Tropp, SIAM Review 2011).
_OVERSAMPLING = 10
_TINY = 1e-290  # below it float64 loses digits soon


def jacobian_singular_values(model: nn.Module, x: Tensor, k: int | None = None, seed: int = 0) -> Tensor:
    """The k largest singular values, descending, of J = d model(x) / dx, both flattened: J is [M, N].

    Price & Tanner, ICML 2021, Figure 4, look at them at initialisation: information reaches the output only
    along singular vectors whose values are not (near) zero. Batch norm is in the model's own mode: after
    `model.eval()` it has its initial statistics, 0 and 1, and each image is on its own; in training mode the
    images of a batch `x` depend on each other, and J is that of the whole batch.

    J is never formed. J^T u is one backward pass, J v is the derivative of J^T u with respect to u, so that
    any differentiable op will do. From them a block Krylov space of J J^T is built, reorthogonalised, and
    searched by Rayleigh-Ritz, until the residual of each J J^T u = s^2 u is below 1e-12 s_1^2; where M is at
    most k + 10, as for one image and ten classes, J^T is applied to a whole basis, which is exact.

    Sparse networks have singular values far below float32's smallest number. So a copy of the model is run in
    float64, and each step is scaled by a power of 2, so that no square of a singular value is formed: values
    down to 1e-290 are computed. Where a layer's activations, or J itself, are below that and yet not zero,
    an error says so: a result of exactly 0 is no underflow, but says that no path leads from the input to
    the output, or that all weights of a layer are 0, as those of Fixup's classifier at initialisation.

    Args:
        model: a network with a floating point tensor as input and output; it stays as it is.
        x: the input, with its batch dimension if the model wants one.
        k: how many singular values, in [1, min(M, N)]; default: all of them.
        seed: of the random first block.

    Returns: float64 [k].

    Raises: TypeError, ValueError naming the argument; FloatingPointError for an underflow in float64, and for
    a Jacobian that is not finite.
    """
    check_module("model", model)
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"x: expected a floating point tensor, got {describe(x)}")
    generator = torch.Generator().manual_seed(check_int("seed", seed, 0, 2**63 - 1))
    model = copy.deepcopy(model).double().requires_grad_(False)
    for name, layer in model.named_modules():
        if not list(layer.children()):
            layer.register_forward_hook(lambda _, __, y, name=name: _check_activations(name, y))
    x = x.detach().double().requires_grad_()
    with torch.enable_grad():
        y = model(x)
        if not isinstance(y, Tensor) or not y.is_floating_point():
            raise TypeError(f"model: expected a floating point tensor as output, got {describe(y)}")
        k = min(y.numel(), x.numel()) if k is None else check_int("k", k, 1, min(y.numel(), x.numel()))
        if not y.requires_grad:  # e.g. a constant
            return y.new_zeros(k, dtype=torch.float64)
        pullback_at = torch.zeros_like(y, requires_grad=True)
        (pullback,) = torch.autograd.grad(y, x, pullback_at, create_graph=True)

    def vjp(block: Tensor) -> Tensor:
        """J^T U: [M, b] -> [N, b]."""
        columns = [torch.autograd.grad(y, x, u.view_as(y), retain_graph=True)[0].flatten() for u in block.T]
        return torch.stack(columns, 1)

    def jvp(block: Tensor) -> Tensor:
        """J V: [N, b] -> [M, b]."""
        columns = [
            torch.autograd.grad(pullback, pullback_at, v.view_as(x), retain_graph=True)[0].flatten()
            for v in block.T
        ]
        return torch.stack(columns, 1)

    size = min(k + _OVERSAMPLING, y.numel())
    block = torch.randn(y.numel(), size, generator=generator, dtype=torch.float64).to(y.device)
    block = torch.linalg.qr(block).Q
    basis, images = block, vjp(block)  # Q [M, t] and J^T Q [N, t]
    largest = images.abs().max().item()
    if not math.isfinite(largest):
        raise FloatingPointError("model: its Jacobian has entries that are not finite")
    if 0 < largest < _TINY:
        raise FloatingPointError(f"model: its Jacobian underflows float64, its entries are below {largest}")
    if largest == 0:
        return y.new_zeros(k)
    scale = 2.0 ** -math.frexp(largest)[1]
    images = images * scale
    while True:
        _, values, vectors = torch.linalg.svd(images, full_matrices=False)
        if basis.shape[1] == y.numel():
            break  # the basis is complete
        block = jvp(images[:, -block.shape[1] :]) * scale  # J J^T of the last block, scaled twice
        for _ in range(2):  # once more, since the first pass leaves rounding errors of what it takes away
            block = block - basis @ (basis.T @ block)
        # The rest of J J^T u - s^2 u, u a Ritz vector: the part of J J^T u that is outside the basis.
        residuals = block @ vectors[:k, -block.shape[1] :].T
        if residuals.norm(dim=0).max() <= 1e-12 * values[0] ** 2:
            break
        new, sizes, _ = torch.linalg.svd(block, full_matrices=False)
        new = new[:, sizes > 1e-14 * values[0] ** 2][:, : y.numel() - basis.shape[1]]
        block = torch.linalg.qr(new - basis @ (basis.T @ new)).Q
        basis = torch.cat([basis, block], 1)
        images = torch.cat([images, vjp(block) * scale], 1)
    return values[:k] / scale


def _check_activations(name: str, y) -> None:
    if isinstance(y, Tensor) and y.is_floating_point() and y.numel() and 0 < y.abs().max() < _TINY:
        raise FloatingPointError(
            f"model: the output of {name!r} underflows float64, so that what passes there is not known"
        )
