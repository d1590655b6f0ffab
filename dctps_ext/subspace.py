"""Hyperplane Projection: training any network in a random subspace of its weights (Li et al., ICLR 2018)."""

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .ops import sparse_linear
from .support import Support, check_int, check_module

__all__ = ["HyperplaneProjection"]


class _Projection(nn.Module):
    """theta [k] -> U theta [size]; U is drawn from a seed, and saved as that seed.

    numpy's RandomState is used because its streams never change between versions (NEP 19). The seed's key in
    a state dict is the kind of projection, so that none loads into another kind.
    """

    kind: str

    def __init__(self, size: int, k: int, seed: int, like: Tensor) -> None:
        super().__init__()
        self.size = size
        self.k = k
        self.register_buffer(f"{self.kind}_seed", torch.tensor(seed, device=like.device))
        self._draw(seed, like)

    def _draw(self, seed: int, like: Tensor) -> None:
        """Sets the buffers of U, floating ones in the dtype of `like`, all on its device."""
        self._drawn = seed
        for name, buffer in self._buffers_of(np.random.RandomState(seed), like.dtype).items():
            dtype = like.dtype if buffer.is_floating_point() else buffer.dtype
            self.register_buffer(name, buffer.to(like.device, dtype), persistent=False)

    def _buffers_of(self, random: np.random.RandomState, dtype: torch.dtype) -> dict[str, Tensor]:
        raise NotImplementedError

    def _load_from_state_dict(self, *arguments) -> None:
        super()._load_from_state_dict(*arguments)
        seed = int(self.get_buffer(f"{self.kind}_seed"))
        if seed != self._drawn:
            self._draw(seed, next(b for b in self.buffers() if b.is_floating_point()))


class _Gaussian(_Projection):
    kind = "gaussian"

    def _buffers_of(self, random, dtype):
        columns = torch.empty(self.k, self.size, dtype=dtype)
        for column in columns:
            drawn = random.standard_normal(self.size)
            column.copy_(torch.from_numpy(drawn / np.linalg.norm(drawn)))
        return {"columns": columns}

    def forward(self, theta: Tensor) -> Tensor:
        return theta @ self.columns


class _Sparse(_Projection):
    kind = "sparse"

    def _buffers_of(self, random, dtype):
        per_column = round(math.sqrt(self.size))
        transposed = Support.random(self.k, self.size, self.k * per_column, self._drawn, per_row=True)
        columns = torch.repeat_interleave(transposed.crow.diff())
        support = Support.from_indices(transposed.col, columns, (self.size, self.k))
        signs = 2.0 * random.randint(0, 2, support.nnz) - 1.0
        return {"index": support.index, "values": torch.from_numpy(signs / math.sqrt(per_column))}

    def forward(self, theta: Tensor) -> Tensor:
        return sparse_linear(theta, self.values, Support((self.size, self.k), self.index))


