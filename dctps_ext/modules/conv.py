"""DCTpSConv2d: torch.nn.Conv2d with the weight alpha*D + S."""

import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops, reference
from ..support import Support, check_int
from ._base import DCTpSLayer

_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class DCTpSConv2d(DCTpSLayer):
    r"""A convolution with weight[o, c, a, b] = (alpha D + S)[o, (a*kw + b)*C + c], C = in_channels / groups.

    As a matrix the weight is m x n, m = `out_channels`, n = kh*kw*C, a patch being flattened in the order
    (kh, kw, c); D is the truncated orthonormal DCT-II of length q = max(m, n), and filter o is row o of D,
    whatever its group (Price & Tanner, ICML 2021, section 3).

    Args:
        in_channels, out_channels: as torch.nn.Conv2d, at least 1.
        kernel_size, stride, dilation: an int or a pair (rows, columns).
        padding: an int, a pair, "valid" or "same" (which needs stride 1; an even kernel gets the odd row and
            column at the end). Default: 0.
        groups: number of blocked connections; divides both channel counts. Default: 1.
        bias: if False, the layer has no additive bias. Default: True.
        padding_mode: "zeros" (default), "reflect", "replicate" or "circular".
        density, nnz, support, alpha, alpha_trainable, offset, algorithm, seed, device,
            dtype: see `DCTpSLinear`.

    Shape:
        - Input: (N, C_in, H, W) or (C_in, H, W). Output: (N, C_out, H_out, W_out) or (C_out, H_out, W_out),
          with the sizes of torch.nn.Conv2d.

    Attributes:
        values: the trainable values of S [nnz] in CSR order of `support`.
        alpha: 0-dim; None for offset="none".
        bias: [out_channels].
        weight: the dense weight [out_channels, C, kh, kw], read-only, computed on demand.

    Raises: TypeError, ValueError naming the argument.

    Example::

        >>> layer = DCTpSConv2d(64, 128, 3, padding=1, density=0.01)
        >>> layer(torch.randn(8, 64, 32, 32)).shape
        torch.Size([8, 128, 32, 32])
    """

    _dense_type = nn.Conv2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        density: float | None = None,
        nnz: int | None = None,
        support: Support | None = None,
        alpha: float = 1.0,
        alpha_trainable: bool = True,
        offset: str = "dct",
        algorithm: str = "auto",
        seed: int = 0,
        device=None,
        dtype=None,
    ) -> None:
        in_channels = check_int("in_channels", in_channels, 1, 2**31 - 1)
        out_channels = check_int("out_channels", out_channels, 1, 2**31 - 1)
        groups = check_int("groups", groups, 1, 2**31 - 1)
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels % groups:
                raise ValueError(f"{name}: expected a multiple of groups = {groups}, got {channels}")
        kernel_size = _pair("kernel_size", kernel_size, 1)
        stride = _pair("stride", stride, 1)
        dilation = _pair("dilation", dilation, 1)
        if not isinstance(padding, str):
            padding = _pair("padding", padding, 0)
        elif padding not in ("same", "valid"):
            raise ValueError(f"padding: expected an int, a pair, 'same' or 'valid', got {padding!r}")
        elif padding == "same" and stride != (1, 1):
            raise ValueError(f"padding: 'same' needs stride 1, got stride {stride}")
        if padding_mode not in _PADDING_MODES:
            modes = ", ".join(map(repr, _PADDING_MODES))
            raise ValueError(f"padding_mode: expected one of {modes}, got {padding_mode!r}")
        super().__init__(
            out_channels,
            kernel_size[0] * kernel_size[1] * (in_channels // groups),
            bias=bias,
            density=density,
            nnz=nnz,
            support=support,
            alpha=alpha,
            alpha_trainable=alpha_trainable,
            offset=offset,
            algorithm=algorithm,
            seed=seed,
            device=device,
            dtype=dtype,
        )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = kernel_size
        self.stride = stride
        self.padding = padding
        self.dilation = dilation
        self.groups = groups
        self.padding_mode = padding_mode

    @staticmethod
    def _settings(layer: nn.Module) -> dict:
        names = (
            "in_channels",
            "out_channels",
            "kernel_size",
            "stride",
            "padding",
            "dilation",
            "groups",
            "padding_mode",
        )
        return {name: getattr(layer, name) for name in names}

    @staticmethod
    def _weight_shape(layer: nn.Module) -> tuple[int, ...]:
        return layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size

    @staticmethod
    def _to_matrix(weight: Tensor) -> Tensor:
        return reference.conv_matrix(weight)

    def _from_matrix(self, matrix: Tensor) -> Tensor:
        return reference.conv_weight(matrix, self.kernel_size)

    def _pads(self) -> list[int]:
        """The padding as F.pad wants it: [left, right, top, bottom]."""
        if self.padding == "valid":
            return [0, 0, 0, 0]
        pads = []
        for axis in (1, 0):
            if self.padding == "same":
                total = self.dilation[axis] * (self.kernel_size[axis] - 1)
                pads += [total // 2, total - total // 2]
            else:
                pads += [self.padding[axis]] * 2
        return pads

    def forward(self, input: Tensor) -> Tensor:
        """Runs the forward pass."""
        padding = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._pads(), mode=self.padding_mode)
            padding = (0, 0)
        geometry = self.kernel_size, self.stride, padding, self.dilation, self.groups
        if input.dim() == 4 and input.shape[1] == self.in_channels and not isinstance(padding, str):
            # ops.dctps_conv2d without what the layer itself has seen to, as in DCTpSLinear.
            values, support_index, alpha, bias = self._operands()
            return ops.dctps_conv2d_op(
                input, values, support_index, alpha, bias, self.out_channels, *geometry, self.algorithm
            )
        kernel_size, *rest = geometry
        return ops.dctps_conv2d(
            input,
            self.values,
            self.support,
            self.alpha,
            self.bias,
            *rest,
            kernel_size=kernel_size,
            algorithm=self.algorithm,
        )

    def extra_repr(self) -> str:
        text = (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        )
        if self.padding != (0, 0):
            text += f", padding={self.padding}"
        if self.dilation != (1, 1):
            text += f", dilation={self.dilation}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        if self.bias is None:
            text += ", bias=False"
        if self.padding_mode != "zeros":
            text += f", padding_mode={self.padding_mode}"
        return text + self._repr_tail()


def _pair(name: str, value, low: int) -> tuple[int, int]:
    """An int or a pair of them, each at least `low`, as a pair."""
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2:
        raise ValueError(f"{name}: expected an int or a pair, got {value}")
    return check_int(name, pair[0], low, 2**31 - 1), check_int(name, pair[1], low, 2**31 - 1)
