"""Scores: what SNIP, GraSP, FORCE and SynFlow think each weight of a dense network is worth."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

GRASP_TEMPERATURE = 200.0

Weights = dict[str, Tensor]


class Network:
    """A dense network that runs with any weights in place of its own, and is left as it was.

    Args:
        model: the network.
        layers: by name, the layers whose weights are to be pruned.
        data: re-iterable of pairs (inputs, targets).
        num_batches: how many of them a gradient is the mean of. None: classes // 10, at least 1, the classes
            being the output's last dimension: so 1 for CIFAR-10, 10 for CIFAR-100, 20 for Tiny ImageNet, as
            the paper's Table 3 has it.
        loss_fn: called with (output, targets).

    Attributes:
        weights: layer name -> the dense weight, detached.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: dict[str, nn.Module],
        data,
        num_batches: int | None,
        loss_fn: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        if isinstance(data, Iterator) or not isinstance(data, Iterable):
            raise TypeError(
                "data: expected a re-iterable of (inputs, targets), e.g. a list or a DataLoader, since every "
                f"step starts it anew, got {type(data).__name__}"
            )
        self.model = model
        self.weights: Weights = {name: layer.weight.detach() for name, layer in layers.items()}
        self._device = next(iter(self.weights.values())).device
        self._data = data
        self._num_batches = num_batches
        self._loss_fn = loss_fn

    def run(self, weights: Weights, inputs: Tensor) -> Tensor:
        """The output with `weights`; buffers are copies, so that batch norm's statistics stay."""
        tensors = {f"{name}.weight": weight for name, weight in weights.items()}
        tensors |= {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        return functional_call(self.model, tensors, (inputs,))

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one step, on the network's device."""
        wanted = self._num_batches or self._default_batches()
        got = 0
        for batch in itertools.islice(self._data, wanted):
            yield tuple(tensor.to(self._device) for tensor in self._pair(batch))
            got += 1
        if got < wanted:
            raise ValueError(f"data: expected at least num_batches = {wanted} batches, got {got}")

    def losses(self, weights: Weights, batches, temperature: float = 1.0) -> Iterator[Tensor]:
        """The loss of each batch, the output divided by `temperature`."""
        for inputs, targets in batches:
            yield self._loss_fn(self.run(weights, inputs) / temperature, targets)

    def positive_output(self, weights: Weights, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(sum of the outputs, an input of ones) of the network made positive, in evaluation mode.

        The parameters that are not in `weights` become their absolute values; biases (all parameters whose
        own name begins with "bias") and batch norm's means become 0. With weights >= 0 a network of ReLUs,
        means and sums is then linear in each of them, and conserves flow.
        """
        inputs = torch.ones_like(self._one_input(), dtype=dtype).requires_grad_()
        tensors = {}
        for name, tensor in itertools.chain(self.model.named_parameters(), self.model.named_buffers()):
            tensor = tensor.detach()
            if tensor.is_floating_point():
                own = name.rpartition(".")[2]
                shift = own.startswith("bias") or own == "running_mean"
                tensor = torch.zeros_like(tensor, dtype=dtype) if shift else tensor.abs().to(dtype)
            tensors[name] = tensor
        tensors |= {f"{name}.weight": weight for name, weight in weights.items()}
        with self.mode(training=False):
            # Not the leaf itself: FlopCounterMode cannot follow the gradient to a leaf that a module takes.
            return functional_call(self.model, tensors, (inputs * 1,)).sum(), inputs

    @contextmanager
    def mode(self, training: bool):
        """The model in training or evaluation mode, and afterwards as it was."""
        before = {module: module.training for module in self.model.modules()}
        self.model.train(training)
        try:
            yield
        finally:
            for module, mode in before.items():
                module.training = mode

    def _default_batches(self) -> int:
        with self.mode(training=False), torch.no_grad():
            classes = self.run(self.weights, self._one_input()).shape[-1]
        self._num_batches = max(1, classes // 10)
        return self._num_batches

    def _one_input(self) -> Tensor:
        for batch in self._data:
            return self._pair(batch)[0][:1].to(self._device)
        raise ValueError("data: expected at least one batch, got none")

    @staticmethod
    def _pair(batch) -> tuple[Tensor, Tensor]:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise TypeError(f"data: expected pairs (inputs, targets), got {type(batch).__name__}")
        return batch[0], batch[1]


def masked(weights: Weights, masks: dict[str, Tensor] | None) -> Weights:
    """The weights, zero outside the masks; themselves where there are no masks yet."""
    return weights if masks is None else {name: weight * masks[name] for name, weight in weights.items()}


def _leaves(weights: Weights) -> Weights:
    return {name: weight.detach().requires_grad_() for name, weight in weights.items()}


def _mean_gradients(losses: Iterator[Tensor], leaves: Weights) -> Weights:
    total = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    count = 0
    for loss in losses:
        gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
        for name, gradient in zip(leaves, gradients, strict=True):
            total[name] += gradient
        count += 1
    return {name: gradient / count for name, gradient in total.items()}


def connection_sensitivity(network: Network, masks: dict[str, Tensor] | None) -> Weights:
    """|w * dL/dw|, w the dense weights, the gradient at the weights that `masks` leave.

    At the dense network it is SNIP's score (Lee et al., ICLR 2019, eq. 6, without its normalisation, which
    does not change the order); over the steps FORCE's, where a pruned weight can come back, and Iter-SNIP's
    if only the weights that are left are asked (de Jorge et al., ICLR 2021, sections 3.2, 4).
    """
    leaves = _leaves(masked(network.weights, masks))
    with network.mode(training=True):
        gradients = _mean_gradients(network.losses(leaves, network.batches()), leaves)
    return {name: (weight * gradients[name]).abs() for name, weight in network.weights.items()}


def gradient_flow(network: Network) -> Weights:
    """w * (H g): g the gradient and H the Hessian of the loss in the weights to prune, at the dense network.

    GraSP (Wang et al., ICLR 2020, eq. 8) scores -w * (H g) and removes the largest; so the largest of these
    are kept. As in the authors' code the logits are divided by 200; g is taken at the same batches as H. The
    authors take ten images of each class; here the data decide.
    """
    leaves, batches = _leaves(network.weights), list(network.batches())

    def products(gradients):
        for loss in network.losses(leaves, batches, GRASP_TEMPERATURE):
            graph = torch.autograd.grad(
                loss, list(leaves.values()), create_graph=True, materialize_grads=True
            )
            yield sum((a * b).sum() for a, b in zip(graph, gradients.values(), strict=True))

    with network.mode(training=True):
        gradients = _mean_gradients(network.losses(leaves, batches, GRASP_TEMPERATURE), leaves)
        hessian_gradients = _mean_gradients(products(gradients), leaves)
    return {name: weight * hessian_gradients[name] for name, weight in network.weights.items()}


def synaptic_flow(network: Network, masks: dict[str, Tensor] | None, dtype: torch.dtype) -> Weights:
    """|w| * dR/d|w| in `dtype`, R the sum of the outputs of the network of |w| for an input of ones.

    Source: SynFlow (Tanaka et al., NeurIPS 2020, eqs. 2 and 3). R has no biases there, so here they are 0.
    """
    weights = {
        name: weight.abs().to(dtype).requires_grad_()
        for name, weight in masked(network.weights, masks).items()
    }
    output, _ = network.positive_output(weights, dtype)
    gradients = torch.autograd.grad(output, list(weights.values()), materialize_grads=True)
    return {
        name: weight.detach() * gradient
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
    }


def is_connected(network: Network, masks: dict[str, Tensor]) -> bool:
    """Whether the output depends on the input through layers that keep a weight: a path round empty ones.

    Every layer counts as dense or as absent, with the weights 1/n, whose flow stays near 1.
    """
    weights = {
        name: torch.full_like(weight, float(masks[name].any()) * weight.shape[0] / weight.numel()).double()
        for name, weight in network.weights.items()
    }
    output, inputs = network.positive_output(weights, torch.float64)
    (gradient,) = torch.autograd.grad(output, inputs, materialize_grads=True)
    return bool(gradient.any())
