"""The registry of peers: who takes part in which comparison, and how each is called.

`@peer(...)` above a function `make(problem, pass_)` adds one; it returns a `Peer`, or several ways to call
it, of which the fastest is kept. `entries(case, pass_)` are those that a case could have; `Entry.missing`
says why one cannot take part here.
"""

import importlib.util
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import scipy.fft
import torch
import torch.nn.functional as F

import dctps_ext

from .problems import PRODUCTS, TRANSFORMS, held_bytes
from .timing import Peer

ops = torch.ops.dctps_ext
OURS, DCTPS = "dctps_ext", "DCTpS"  # an op; a layer or a network
SPARSE, COPY, FRESH_COPY, COMPOSED, DENSE = "torch.sparse", "copy", "fresh copy", "rfft", "dense"
LINEAR, CONV = "nn.Linear", "nn.Conv2d"
AUTO, FAST = "auto", "fast"
UNFUSED, PLAIN = "unfused", "sparse layers"
LIBRARIES = ("scipy", "scipy in place", "ducc0", "FFTW")  # of transforms on a CPU
LARGEST_DENSE = 4096  # larger dense matrices would fill the memory; their time goes on as q at fixed B*q
ALL_PASSES = ("forward", "backward", "step")
LINEAR_SECTIONS = ("linear", "grid")


@dataclass(frozen=True)
class Entry:
    """A peer of the registry.

    Attributes:
        name: as tables and goals call it.
        make: `make(problem, pass_)` gives the peer, or a list of its ways.
        kinds, sections, passes, devices, dtypes: of the cases that it takes part in; None: all.
        needs: module that must be installed.
        largest: q above which it stays away.
    """

    name: str
    make: Callable
    kinds: tuple
    sections: tuple | None = None
    passes: tuple | None = None
    devices: tuple | None = None
    dtypes: tuple | None = None
    needs: str = ""
    largest: float = math.inf

    def takes_part(self, case, pass_):
        return (
            case.kind in self.kinds
            and (self.sections is None or case.section in self.sections)
            and (self.passes is None or pass_ in self.passes)
            and (self.devices is None or case.device in self.devices)
            and (self.dtypes is None or case.dtype in self.dtypes)
            and case.q <= self.largest
        )

    @property
    def missing(self):
        """Why it cannot take part on this machine, "" where it can."""
        if self.needs and importlib.util.find_spec(self.needs) is None:
            return f"{self.name}: {self.needs} is not installed"
        return ""

    def ways(self, problem, pass_):
        """Its `Peer`s, named."""
        made = self.make(problem, pass_)
        return [replace(way, name=self.name) for way in (made if isinstance(made, list) else [made])]


REGISTRY: list[Entry] = []


def peer(name, kinds, **more):
    """Decorator that registers `make(problem, pass_)`."""

    def register(make):
        REGISTRY.append(Entry(name, make, kinds, **more))
        return make

    return register


def entries(case, pass_):
    """Those that a case could have, on a machine where everything is installed."""
    return [entry for entry in REGISTRY if entry.takes_part(case, pass_)]


# ---- transforms

_WIDE = ("float32", "float64")  # what FFT libraries take


def _call_peer(call, held=0, note="", of="whole"):
    """A peer whose call returns y."""
    return Peer(call, lambda: {"y": call(0)}, of=of, held_bytes=held, note=note)


@peer(OURS, TRANSFORMS)
def _(problem, pass_):
    op = {"dct": dctps_ext.dct, "idct": dctps_ext.idct}[problem.case.kind]
    return _call_peer(lambda i: op(problem.inputs[i]), note="fresh output")


def _scipy(problem):
    return {"dct": scipy.fft.dct, "idct": scipy.fft.idct}[problem.case.kind], problem.case.threads


@peer("scipy", TRANSFORMS, devices=("cpu",), dtypes=_WIDE)
def _(problem, pass_):
    library, threads = _scipy(problem)
    arrays = [x.numpy() for x in problem.inputs]

    def call(i):
        return library(arrays[i], norm="ortho", workers=threads)

    return Peer(call, lambda: {"y": torch.from_numpy(call(0))}, note="pocketfft, fresh output")


