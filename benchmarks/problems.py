"""What is computed: cases, their inputs, and what is right, in float64 by none of the package's kernels."""

import copy
import functools
import math
from dataclasses import dataclass

import numpy as np
import scipy.fft
import scipy.linalg
import scipy.sparse
import torch
import torch.nn.functional as F

import dctps_ext

ALPHA = 0.8  # any value but 1, so that a forgotten alpha shows
INPUTS = 4  # that calls rotate through on a CPU
ROTATED_BYTES = 2**28  # on a GPU they are so many that they fill this, more than the L2 holds
SAMPLED_ROWS, SAMPLED_VALUES = 192, 4096
DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "tf32": torch.float32,  # matrix products and convolutions of torch may round to it
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# Relative errors in the 2-norm that are let through: a few roundings of what is computed in.
TOLERANCES = {"float64": 1e-12, "float32": 1e-5, "tf32": 3e-3, "bfloat16": 2e-2, "float16": 3e-3}
# float32 through 5 to 110 layers; gradients see some ReLU on the other side of its kink.
NETWORK_TOLERANCES = {"inference": 1e-4, "step": 3e-2}
TRANSFORMS = ("dct", "idct")
PRODUCTS = ("spmm", "spmm_t", "sddmm")


@dataclass(frozen=True)
class Case:
    """What one comparison is about; each of its passes has interleaved rounds of its own.

    Attributes:
        section: of the suite, e.g. "linear"; with `kind` it decides which peers take part.
        kind: "dct", "idct", "spmm", "spmm_t", "sddmm", "linear", "conv" or "network".
        m, n: outputs and inputs of a row; output and input channels of a convolution.
        density: nnz / size of the matrix.
        batch: rows or images.
        kernel, stride, dilation, groups, size: of a convolution on `size` x `size` images, padded so that
            the kernel is centred.
        model: name in `dctps_ext.models` of a network on 32 x 32 images.
        dtype: one of `DTYPES`; device: "cpu" or "cuda"; threads: of torch.
    """

    section: str
    kind: str
    m: int = 0
    n: int = 0
    density: float = 0.0
    batch: int = 1
    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    size: int = 0
    model: str = ""
    dtype: str = "float32"
    device: str = "cpu"
    threads: int = 1

    @property
    def q(self):
        """Length of the DCT: the larger side of the matrix."""
        return max(self.m, self.n * self.kernel**2 // self.groups)

    @property
    def title(self):
        """What it is, without dtype, device and threads."""
        p = f"density {100 * self.density:g}%, batch {self.batch}"
        if self.kind == "network":
            return f"{self.model}, {p}"
        if self.kind == "conv":
            more = "".join(
                f", {name} {value}"
                for name, value in (
                    ("stride", self.stride),
                    ("dilation", self.dilation),
                    ("groups", self.groups),
                )
                if value > 1
            )
            return (
                f"Conv2d {self.kernel}x{self.kernel}, {self.n} -> {self.m} channels, "
                f"{self.size}x{self.size}{more}, {p}"
            )
        if self.kind == "linear":
            return f"Linear {self.n} -> {self.m}, {p}"
        return f"{self.kind} {self.n} -> {self.m}, " + (
            f"batch {self.batch}" if self.kind in TRANSFORMS else p
        )


def problem_of(case):
    """The `Problem` of a case. That of the last case is kept, as its passes share it."""
    return _problem(case)


@functools.lru_cache(1)
def _problem(case):
    return {"conv": Convolution, "network": Network}.get(case.kind, Linear)(case)


def exact_dct(x, m=None):
    """The orthonormal DCT-II of the rows of x in float64 by torch.fft: zero-padded to max(m, n), cut to m."""
    n = x.shape[-1]
    m = n if m is None else m
    q = max(m, n)
    x = F.pad(x.double(), (0, q - n))
    shuffled = torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], -1)
    return (torch.fft.fft(shuffled) * _phases(q, x.device)).real[..., :m]


