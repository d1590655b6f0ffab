"""Functional interface: the layers differentiable functions of tensors on the torch ops of the extension."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor
from torch.nn import functional as F

from . import autograd as _autograd  # noqa: F401  registers fake kernels
from .support import Support

__all__ = ["dct", "dctps_conv2d", "dctps_linear", "idct", "sparse_linear"]

_ops = torch.ops.dctps_ext
# `default` saves small calls the choice of an overload.
dctps_linear_op = _ops.dctps_linear.default
dctps_conv2d_op = _ops.dctps_conv2d.default


def dct(x: Tensor, out_features: int | None = None) -> Tensor:
    r"""Orthonormal DCT-II of the last dimension, :math:`y = D x`.

    .. math::
        D_{k,i} = c_k \cos\frac{\pi k (2i+1)}{2q}, \quad
        c_0 = \sqrt{1/q}, \; c_{k>0} = \sqrt{2/q}, \; q = \max(m, n)

    so that ``x`` counts as zero-padded to length q and the result is truncated to its first m coefficients.
    The cost is O(q log q) per row for every q.

    Args:
        x: ``[..., n]``, float64, float32, float16 or bfloat16 (the last two summed in float32), any strides.
        out_features: m; n by default.

    Returns:
        ``[..., m]``, contiguous, of the dtype of ``x``.

    Raises:
        TypeError: if the dtype is another one.
        ValueError: if ``x`` has no dimension or ``out_features`` < 1.

    Source: Price & Tanner (2021), section 3.
    """
    return _ops.dct(x, _last_size(x) if out_features is None else out_features)


def idct(v: Tensor, in_features: int | None = None) -> Tensor:
    r"""Transpose of :func:`dct`: :math:`x = D^T v`, an orthonormal DCT-III; ``dct``'s inverse where m = n.

    Args:
        v: ``[..., m]``, float64, float32, float16 or bfloat16, any strides.
        in_features: n, the number of columns of D; m by default.

    Returns:
        ``[..., n]``, contiguous, of the dtype of ``v``.

    Raises:
        TypeError: if the dtype is another one.
        ValueError: if ``v`` has no dimension or ``in_features`` < 1.
    """
    return _ops.idct(v, _last_size(v) if in_features is None else in_features)


def sparse_linear(x: Tensor, values: Tensor, support: Support) -> Tensor:
    r"""Sparse product :math:`y = S x` for every row of ``x``.

    Args:
        x: ``[..., n]``.
        values: ``[nnz]``, the entries of S in CSR order, of the dtype and device of ``x``.
        support: the places of the entries, of shape (m, n).

    Returns:
        ``[..., m]``. Differentiable in ``x`` and ``values``; gradients of ``values`` are computed on the
        support only.

    Raises:
        TypeError: if a dtype does not fit.
        ValueError: if a shape or a device does not fit.
    """
    _check_support("sparse_linear", support)
    m, n = support.shape
    return _ops.sparse_linear(x, values, support.index, m, n)


def dctps_linear(
    x: Tensor,
    values: Tensor,
    support: Support,
    alpha: Tensor | float | None,
    bias: Tensor | None = None,
    *,
    algorithm: str = "auto",
) -> Tensor:
    r"""DCT-plus-sparse linear map :math:`y = \alpha D x + S x + b`, in one pass over ``x`` and ``y``.

    Args:
        x: ``[..., n]``, float64, float32, float16 or bfloat16, any strides.
        values: ``[nnz]``, the entries of S in CSR order, of the dtype and device of ``x``.
        support: the places of the entries, of shape (m, n).
        alpha: scalar tensor of the same dtype (may need a gradient), or a number; ``None``: no DCT part.
        bias: ``[m]`` or ``None``.
        algorithm: "fast" never forms W. "dense" forms it for this call and uses torch's own GEMM:
            faster for small or not so sparse layers, but then the bits of a result depend on torch, the batch
            and the threads. "auto" takes the one that a measured rule on the sizes expects to be faster.

    Returns:
        ``[..., m]``. With "fast", a row's result depends on that row alone, to the bit.

    Under autocast all floating arguments are cast to autocast's dtype, as for ``torch.nn.functional.linear``.

    Raises:
        TypeError: if a dtype does not fit.
        ValueError: if a shape or a device does not fit.

    Source: Price & Tanner (2021), equation (1) and section 3.
    """
    _check_support("dctps_linear", support)
    m, n = support.shape
    alpha = _scalar("dctps_linear", alpha, x)
    return dctps_linear_op(x, values, support.index, alpha, bias, m, n, algorithm)


def dctps_conv2d(
    x: Tensor,
    values: Tensor,
    support: Support,
    alpha: Tensor | float | None,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    kernel_size: int | Sequence[int],
    algorithm: str = "auto",
) -> Tensor:
    r"""2-D convolution with the filters :math:`W = \alpha D + S`, never stored.

    A patch is flattened in the order (kernel row, kernel column, channel of the group):
    ``weight[o, c, a, b] = W[o, (a * kw + b) * Cg + c]``, where Cg = in_channels / groups, n = kh * kw * Cg.

    Args:
        x: ``[batch, in_channels, height, width]`` or without ``batch``; any memory format or strides.
        values: ``[nnz]``, the entries of S in CSR order, of the dtype and device of ``x``.
        support: the places of the entries, of shape (out_channels, n).
        alpha: scalar tensor of the same dtype, or a number; ``None`` leaves the DCT part out.
        bias: ``[out_channels]`` or ``None``.
        stride, padding, dilation, groups: as for ``torch.nn.functional.conv2d``; ``padding`` may also be
            "same" or "valid".
        kernel_size: kh and kw, or one integer for both.
        algorithm: "fast" is one of three forms: "taps" transforms each pixel once, for all the patches that
            it is in, and sums over the kernel's rows and columns; "patches" transforms patches; "direct", for
            depthwise convolutions and patches of few values, forms W for this call and sums over taps.
            "dense" forms W for this call and uses torch's own convolution: faster for small or not so sparse
            layers, but then the bits of a result depend on torch, the batch and the threads. "auto" takes the
            one that a measured rule on the sizes expects to be faster.

    Returns:
        ``[batch, out_channels, out_height, out_width]`` in the memory format of ``x``.

    Raises:
        TypeError: if a dtype does not fit.
        ValueError: if a shape, a device or a convolution argument does not fit.

    Source: Price & Tanner (2021), section 3; the order of a patch is that of the paper's own code.
    """
    op = "dctps_conv2d"
    _check_support(op, support)
    alpha = _scalar(op, alpha, x)
    if x.dim() not in (3, 4):
        raise ValueError(
            f"{op}: x: expected [batch, channels, height, width] or [channels, height, width], got shape "
            f"{list(x.shape)}"
        )
    kernel_size = _pair(op, "kernel_size", kernel_size)
    stride = _pair(op, "stride", stride)
    dilation = _pair(op, "dilation", dilation)
    batched = x if x.dim() == 4 else x.unsqueeze(0)
    if isinstance(padding, str):
        batched, padding = _named_padding(op, batched, padding, kernel_size, stride, dilation)
    else:
        padding = _pair(op, "padding", padding)
    m, n = support.shape
    expected = kernel_size[0] * kernel_size[1] * (batched.shape[1] // groups) if groups > 0 else None
    if expected is not None and n != expected:
        raise ValueError(
            f"{op}: x, support: expected kh kw channels / groups = n, got an x of {batched.shape[1]} "
            f"channels and a support of n = {n}, with kernel_size {kernel_size} and groups={groups}"
        )
    y = dctps_conv2d_op(
        batched,
        values,
        support.index,
        alpha,
        bias,
        m,
        kernel_size,
        stride,
        padding,
        dilation,
        groups,
        algorithm,
    )
    return y if x.dim() == 4 else y.squeeze(0)


def _last_size(tensor: Tensor) -> int:
    return tensor.shape[-1] if tensor.dim() else 1  # the op itself refuses a 0-dimensional tensor


def _check_support(op: str, support: Support) -> None:
    if not isinstance(support, Support):
        raise TypeError(f"{op}: support: expected a dctps_ext.Support, got {type(support).__name__}")


def _scalar(op: str, alpha: Tensor | float | None, x: Tensor) -> Tensor | None:
    if alpha is None or isinstance(alpha, Tensor):
        return alpha
    # Under torch.compile a number that varies is symbolic, and says nothing about itself.
    if not isinstance(alpha, Real) or not (torch.compiler.is_compiling() or math.isfinite(alpha)):
        raise TypeError(f"{op}: alpha: expected a scalar tensor, a finite number or None, got {alpha!r}")
    return torch.tensor(alpha, dtype=x.dtype, device=x.device)


def _pair(op: str, name: str, value: int | Sequence[int]) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not isinstance(pair[0], int) or not isinstance(pair[1], int):
        raise ValueError(f"{op}: {name}: expected an integer or two, got {value!r}")
    return pair


def _named_padding(
    op: str,
    x: Tensor,
    padding: str,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[Tensor, tuple[int, int]]:
    """x and the symmetric padding for "valid" or "same"; an odd total pads x itself, at its end."""
    if padding == "valid":
        return x, (0, 0)
    if padding != "same":
        raise ValueError(
            f"{op}: padding: expected an integer, two integers, 'same' or 'valid', got {padding!r}"
        )
    if stride != (1, 1):
        raise ValueError(f"{op}: stride: expected 1 with padding='same', got {stride}")
    totals = [d * (k - 1) for d, k in zip(dilation, kernel_size, strict=True)]
    if any(total % 2 for total in totals):
        x = F.pad(x, (0, totals[1] % 2, 0, totals[0] % 2))
    return x, (totals[0] // 2, totals[1] // 2)
