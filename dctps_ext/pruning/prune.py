"""Pruning: every method under one signature, masks out, and masks applied as truly sparse layers."""

import copy
import logging
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import reference
from ..allocation import allocate_layers
from ..convert import ConversionReport, choose_layers, random_support, replace_layers_
from ..support import Support, check_density, check_int, describe
from .scores import Network, connection_sensitivity, gradient_flow, is_connected, synaptic_flow
from .selection import PruningBreakdown, exponential_schedule, keep_largest, objection

_log = logging.getLogger(__name__)

_RANDOM = ("uniform", "epl", "epf", "erk")
METHODS = (*_RANDOM, "snip", "grasp", "force", "iter_snip", "synflow", "imp")
STEPS = {"force": 60, "iter_snip": 60, "synflow": 100}
_IMP_KEEPS = 0.8  # of the weights that are left, in each round


def prune(
    model: nn.Module,
    density: float,
    method: str,
    data,
    *,
    steps: int | None = None,
    num_batches: int | None = None,
    loss_fn: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    train_fn: Callable[[nn.Module], object] | None = None,
    filter_fn: Callable[[str, nn.Module], bool] | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """The masks that `method` finds for the dense network `model`, which stays as it is.

    K = round(density * N) weights are kept, N those of all layers of exactly the types nn.Linear and
    nn.Conv2d; never one more or less. `sparsify_` applies the masks.

    Methods, by the paper's names (Price & Tanner, ICML 2021, section 4 and Table 3):
        "uniform", "epl", "epf", "erk": Sparse, with positions at random: the supports that `convert_` draws.
        "snip": SNIP (Lee et al., ICLR 2019): largest |w dL/dw|.
        "grasp": GraSP (Wang et al., ICLR 2020): largest w (H g).
        "force": FORCE (de Jorge et al., ICLR 2021): SNIP's score, step by step, at the network pruned so far;
            60 steps, exponential schedule; a pruned weight may come back.
        "iter_snip": Iter-SNIP (the same paper): as FORCE, but what is pruned stays so.
        "synflow": SynFlow (Tanaka et al., NeurIPS 2020): largest synaptic flow, 100 steps, exponential
            schedule; no data, only the shape of an input. In float64 from the step on where the network's own
            dtype over- or underflows.
        "imp": IMP, iterative magnitude pruning with rewinding (Frankle & Carbin, ICLR 2019): train, keep the
            weights of largest magnitude in the whole network, rewind, train the sparse network. Rewound is to
            the state in which `model` is given: its initialisation, or, trained for a few steps before, a
            later point (Frankle et al., ICML 2020). The paper is silent on the rounds; the default leaves 80%
            of the weights after each, as Frankle & Carbin do.

    Gradients are taken in training mode, as by the methods' public codes, and batch norm's statistics put
    back; the flow in evaluation mode. Of equal scores the first in the model's order is kept.

    Args:
        density: K / N, in [0, 1].
        method: one of `METHODS`.
        data: re-iterable of (inputs, targets); each step starts it anew, so a DataLoader that shuffles gives
            each step other batches. The methods without gradients only look at the shape of an input.
        steps: rounds of "imp", steps of "force", "iter_snip", "synflow"; default: `STEPS`, and see "imp".
        num_batches: the batches that a gradient is the mean of; default, as in Table 3: 1 for CIFAR-10, 10
            for CIFAR-100, 20 for Tiny ImageNet, that is the number of outputs // 10.
        loss_fn: called with (output, targets).
        train_fn: for "imp": trains the network that it is given, in place, for one round.
        filter_fn: called with (name, layer); a layer for which it returns False is left out.
        seed: of the random methods, and of torch's random state during the others, which is put back.

    Returns: layer name -> bool mask of the weight's shape, True where it is kept, in the model's order.

    Raises:
        PruningBreakdown: the scores do not decide, or the layers that are left empty cut the output off.
        TypeError, ValueError: naming the argument; and for a layer that `convert_` refuses.
    """
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(map(repr, METHODS))}, got {method!r}")
    density = check_density(density)
    seed = check_int("seed", seed, 0, 2**63 - 1)
    if num_batches is not None:
        num_batches = check_int("num_batches", num_batches, 1, 2**31 - 1)
    if steps is not None:
        if method not in STEPS and method != "imp":
            raise ValueError(f"steps: expected None for method {method!r}, which has none, got {steps}")
        steps = check_int("steps", steps, 1, 2**31 - 1)
    if not (callable(train_fn) if method == "imp" else train_fn is None):
        expected = "a function" if method == "imp" else "None"
        raise ValueError(f"train_fn: expected {expected} for method {method!r}, got {train_fn!r}")
    layers, _ = choose_layers(model, filter_fn)
    counts = allocate_layers(layers, density, method if method in _RANDOM else "uniform")
    budget = sum(counts.values())
    if budget == 0:
        raise PruningBreakdown(f"{method}: density {density:g} leaves no weight at all")
    network = Network(model, layers, data, num_batches, loss_fn)
    devices = {weight.device for weight in network.weights.values() if weight.device.type != "cpu"}

    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        if method in _RANDOM:
            masks = {}
            for name, layer in layers.items():
                mask = random_support(name, layer, counts[name], method, seed).mask()
                conv = isinstance(layer, nn.Conv2d)
                masks[name] = reference.conv_weight(mask, layer.kernel_size).contiguous() if conv else mask
        elif method == "imp":
            masks = _iterative_magnitude(model, network, budget, steps, train_fn)
        else:
            masks = _by_score(network, method, budget, STEPS.get(method, 1) if steps is None else steps)
    empty = [name for name, mask in masks.items() if not mask.any()]
    if empty and not is_connected(network, masks):
        raise PruningBreakdown(
            f"{method}: layer collapse: at density {density:g} no weight is left in {', '.join(empty)}, and "
            "no path from input to output goes round them, so that the network is a constant"
        )
    return masks


