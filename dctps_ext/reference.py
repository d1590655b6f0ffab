"""The oracle: every function of the package in plain torch from the explicit cosine matrix, in float64.

Nothing here shares code with the fast path. All functions are differentiable and return `dtype` (float64
unless told otherwise) whatever the dtype of their input; all cost O(m n) memory and time.

The matrix (Price & Tanner, ICML 2021, section 3; DESIGN section 1), with q = max(m, n):

    D[k, i] = c_k cos(pi k (2i + 1) / (2q)),   c_0 = sqrt(1/q),   c_k = sqrt(2/q),   0 <= k < m,   0 <= i < n
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def dct_matrix(m: int, n: int, dtype: torch.dtype = torch.float64, device=None) -> Tensor:
    """D of shape [m, n]: m rows and n columns of the orthonormal DCT-II matrix of length q = max(m, n).

    The angle is reduced in integers to the first octant before cos or sin sees it, so every entry has a
    relative error of a few float64 ulps, small entries included, before it is rounded to `dtype`.
    """
    q = max(m, n)
    k = torch.arange(m, device=device, dtype=torch.int64)[:, None]
    i = torch.arange(n, device=device, dtype=torch.int64)[None, :]
    t = k * (2 * i + 1) % (4 * q)  # the angle is t of 4q parts of a circle
    t = torch.minimum(t, 4 * q - t)  # cos(-a) = cos(a): now 0 <= t <= 2q
    sign = 1 - 2 * (t > q).double()  # cos(pi - a) = -cos(a)
    t = torch.minimum(t, 2 * q - t)  # now 0 <= t <= q, an angle up to pi/2
    unit = math.pi / (2 * q)
    cosine = torch.where(2 * t <= q, torch.cos(t.double() * unit), torch.sin((q - t).double() * unit))
    matrix = sign * cosine * math.sqrt(2 / q)
    matrix[0] = math.sqrt(1 / q)
    return matrix.to(dtype)


def dct(x: Tensor, out_features: int | None = None, dtype: torch.dtype = torch.float64) -> Tensor:
    """D x: [..., n] -> [..., m], m = `out_features` (default n)."""
    n = x.shape[-1]
    m = n if out_features is None else out_features
    return x.to(dtype) @ dct_matrix(m, n, dtype, x.device).T


def idct(v: Tensor, in_features: int | None = None, dtype: torch.dtype = torch.float64) -> Tensor:
    """D^T v: [..., m] -> [..., n], n = `in_features` (default m)."""
    m = v.shape[-1]
    n = m if in_features is None else in_features
    return v.to(dtype) @ dct_matrix(m, n, dtype, v.device)


def dense_sparse(values: Tensor, support, dtype: torch.dtype = torch.float64) -> Tensor:
    """S of shape [m, n], dense: `values` [nnz] in CSR order at the positions of `support`, zero elsewhere."""
    m, n = support.shape
    rows = torch.repeat_interleave(
        torch.arange(m, device=values.device), support.crow.diff(), output_size=support.nnz
    )
    zeros = torch.zeros(m, n, dtype=dtype, device=values.device)
    return zeros.index_put((rows, support.col.long()), values.to(dtype))


def dense_weight(values: Tensor, support, alpha, dtype: torch.dtype = torch.float64) -> Tensor:
    """W = alpha D + S of shape [m, n]; `alpha` a 0-dim tensor, a number, or None (W = S)."""
    sparse = dense_sparse(values, support, dtype)
    if alpha is None:
        return sparse
    alpha = alpha.to(dtype) if isinstance(alpha, Tensor) else alpha
    return alpha * dct_matrix(*support.shape, dtype, values.device) + sparse


def conv_weight(matrix: Tensor, kernel_size: tuple[int, int]) -> Tensor:
    """[m, kh*kw*C] -> [m, C, kh, kw]: weight[o, c, a, b] = matrix[o, (a*kw + b)*C + c], the paper's order."""
    return matrix.unflatten(1, (*kernel_size, -1)).permute(0, 3, 1, 2)


def conv_matrix(weight: Tensor) -> Tensor:
    """[m, C, kh, kw] -> [m, kh*kw*C]: the inverse of `conv_weight`."""
    return weight.permute(0, 2, 3, 1).flatten(1)


def sparse_linear(x: Tensor, values: Tensor, support, dtype: torch.dtype = torch.float64) -> Tensor:
    """S x: [..., n] -> [..., m]."""
    return x.to(dtype) @ dense_sparse(values, support, dtype).T


def dctps_linear(
    x: Tensor, values: Tensor, support, alpha, bias: Tensor | None = None, dtype: torch.dtype = torch.float64
) -> Tensor:
    """alpha D x + S x + b: [..., n] -> [..., m]; `alpha` None leaves the DCT part out."""
    return F.linear(
        x.to(dtype), dense_weight(values, support, alpha, dtype), None if bias is None else bias.to(dtype)
    )


def dctps_conv2d(
    x: Tensor,
    values: Tensor,
    support,
    alpha,
    bias: Tensor | None = None,
    stride=1,
    padding=0,
    dilation=1,
    groups: int = 1,
    *,
    kernel_size,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """`F.conv2d` with the weight `conv_weight(alpha D + S)`; filter o is row o of D, whatever its group.

    x [N, C, H, W] or [C, H, W]; `kernel_size`, `stride`, `dilation` an int or a pair; `padding` also "same",
    "valid".
    """
    kernel = (kernel_size, kernel_size) if isinstance(kernel_size, int) else tuple(kernel_size)
    weight = conv_weight(dense_weight(values, support, alpha, dtype), kernel)
    bias = None if bias is None else bias.to(dtype)
    return F.conv2d(x.to(dtype), weight, bias, stride, padding, dilation, groups)