@peer("scipy in place", TRANSFORMS, devices=("cpu",), dtypes=_WIDE)
def _(problem, pass_):
    library, threads = _scipy(problem)
    own = [x.numpy().copy() for x in problem.inputs]  # orthonormal: however often done, nothing overflows

    def call(i):
        return library(own[i], norm="ortho", workers=threads, overwrite_x=True)

    def result():
        y = library(problem.inputs[0].numpy().copy(), norm="ortho", overwrite_x=True)
        return {"y": torch.from_numpy(y)}

    return Peer(call, result, note="pocketfft, overwrite_x=True")


@peer("ducc0", TRANSFORMS, devices=("cpu",), dtypes=_WIDE, needs="ducc0")
def _(problem, pass_):
    import ducc0

    y = torch.empty_like(problem.inputs[0])
    arrays, out = [x.numpy() for x in problem.inputs], y.numpy()
    kind = {"dct": 2, "idct": 3}[problem.case.kind]

    def call(i):
        return ducc0.fft.dct(arrays[i], kind, axes=(1,), inorm=1, out=out, nthreads=problem.case.threads)

    return Peer(call, lambda: {"y": torch.from_numpy(call(0))}, held_bytes=y.nbytes, note="out=")


def _unscaled(problem, run):
    """A peer that does FFTW's transforms, without scale: `run(x, y)` on tensors.

    Its scaling is not timed: inputs of the DCT-III are scaled before, outputs of the DCT-II after.
    """
    y = torch.empty_like(problem.inputs[0])
    q, forward = y.shape[1], problem.case.kind == "dct"
    scale = torch.full((q,), math.sqrt(1 / (2 * q)), dtype=torch.float64)
    scale[0] = math.sqrt(1 / (4 * q)) if forward else math.sqrt(1 / q)
    scale = scale.to(y)
    sources = [x.clone() if forward else x * scale for x in problem.inputs]

    def call(i):
        run(sources[i], y)

    def result():
        call(0)
        return {"y": y * scale if forward else y.clone()}

    return Peer(
        call, result, held_bytes=held_bytes(y, *sources), note="output preallocated, scaling not timed"
    )


@peer("FFTW", TRANSFORMS, devices=("cpu",), dtypes=_WIDE, needs="pyfftw")
def _(problem, pass_):
    import pyfftw

    # Planned on tensors of its own, for measuring overwrites them; torch's are aligned for SIMD.
    planned = [torch.empty_like(problem.inputs[0]).numpy() for _ in range(2)]
    direction = {"dct": "FFTW_REDFT10", "idct": "FFTW_REDFT01"}[problem.case.kind]
    plan = pyfftw.FFTW(
        *planned, axes=(-1,), direction=direction, flags=("FFTW_MEASURE",), threads=problem.case.threads
    )

    def run(x, y):
        plan.update_arrays(x.numpy(), y.numpy())
        plan.execute()

    return _unscaled(problem, run)


@peer("VkFFT", TRANSFORMS, devices=("cuda",), dtypes=_WIDE, needs="pyvkfft")
def _(problem, pass_):
    import cupy
    from pyvkfft.cuda import VkFFTApp

    x = problem.inputs[0]
    stream = torch.cuda.current_stream().cuda_stream
    dtype = {torch.float32: np.float32, torch.float64: np.float64}[x.dtype]
    kind = {"dct": 2, "idct": 3}[problem.case.kind]
    app = VkFFTApp(tuple(x.shape), dtype, ndim=1, inplace=False, stream=stream, norm=0, dct=kind)
    return _unscaled(problem, lambda x, y: app.fft(cupy.from_dlpack(x), cupy.from_dlpack(y)))


@peer("Hadamard", ("dct",), devices=("cuda",), needs="fast_hadamard_transform", largest=LARGEST_DENSE)
def _(problem, pass_):
    from fast_hadamard_transform import hadamard_transform

    q = problem.case.q
    if q & (q - 1):
        raise NotImplementedError(f"a Hadamard matrix of {q} rows is not of Sylvester's kind")
    return _call_peer(
        lambda i: hadamard_transform(problem.inputs[i], q**-0.5),
        of="hadamard",
        note="another transform, of additions alone",
    )


