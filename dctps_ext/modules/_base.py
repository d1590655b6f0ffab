"""What DCTpSLinear and DCTpSConv2d share: parameters, initialisation, the support, the state."""

import math

import torch
from torch import Tensor, nn
from torch.nn import init

from .. import reference
from ..support import Support, check_density, check_int

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_INDEX = "support_index"


def _check_number(name: str, value) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}") from None


class DCTpSLayer(nn.Module):
    """A layer whose weight, seen as an m x n matrix, is alpha*D + S (see the subclasses).

    State: `values`, `alpha` (if there is a DCT part), `bias` (if there is one), `weight_shape`, int64, the
    dense weight's shape, and the support, which is `support_seed`, int64 [seed, nnz, per_row], when it is
    random, else `support_crow` and `support_col`, int32. Loading accepts either kind, whatever the layer has,
    if shape and nnz agree; values and support are loaded together or not at all.
    """

    bias: Tensor | None
    alpha: Tensor | None

    def __init__(
        self,
        m,
        n,
        *,
        bias,
        density,
        nnz,
        support,
        alpha,
        alpha_trainable,
        offset,
        algorithm,
        seed,
        device,
        dtype,
    ) -> None:
        super().__init__()
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if dtype not in _DTYPES:
            raise TypeError(f"dtype: expected one of {', '.join(map(str, _DTYPES))}, got {dtype}")
        if offset not in ("dct", "none"):
            raise ValueError(f"offset: expected 'dct' or 'none', got {offset!r}")
        if algorithm not in ("auto", "fast", "dense"):
            raise ValueError(f"algorithm: expected 'auto', 'fast' or 'dense', got {algorithm!r}")
        given = [
            name
            for name, value in (("density", density), ("nnz", nnz), ("support", support))
            if value is not None
        ]
        if len(given) > 1:
            raise ValueError(
                f"density, nnz, support: expected at most one of them, got {' and '.join(given)}"
            )
        if support is None:
            if nnz is None:
                nnz = round(check_density(0.01 if density is None else density) * m * n)
            nnz = check_int("nnz", nnz, 0, min(m * n, 2**31 - 1))
        elif not isinstance(support, Support):
            raise TypeError(f"support: expected a dctps_ext.Support, got {type(support).__name__}")
        elif support.shape != (m, n):
            raise ValueError(f"support: expected shape {(m, n)}, got {support.shape}")
        else:
            nnz = support.nnz

        self.offset = offset
        self.algorithm = algorithm
        self.values = nn.Parameter(torch.empty(nnz, device=device, dtype=dtype))
        device = self.values.device
        if offset == "none":
            self.register_parameter("alpha", None)
        else:
            self.alpha_init = _check_number("alpha", alpha)
            alpha = torch.empty((), device=device, dtype=dtype)
            if alpha_trainable:
                self.alpha = nn.Parameter(alpha)
            else:
                self.register_buffer("alpha", alpha)
        if bias:
            self.bias = nn.Parameter(torch.empty(m, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        if support is None:
            support = Support.random(m, n, nnz, seed, device=device)
        self._support = support.to(device)
        self.register_buffer(_INDEX, self._support.index, persistent=False)
        self.reset_parameters()

    @classmethod
    def _from_dense(cls, dense: nn.Module, support: Support, **keywords) -> "DCTpSLayer":
        """A layer with the settings and the very bias of `dense`; the random state is not touched.

        With offset="none" the values are the dense layer's weights on the support: the pruned layer.
        """
        weight = dense.weight
        layer = cls(
            **cls._settings(dense),
            bias=False,
            support=support,
            device="meta",  # nothing is allocated or drawn twice
            dtype=weight.dtype,
            **keywords,
        )
        layer._set_support(support.to(weight.device))
        layer.to_empty(device=weight.device)
        if layer.offset == "none":
            rows = torch.repeat_interleave(layer.support.crow.diff(), output_size=layer.nnz)
            with torch.no_grad():
                layer.values.copy_(cls._to_matrix(weight)[rows, layer.support.col.long()])
        else:
            layer.reset_parameters()
        for parameter in (layer.values, layer.alpha):
            if isinstance(parameter, nn.Parameter):
                parameter.requires_grad_(weight.requires_grad)
        layer.bias = dense.bias
        return layer.train(dense.training)

    # What a subclass says of its dense twin.
    @staticmethod
    def _settings(layer: nn.Module) -> dict:
        """The arguments but the bias that make `layer`, which is of either type, the same for both types."""
        raise NotImplementedError

    @staticmethod
    def _weight_shape(layer: nn.Module) -> tuple[int, ...]:
        """The shape of the dense weight of `layer`, which is of either type."""
        raise NotImplementedError

    @staticmethod
    def _to_matrix(weight: Tensor) -> Tensor:
        """The dense weight as the matrix [m, n]."""
        raise NotImplementedError

    def _from_matrix(self, matrix: Tensor) -> Tensor:
        """The inverse of `_to_matrix`."""
        raise NotImplementedError

    _dense_type: type[nn.Module]

    # ---- support

    @property
    def support(self) -> Support:
        """The positions of S, on the layer's device. Fixed: to change it, build another layer."""
        index = self._buffers[_INDEX]
        if (
            self._support.index is not index
        ):  # something moved the buffer, e.g. a wrapper that handles all buffers
            old = self._support
            self._support = Support(old.shape, index, old.seed, old.per_row)
        return self._support

    def _set_support(self, support: Support) -> None:
        self._support = support
        self._buffers[_INDEX] = support.index

    def _place_support(self) -> None:
        """Brings the index to the device of `values`; draws it again where it comes from the meta device."""
        support = self.support
        if support.index.is_meta and support.seed is None:
            return  # its content can only come from a state dict
        self._set_support(support.to(self.values.device))

    def _apply(self, fn, recurse=True):
        # `fn` never sees the index: to_empty() would leave arbitrary numbers in it, and type() would make it
        # float.
        index = self._buffers.pop(_INDEX)
        try:
            super()._apply(fn, recurse)
        finally:
            self._buffers[_INDEX] = index
        self._place_support()
        return self

    @property
    def nnz(self) -> int:
        """The number of trainable values of S."""
        return self._support.nnz

    @property
    def density(self) -> float:
        """nnz / (m n)."""
        return self._support.density

    # ---- values

    def _operands(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """`values`, the support's index, `alpha` and `bias`, for a forward pass.

        Straight from torch's dictionaries: nn.Module finds an attribute there only after Python has looked
        elsewhere and failed, which for four of them takes a fifth of the time of a small call. What is not
        there was moved (an `alpha` that is not trained; torch.nn.utils.prune, parametrize).
        """
        parameters = self._parameters
        try:
            return parameters["values"], self._buffers[_INDEX], parameters["alpha"], parameters["bias"]
        except KeyError:
            return self.values, self.support_index, self.alpha, self.bias

    def reset_parameters(self) -> None:
        """Sets everything to the initial values.

        S = 0 and alpha = its initial value, or for offset="none" values ~ U(-1/sqrt(n), 1/sqrt(n)); the bias
        is torch's, U(-1/sqrt(n), 1/sqrt(n)).
        """
        if self.support.index.is_meta and not self.values.is_meta:
            raise RuntimeError(
                "support: an explicit support was lost on the meta device; load a state dict that has "
                "support_crow and support_col"
            )
        bound = 1 / math.sqrt(self._support.shape[1])
        if self.offset == "none":
            init.uniform_(self.values, -bound, bound)
        else:
            init.zeros_(self.values)
            init.constant_(self.alpha, self.alpha_init)
        if self.bias is not None:
            init.uniform_(self.bias, -bound, bound)

    @property
    def weight(self) -> Tensor:
        """alpha*D + S as a dense tensor of the shape, dtype and device of the dense twin's weight; read-only.

        Computed in float64 on every access, O(m n): for inspection and export. Differentiable in `values` and
        `alpha`.
        """
        matrix = reference.dense_weight(self.values, self.support, self.alpha)
        return self._from_matrix(matrix).to(self.values.dtype, memory_format=torch.contiguous_format)

    def __setattr__(self, name, value) -> None:
        if name == "weight":
            raise AttributeError(
                f"weight of {type(self).__name__} is read-only: it is alpha*D + S. Set `values` or "
                "`alpha`, or take `to_dense()` for a layer whose weight is free"
            )
        super().__setattr__(name, value)

    def to_dense(self) -> nn.Module:
        """The equivalent torch.nn.Linear or Conv2d: same device, dtype, mode, settings; tensors copied."""
        dense = nn.utils.skip_init(
            self._dense_type,
            **self._settings(self),
            bias=self.bias is not None,
            device=self.values.device,
            dtype=self.values.dtype,
        )
        pairs = [(dense.weight, self.weight, self.values)]
        if self.bias is not None:
            pairs.append((dense.bias, self.bias, self.bias))
        with torch.no_grad():
            for parameter, content, like in pairs:
                parameter.copy_(content)
                parameter.requires_grad_(like.requires_grad)
        return dense.train(self.training)

    def _repr_tail(self) -> str:
        seed = "" if self._support.seed is None else f", seed={self._support.seed}"
        algorithm = "" if self.algorithm == "auto" else f", algorithm='{self.algorithm}'"
        return f", nnz={self.nnz}, density={self.density:.3%}, offset='{self.offset}'{algorithm}{seed}"

    # ---- state

    def _save_to_state_dict(self, destination, prefix, keep_vars) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        support = self.support
        # Always on the CPU, so that they can be read without a device.
        integers = {"dtype": torch.int64, "device": "cpu"}
        destination[prefix + "weight_shape"] = torch.tensor(self._weight_shape(self), **integers)
        if support.seed is not None:
            seed = torch.tensor([support.seed, support.nnz, support.per_row], **integers)
            destination[prefix + "support_seed"] = seed
        else:
            # Copies, since safetensors refuses tensors that share memory.
            destination[prefix + "support_crow"] = support.crow.clone()
            destination[prefix + "support_col"] = support.col.clone()

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ) -> None:
        saved, rest = {}, {}
        for key, value in state_dict.items():
            name = key.removeprefix(prefix)
            if key.startswith(prefix) and name in (
                "weight_shape",
                "support_seed",
                "support_crow",
                "support_col",
            ):
                saved[name] = value
            else:
                rest[key] = value
        if saved.keys() & {"support_seed", "support_crow", "support_col"}:
            explicit = "support_seed" not in saved
        else:
            explicit = self._support.seed is None
        expected = ["weight_shape", *(("support_crow", "support_col") if explicit else ("support_seed",))]
        missing = [prefix + name for name in expected if name not in saved]
        unexpected = [prefix + name for name in saved if name not in expected]

        support = None
        values = rest.get(prefix + "values", self.values)
        if (
            getattr(values, "shape", None) == self.values.shape
        ):  # if not, torch reports it, and the support stays
            try:
                support = self._loaded_support(saved)
            except (TypeError, ValueError) as error:
                error_msgs.append(f"While loading the support {prefix}{expected[1]}: {error}.")
                rest.pop(prefix + "values", None)
        not_loaded = {prefix + "values"} - rest.keys() if prefix + "values" in state_dict else set()

        more_missing: list[str] = []
        super()._load_from_state_dict(
            rest, prefix, local_metadata, strict, more_missing, unexpected_keys, error_msgs
        )
        if strict:
            missing_keys.extend(key for key in more_missing if key not in not_loaded)
            missing_keys.extend(missing)
            unexpected_keys.extend(unexpected)
        if support is not None:
            self._set_support(support)
        self._place_support()  # with assign=True the values may just have left the meta device

    def _loaded_support(self, saved: dict) -> Support | None:
        """The support that the entries of a state dict describe, None where they are incomplete."""
        old = self._support
        if "weight_shape" in saved:
            shape = tuple(_integers("weight_shape", saved["weight_shape"]))
            if shape != self._weight_shape(self):
                raise ValueError(
                    f"size mismatch for weight_shape: the weight has shape {shape} in the checkpoint, "
                    f"{self._weight_shape(self)} in the current model"
                )
        if "support_seed" in saved:
            entry = _integers("support_seed", saved["support_seed"])
            if len(entry) != 3:
                raise ValueError(f"support_seed: expected 3 elements [seed, nnz, per_row], got {len(entry)}")
            seed, nnz, per_row = entry
            if (seed, nnz, bool(per_row)) == (old.seed, old.nnz, old.per_row):
                return None
            support = Support.random(*old.shape, nnz, seed, per_row=bool(per_row), device=self.values.device)
        elif {"support_crow", "support_col"} <= saved.keys():
            support = Support.from_csr(saved["support_crow"], saved["support_col"], old.shape)
        else:
            return None
        if support.nnz != old.nnz:
            raise ValueError(
                f"size mismatch: nnz is {support.nnz} in the checkpoint, {old.nnz} in the current model"
            )
        return support


def _integers(name: str, entry) -> list[int]:
    """A 1-D int64 tensor of a state dict as a list."""
    if not isinstance(entry, Tensor) or entry.dtype != torch.int64 or entry.dim() != 1 or entry.is_meta:
        raise TypeError(f"{name}: expected a 1-D int64 tensor, got {entry}")
    return entry.tolist()
