"""RigL: dynamic supports, for sparse and for DCTpS layers, without ever keeping a dense gradient."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..modules import DCTpSLinear
from ..modules._base import DCTpSLayer
from ..support import Support, check_int, check_module, describe
from .selection import largest


class RigL:
    """Moves the nonzeros of a network's sparse and DCTpS layers to where the dense gradient is largest.

    In place of `optimizer.step()`, call `rigl.step()`. Step t is the optimizer's, unless t is a multiple of
    `interval` and below T_end = 3/4 `steps`: then, in each layer, the

        floor(nnz * drop_fraction/2 (1 + cos(pi t / T_end)))

    values of smallest magnitude are dropped, and as many positions grown where |dL/dW| is largest among those
    that are not kept; a grown value is 0, or what it was where it had just been dropped. With a DCT part the
    offset alpha*D stays, and only S moves: dL/dW = dL/dS everywhere.

    nnz of every layer stays. `values` stays the same Parameter, reordered for the new support; so are tensors
    of its shape in the optimizer's state, which are 0 for a grown value; its gradient is dropped. The layers
    get a new `Support`, an explicit one.

    The dense gradients come from the inputs and output gradients of the last backward passes before an update
    step, which hooks on the layers keep until then, and are m x n in size, one layer at a time. The loss that
    is differentiated is the one of that step, as with several backward passes, whose sum counts.

    Source: Evci et al. (ICML 2020), algorithm 1. The defaults and T_end are those of Price & Tanner's code,
    as recommended there; initial supports are `convert_`'s. The paper is silent on the optimizer's state.

    Args:
        model: a network with at least one DCTpS layer (of either offset) that is neither empty nor full.
        optimizer: has the layers' values among its parameters.
        steps: of the whole training, at least 1.
        interval: steps from one update to the next, Delta T.
        drop_fraction: of a layer's nnz that an update moves at first, alpha, in (0, 1).

    Raises: TypeError, ValueError naming the argument.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        steps: int,
        *,
        interval: int = 100,
        drop_fraction: float = 0.3,
    ) -> None:
        self.end = math.floor(0.75 * check_int("steps", steps, 1, 2**63 - 1))
        self.interval = check_int("interval", interval, 1, 2**63 - 1)
        if not isinstance(drop_fraction, (int, float)):
            raise TypeError(f"drop_fraction: expected a number in (0, 1), got {describe(drop_fraction)}")
        if not 0 < drop_fraction < 1:
            raise ValueError(f"drop_fraction: expected a number in (0, 1), got {drop_fraction}")
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"optimizer: expected a torch.optim.Optimizer, got {describe(optimizer)}")
        check_module("model", model)
        self.drop_fraction = float(drop_fraction)
        self.optimizer = optimizer
        self.count = 0  # calls of step()
        self._seen: dict[DCTpSLayer, list[tuple[Tensor, Tensor]]] = {}
        layers = {
            name: layer
            for name, layer in model.named_modules()
            if isinstance(layer, DCTpSLayer) and 0 < layer.density < 1
        }
        if not layers:
            raise ValueError(
                "model: expected at least one DCTpS or sparse layer that is neither empty nor full"
            )
        trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for name, layer in layers.items():
            if id(layer.values) not in trained:
                raise ValueError(f"optimizer: expected it to have {name}.values among its parameters")
            layer.register_forward_hook(self._watch, with_kwargs=True)

    def step(self) -> bool:
        """The optimizer's step, or an update of the supports; whether it was an update.

        Raises: RuntimeError before an update if there was no backward pass since the last step.
        """
        update = self._due()
        if update and not self._seen:
            raise RuntimeError("RigL.step: expected a backward pass before it, got none")
        self.count += 1
        if not update:
            self.optimizer.step()
            return False
        fraction = self.drop_fraction / 2 * (1 + math.cos(math.pi * self.count / self.end))
        for layer in list(self._seen):
            pairs = self._seen.pop(layer)
            gradient = dense_gradient(layer, *pairs[0])
            for pair in pairs[1:]:
                gradient += dense_gradient(layer, *pair)
            self._move(layer, gradient, int(fraction * layer.nnz))
        return True

    def state_dict(self) -> dict:
        """The number of steps done; the supports are in the model's state dict."""
        return {"count": self.count}

    def load_state_dict(self, state: dict) -> None:
        self.count = state["count"]

    def _due(self) -> bool:
        """Whether the next step is an update."""
        step = self.count + 1
        return step % self.interval == 0 and step < self.end

    def _watch(self, layer, args, kwargs, output) -> None:
        if self._due() and output.requires_grad:
            x = (args[0] if args else kwargs["input"]).detach()
            output.register_hook(lambda dy: self._seen.setdefault(layer, []).append((x, dy.detach())))

    @torch.no_grad()
    def _move(self, layer: DCTpSLayer, gradient: Tensor, count: int) -> None:
        m, n = layer.support.shape
        values, support = layer.values, layer.support
        rows = torch.repeat_interleave(support.crow.diff(), output_size=support.nnz)
        old = rows.long() * n + support.col  # ascending
        kept = old[largest(values.abs(), support.nnz - count)]
        gain = gradient.flatten().abs_()
        gain[kept] = -1
        new = torch.cat([kept, largest(gain, count).nonzero().flatten()]).sort().values
        at = torch.searchsorted(old, new).clamp(max=support.nnz - 1)
        known = old[at] == new

        state = self.optimizer.state.get(values, {})
        for tensor in [
            values,
            *(t for t in state.values() if isinstance(t, Tensor) and t.shape == values.shape),
        ]:
            tensor.copy_(torch.where(known, tensor[at], 0))
        values.grad = None
        layer._set_support(Support.from_indices(new // n, new % n, (m, n)))


def dense_gradient(layer: DCTpSLayer, x: Tensor, dy: Tensor) -> Tensor:
    """dL/dW [m, n] of a DCTpS layer from its input and the gradient of its output."""
    x, dy = x.to(layer.values.dtype), dy.to(layer.values.dtype)
    if isinstance(layer, DCTpSLinear):
        return dy.reshape(-1, dy.shape[-1]).T @ x.reshape(-1, x.shape[-1])
    if x.dim() == 3:
        x, dy = x[None], dy[None]
    x = F.pad(x, layer._pads(), mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)
    gradient = nn.grad.conv2d_weight(
        x, layer._weight_shape(layer), dy, layer.stride, 0, layer.dilation, layer.groups
    )
    return layer._to_matrix(gradient)