def exact_idct(y, n=None):
    """The transpose of `exact_dct`: an orthonormal DCT-III."""
    m = y.shape[-1]
    n = m if n is None else n
    q = max(m, n)
    y = F.pad(y.double(), (0, q - m))
    reversed_ = F.pad(y[..., 1:].flip(-1), (1, 0))  # y_{q-k}, with y_q = 0
    shuffled = torch.fft.ifft(torch.complex(y, -reversed_) / _phases(q, y.device)).real
    x = torch.empty_like(y)
    x[..., ::2], x[..., 1::2] = shuffled[..., : (q + 1) // 2], shuffled[..., (q + 1) // 2 :].flip(-1)
    return x[..., :n]


def _phases(q, device):
    """c_k exp(-i pi k / 2q) for k = 0..q-1."""
    k = torch.arange(q, dtype=torch.float64, device=device)
    c = torch.full_like(k, math.sqrt(2 / q))
    c[0] = math.sqrt(1 / q)
    return torch.polar(c, -math.pi * k / (2 * q))


def held_bytes(*tensors):
    """Bytes of the tensors that are not None."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


class _Layer:
    """What linear and convolutional problems share: a DCTpS layer, its dense twin, inputs, output gradients.

    Attributes:
        inputs, gradients: lists of as many tensors as calls rotate through.
        nnz: nonzeros of S. rows, columns: their places, in CSR order.
    """

    def __init__(self, case, module_type, x_shape, y_shape):
        self.case, self.dtype = case, DTYPES[case.dtype]
        generator = torch.Generator(case.device).manual_seed(0)

        def normal(shape):
            return torch.randn(shape, generator=generator, device=case.device, dtype=torch.float32).to(
                self.dtype
            )

        self.generator, self._type = generator, module_type
        count = INPUTS
        if case.device == "cuda":
            count = max(2, math.ceil(ROTATED_BYTES / (math.prod(x_shape) * self.dtype.itemsize)))
        self.inputs = [normal(x_shape) for _ in range(count)]
        self.gradients = [normal(y_shape) for _ in range(count)]
        self.module = self.layer()
        support = self.module.support
        with torch.no_grad():
            # S at the scale of the DCT's own entries, so that an error in either shows.
            self.module.values.copy_(
                normal((support.nnz,)) / math.sqrt(max(support.nnz / support.shape[0], 1))
            )
            self.module.alpha.fill_(ALPHA)
            self.module.bias.copy_(normal((support.shape[0],)))
        self.nnz, self.support = support.nnz, support
        self.values = self.module.values.detach()
        self.bias = self.module.bias.detach()
        self.alpha = self.module.alpha.item()  # rounded to the dtype
        self.rows = torch.repeat_interleave(
            torch.arange(support.shape[0], device=case.device), support.crow.diff().long()
        )
        self.columns = support.col.long()

    def layer(self, **keywords):
        """A DCTpS layer of the case; all have the same parameters."""
        case = self.case
        layer = self._type(
            *self._arguments(),
            **{"density": case.density, "device": case.device, "dtype": self.dtype, **keywords},
        )
        if hasattr(self, "module"):
            layer.load_state_dict(self.module.state_dict())
        return layer

    def _dense_matrix(self):
        """(alpha*D + S, S) of shape [m, n] in float64. The DCT here is scipy's."""
        m, n = self.support.shape
        sparse = torch.zeros(m, n, dtype=torch.float64, device=self.case.device)
        sparse[self.rows, self.columns] = self.values.double()
        identity = np.eye(max(m, n))[:, :n]
        dct = scipy.fft.dct(identity, axis=0, norm="ortho", overwrite_x=True)[:m]
        whole = torch.from_numpy(dct).to(self.case.device).mul_(self.alpha).add_(sparse)
        return whole, sparse

    def pick(self, name, tensor):
        return tensor

    def _copied(self, pass_):
        copies = {"y": self.inputs[0], "dx": self.gradients[0]}
        names = {"forward": ("y",), "backward": ("dx",)}.get(pass_, copies)
        return {name: (self.pick(name, copies[name]), None) for name in names}

    def oracle(self, of, pass_):
        """What is right on input 0: name -> (tensor, scale of its error, None for its own norm).

        Args:
            of: "whole" for alpha*D + S and the bias, "sparse" for S alone, "copy" for x (and dy).
            pass_: "forward" wants y; "backward" dx and the parameters' gradients; others both.
        """
        if of == "copy":
            return self._copied(pass_)
        wanted = {"forward": ("y",), "backward": ("dx", "values", "bias", "alpha")}
        names = wanted.get(pass_, ("y", *wanted["backward"]))
        names = ("values",) if self.case.kind == "sddmm" else names
        exact = self._exact(of, tuple(names))
        return {name: exact[name] for name in names if name in exact}


class Linear(_Layer):
    """Rows and a linear map n -> m. Of y and dx some rows are checked, of the values' gradient some entries.

    Nothing of size m x n is made unless a peer asks for `dense()`.
    """

    def __init__(self, case):
        self._arguments = lambda: (case.n, case.m)
        super().__init__(case, dctps_ext.DCTpSLinear, (case.batch, case.n), (case.batch, case.m))
        self._rows = _spread(case.batch, SAMPLED_ROWS, case.device)
        self._places = _spread(self.nnz, SAMPLED_VALUES, case.device)

    @functools.cached_property
    def weight(self):
        """alpha*D + S [m, n], rounded to the dtype once."""
        return self._dense_matrix()[0].to(self.dtype)

    def dense(self):
        """The dense twin, an nn.Linear."""
        twin = torch.nn.Linear(self.case.n, self.case.m, device="meta")
        twin.weight = torch.nn.Parameter(self.weight)
        twin.bias = torch.nn.Parameter(self.bias.clone())
        return twin

    def on_support(self, weight):
        """The entries of a weight (or its gradient) on the support, in CSR order."""
        return weight[self.rows, self.columns]

    def pick(self, name, tensor):
        places = {"y": self._rows, "dx": self._rows, "values": self._places}
        return tensor[places[name]] if name in places else tensor

    def scipy_sparse(self, values):
        """S as a scipy array, with `values` in CSR order."""
        crow, col = self.support.crow.cpu().numpy(), self.support.col.cpu().numpy()
        return scipy.sparse.csr_array((values, col, crow), shape=self.support.shape)

    def _times_sparse(self, rows, transposed):
        """S (or its transpose) times each of a few rows."""
        matrix = self.scipy_sparse(self.values.double().cpu().numpy())
        matrix = matrix.T if transposed else matrix
        product = (matrix @ np.ascontiguousarray(rows.double().cpu().numpy().T)).T
        return torch.from_numpy(np.ascontiguousarray(product)).to(rows.device)

    @functools.lru_cache(4)  # noqa: B019  the problem itself is kept for one case only
    def _exact(self, of, names):
        x, g = self.inputs[0], self.gradients[0]
        kind = self.case.kind
        whole = of == "whole" and kind not in PRODUCTS
        some_x, some_g = x[self._rows], g[self._rows]
        exact = {}
        if of == "hadamard":
            h = torch.from_numpy(scipy.linalg.hadamard(self.case.n)).double().to(x.device)
            return {"y": (some_x.double() @ h / math.sqrt(self.case.n), None)}
        if kind == "dct":
            return {"y": (exact_dct(some_x, self.case.m), None)}
        if kind == "idct":
            return {"y": (exact_idct(some_x, self.case.m), None)}
        if "y" in names:
            y = self._times_sparse(some_x, transposed=kind == "spmm_t")
            exact["y"] = y + self.alpha * exact_dct(some_x, self.case.m) + self.bias if whole else y, None
        if "dx" in names:
            dx = self._times_sparse(some_g, transposed=True)
            exact["dx"] = dx + self.alpha * exact_idct(some_g, self.case.n) if whole else dx, None
        if "values" in names:
            rows, columns = self.rows[self._places], self.columns[self._places]
            step = max(1, 2**22 // max(len(rows), 1))
            chunks = zip(g.split(step), x.split(step), strict=True)
            dvalues = sum((a[:, rows].double() * b[:, columns].double()).sum(0) for a, b in chunks)
            exact["values"] = dvalues, None
        if whole and "alpha" in names:
            step = max(1, 2**22 // self.case.q)
            chunks = zip(g.split(step), x.split(step), strict=True)
            dalpha = sum((a.double() * exact_dct(b, self.case.m)).sum() for a, b in chunks)  # <dy, D x>
            # It sums terms of either sign, so its scale is at least that of random signs.
            exact["alpha"] = dalpha, max(abs(dalpha.item()), g.numel() ** 0.5)
            exact["bias"] = g.double().sum(0), None
        return exact


class Convolution(_Layer):
    """Images and a convolution, all of whose results are checked."""

    def __init__(self, case):
        padding = case.dilation * (case.kernel // 2)
        self._conv = dict(stride=case.stride, padding=padding, dilation=case.dilation, groups=case.groups)
        self._arguments = lambda: (
            case.n,
            case.m,
            case.kernel,
            case.stride,
            padding,
            case.dilation,
            case.groups,
        )
        reach = case.dilation * (case.kernel - 1) + 1
        out = (case.size + 2 * padding - reach) // case.stride + 1
        super().__init__(
            case,
            dctps_ext.DCTpSConv2d,
            (case.batch, case.n, case.size, case.size),
            (case.batch, case.m, out, out),
        )

    def _shaped(self, matrix):
        k = self.case.kernel
        return matrix.unflatten(1, (k, k, -1)).permute(0, 3, 1, 2).contiguous()

    @functools.cached_property
    def _weights(self):
        return tuple(self._shaped(matrix) for matrix in self._dense_matrix())

    def dense(self):
        """The dense twin, an nn.Conv2d."""
        case = self.case
        twin = torch.nn.Conv2d(case.n, case.m, case.kernel, **self._conv, device="meta")
        twin.weight = torch.nn.Parameter(self._weights[0].to(self.dtype))
        twin.bias = torch.nn.Parameter(self.bias.clone())
        return twin

    def on_support(self, weight):
        """The entries of a weight (or its gradient) on the support, in CSR order."""
        return weight.permute(0, 2, 3, 1).flatten(1)[self.rows, self.columns]

    @functools.lru_cache(4)  # noqa: B019  the problem itself is kept for one case only
    def _exact(self, of, names):
        whole, sparse = self._weights
        weight = whole.clone().requires_grad_()
        bias = self.bias.double().requires_grad_()
        x = self.inputs[0].double().requires_grad_("dx" in names)
        y = F.conv2d(x, weight, bias, **self._conv)
        exact = {"y": (y.detach(), None)}
        if "dx" in names:
            y.backward(self.gradients[0].double())
            dct_part = (whole - sparse) / self.alpha
            dalpha = (weight.grad * dct_part).sum()
            exact |= {"dx": (x.grad, None), "values": (self.on_support(weight.grad), None)}
            exact |= {"bias": (bias.grad, None)}
            exact |= {"alpha": (dalpha, max(abs(dalpha.item()), y.numel() ** 0.5))}
        return exact


class Network:
    """A network of `dctps_ext.models` on 32 x 32 images: converted, its dense twin, its plain sparse cousin.

    Checked on images of their own, few, as the oracle is slow (one in inference, where none sees another):
    the logits, and in a step the gradients of the images and of the values of one layer.
    """

    CHECKED = 4  # images

    def __init__(self, case):
        self.case, self.dtype = case, DTYPES[case.dtype]
        generator = torch.Generator().manual_seed(0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.original = getattr(dctps_ext.models, case.model)(num_classes=10)
        size = 2 if case.device == "cpu" else 4
        shape = (case.batch, 3, 32, 32)
        self.inputs = [
            torch.randn(shape, generator=generator).to(case.device, self.dtype) for _ in range(size)
        ]
        self.labels = torch.randint(10, (case.batch,), generator=generator).to(case.device)
        images = torch.randn(self.CHECKED, *shape[1:], generator=generator)
        self.checked = images.to(case.device, self.dtype), torch.arange(self.CHECKED, device=case.device)
        self.converted = self.convert()
        values = [p for name, p in self.converted.named_parameters() if name.endswith("values")]
        with torch.no_grad():
            for p, layer in zip(values, self._layers(self.converted), strict=True):
                scale = 0.1 / math.sqrt(max(layer.nnz / layer.support.shape[0], 1))
                p.copy_(scale * torch.randn(p.shape, generator=generator))
        self.nnz = sum(p.numel() for p in values)

    @staticmethod
    def _layers(model):
        return [layer for layer in model.modules() if hasattr(layer, "support")]

    def convert(self, **keywords):
        """A converted copy, on the CPU in float32."""
        model = copy.deepcopy(self.original)
        dctps_ext.convert_(model, density=self.case.density, **keywords)
        return model

    def on_device(self, model):
        """A copy of a model as it is measured."""
        return copy.deepcopy(model).to(self.case.device, self.dtype)

    def pick(self, name, tensor):
        return tensor

    def run(self, model, pass_, layout=torch.contiguous_format):
        """name -> tensor: what `model` gives for the checked images, laid out so."""
        dtype = next(model.parameters()).dtype
        x, labels = self.checked[0].to(dtype, copy=True, memory_format=layout), self.checked[1]
        model.train(pass_ == "step")
        if pass_ != "step":
            with torch.no_grad():
                return {"y": model(x[:1])}
        x = x.requires_grad_()
        y = model(x)
        model.zero_grad(set_to_none=True)
        F.cross_entropy(y, labels).backward()
        return {"y": y.detach(), "dx": x.grad, "values": self._values_gradient(model)}

    def _values_gradient(self, model):
        """Of the layer with the most values: their gradient, or that of the same entries of a dense twin."""
        modules = dict(self.converted.named_modules())
        name = max(
            (name for name, m in modules.items() if hasattr(m, "support")), key=lambda k: modules[k].nnz
        )
        layer, support = model.get_submodule(name), modules[name].support
        if hasattr(layer, "support"):
            return layer.values.grad
        gradient = layer.weight.grad
        if gradient.dim() == 4:
            gradient = gradient.permute(0, 2, 3, 1).flatten(1)
        rows = torch.repeat_interleave(torch.arange(support.shape[0]), support.crow.diff())
        return gradient[rows.to(gradient.device), support.col.long().to(gradient.device)]

    @functools.lru_cache(4)  # noqa: B019  the problem itself is kept for one case only
    def oracle(self, of, pass_):
        """name -> (tensor, None) of the float64 twin of the converted or, if "sparse", the plain network."""
        source = self.converted if of == "whole" else self.sparse
        twin = dctps_ext.to_dense(source).to(self.case.device, torch.float64)
        return {name: (tensor, None) for name, tensor in self.run(twin, pass_).items()}

    @functools.cached_property
    def sparse(self):
        """The plain sparse network: the dense weights on the supports."""
        return self.convert(offset="none")


def _spread(length, count, device):
    """At most `count` indices from the first to the last of `length`."""
    spread = torch.linspace(0, max(length - 1, 0), min(length, count), dtype=torch.float64)
    return spread.round().long().to(device)
