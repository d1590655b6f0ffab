"""Parameters of each layer (the paper's Figures 5, 7, 13, Table 2), storage and FLOPs (Table 1)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .._report import LayerCount, format_table
from ..allocation import DCTPS_TYPES, DENSE_TYPES, matrix_shape
from ..modules._base import DCTpSLayer
from ..support import check_module, describe

_KINDS = ("dense", "sparse", "dctps")


def _kind(layer: nn.Module) -> str:
    if not isinstance(layer, DCTpSLayer):
        return "dense"
    return "sparse" if layer.alpha is None else "dctps"


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that `convert_` would take, and those it has made, each once, in the model's order."""
    check_module("model", model)
    layers = {n: layer for n, layer in model.named_modules() if type(layer) in DENSE_TYPES + DCTPS_TYPES}
    if not layers:
        raise ValueError("model: expected at least one Linear, Conv2d or DCTpS layer, got none")
    return layers


def _count(name: str, layer: nn.Module) -> LayerCount:
    rows, columns = matrix_shape(layer)
    nnz = layer.nnz if isinstance(layer, DCTpSLayer) else rows * columns
    return LayerCount(name, type(layer).__name__, rows, columns, nnz)


@dataclass(frozen=True)
class ParameterCounts:
    """What `parameter_counts` found; `print` shows a table.

    Attributes:
        layers: a count (name, type, rows, columns, nnz, weights, density) for each Linear, Conv2d and DCTpS
            layer, in the model's order; a dense layer's nnz is m n.
        alphas: number of trainable alpha.
        others: number of all other trainable parameters: biases, norm layers and the like.
        weights, nnz, density: totals over `layers`.
    """

    layers: tuple[LayerCount, ...]
    alphas: int
    others: int

    @property
    def weights(self) -> int:
        return sum(layer.weights for layer in self.layers)

    @property
    def nnz(self) -> int:
        return sum(layer.nnz for layer in self.layers)

    @property
    def density(self) -> float:
        return self.nnz / self.weights

    def __str__(self) -> str:
        table = format_table(
            ["layer", "type", "m x n", "nnz", "density"],
            [[x.name, x.type, f"{x.rows} x {x.columns}", x.nnz, f"{x.density:.3%}"] for x in self.layers],
            ["total", "", self.weights, self.nnz, f"{self.density:.3%}"],
            left=2,
        )
        return f"{table}\nalphas: {self.alphas:,}; biases, norm parameters and others: {self.others:,}"


def parameter_counts(model: nn.Module) -> ParameterCounts:
    """The trainable weights of each layer, and how many other parameters there are.

    The counts by layer are those that Price & Tanner, ICML 2021, plot for each method (Figures 5, 7 and 13);
    on a dense network `weights` and `others` are the two columns of their Table 2. An untrained weight (with
    requires_grad False) counts too, in `layers`, since it takes its place; alphas and others are trainable.

    Raises: ValueError for a model without a Linear, Conv2d or DCTpS layer.
    """
    layers = _layers(model)
    alphas = {id(x.alpha) for x in layers.values() if isinstance(getattr(x, "alpha", None), nn.Parameter)}
    weights = {id(x.values if isinstance(x, DCTpSLayer) else x.weight) for x in layers.values()}
    others = sum(p.numel() for p in model.parameters() if p.requires_grad and id(p) not in alphas | weights)
    counts = tuple(_count(name, layer) for name, layer in layers.items())
    return ParameterCounts(counts, len(alphas), others)


@dataclass(frozen=True)
class LayerCost(LayerCount):
    """Costs of one layer, for one sample (Price & Tanner, ICML 2021, Table 1).

    With q = max(m, n), numbers held and FLOPs for one application of the matrix, without bias and index:

        "dense":    m n        2 m n
        "sparse":   nnz        2 nnz
        "dctps":    nnz + 1    2 nnz + m + groups * F(q),    F(q) = 2 q log2(q) - q + 2

    A multiplication and an addition are two FLOPs. The DCT costs O(q log q) in the paper; F(q) is the count
    of the split-radix algorithm where q is a power of 2 (Vetterli & Nussbaumer, 1984), and is used for any q.
    A convolution takes a DCT of each patch, in each group; "dense" is the better form where groups are many.

    Attributes:
        name, type, rows, columns, nnz, weights, density: as in `parameter_counts`.
        kind: "dense", "sparse" (offset="none") or "dctps".
        groups: of a convolution, else 1.
        applications: how often the matrix is applied for one sample: output pixels, rows of a linear layer.
        bytes: measured, of "values" (or the dense weight), "index", "alpha" and "bias".
    """

    kind: str
    groups: int
    applications: int
    bytes: dict[str, int]

    def storage(self, kind: str | None = None) -> int:
        """Numbers held by a layer of this shape and nnz; `kind`: by default the layer's own."""
        kind = _check_kind(kind, self.kind)
        return {"dense": self.weights, "sparse": self.nnz, "dctps": self.nnz + 1}[kind]

    def flops(self, kind: str | None = None) -> int:
        """FLOPs for one sample, rounded; `kind`: by default the layer's own."""
        kind = _check_kind(kind, self.kind)
        flops = 2 * (self.weights if kind == "dense" else self.nnz)
        if kind == "dctps":
            q = max(self.rows, self.columns)
            flops += self.rows + self.groups * (2 * q * math.log2(q) - q + 2)
        return round(self.applications * flops)


