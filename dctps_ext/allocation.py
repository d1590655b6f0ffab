"""Allocation: how many nonzeros each layer of a network gets out of one budget K = round(density * N)."""

import math
from collections.abc import Callable

from torch import nn

from .modules import DCTpSConv2d, DCTpSLinear
from .support import check_density, check_module

# A subclass may read or make its weight in its own way, so that only these very types are ever replaced.
DENSE_TYPES = (nn.Linear, nn.Conv2d)
DCTPS_TYPES = (DCTpSLinear, DCTpSConv2d)


def weight_shape(layer: nn.Module) -> tuple[int, ...]:
    """[m, n] of a linear layer, [m, c, kh, kw] of a convolution, c = in_channels / groups; dense or DCTpS."""
    kind = DCTpSLinear if isinstance(layer, (nn.Linear, DCTpSLinear)) else DCTpSConv2d
    return kind._weight_shape(layer)


def matrix_shape(layer: nn.Module) -> tuple[int, int]:
    """(m, n) of the matrix that the layer applies: n = in_features, or kh*kw*in_channels/groups."""
    m, *rest = weight_shape(layer)
    return m, math.prod(rest)


# What a layer's share is proportional to, until it is full. Erdos-Renyi-Kernel is the density
# (n_in + n_out + kh + kw) / (n_in n_out kh kw) (Evci et al., ICML 2020), so the count is the numerator.
_WEIGHTS = {
    "epl": lambda shape: 1,
    "epf": lambda shape: shape[0],
    "uniform": math.prod,
    "erk": sum,
}


def allocate(
    model: nn.Module,
    density: float,
    method: str = "epl",
    filter_fn: Callable[[str, nn.Module], bool] | None = None,
) -> dict[str, int]:
    """Layer name -> number of nonzeros, for every Linear and Conv2d layer of `model`, in the model's order.

    K = round(density * N), N the number of weights of these layers without their biases; the counts sum to K
    exactly and none is above its layer's size. A layer that is full leaves its surplus to the others, in the
    same proportions. Fractions go to the largest remainders, the first layer winning a tie.

    Counted are layers of exactly the types nn.Linear and nn.Conv2d, and DCTpS layers: a converted network
    has the allocation of the network it was made from. A layer used at several places counts once, under its
    first name.

    Args:
        density: K / N, in [0, 1].
        method: (Price & Tanner, ICML 2021, section 4)
            "epl": equal per layer, K/L each;
            "epf": equal per filter: the same number for every row of every layer, up to its length;
            "uniform": one density for all;
            "erk": Erdos-Renyi-Kernel (Evci et al., ICML 2020): in proportion to n_in + n_out + kh + kw,
            or n_in + n_out of a linear layer; n_in is that of one group.
        filter_fn: called with (name, layer); a layer for which it returns False is left out.

    Raises: ValueError for a density outside [0, 1], an unknown method, or a model without such a layer.
    """
    check_module("model", model)
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if type(layer) in DENSE_TYPES + DCTPS_TYPES and (filter_fn is None or filter_fn(name, layer))
    }
    check_method("method", method)
    return allocate_layers(layers, density, method)


def check_method(argument: str, method: str) -> None:
    """ValueError naming `argument` unless `method` is one of the methods of `allocate`."""
    if method not in _WEIGHTS:
        raise ValueError(f"{argument}: expected one of {', '.join(map(repr, _WEIGHTS))}, got {method!r}")


def allocate_layers(layers: dict[str, nn.Module], density: float, method: str) -> dict[str, int]:
    """`allocate` for layers and a method that are already chosen."""
    density = check_density(density)
    if not layers:
        raise ValueError(
            "model: expected at least one Linear or Conv2d layer that filter_fn accepts, got none"
        )
    shapes = [weight_shape(layer) for layer in layers.values()]
    sizes = [math.prod(shape) for shape in shapes]
    counts = _share(round(density * sum(sizes)), [_WEIGHTS[method](shape) for shape in shapes], sizes)
    return dict(zip(layers, counts, strict=True))


def _share(total: int, weights: list[int], sizes: list[int]) -> list[int]:
    """Splits `total` <= sum(sizes) in proportion to `weights`, none above its size, in exact integers."""
    counts = list(sizes)
    open_ = list(range(len(sizes)))
    while True:
        weight = sum(weights[i] for i in open_)
        still = [i for i in open_ if total * weights[i] < sizes[i] * weight]
        if still == open_:
            break
        total -= sum(sizes[i] for i in open_ if i not in set(still))
        open_ = still
    for i in open_:
        counts[i] = total * weights[i] // weight
    # sorted() is stable: of equal remainders the first layer's comes first.
    by_remainder = sorted(open_, key=lambda i: -(total * weights[i] % weight))
    for i in by_remainder[: total - sum(counts[i] for i in open_)]:
        counts[i] += 1
    return counts
