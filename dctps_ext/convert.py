"""Conversion of whole networks: dense layers to DCTpS layers in place, and back into a dense copy."""

import copy
import hashlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from ._report import LayerCount, format_table
from .allocation import DENSE_TYPES, allocate_layers, check_method, matrix_shape
from .modules import DCTpSConv2d, DCTpSLinear
from .modules._base import DCTpSLayer
from .support import Support, check_int, check_module

_log = logging.getLogger(__name__)

_TWINS = dict(zip(DENSE_TYPES, (DCTpSLinear, DCTpSConv2d), strict=True))
_KEYWORDS = ("alpha", "alpha_trainable", "offset", "algorithm", "seed")
# The very dictionaries go to the new layer, so that handles which the user holds still remove their hooks.
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)
_STATE_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


@dataclass(frozen=True)
class LayerReport(LayerCount):
    """One converted layer: first name, new type, matrix (rows m, columns n), nnz, bytes before and after.

    Bytes are those of all parameters and buffers of the layer, bias and index included.
    """

    bytes_before: int
    bytes_after: int


@dataclass(frozen=True)
class ConversionReport:
    """What `convert_` did; `print(report)` shows a table.

    Attributes:
        layers: a `LayerReport` for each converted layer, in the model's order.
        skipped: (name, type) of each layer that was left dense because it is of a subclass of nn.Linear or
            nn.Conv2d.
        weights, nnz, density, bytes_before, bytes_after: totals over `layers`.
    """

    layers: tuple[LayerReport, ...]
    skipped: tuple[tuple[str, str], ...]

    def _sum(self, what: str) -> int:
        return sum(getattr(layer, what) for layer in self.layers)

    @property
    def weights(self) -> int:
        return self._sum("weights")

    @property
    def nnz(self) -> int:
        return self._sum("nnz")

    @property
    def density(self) -> float:
        return self.nnz / self.weights

    @property
    def bytes_before(self) -> int:
        return self._sum("bytes_before")

    @property
    def bytes_after(self) -> int:
        return self._sum("bytes_after")

    def __str__(self) -> str:
        def figures(layer):
            return [layer.nnz, f"{layer.density:.3%}", layer.bytes_before, layer.bytes_after]

        table = format_table(
            ["layer", "type", "m x n", "nnz", "density", "bytes before", "bytes after"],
            [[x.name, x.type, f"{x.rows} x {x.columns}", *figures(x)] for x in self.layers],
            ["total", "", self.weights, *figures(self)],
            left=2,
        )
        lines = [table, *(f"left dense: {name} ({kind}, a subclass)" for name, kind in self.skipped)]
        return "\n".join(lines)


def convert_(
    model: nn.Module,
    density: float = 0.01,
    allocation: str = "epl",
    filter_fn: Callable[[str, nn.Module], bool] | None = None,
    **layer_keywords,
) -> ConversionReport:
    """Replaces the Linear and Conv2d layers of `model`, in place, by DCTpS layers of the same shape.

    A new layer keeps the device, dtype, mode, hooks and the bias (the very Parameter) of the old one; its
    values, and its alpha, train if the old weight did. With offset="dct" the old weights are dropped (S = 0,
    alpha = 1); with offset="none" the values are the old weights on the support, so the network is the old
    one pruned at random. Optimizers must be made afterwards. On any error the model is left as it was.

    Only the exact types nn.Linear and nn.Conv2d are converted; the report lists the subclasses that were
    left. Layers that are DCTpS already are left too, outside the budget. A layer used at several places is
    converted once and used at the same places.

    Args:
        density: of the whole network: K / N with N the weights of the layers to convert, in [0, 1].
        allocation: how K is shared among the layers: "epl", "epf", "uniform" or "erk"; see `allocate`. "epf"
            also gives every row of a layer the same number, to within one.
        filter_fn: called with (name, layer); a layer for which it returns False is left.
        layer_keywords: `alpha`, `alpha_trainable`, `offset`, `algorithm`, `seed` of the layers, see
            `DCTpSLinear`. Each layer has a seed of its own, made from `seed` and its name. Without `alpha`, a
            dense layer's attribute `dctps_alpha` is taken where it has one, as in `models.fixup_resnet110`.

    Returns: a `ConversionReport`.

    Raises: TypeError, ValueError naming the argument or the layer: also for a layer whose weight is
    parametrized, pruned, lazy or tied to another module's, or that has hooks on its state dict, and for a
    model that is itself a Linear or Conv2d layer.
    """
    unknown = [name for name in layer_keywords if name not in _KEYWORDS]
    if unknown:
        raise TypeError(f"layer_keywords: expected some of {', '.join(_KEYWORDS)}, got {', '.join(unknown)}")
    seed = check_int("seed", layer_keywords.pop("seed", 0), 0, 2**63 - 1)
    check_method("allocation", allocation)
    chosen, skipped = choose_layers(model, filter_fn)
    counts = allocate_layers(chosen, density, allocation)
    supports = (random_support(name, layer, counts[name], allocation, seed) for name, layer in chosen.items())
    return replace_layers_(model, chosen, supports, skipped, **layer_keywords)