def sparsify_(model: nn.Module, masks: dict[str, Tensor]) -> ConversionReport:
    """Replaces the layers that `masks` name, in place, by sparse ones: DCTpS layers with offset="none".

    Their values are the dense weights where the mask is True; nothing of the dense size stays. All else is as
    with `convert_`, which shares the mechanism; layers without a mask are left dense.

    Args:
        masks: layer name -> bool mask of the weight's shape, as from `prune`.

    Raises: TypeError, ValueError naming the layer; the model is then as it was.
    """
    if not isinstance(masks, dict):
        raise TypeError(f"masks: expected a dict, layer name -> mask, got {describe(masks)}")
    layers, skipped = choose_layers(model, lambda name, layer: name in masks)
    unknown = [name for name in masks if name not in layers]
    if unknown:
        raise ValueError(f"masks: expected names of Linear or Conv2d layers, got {', '.join(unknown)}")
    supports = []
    for name, layer in layers.items():
        mask = masks[name]
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            raise TypeError(f"masks: expected a torch.bool tensor for {name}, got {describe(mask)}")
        if mask.shape != layer.weight.shape:
            raise ValueError(
                f"masks: expected the shape {tuple(layer.weight.shape)} for {name}, got {tuple(mask.shape)}"
            )
        mask = reference.conv_matrix(mask) if isinstance(layer, nn.Conv2d) else mask
        supports.append(Support.from_mask(mask.to(layer.weight.device)))
    return replace_layers_(model, layers, supports, skipped, offset="none")


def _by_score(network: Network, method: str, budget: int, steps: int) -> dict[str, Tensor]:
    everything = {name: torch.ones_like(w, dtype=torch.bool) for name, w in network.weights.items()}
    total = sum(weight.numel() for weight in network.weights.values())
    dtypes = [torch.float64]
    if method == "synflow":
        dtypes = list(dict.fromkeys([next(iter(network.weights.values())).dtype, torch.float64]))
    masks = None
    for step, count in enumerate(exponential_schedule(total, budget, steps), 1):
        candidates = everything if masks is None or method == "force" else masks
        while True:
            if method == "synflow":
                scores = synaptic_flow(network, masks, dtypes[0])
            elif method == "grasp":
                scores = gradient_flow(network)
            else:
                scores = connection_sensitivity(network, masks)
            problem = objection(scores, count, candidates, step == steps)
            if problem is None or len(dtypes) == 1:
                break
            _log.info("%s: %s in %s: going on in float64", method, problem, dtypes.pop(0))
        if problem is not None:
            at = (
                f"the network pruned to {sum(int(m.sum()) for m in masks.values())} weights"
                if masks
                else ("the dense network")
            )
            why = "no signal passes forward and back through it" if "zero" in problem else "they overflow"
            raise PruningBreakdown(
                f"{method}: {problem} at {at} (step {step} of {steps}, to {count} of {total} weights): {why}"
            )
        masks = keep_largest(scores, count, candidates)
    return masks


def _iterative_magnitude(
    model: nn.Module, network: Network, budget: int, rounds: int | None, train_fn: Callable
) -> dict[str, Tensor]:
    masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in network.weights.items()}
    total = sum(mask.numel() for mask in masks.values())
    if rounds is None:
        rounds = max(1, math.ceil(round(math.log(budget / total) / math.log(_IMP_KEEPS), 6)))
    for number, count in enumerate(exponential_schedule(total, budget, rounds), 1):
        rewound = copy.deepcopy(model)
        if number > 1:
            sparsify_(rewound, masks)
        train_fn(rewound)
        scores = {name: rewound.get_submodule(name).weight.detach().abs() for name in masks}
        if not all(torch.isfinite(score).all() for score in scores.values()):
            raise PruningBreakdown(f"imp: weights are infinite or NaN after training in round {number}")
        masks = keep_largest(scores, count, masks)
    return masks
