"""Shape rules of the extension's ops (fake kernels), for meta tensors, torch.compile and torch.export.

Their derivatives are in csrc/autograd.cpp.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _with_last(like: Tensor, size: int) -> Tensor:
    return like.new_empty((*like.shape[:-1], size))


def _check_devices(first: Tensor, *others: Tensor | None) -> None:
    """Fake kernels run for every call with a tensor on "meta", and would answer for its other tensors too."""
    for other in others:
        if other is not None and other.device != first.device:
            raise ValueError(
                f"dctps_ext: expected all tensors on one device, got {first.device} and {other.device}"
            )


# ---- dct, idct


@torch.library.register_fake("dctps_ext::dct")
def _(x, out_features):
    return _with_last(x, out_features)


@torch.library.register_fake("dctps_ext::idct")
def _(v, in_features):
    return _with_last(v, in_features)


# ---- sparse_linear, its transpose, sddmm


@torch.library.register_fake("dctps_ext::sparse_linear")
def _(x, values, index, m, n):
    _check_devices(x, values, index)
    return _with_last(x, m)


@torch.library.register_fake("dctps_ext::sparse_linear_transposed")
def _(v, values, index, m, n):
    _check_devices(v, values, index)
    return _with_last(v, n)


@torch.library.register_fake("dctps_ext::sddmm")
def _(v, x, index, m, n):
    _check_devices(v, x, index)
    return v.new_empty(((index.shape[0] - m - n - 2) // 3,))


# ---- the fused layers


@torch.library.register_fake("dctps_ext::dctps_linear")
def _(x, values, index, alpha, bias, m, n, algorithm):
    _check_devices(x, values, index, alpha, bias)
    return _with_last(x, m)


@torch.library.register_fake("dctps_ext::dctps_conv2d")
def _(x, values, index, alpha, bias, out_channels, kernel_size, stride, padding, dilation, groups, algorithm):
    _check_devices(x, values, index, alpha, bias)
    out = [
        (x.shape[2 + d] + 2 * padding[d] - dilation[d] * (kernel_size[d] - 1) - 1) // stride[d] + 1
        for d in range(2)
    ]
    memory_format = torch._prims_common.suggest_memory_format(x)
    return torch.empty(
        (x.shape[0], out_channels, *out), dtype=x.dtype, device=x.device, memory_format=memory_format
    )


def _fake_gradients(dy, dx, values, alpha, m, output_mask):
    _check_devices(dy, dx, values, alpha)
    return (
        dx if output_mask[0] else dy.new_empty(0),
        torch.empty_like(values) if output_mask[1] else dy.new_empty(0),
        dy.new_empty(() if output_mask[2] and alpha is not None else 0),
        dy.new_empty(m if output_mask[3] else 0),
    )


@torch.library.register_fake("dctps_ext::dctps_linear_backward")
def _(dy, x, values, index, alpha, m, n, algorithm, output_mask):
    return _fake_gradients(dy, x.new_empty(x.shape), values, alpha, m, output_mask)


@torch.library.register_fake("dctps_ext::dctps_conv2d_backward")
def _(
    dy,
    x,
    values,
    index,
    alpha,
    out_channels,
    kernel_size,
    stride,
    padding,
    dilation,
    groups,
    algorithm,
    output_mask,
):
    memory_format = torch._prims_common.suggest_memory_format(x)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=memory_format)
    return _fake_gradients(dy, dx, values, alpha, out_channels, output_mask)
