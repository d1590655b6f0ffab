"""Shape rules (fake kernels) and derivatives of the extension's ops, to any order.

Every op is linear in its input and in (values, alpha), and every derivative is one of the ops again, so
the set is closed: gradients of gradients cost what gradients cost, and no m x n matrix appears at any order.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ops = torch.ops.dctps_ext


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


def _save_size(ctx, inputs, output):
    ctx.size = inputs[0].shape[-1]


torch.library.register_autograd(
    "dctps_ext::dct", lambda ctx, grad: (_ops.idct(grad, ctx.size), None), setup_context=_save_size
)
torch.library.register_autograd(
    "dctps_ext::idct", lambda ctx, grad: (_ops.dct(grad, ctx.size), None), setup_context=_save_size
)


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


def _save_sparse(ctx, inputs, output):
    first, second, index, ctx.m, ctx.n = inputs
    ctx.save_for_backward(first, second, index)


def _sparse_linear_backward(ctx, grad):
    x, values, index = ctx.saved_tensors
    shape = (index, ctx.m, ctx.n)
    dx = _ops.sparse_linear_transposed(grad, values, *shape) if ctx.needs_input_grad[0] else None
    dvalues = _ops.sddmm(grad, x, *shape) if ctx.needs_input_grad[1] else None
    return dx, dvalues, None, None, None


def _sparse_linear_transposed_backward(ctx, grad):
    v, values, index = ctx.saved_tensors
    shape = (index, ctx.m, ctx.n)
    dv = _ops.sparse_linear(grad, values, *shape) if ctx.needs_input_grad[0] else None
    dvalues = _ops.sddmm(v, grad, *shape) if ctx.needs_input_grad[1] else None
    return dv, dvalues, None, None, None


def _sddmm_backward(ctx, grad):
    v, x, index = ctx.saved_tensors
    shape = (index, ctx.m, ctx.n)
    dv = _ops.sparse_linear(x, grad, *shape) if ctx.needs_input_grad[0] else None
    dx = _ops.sparse_linear_transposed(v, grad, *shape) if ctx.needs_input_grad[1] else None
    return dv, dx, None, None, None


torch.library.register_autograd(
    "dctps_ext::sparse_linear", _sparse_linear_backward, setup_context=_save_sparse
)
torch.library.register_autograd(
    "dctps_ext::sparse_linear_transposed", _sparse_linear_transposed_backward, setup_context=_save_sparse
)
torch.library.register_autograd("dctps_ext::sddmm", _sddmm_backward, setup_context=_save_sparse)


# ---- the fused layers: one derivation for both, because both are y = op(x; values, alpha) + bias with op
# linear in x and in (values, alpha), and `geometry` (with the algorithm) all that tells them apart.


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
    nothing = dy.new_empty((0,))
    return (
        dx if output_mask[0] else nothing,
        torch.empty_like(values) if output_mask[1] else dy.new_empty((0,)),
        dy.new_empty(()) if output_mask[2] and alpha is not None else dy.new_empty((0,)),
        dy.new_empty((m,)) if output_mask[3] else dy.new_empty((0,)),
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


def _register_layer(forward_op, backward_op, name: str, bias_view: tuple[int, ...]) -> None:
    def setup_forward(ctx, inputs, output):
        x, values, index, alpha, bias, *ctx.geometry = inputs
        ctx.save_for_backward(x, values, index, alpha)

    def backward(ctx, dy):
        x, values, index, alpha = ctx.saved_tensors
        needs = ctx.needs_input_grad
        mask = [needs[0], needs[1], needs[3], needs[4]]
        gradients = backward_op(dy, x, values, index, alpha, *ctx.geometry, mask)
        dx, dvalues, dalpha, dbias = (g if want else None for g, want in zip(gradients, mask, strict=True))
        return dx, dvalues, None, dalpha, dbias, *[None] * len(ctx.geometry)

    def setup_backward(ctx, inputs, output):
        dy, x, values, index, alpha, *ctx.geometry, ctx.mask = inputs
        ctx.save_for_backward(dy, x, values, index, alpha)
        ctx.set_materialize_grads(False)

    def double_backward(ctx, g_dx, g_dvalues, g_dalpha, g_dbias):
        # The four outputs are linear in dy; dx is linear in (values, alpha), dvalues and dalpha in x.
        dy, x, values, index, alpha = ctx.saved_tensors
        g_dx, g_dvalues, g_dalpha, g_dbias = (
            g if want else None
            for g, want in zip((g_dx, g_dvalues, g_dalpha, g_dbias), ctx.mask, strict=True)
        )
        needs = ctx.needs_input_grad
        as_parameters = g_dvalues is not None or g_dalpha is not None
        g_values = torch.zeros_like(values) if g_dvalues is None else g_dvalues

        g_dy = g_x = g_v = g_a = None
        if needs[0]:
            parts = []
            if g_dx is not None:
                parts.append(forward_op(g_dx, values, index, alpha, None, *ctx.geometry))
            if as_parameters:
                parts.append(forward_op(x, g_values, index, g_dalpha, None, *ctx.geometry))
            if g_dbias is not None:
                parts.append(g_dbias.view(bias_view).expand_as(dy))
            g_dy = sum(parts[1:], parts[0]) if parts else None
        if needs[1] and as_parameters:
            g_x = backward_op(dy, x, g_values, index, g_dalpha, *ctx.geometry, [True, False, False, False])[0]
        if g_dx is not None and (needs[2] or needs[4]):
            mask = [False, needs[2], needs[4], False]
            _, g_v, g_a, _ = backward_op(dy, g_dx, values, index, alpha, *ctx.geometry, mask)
        return (
            g_dy,
            g_x,
            g_v if needs[2] else None,
            None,
            g_a if needs[4] else None,
            *[None] * (len(ctx.geometry) + 1),
        )

    torch.library.register_autograd(f"dctps_ext::{name}", backward, setup_context=setup_forward)
    torch.library.register_autograd(
        f"dctps_ext::{name}_backward", double_backward, setup_context=setup_backward
    )


_register_layer(_ops.dctps_linear, _ops.dctps_linear_backward, "dctps_linear", (-1,))
_register_layer(_ops.dctps_conv2d, _ops.dctps_conv2d_backward, "dctps_conv2d", (-1, 1, 1))