def _twiddles(q, dtype, device):
    """c_k exp(-i pi k / 2q) for k = 0..q/2, computed in double precision."""
    k = torch.arange(q // 2 + 1, dtype=torch.float64)
    c = torch.full_like(k, math.sqrt(2 / q))
    c[0] = math.sqrt(1 / q)
    twiddles = torch.polar(c, -math.pi * k / (2 * q))
    return twiddles, lambda t: t.to(device, dtype.to_complex())


@peer(COMPOSED, TRANSFORMS, dtypes=_WIDE)
def _(problem, pass_):
    inputs, y = problem.inputs, torch.empty_like(problem.inputs[0])
    q = y.shape[1]
    half = q // 2 + 1
    exact, to = _twiddles(q, y.dtype, y.device)
    v = torch.empty_like(y)
    spectrum = torch.zeros(len(y), half, dtype=y.dtype.to_complex(), device=y.device)
    if problem.case.kind == "dct":
        twiddles = to(exact)

        def call(i):
            x = inputs[i]
            v[:, : (q + 1) // 2] = x[:, ::2]
            v[:, (q + 1) // 2 :] = x[:, 1::2].flip(1)
            torch.fft.rfft(v, out=spectrum)
            spectrum.mul_(twiddles)
            y[:, :half] = spectrum.real
            torch.neg(spectrum.imag[:, 1 : q - half + 1].flip(1), out=y[:, half:])
            return y
    else:
        # V_k = exp(i pi k / 2q) (y_k - i y_{q-k}) / c_k, with y_q = 0.
        twiddles = to(exact.reciprocal())

        def call(i):
            x = inputs[i]
            spectrum.real.copy_(x[:, :half])
            spectrum.imag[:, 0] = 0
            torch.neg(x[:, q - half + 1 :].flip(1), out=spectrum.imag[:, 1:])
            spectrum.mul_(twiddles)
            torch.fft.irfft(spectrum, q, out=v)
            y[:, ::2] = v[:, : (q + 1) // 2]
            y[:, 1::2] = v[:, (q + 1) // 2 :].flip(1)
            return y

    return _call_peer(call, held_bytes(y, v, spectrum), "Makhoul by torch.fft, out=")


@peer(DENSE, TRANSFORMS, largest=LARGEST_DENSE)
def _(problem, pass_):
    # What the paper's own code does: a product with the stored matrix (density 0, so alpha*D is all of W).
    weight = problem.weight if problem.case.kind == "dct" else problem.weight.T.contiguous()
    weight = (weight.double() / problem.alpha).to(weight.dtype)
    return _call_peer(
        lambda i: F.linear(problem.inputs[i], weight), weight.nbytes, "GEMM with the stored DCT matrix"
    )


# ---- products with S


@peer(OURS, PRODUCTS)
def _(problem, pass_):
    x, v, values, kind = problem.inputs, problem.gradients, problem.values, problem.case.kind
    shape = problem.support.index, *problem.support.shape
    if kind == "sddmm":
        return Peer(
            lambda i: ops.sddmm(v[i], x[i], *shape), lambda: {"values": ops.sddmm(v[0], x[0], *shape)}
        )
    op = {"spmm": ops.sparse_linear, "spmm_t": ops.sparse_linear_transposed}[kind]
    return _call_peer(lambda i: op(x[i], values, *shape), held_bytes(values, shape[0]), "fresh output")


def _csr(crow, col, values, shape):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse .* support is in beta")
        return torch.sparse_csr_tensor(crow, col, values, shape, check_invariants=True)


def _transposed(problem):
    """S^T in CSR, and the order of S's values in it."""
    m, n = problem.support.shape
    order = torch.argsort(problem.columns * m + problem.rows)
    starts = F.pad(torch.bincount(problem.columns, minlength=n).cumsum(0), (1, 0)).to(torch.int32)
    rows = problem.rows[order].to(torch.int32)
    return _csr(starts, rows, problem.values[order], (n, m)), order


def _major(tensors):
    """[features, batch], MKL's better side: how a network could keep its activations."""
    return [t.T.contiguous() for t in tensors]


@peer(SPARSE, PRODUCTS)
def _(problem, pass_):
    x, v, support = problem.inputs, problem.gradients, problem.support
    crow, col, values = support.crow, support.col, problem.values
    stored = held_bytes(crow, col, values)
    if problem.case.kind == "sddmm":
        ones = _csr(crow, col, torch.ones_like(values), support.shape)
        major_v, major_x = _major(v), [t.T for t in _major(x)]

        def way(a, b, note):
            def call(i):
                return torch.sparse.sampled_addmm(ones, a[i], b[i], beta=0.0)

            return Peer(call, lambda: {"values": call(0).values()}, held_bytes=stored, note=note)

        return [
            way([t.T for t in v], x, "sampled_addmm, x[B, n]"),
            way(major_v, x, "sampled_addmm, v[m, B]"),
            way(major_v, major_x, "sampled_addmm, x[n, B], v[m, B]"),
        ]
    matrix = (
        _transposed(problem)[0] if problem.case.kind == "spmm_t" else _csr(crow, col, values, support.shape)
    )
    return _products(problem, matrix, x, stored)


def _products(problem, matrix, x, stored):
    """Ways to multiply each row of x by a CSR matrix."""
    major = _major(x)
    y = torch.empty(matrix.shape[0], len(x[0]), dtype=x[0].dtype, device=x[0].device)

    def into(i):
        return torch.mm(matrix, major[i], out=y)

    def by_major(i):
        return matrix @ major[i]

    def by_rows(i):
        return (matrix @ x[i].T).T

    def linear(i):
        return F.linear(x[i], matrix)

    return [
        Peer(
            into,
            lambda: {"y": into(0).T},
            of="sparse",
            held_bytes=stored + y.nbytes,
            note="CSR @ x[n, B], out=",
        ),
        Peer(by_major, lambda: {"y": by_major(0).T}, of="sparse", held_bytes=stored, note="CSR @ x[n, B]"),
        Peer(by_rows, lambda: {"y": by_rows(0)}, of="sparse", held_bytes=stored, note="(CSR @ x.T).T"),
        Peer(linear, lambda: {"y": linear(0)}, of="sparse", held_bytes=stored, note="F.linear(x, CSR)"),
    ]


@peer("scipy", ("spmm", "spmm_t"), devices=("cpu",), dtypes=_WIDE)
def _(problem, pass_):
    matrix = problem.scipy_sparse(problem.values.numpy())
    matrix = matrix.T.tocsr() if problem.case.kind == "spmm_t" else matrix
    major = [x.numpy() for x in _major(problem.inputs)]

    def call(i):
        return matrix @ major[i]

    held = matrix.data.nbytes + matrix.indices.nbytes + matrix.indptr.nbytes
    return Peer(
        call,
        lambda: {"y": torch.from_numpy(call(0)).T},
        held_bytes=held,
        note="csr_array @ x[n, B], one thread",
    )


@peer(DENSE, PRODUCTS, largest=LARGEST_DENSE)
def _(problem, pass_):
    x, v, kind = problem.inputs, problem.gradients, problem.case.kind
    if kind == "sddmm":
        out = torch.empty(problem.support.shape, dtype=problem.dtype, device=x[0].device)

        def call(i):
            return problem.on_support(torch.mm(v[i].T, x[i], out=out))

        return Peer(
            call, lambda: {"values": call(0)}, held_bytes=out.nbytes, note="GEMM, then the support's entries"
        )
    s = torch.zeros(problem.support.shape, dtype=problem.dtype, device=x[0].device)
    s[problem.rows, problem.columns] = problem.values
    s = s if kind == "spmm" else s.T.contiguous()
    return _call_peer(lambda i: F.linear(x[i], s), s.nbytes, "GEMM with the zeros stored")


# ---- copies


@peer(COPY, (*TRANSFORMS, "spmm", "spmm_t", "linear", "conv"), sections=("ops", "linear", "conv", "grid"))
def _(problem, pass_):
    """The physical limit: x to y, and in a backward pass dy to dx."""
    sources = {"y": problem.inputs, "dx": problem.gradients}
    sources = {name: sources[name] for name in problem.oracle("copy", pass_)}
    targets = {name: torch.empty_like(source[0]) for name, source in sources.items()}
    pairs = [(targets[name], source) for name, source in sources.items()]

    def call(i):
        for target, source in pairs:
            target.copy_(source[i])

    def result():
        call(0)
        return targets

    return Peer(
        call, result, of="copy", held_bytes=held_bytes(*targets.values()), note="into a preallocated output"
    )


@peer(FRESH_COPY, TRANSFORMS)
def _(problem, pass_):
    return _call_peer(lambda i: problem.inputs[i].clone(), of="copy", note="torch.clone")


# ---- layers


def _module_peer(problem, module, pass_, gradients, lacks=(), note="", channels_last=False):
    """A `Peer` that runs an nn.Module; `gradients`: name -> (parameter, what to take of its gradient)."""

    def laid_out(tensors):
        return [t.contiguous(memory_format=torch.channels_last) if channels_last else t for t in tensors]

    learns = pass_ != "forward"
    inputs = [x.detach().requires_grad_(learns) for x in laid_out(problem.inputs)]
    g = laid_out(problem.gradients) if learns else None
    parameters = [p for p, _ in gradients.values()]

    @torch.no_grad()
    def forward(i):
        return module(inputs[i])

    def recorded(i):
        return module(inputs[i])

    def step(i):
        x = inputs[i]
        x.grad = None
        module.zero_grad(set_to_none=True)
        y = module(x)
        y.backward(g[i])
        return y

    def named(dx, grads):
        taken = {name: take(grad) for (name, (_, take)), grad in zip(gradients.items(), grads, strict=True)}
        return {"dx": dx, **taken}

    if pass_ == "backward":
        graphs = [module(x) for x in inputs]

        def backward(i):
            return torch.autograd.grad(graphs[i], (inputs[i], *parameters), g[i], retain_graph=True)

        def backward_result():
            dx, *grads = backward(0)
            return named(dx, grads)

        call, result = backward, backward_result
    elif pass_ == "forward":
        call, result = forward, lambda: {"y": forward(0)}
    else:  # "recorded" is checked as a step and timed without the backward pass

        def step_result():
            y = step(0)
            return {"y": y.detach(), **named(inputs[0].grad, [p.grad for p in parameters])}

        call, result = recorded if pass_ == "recorded" else step, step_result
    lacks = lacks if learns else ()
    return Peer(
        call, result, lacks=lacks, held_bytes=held_bytes(*module.parameters(), *module.buffers()), note=note
    )


def _whole(tensor):
    return tensor


def _dense_gradients(problem, module):
    return {"values": (module.weight, problem.on_support), "bias": (module.bias, _whole)}


def _our_gradients(module):
    return {name: (getattr(module, name), _whole) for name in ("values", "bias", "alpha")}


@peer(LINEAR, ("linear",), largest=LARGEST_DENSE)
def _(problem, pass_):
    module = problem.dense()
    return _module_peer(problem, module, pass_, _dense_gradients(problem, module), ("alpha",))


def _our_linear(algorithm):
    def make(problem, pass_):
        module = problem.layer(algorithm=algorithm)
        return _module_peer(problem, module, pass_, _our_gradients(module), note=f'algorithm="{algorithm}"')

    return make


peer(DCTPS, ("linear",), sections=("linear", "overhead"))(_our_linear("auto"))
# The picture of complexity is one of the package's own kernels, so "auto" must not slip in torch's GEMM.
peer(DCTPS, ("linear",), sections=("grid",))(_our_linear("fast"))
peer(FAST, ("linear",), sections=("linear",), devices=("cuda",))(_our_linear("fast"))
for _name in (AUTO, FAST, DENSE):
    peer(_name, ("linear",), sections=("auto",))(_our_linear(_name))


@peer(SPARSE, ("linear",), sections=LINEAR_SECTIONS, passes=ALL_PASSES)
def _(problem, pass_):
    """S x alone. Backward is composed by hand, as torch.sparse's autograd forms a dense m x n gradient."""
    x, g, support, values = problem.inputs, problem.gradients, problem.support, problem.values
    stored = held_bytes(support.crow, support.col, values)
    matrix = _csr(support.crow, support.col, values.clone(), support.shape)
    if pass_ == "forward":
        return _products(problem, matrix, x, stored)
    transposed, order = _transposed(problem)
    ones = _csr(support.crow, support.col, torch.ones_like(values), support.shape)
    held = 3 * stored + held_bytes(order)
    major_x, major_g = _major(x), _major(g)
    y, dx = (torch.empty(k, len(x[0]), dtype=x[0].dtype, device=x[0].device) for k in support.shape)

    def backward_major(i):
        transposed.values().copy_(values[order])
        torch.mm(transposed, major_g[i], out=dx)
        return {"dx": dx.T, "values": torch.sparse.sampled_addmm(ones, major_g[i], major_x[i].T, beta=0.0)}

    def backward_rows(i):
        transposed.values().copy_(values[order])
        dvalues = torch.sparse.sampled_addmm(ones, g[i].T, x[i], beta=0.0)
        return {"dx": (transposed @ g[i].T).T, "values": dvalues}

    def way(forward, backward, extra, note):
        def call(i):
            return {**({"y": forward(i)} if pass_ == "step" else {}), **backward(i)}

        def result():
            results = call(0)
            return {**results, "values": results["values"].values()}

        return Peer(call, result, of="sparse", held_bytes=held + extra, note=note)

    note = "CSR, CSR of S^T, sampled_addmm; "
    return [
        way(
            lambda i: torch.mm(matrix, major_x[i], out=y).T,
            backward_major,
            held_bytes(y, dx),
            note + "x[n, B], out=",
        ),
        way(lambda i: (matrix @ x[i].T).T, backward_rows, 0, note + "x[B, n]"),
    ]


@peer(UNFUSED, ("linear",), sections=("linear",), passes=("forward", "backward"), devices=("cuda",))
def _(problem, pass_):
    """The layer from the package's separate ops."""
    x, g, values, alpha = problem.inputs, problem.gradients, problem.values, problem.alpha
    index, (m, n) = problem.support.index, problem.support.shape
    if pass_ == "forward":

        def forward(i):
            return torch.add(ops.sparse_linear(x[i], values, index, m, n), ops.dct(x[i], m), alpha=alpha)

        def result():
            return {"y": forward(0) + problem.bias}  # adding the bias is not timed

        return Peer(forward, result, note="dct, sparse_linear, one torch.add; bias not timed")

    def backward(i):
        t = ops.idct(g[i], n)
        dx = torch.add(ops.sparse_linear_transposed(g[i], values, index, m, n), t, alpha=alpha)
        dalpha = torch.dot(t.view(-1), x[i].view(-1))
        return {"dx": dx, "values": ops.sddmm(g[i], x[i], index, m, n), "bias": g[i].sum(0), "alpha": dalpha}

    def without_alpha():  # in 16 bits torch.dot rounds it more than the layer does
        return {name: tensor for name, tensor in backward(0).items() if name != "alpha"}

    note = "idct, sparse_linear_transposed, sddmm, torch.add, dot, sum"
    return Peer(backward, without_alpha, lacks=("alpha",), note=note)


def _layout_name(last):
    return "channels_last" if last else "NCHW"


def _both_layouts(make):
    """The ways of a convolution or a network: NCHW and channels_last."""
    return lambda problem, pass_: [make(problem, pass_, last) for last in (False, True)]


@peer(CONV, ("conv",))
@_both_layouts
def _(problem, pass_, last):
    module = problem.dense()
    if last:
        module = module.to(memory_format=torch.channels_last)
    gradients = _dense_gradients(problem, module)
    return _module_peer(problem, module, pass_, gradients, ("alpha",), _layout_name(last), last)


@peer(DCTPS, ("conv",))
@_both_layouts
def _(problem, pass_, last):
    module = problem.layer()
    return _module_peer(problem, module, pass_, _our_gradients(module), (), _layout_name(last), last)


# ---- networks


def _network_peer(problem, source, pass_, last, of="whole"):
    layout = torch.channels_last if last else torch.contiguous_format
    model = problem.on_device(source).to(memory_format=layout)
    model.train(pass_ == "step")
    inputs = [x.contiguous(memory_format=layout) for x in problem.inputs]

    @torch.no_grad()
    def inference(i):
        return model(inputs[i])

    def step(i):
        model.zero_grad(set_to_none=True)
        F.cross_entropy(model(inputs[i]), problem.labels).backward()

    def result():
        # Of a copy, so that batch norm's statistics are those of the twin whatever was run before.
        return problem.run(problem.on_device(source).to(memory_format=layout), pass_, layout)

    held = held_bytes(*model.parameters(), *model.buffers())
    call = step if pass_ == "step" else inference
    return Peer(call, result, of=of, held_bytes=held, note=_layout_name(last))


@peer(DENSE, ("network",))
@_both_layouts
def _(problem, pass_, last):
    return _network_peer(problem, dctps_ext.to_dense(problem.converted), pass_, last)


@peer(DCTPS, ("network",))
@_both_layouts
def _(problem, pass_, last):
    return _network_peer(problem, problem.converted, pass_, last)


@peer(PLAIN, ("network",))
@_both_layouts
def _(problem, pass_, last):
    return _network_peer(problem, problem.sparse, pass_, last, "sparse")
