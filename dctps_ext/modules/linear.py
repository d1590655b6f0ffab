"""DCTpSLinear: torch.nn.Linear with the weight alpha*D + S."""

from torch import Tensor, nn

from .. import ops
from ..support import Support, check_int
from ._base import DCTpSLayer


class DCTpSLinear(DCTpSLayer):
    r"""y = alpha D x + S x + b: a DCT that is never stored plus a sparse matrix with a fixed support.

    D [m, n] is the truncated orthonormal DCT-II of length q = max(m, n), m = `out_features`, n =
    `in_features`. The cost of a row is O(q log q + nnz) (Price & Tanner, ICML 2021, section 3).

    Args:
        in_features: size n of each input sample, at least 1.
        out_features: size m of each output sample, at least 1.
        bias: if False, the layer has no additive bias. Default: True.
        density: nnz / (m n), in [0, 1]; nnz is rounded. Default, if `nnz` and `support` are not given either:
            0.01.
        nnz: number of trainable values of S, in [0, m n].
        support: a `Support` of shape (m, n); then `seed` is not used.
        alpha: initial value of the factor of D. Default: 1.0.
        alpha_trainable: whether `alpha` is a parameter (else a buffer). Default: True.
        offset: "dct" (default), or "none": W = S, the plain sparse layer, without `alpha`.
        algorithm: "auto" (default), "fast" or "dense", see `dctps_ext.dctps_linear`; an attribute, not saved.
        seed: of the support, which is uniform over all positions; in [0, 2^63). Default: 0.
        device, dtype: of the parameters; float64, float32, float16 or bfloat16.

    Shape:
        - Input: (*, n), any number of leading dimensions. Output: (*, m).

    Attributes:
        values: the trainable values of S [nnz] in CSR order of `support`; 0 at first, or U(-1/sqrt(n),
            1/sqrt(n)) for offset="none".
        alpha: 0-dim; None for offset="none".
        bias: [m], at first U(-1/sqrt(n), 1/sqrt(n)).
        weight: alpha*D + S as a dense [m, n] tensor, read-only, computed on demand.

    Raises: TypeError, ValueError naming the argument.

    Example::

        >>> layer = DCTpSLinear(4096, 1000, density=0.01)
        >>> layer(torch.randn(128, 4096)).shape
        torch.Size([128, 1000])
    """

    _dense_type = nn.Linear

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
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
        n = check_int("in_features", in_features, 1, 2**31 - 1)
        m = check_int("out_features", out_features, 1, 2**31 - 1)
        super().__init__(
            m,
            n,
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
        self.in_features = n
        self.out_features = m

    @staticmethod
    def _settings(layer: nn.Module) -> dict:
        return {"in_features": layer.in_features, "out_features": layer.out_features}

    @staticmethod
    def _weight_shape(layer: nn.Module) -> tuple[int, ...]:
        return layer.out_features, layer.in_features

    @staticmethod
    def _to_matrix(weight: Tensor) -> Tensor:
        return weight

    def _from_matrix(self, matrix: Tensor) -> Tensor:
        return matrix

    def forward(self, input: Tensor) -> Tensor:
        """Runs the forward pass: [..., in_features] -> [..., out_features]."""
        # ops.dctps_linear without what the layer itself has seen to: a tenth of the time of a small call.
        values, support_index, alpha, bias = self._operands()
        return ops.dctps_linear_op(
            input,
            values,
            support_index,
            alpha,
            bias,
            self.out_features,
            self.in_features,
            self.algorithm,
        )

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
            + self._repr_tail()
        )