def _check_kind(kind: str | None, own: str) -> str:
    if kind is not None and kind not in _KINDS:
        raise ValueError(f"kind: expected one of {', '.join(map(repr, _KINDS))}, got {kind!r}")
    return own if kind is None else kind


@dataclass(frozen=True)
class CostReport:
    """What `costs` found; `print` shows a table. `layers`: a `LayerCost` for each layer."""

    layers: tuple[LayerCost, ...]

    def storage(self, kind: str | None = None) -> int:
        """The sum of the layers' `storage`."""
        return sum(layer.storage(kind) for layer in self.layers)

    def flops(self, kind: str | None = None) -> int:
        """The sum of the layers' `flops`."""
        return sum(layer.flops(kind) for layer in self.layers)

    @property
    def bytes(self) -> dict[str, int]:
        """The sums of the layers' measured `bytes`."""
        return {what: sum(layer.bytes[what] for layer in self.layers) for what in self.layers[0].bytes}

    def __str__(self) -> str:
        def figures(x):
            flops = [f"{x.flops(kind) / 1e6:,.3f}" for kind in _KINDS]
            return [x.storage("dense"), x.storage(), *flops, *x.bytes.values()]

        held = [f"{what} bytes" for what in self.layers[0].bytes]
        return format_table(
            [
                "layer",
                "kind",
                "m x n",
                "applied",
                "dense numbers",
                "numbers",
                *(f"{k} MFLOP" for k in _KINDS),
                *held,
            ],
            [[x.name, x.kind, f"{x.rows} x {x.columns}", x.applications, *figures(x)] for x in self.layers],
            ["total", "", "", "", *figures(self)],
            left=2,
        )


def costs(model: nn.Module, x: Tensor) -> CostReport:
    """Storage and FLOPs of every Linear, Conv2d and DCTpS layer of `model`, as formula and as measured bytes.

    Storage and FLOPs follow Price & Tanner, ICML 2021, Table 1, see `LayerCost` for the formulas; they leave
    out biases, norms, activations and the index of the nonzeros. The bytes are those of the tensors that the
    layer holds, index included. FLOPs are for one sample, forward; a layer that is used several times is
    counted for each, one that is not used costs none.

    Args:
        x: an input whose first dimension is the batch; the model runs once on it, in eval mode, and is left
            as it was.

    Raises: TypeError naming the argument; ValueError for a model without such a layer.
    """
    layers = _layers(model)
    if not isinstance(x, Tensor) or x.dim() == 0 or not len(x):
        got = f"the shape {tuple(x.shape)}" if isinstance(x, Tensor) else describe(x)
        raise TypeError(f"x: expected a tensor of at least one sample, got {got}")
    groups = {name: getattr(layer, "groups", 1) for name, layer in layers.items()}
    applied = dict.fromkeys(layers, 0)

    def count(name, y):
        applied[name] += y.numel() // (matrix_shape(layers[name])[0] * x.shape[0])

    handles = [
        layer.register_forward_hook(lambda _, __, y, name=name: count(name, y))
        for name, layer in layers.items()
    ]
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            model.eval()(x)
    finally:
        for module, mode in modes.items():
            module.training = mode
        for handle in handles:
            handle.remove()
    return CostReport(
        tuple(
            LayerCost(
                **vars(_count(name, layer)),
                kind=_kind(layer),
                groups=groups[name],
                applications=applied[name],
                bytes=_bytes(layer),
            )
            for name, layer in layers.items()
        )
    )


def _bytes(layer: nn.Module) -> dict[str, int]:
    sparse = isinstance(layer, DCTpSLayer)
    tensors = {
        "values": layer.values if sparse else layer.weight,
        "index": layer.support.index if sparse else None,
        "alpha": layer.alpha if sparse else None,
        "bias": layer.bias,
    }
    return {what: 0 if t is None else t.numel() * t.element_size() for what, t in tensors.items()}