def choose_layers(
    model: nn.Module, filter_fn: Callable[[str, nn.Module], bool] | None
) -> tuple[dict[str, nn.Module], list[tuple[str, str]]]:
    """The layers by first name that `convert_` would replace, and (name, type) of the subclasses it leaves.

    Raises: ValueError for a layer, or a model, that cannot be replaced; see `convert_`.
    """
    check_module("model", model)
    if type(model) in _TWINS:
        raise ValueError(
            f"model: is itself a {type(model).__name__}, which cannot be replaced in place; make a "
            f"{_TWINS[type(model)].__name__} instead"
        )
    chosen: dict[str, nn.Module] = {}
    skipped = []
    for name, layer in model.named_modules():
        if not isinstance(layer, DENSE_TYPES) or (filter_fn is not None and not filter_fn(name, layer)):
            continue
        if type(layer) in _TWINS or parametrize.is_parametrized(layer) or isinstance(layer, LazyModuleMixin):
            _check_convertible(name, layer)
            chosen[name] = layer
        else:
            skipped.append((name, type(layer).__name__))
    _check_not_tied(model, chosen)
    return chosen, skipped


def random_support(name: str, layer: nn.Module, nnz: int, allocation: str, seed: int) -> Support:
    """The support that `convert_` draws for the layer `name`."""
    m, n = matrix_shape(layer)
    own_seed = _layer_seed(seed, name)
    return Support.random(m, n, nnz, own_seed, per_row=allocation == "epf", device=layer.weight.device)


def replace_layers_(
    model: nn.Module,
    chosen: dict[str, nn.Module],
    supports: Iterable[Support],
    skipped: list[tuple[str, str]],
    **layer_keywords,
) -> ConversionReport:
    """Replaces the `chosen` layers, each with its one of `supports`, in place; on an error, none of them."""
    new: dict[nn.Module, DCTpSLayer] = {}
    reports = []
    for (name, layer), support in zip(chosen.items(), supports, strict=True):
        m, n = matrix_shape(layer)
        own_alpha = {"alpha": getattr(layer, "dctps_alpha", 1.0)}
        twin = _TWINS[type(layer)]._from_dense(layer, support, **own_alpha | layer_keywords)
        _move_hooks(layer, twin)
        new[layer] = twin
        reports.append(LayerReport(name, type(twin).__name__, m, n, twin.nnz, _bytes(layer), _bytes(twin)))
    report = ConversionReport(tuple(reports), tuple(skipped))

    _swap(model, new)  # nothing can fail from here on
    _log.info("converted %d layers to density %.4g", len(reports), report.density)
    return report


def to_dense(model: nn.Module) -> nn.Module:
    """A copy of `model` with the equivalent nn.Linear or Conv2d for each DCTpS layer; `model` stays."""
    check_module("model", model)
    model = copy.deepcopy(model)
    if isinstance(model, DCTpSLayer):
        dense = model.to_dense()
        _move_hooks(model, dense)
        return dense
    new = {layer: layer.to_dense() for layer in model.modules() if isinstance(layer, DCTpSLayer)}
    for layer, dense in new.items():
        _move_hooks(layer, dense)
    _swap(model, new)
    return model


def _check_convertible(name: str, layer: nn.Module) -> None:
    if parametrize.is_parametrized(layer):
        problem = "is parametrized; remove its parametrizations first"
    elif isinstance(layer, LazyModuleMixin):
        problem = "is lazy; run the model on an input first"
    elif "weight" not in layer._parameters:
        problem = (
            "has a weight that is not a parameter (weight_norm, spectral_norm or pruning); remove that first"
        )
    elif not layer.weight.is_floating_point():
        problem = f"has the dtype {layer.weight.dtype}; expected a floating point dtype"
    elif any(getattr(layer, hooks) for hooks in _STATE_HOOKS):
        problem = "has hooks on its state dict, whose keys change; remove them first"
    else:
        return
    raise ValueError(f"model: layer {name!r} {problem}, or leave the layer out with filter_fn")


def _check_not_tied(model: nn.Module, chosen: dict[str, nn.Module]) -> None:
    """A weight that two modules own would come apart."""
    owners: dict[int, tuple[nn.Module, str]] = {}
    weights = {id(layer.weight) for layer in chosen.values()}
    for module_name, module in model.named_modules():
        for parameter_name, parameter in module._parameters.items():
            if id(parameter) not in weights:
                continue
            name = f"{module_name}.{parameter_name}".lstrip(".")
            if id(parameter) in owners:
                raise ValueError(
                    f"model: {name} is tied to {owners[id(parameter)]}, and conversion would untie them; "
                    "leave these layers out with filter_fn"
                )
            owners[id(parameter)] = name


def _layer_seed(seed: int, name: str) -> int:
    """A seed in [0, 2^32) for the layer `name`, so that equal shapes get different supports."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:4], "little")


def _move_hooks(old: nn.Module, new: nn.Module) -> None:
    for hooks in _HOOKS:
        new.__dict__[hooks] = old.__dict__[hooks]


def _swap(model: nn.Module, new: dict[nn.Module, nn.Module]) -> None:
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child in new:
                module._modules[name] = new[child]


def _bytes(layer: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in [*layer.parameters(), *layer.buffers()])