class _Fastfood(_Projection):
    kind = "fastfood"

    def _buffers_of(self, random, dtype):
        length = 1 << (self.k - 1).bit_length()
        blocks = -(-self.size // length)
        signs = 2 * random.randint(0, 2, (blocks, length), dtype=np.int8) - 1
        order = [i * length + random.permutation(length).astype(np.int32) for i in range(blocks)]
        gaussian = random.standard_normal((blocks, length))
        gaussian *= math.sqrt(length) / np.linalg.norm(gaussian, axis=1, keepdims=True)
        return {
            "signs": torch.from_numpy(signs),
            "order": torch.from_numpy(np.concatenate(order)),
            "gaussian": torch.from_numpy(gaussian * math.sqrt(length / self.size)),
        }

    def forward(self, theta: Tensor) -> Tensor:
        padded = F.pad(theta, (0, self.signs.shape[1] - self.k))
        mixed = _hadamard(self.signs * padded).flatten().index_select(0, self.order)
        return _hadamard(self.gaussian * mixed.view_as(self.gaussian)).flatten()[: self.size]


def _hadamard(x: Tensor) -> Tensor:
    """H x over the last dimension, whose size L is a power of 2; H orthogonal, entries +-1/sqrt(L)."""
    shape, half = x.shape, 1
    while half < shape[-1]:
        a, b = x.unflatten(-1, (-1, 2, half)).unbind(-2)
        x = torch.stack((a + b, a - b), -2).reshape(shape)
        half *= 2
    return x / math.sqrt(shape[-1])


_PROJECTIONS = {kind.kind: kind for kind in (_Gaussian, _Fastfood, _Sparse)}


class HyperplaneProjection(nn.Module):
    r"""A network whose weights are w = d + U theta: only theta [k] trains, in a hyperplane through d.

    w [N] are all trainable parameters of `module`, one after the other, biases and norm parameters among
    them; d [N] is their value when wrapped (dense and random, if the network is freshly made); U [N, k] is
    fixed and random, with nearly orthogonal columns of norm 1, so that distances in theta are distances in
    w. theta starts at 0, and its gradient is U^T dL/dw. Source: Li, Farkhoor, Liu & Yosinski, "Measuring the
    intrinsic dimension of objective landscapes", ICLR 2018; a competitor of Price & Tanner, ICML 2021.

    `module` is changed: its parameters become d, which does not train (requires_grad is False). It is called
    through torch.func.functional_call; its buffers, e.g. running statistics, work as before.

    Args:
        module: any module; its trainable parameters have one floating point dtype and one device.
        k: dimension of theta, in [1, N].
        projection: how U is made and held. Inner products of different columns have a standard deviation
            near 1/sqrt(N), with "fastfood" sqrt(2/N).
            "gaussian": dense, of normal entries, the columns normalised. Holds N k numbers; 2 N k operations.
            "fastfood" (Le, Sarlos & Smola, ICML 2013): U = [V_1; V_2; ...] cut to N rows, with V_i =
            sqrt(L/N) H G_i P_i H B_i, never multiplied out: H the orthogonal Hadamard matrix of length L,
            which is k padded to a power of 2, B_i random signs and G_i a Gaussian on the diagonal, P_i a
            permutation. Holds 9 bytes for each weight in float32; O(N log k) operations. That paper's
            diagonal S is left out and G_i has the norm sqrt(L), so that norms are exact if L divides N, and
            else differ from 1 by about sqrt(2L)/N.
            "sparse" (Li, Hastie & Church, KDD 2006): each column has s = sqrt(N), rounded, entries
            +-1/sqrt(s) at random places; there that is their mean number. Holds 16 bytes for each entry.
        seed: of U, in [0, 2^32).

    Shape: as `module`.

    Attributes:
        module: the wrapped module, with d.
        theta: [k].

    State: `theta`, the state of `module` (d and its buffers), and the seed instead of U; loading draws U
    again. The network that loads needs the same k and projection, not the same seed.

    Raises: TypeError, ValueError naming the argument.

    Example::

        >>> net = HyperplaneProjection(dctps_ext.models.lenet5(), k=600, projection="fastfood")
        >>> torch.optim.Adam(net.parameters())  # theta and nothing else is trainable
    """

    def __init__(self, module: nn.Module, k: int, projection: str = "gaussian", seed: int = 0) -> None:
        super().__init__()
        if projection not in _PROJECTIONS:
            kinds = ", ".join(map(repr, _PROJECTIONS))
            raise ValueError(f"projection: expected one of {kinds}, got {projection!r}")
        check_module("module", module)
        seed = check_int("seed", seed, 0, 2**32 - 1)
        parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        if not parameters:
            raise ValueError("module: expected at least one trainable parameter, got none")
        kinds = {(p.dtype, p.device) for p in parameters.values()}
        if len(kinds) > 1:
            found = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
            raise ValueError(f"module: expected trainable parameters of one dtype on one device, got {found}")
        like = next(iter(parameters.values()))
        if not like.is_floating_point():
            raise TypeError(f"module: expected parameters of a floating point dtype, got {like.dtype}")
        self._shapes = {name: p.shape for name, p in parameters.items()}
        size = sum(p.numel() for p in parameters.values())
        k = check_int("k", k, 1, size)
        self.projection = _PROJECTIONS[projection](size, k, seed, like)
        self.theta = nn.Parameter(torch.zeros(k, dtype=like.dtype, device=like.device))
        for parameter in parameters.values():
            parameter.requires_grad_(False)
        self.module = module

    def weights(self) -> dict[str, Tensor]:
        """w = d + U theta: parameter name in `module` -> its value; differentiable in theta."""
        moves = self.projection(self.theta).split([shape.numel() for shape in self._shapes.values()])
        return {
            name: self.module.get_parameter(name) + move.view(shape)
            for (name, shape), move in zip(self._shapes.items(), moves, strict=True)
        }

    def forward(self, *args, **kwargs):
        """Runs the module with the weights d + U theta."""
        return torch.func.functional_call(self.module, self.weights(), args, kwargs)

    def bytes_held(self) -> dict[str, int]:
        """Bytes of "theta", of "d" and of "U" (in the form in which it is held).

        A forward pass makes w beside them, as large as d, and keeps it for backward.
        """
        d = [self.module.get_parameter(name) for name in self._shapes]
        held = {"theta": [self.theta], "d": d, "U": self.projection.buffers()}
        return {what: sum(t.numel() * t.element_size() for t in tensors) for what, tensors in held.items()}

    def extra_repr(self) -> str:
        p = self.projection
        return f"k={p.k}, size={p.size}, projection={p.kind!r}, seed={p._drawn}"
