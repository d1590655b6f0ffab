"""How near the CUDA kernels come to the GPU's limits, held against the goals of `gpu_goals`.

Sections: `dct` (the transforms against a clone and a composed rfft DCT), `fused` (the layer's forward and
backward against a clone and the same ops one after the other), `sparse` (SpMM, its transpose, SDDMM against
torch.sparse in its best layout), `dense` (the layer as users get it, algorithm="auto", against cuBLAS on the
merged W). Times are medians of interleaved rounds by CUDA events; tensors of 256 MiB (or as many smaller
ones) rotate, more than the L2 holds. Every peer is checked against float64 before it is timed: outputs on
rows from the first to the last, sums over the batch on all of them. `--rehearse` runs everything tiny on the
CPU: it shows that the benchmark works; its figures are no GPU's, and no goal is judged by them.
"""

import argparse
import contextlib
import dataclasses
import functools
import itertools
import logging
import math
import re
import time
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from dctps_ext import Support
from dctps_ext.experiments.record import environment, use_threads, write_json

from . import gpu_plots
from .gpu_goals import AUTO, CLONE, COMPOSED, GOALS, SPARSE, UNFUSED
from .linear import composed_call, goal_table
from .linear_goals import LINEAR, OURS, block_of, judge
from .timing import Peer, gpu_seconds, interleave, validate, wall_seconds

logger = logging.getLogger(__name__)

ops = torch.ops.dctps_ext
ALPHA = 0.8  # any value but 1, so that a forgotten alpha shows
SECTIONS = ("dct", "fused", "sparse", "dense")
DTYPES = {
    "float32": torch.float32,
    "TF32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# Relative errors in the 2-norm that are let through: a few roundings of the type that is computed in.
TOLERANCES = {"float32": 1e-5, "TF32": 3e-3, "bfloat16": 2e-2, "float16": 3e-3}
SAMPLED_ROWS, SAMPLED_ENTRIES = 192, 256


@dataclass(frozen=True)
class Scope:
    """How much to measure. Densities of `fused` are given as nonzeros in a row, p * n."""

    device: str
    tensor_bytes: int
    dct_sizes: tuple
    dct_dtypes: tuple
    fused_sizes: tuple
    fused_per_row: tuple
    fused_dtypes: tuple
    sparse_sizes: tuple
    sparse_densities: tuple
    dense_sizes: tuple
    dense_densities: tuple
    dense_precisions: tuple
    dense_batches: tuple  # numbers of rows; None: as many as fill `tensor_bytes`
    rounds: int
    case_seconds: float  # a case, beyond the fewest rounds


FULL = Scope(
    device="cuda",
    tensor_bytes=2**28,
    dct_sizes=(64, 128, 256, 512, 576, 1000, 1021, 1024, 2048, 4096, 4608, 8192, 16384, 32768),
    dct_dtypes=("float32", "bfloat16", "float16"),
    fused_sizes=(256, 512, 1024, 2048, 4096),
    fused_per_row=(1, 6, 20),
    fused_dtypes=("float32", "bfloat16"),
    sparse_sizes=(1024, 4096),
    sparse_densities=(0.001, 0.01, 0.05),
    dense_sizes=(256, 512, 1024, 2048, 4096, 8192),
    dense_densities=(0.001, 0.01, 0.1),
    dense_precisions=("float32", "TF32", "bfloat16"),
    dense_batches=(512, None),
    rounds=11,
    case_seconds=0.6,
)
REHEARSAL = Scope(
    device="cpu",
    tensor_bytes=2**12,
    dct_sizes=(16, 21),
    dct_dtypes=("float32", "bfloat16", "float16"),
    fused_sizes=(16, 24),
    fused_per_row=(1, 6),
    fused_dtypes=("float32", "bfloat16"),
    sparse_sizes=(24,),
    sparse_densities=(0.1,),
    dense_sizes=(16, 32),
    dense_densities=(0.1,),
    dense_precisions=("float32", "TF32", "bfloat16"),
    dense_batches=(3, None),
    rounds=2,
    case_seconds=0.0,
)


# ---- the oracle: float64 on the device itself, by torch.fft and a dense S, not by the kernels


def _phases(q, device):
    """c_k exp(-i pi k / 2q) for k = 0..q-1."""
    k = torch.arange(q, dtype=torch.float64, device=device)
    c = torch.full_like(k, math.sqrt(2 / q))
    c[0] = math.sqrt(1 / q)
    return torch.polar(c, -math.pi * k / (2 * q))


def exact_dct(x):
    """The orthonormal DCT-II of the rows of x, in float64."""
    x = x.double()
    shuffled = torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], -1)
    return (torch.fft.fft(shuffled) * _phases(x.shape[-1], x.device)).real


def exact_idct(y):
    """The orthonormal DCT-III of the rows of y, in float64."""
    y = y.double()
    q = y.shape[-1]
    reversed_ = F.pad(y[..., 1:].flip(-1), (1, 0))  # y_{q-k}, with y_q = 0
    shuffled = torch.fft.ifft(torch.complex(y, -reversed_) / _phases(q, y.device)).real
    x = torch.empty_like(y)
    x[..., ::2], x[..., 1::2] = shuffled[..., : (q + 1) // 2], shuffled[..., (q + 1) // 2 :].flip(-1)
    return x


@functools.lru_cache(maxsize=32)
def _support(q, nnz):
    """The same in every precision and batch: sampling millions of places takes seconds."""
    return Support.random(q, q, nnz)


class Problem:
    """Rows and a layer q -> q on the scope's device, and what is right.

    Attributes:
        inputs, gradients: lists of [batch, q], so many that together they are `rotation` bytes or more.
        values, support, alpha, bias: the layer's, of the inputs' dtype.
        rows: the rows whose results are checked.
    """

    def __init__(self, scope, q, precision, nnz=0, batch=None, gradients=False):
        device, self.dtype = scope.device, DTYPES[precision]
        self.q, self.nnz = q, nnz
        self.batch = batch or max(1, scope.tensor_bytes // (q * self.dtype.itemsize))
        held = self.batch * q * self.dtype.itemsize
        count = max(2, math.ceil(scope.tensor_bytes / held))
        generator = torch.Generator(device).manual_seed(q)

        def normal(*shape):
            return torch.randn(shape, generator=generator, device=device, dtype=self.dtype)

        self.inputs = [normal(self.batch, q) for _ in range(count)]
        self.gradients = [normal(self.batch, q) for _ in range(count)] if gradients else []
        self.support = _support(q, nnz).to(device)
        # S at the scale of the DCT's own entries, so that an error in either shows.
        self.values = normal(nnz) / math.sqrt(max(nnz / q, 1))
        self.alpha = torch.tensor(ALPHA, device=device, dtype=self.dtype)
        self.bias = normal(q)
        picked = torch.linspace(0, self.batch - 1, min(self.batch, SAMPLED_ROWS), dtype=torch.float64)
        self.rows = picked.round().long().to(device)
        crow = self.support.crow
        self.row_of = torch.repeat_interleave(torch.arange(q, device=device), crow.diff().long())
        self.column_of = self.support.col.long()

    def layer_arguments(self, algorithm):
        return self.support.index, self.alpha, self.q, self.q, algorithm

    def exact_sparse(self):
        """S, dense, in float64."""
        s = torch.zeros(self.q, self.q, device=self.values.device, dtype=torch.float64)
        s[self.row_of, self.column_of] = self.values.double()
        return s

    def merged_weight(self):
        """alpha*D + S, rounded to the dtype once."""
        identity = torch.eye(self.q, device=self.values.device, dtype=torch.float64)
        return (float(self.alpha) * exact_dct(identity).T + self.exact_sparse()).to(self.dtype)

    def sample(self, *tensors):
        return tuple(tensor[self.rows] for tensor in tensors)

    def entries(self):
        """Places in `values` that are checked where a result is summed over the batch."""
        count = min(self.nnz, SAMPLED_ENTRIES)
        return torch.linspace(0, max(self.nnz - 1, 0), count, device=self.values.device).long()

    def exact_dvalues(self, v, x):
        """At `entries()`: sum over the batch of v[b, row] x[b, column]."""
        places = self.entries()
        chunks = zip(v.split(2**15), x.split(2**15), strict=True)
        rows, columns = self.row_of[places], self.column_of[places]
        return sum((a[:, rows].double() * b[:, columns].double()).sum(0) for a, b in chunks)

    def exact_forward(self):
        (x,) = self.sample(self.inputs[0])
        y = float(self.alpha) * exact_dct(x) + self.bias.double()
        return y + x.double() @ self.exact_sparse().T

    def exact_backward(self):
        """Pairs (tensor, scale of its error): dx sampled, dvalues at entries(), dalpha, dbias."""
        x, dy = self.inputs[0], self.gradients[0]
        (rows,) = self.sample(dy)
        dx = float(self.alpha) * exact_idct(rows) + rows.double() @ self.exact_sparse()
        chunks = zip(dy.split(2**12), x.split(2**12), strict=True)
        dalpha = sum((a.double() * exact_dct(b)).sum() for a, b in chunks)  # <D^T dy, x> = <dy, D x>
        # dalpha sums terms of either sign, so its scale is at least that of random signs.
        scale = max(abs(dalpha.item()), math.sqrt(x.numel()))
        dbias = dy.sum(0, dtype=torch.float64)
        return [(dx, None), (self.exact_dvalues(dy, x), None), (dalpha, scale), (dbias, None)]


# ---- peers


def clone_peer(problem):
    call = lambda i: problem.inputs[i].clone()  # noqa: E731
    return Peer(CLONE, call, lambda: problem.sample(call(0)), 0, "x read, y written")


def dct_peers(problem, pass_, precision):
    """Pairs (peer, oracle of its result)."""
    ours = {"dct": lambda x: ops.dct(x, problem.q), "idct": lambda x: ops.idct(x, problem.q)}[pass_]
    exact = {"dct": exact_dct, "idct": exact_idct}[pass_]
    (x,) = problem.sample(problem.inputs[0])
    right = [(exact(x), None)]
    peers = [
        (
            Peer(
                OURS,
                lambda i: ours(problem.inputs[i]),
                lambda: problem.sample(ours(problem.inputs[0])),
                0,
                "fresh output",
            ),
            right,
        ),
        (clone_peer(problem), [(x, None)]),
    ]
    if precision == "float32":  # cuFFT's 16-bit transforms take powers of two only
        y = torch.empty_like(problem.inputs[0])
        composed = composed_call(pass_, problem.inputs, y)
        note = "Makhoul by torch.fft, preallocated"
        peers.append((Peer(COMPOSED, composed, lambda: problem.sample(composed(0)), y.nbytes, note), right))
    return peers


def fused_peers(problem, pass_):
    index, alpha, m, n, fast = problem.layer_arguments("fast")
    x, dy, values, bias = problem.inputs, problem.gradients, problem.values, problem.bias

    def backward(i):
        return ops.dctps_linear_backward(dy[i], x[i], values, index, alpha, m, n, fast, [True] * 4)

    def forward(i):
        return ops.dctps_linear(x[i], values, index, alpha, bias, m, n, fast)

    def forward_unfused(i):
        return torch.add(ops.sparse_linear(x[i], values, index, m, n), ops.dct(x[i], m), alpha=ALPHA)

    def backward_unfused(i):
        t = ops.idct(dy[i], n)
        dvalues = ops.sddmm(dy[i], x[i], index, m, n)
        dx = torch.add(ops.sparse_linear_transposed(dy[i], values, index, m, n), t, alpha=ALPHA)
        return dx, dvalues, torch.dot(t.view(-1), x[i].view(-1)), dy[i].sum(0)

    (sampled,) = problem.sample(x[0])
    if pass_ == "forward":
        right = problem.exact_forward()
        without_bias = [(right - bias.double(), None)]
        return [
            (Peer(OURS, forward, lambda: problem.sample(forward(0)), 0), [(right, None)]),
            (clone_peer(problem), [(sampled, None)]),
            (
                Peer(
                    UNFUSED,
                    forward_unfused,
                    lambda: problem.sample(forward_unfused(0)),
                    0,
                    "dct, sparse_linear, one torch.add; no bias",
                ),
                without_bias,
            ),
        ]
    right = problem.exact_backward()

    def result(call):
        dx, dvalues, dalpha, dbias = call(0)
        return (*problem.sample(dx), dvalues[problem.entries()], dalpha, dbias)

    note = "idct, sparse_linear_transposed, sddmm, torch.add, dot, sum; dalpha not checked"

    def unfused_result():
        dx, dvalues, _, dbias = result(backward_unfused)
        return dx, dvalues, dbias

    return [
        (Peer(OURS, backward, lambda: result(backward), 0), right),
        (clone_peer(problem), [(sampled, None)]),
        (Peer(UNFUSED, backward_unfused, unfused_result, 0, note), [right[0], right[1], right[3]]),
    ]


def sparse_peers(problem, pass_):
    """Ours and every way of torch.sparse: x as [B, n], or as [n, B], as a network could keep it."""
    index, _, m, n, _ = problem.layer_arguments("fast")
    x, v, values, support = problem.inputs, problem.gradients, problem.values, problem.support
    s = problem.exact_sparse()

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse .* support is in beta")
        dense = s.to(problem.dtype)
        operator = (dense.T.contiguous() if pass_ == "spmm transposed" else dense).to_sparse_csr()
        coo = operator.to_sparse_coo().coalesce()
        ones = torch.sparse_csr_tensor(support.crow, support.col, torch.ones_like(values), (m, n))
    del dense
    rows = v if pass_ == "spmm transposed" else x
    if pass_ == "sddmm":
        right = [(problem.exact_dvalues(v[0], x[0]), None)]
        major_v = [t.T.contiguous() for t in v]
        ours = lambda i: ops.sddmm(v[i], x[i], index, m, n)  # noqa: E731
        ways = {
            "sampled_addmm(v.T, x)": lambda i: torch.sparse.sampled_addmm(ones, v[i].T, x[i], beta=0.0),
            "sampled_addmm, v as [m, B]": lambda i: torch.sparse.sampled_addmm(
                ones, major_v[i], x[i], beta=0.0
            ),
        }
        picked = lambda call: (call(0)[problem.entries()],)  # noqa: E731
        theirs = {
            note: lambda call=call: (call(0).values()[problem.entries()],) for note, call in ways.items()
        }
    else:
        (sampled,) = problem.sample(rows[0])
        right = [(sampled.double() @ (s if pass_ == "spmm transposed" else s.T), None)]
        major = [t.T.contiguous() for t in rows]
        if pass_ == "spmm":
            ours = lambda i: ops.sparse_linear(x[i], values, index, m, n)  # noqa: E731
        else:
            ours = lambda i: ops.sparse_linear_transposed(v[i], values, index, m, n)  # noqa: E731
        ways = {
            "CSR @ x as [n, B]": lambda i: operator @ major[i],
            "COO @ x as [n, B]": lambda i: torch.sparse.mm(coo, major[i]),
            "(CSR @ x.T).T": lambda i: (operator @ rows[i].T).T,
            "F.linear(x, CSR)": lambda i: F.linear(rows[i], operator),
        }
        picked = lambda call: problem.sample(call(0))  # noqa: E731
        theirs = {
            note: lambda call=call, note=note: problem.sample(call(0).T if "as [n" in note else call(0))
            for note, call in ways.items()
        }
    peers = [(Peer(OURS, ours, lambda: picked(ours), 0), right)]
    for note, call in ways.items():
        try:
            theirs[note]()
        except RuntimeError as error:  # a layout that this torch has no kernel for
            logger.info("left out: torch.sparse, %s: %s", note, str(error).splitlines()[0])
            continue
        peers.append((Peer(SPARSE, call, theirs[note], 0, note), right))
    return peers


def dense_peers(problem, pass_):
    index, alpha, m, n, auto = problem.layer_arguments(AUTO)
    x, dy, values, bias = problem.inputs, problem.gradients, problem.values, problem.bias
    weight = problem.merged_weight()

    def forward(i):
        return ops.dctps_linear(x[i], values, index, alpha, bias, m, n, auto)

    def step(i):
        return forward(i), *ops.dctps_linear_backward(
            dy[i], x[i], values, index, alpha, m, n, auto, [True] * 4
        )

    def cublas(i):
        return F.linear(x[i], weight, bias)

    def cublas_step(i):
        return cublas(i), dy[i] @ weight, dy[i].T @ x[i], dy[i].sum(0)

    right = [(problem.exact_forward(), None)]
    if pass_ == "forward":
        return [
            (Peer(AUTO, forward, lambda: problem.sample(forward(0)), 0), right),
            (Peer(LINEAR, cublas, lambda: problem.sample(cublas(0)), weight.nbytes, "cuBLAS"), right),
        ]
    dx, dvalues, dalpha, dbias = problem.exact_backward()

    def result():
        y, *gradients = step(0)
        return (*problem.sample(y, gradients[0]), gradients[1][problem.entries()], *gradients[2:])

    def cublas_result():
        y, dx, dweight, dbias = cublas_step(0)
        places = problem.entries()
        dvalues = dweight[problem.row_of[places], problem.column_of[places]]
        return (*problem.sample(y, dx), dvalues, dbias)

    return [
        (Peer(AUTO, step, result, 0), [*right, dx, dvalues, dalpha, dbias]),
        (Peer(LINEAR, cublas_step, cublas_result, weight.nbytes, "cuBLAS"), [*right, dx, dvalues, dbias]),
    ]


# ---- measuring


@contextlib.contextmanager
def matmul_precision(precision):
    """Within, cuBLAS may round float32 to TF32 if `precision` says so, and must not else."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision == "TF32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def peak_bytes(peer, device):
    """Of torch's allocator during one call, above what was held; None on a CPU."""
    if device != "cuda":
        return None
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    peer.call(0)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - held


@torch.no_grad()
def measure(scope, section, precision, q, passes, peers_of, nnz=0, batch=None):
    """Check, then time, all peers of one shape; a row for each pass and peer."""
    gradients = section != "dct"
    rows = []
    with matmul_precision(precision):
        problem = Problem(scope, q, precision, nnz, batch, gradients)
        for pass_ in passes:
            pairs = peers_of(problem, pass_)
            errors = [validate(peer, oracle, TOLERANCES[precision]) for peer, oracle in pairs]
            peers = [peer for peer, _ in pairs]
            timings = interleave(
                peers,
                len(problem.inputs),
                scope.rounds,
                f"{section} {precision}, {pass_}, q {q}",
                scope.case_seconds,
                gpu_seconds if scope.device == "cuda" else wall_seconds,
            )
            for peer, timing, error in zip(peers, timings, errors, strict=True):
                rows.append(
                    {
                        **{"section": f"{section} {precision}", "threads": 1, "pass": pass_},
                        **{"dtype": str(problem.dtype), "q": q, "density": nnz / q**2},
                        **{"batch": problem.batch, "nnz": nnz, "peer": peer.name, "note": peer.note},
                        **{"seconds": timing.median, "seconds_quartiles": [timing.lower, timing.upper]},
                        **{"rounds": timing.rounds, "calls_per_round": timing.calls},
                        **{"relative_error": error, "row_bytes": problem.inputs[0].nbytes},
                        "peak_bytes": peak_bytes(peer, scope.device),
                    }
                )
    return rows


def work(scope, sections):
    """What to measure: functions that give rows, sections in turn, so that a budget cuts all alike."""
    jobs = {section: [] for section in sections}
    add = {
        name: lambda *a, name=name, **k: jobs[name].append(partial(measure, scope, name, *a, **k))
        for name in jobs
    }
    if "dct" in jobs:
        for precision, q in itertools.product(scope.dct_dtypes, scope.dct_sizes):
            add["dct"](precision, q, ("dct", "idct"), partial(dct_peers, precision=precision))
    if "fused" in jobs:
        for precision, q, each in itertools.product(
            scope.fused_dtypes, scope.fused_sizes, scope.fused_per_row
        ):
            add["fused"](precision, q, ("forward", "backward"), fused_peers, nnz=each * q)
    if "sparse" in jobs:
        for q, p in itertools.product(scope.sparse_sizes, scope.sparse_densities):
            passes = ("spmm", "spmm transposed", "sddmm")
            add["sparse"]("float32", q, passes, sparse_peers, nnz=round(p * q * q))
    if "dense" in jobs:
        for precision, q, p, batch in itertools.product(
            scope.dense_precisions, scope.dense_sizes, scope.dense_densities, scope.dense_batches
        ):
            passes = ("forward", "step")
            add["dense"](precision, q, passes, dense_peers, nnz=round(p * q * q), batch=batch)
    return [job for turn in itertools.zip_longest(*jobs.values()) for job in turn if job is not None]


def run(scope, sections, seconds=math.inf):
    """Measure until all is done or `seconds` have passed; returns `rows`, `goals`, `failures`, `left_out`.

    A case with a wrong result, or that fails in another way, is a failure by name; the others go on.
    """
    results = {"rows": [], "failures": []}
    jobs = work(scope, sections)
    begin = time.monotonic()
    started = 0
    for job in tqdm(jobs, desc="gpu", unit="case"):
        started += 1
        try:
            results["rows"] += job()
        except (AssertionError, RuntimeError, NotImplementedError) as error:
            _, section, precision, q, *_ = job.args
            text = f"{section} {precision}, q {q}, {job.keywords}: {str(error).splitlines()[0]}"
            logger.error("%s", text)
            results["failures"].append(text)
        if time.monotonic() - begin > seconds:
            break
    results["left_out"] = len(jobs) - started
    judged = [goal for goal in GOALS if goal.section.split()[0] in sections and scope.device == "cuda"]
    results["goals"] = [judge(goal, results, 1) for goal in judged]
    return results


# ---- the report


def tables(results):
    """Every section and pass as aligned text: our time, bytes of x and y a second, peers' time over ours."""
    lines = [
        "Median times of interleaved rounds; B rows of length q, density p of S; peers: their time / ours."
    ]
    for section in dict.fromkeys(row["section"] for row in results["rows"]):
        blocks = {}
        for row in results["rows"]:
            if row["section"] == section:
                peers = blocks.setdefault(block_of(row), {})
                if row["peer"] not in peers or row["seconds"] < peers[row["peer"]]["seconds"]:
                    peers[row["peer"]] = row
        for pass_ in dict.fromkeys(block[2] for block in blocks):
            chosen = {block: peers for block, peers in blocks.items() if block[2] == pass_}
            names = list(dict.fromkeys(name for peers in chosen.values() for name in peers))
            ours, others = names[0], names[1:]
            lines += ["", f"{section}: {pass_}"]
            heads = "".join(f" {name:>13}" for name in others)
            lines.append(f"  {'q':>6} {'p':>7} {'B':>8} {ours + ' us':>13} {'GB/s':>7}{heads}")
            for (_, _, _, q, density, batch), peers in chosen.items():
                seconds = peers[ours]["seconds"]
                cells = "".join(
                    f" {peers[name]['seconds'] / seconds if name in peers else math.nan:>13.2f}"
                    for name in others
                )
                rate = 2 * peers[ours]["row_bytes"] / seconds / 1e9
                lines.append(
                    f"  {q:>6} {100 * density:>6.3g}% {batch:>8} {1e6 * seconds:>13.1f} {rate:>7.0f}{cells}"
                )
    return "\n".join(lines)


def record_of(scope):
    """`environment()` with the GPU as the device."""
    record = environment()
    if scope.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        record |= {
            "cpu": record["device"],
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "l2_bytes": getattr(properties, "L2_cache_size", None),
        }
        record["versions"] |= {"cuda": torch.version.cuda}
    return record


def _sections(text):
    names = tuple(text.split(","))
    unknown = [name for name in names if name not in SECTIONS]
    if unknown:
        raise argparse.ArgumentTypeError(f"expected some of {','.join(SECTIONS)}, got {unknown[0]!r}")
    return names


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--rehearse", action="store_true", help="tiny, on the CPU: no GPU figures")
    parser.add_argument("--sections", type=_sections, default=SECTIONS, metavar="A,B")
    parser.add_argument("--seconds", type=float, default=math.inf, help="start no case after this long")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="default: benchmarks/results; --rehearse: build/quick"
    )
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    scope = REHEARSAL if arguments.rehearse else FULL
    if scope.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU; --rehearse runs without one")
    out = arguments.out or Path("build/quick" if arguments.rehearse else "benchmarks/results")
    record = record_of(scope)
    # One thread: a CPU that works beside others would be disturbed by them.
    with use_threads(1 if arguments.rehearse else torch.get_num_threads()):
        results = run(scope, arguments.sections, arguments.seconds)
    notes = ["Rehearsed on a CPU: none of these figures is a GPU's."] if arguments.rehearse else []
    if results["left_out"]:
        notes.append(f"{results['left_out']} cases were left out, as {arguments.seconds:g} s had passed.")
    notes += [f"Failed: {text}" for text in results["failures"]]
    where = "rehearsal on a CPU" if arguments.rehearse else record["device"]
    print(f"{record['device']}, torch {record['versions']['torch']}, commit {record['commit']}\n")
    goals = [goal_table(results["goals"], where)] if results["goals"] else []
    print(tables(results), *goals, *notes, sep="\n\n")
    slug = (
        "rehearsal" if arguments.rehearse else re.sub(r"[^a-z0-9]+", "-", record["device"].lower()).strip("-")
    )
    content = {"environment": record, "notes": notes, "scope": dataclasses.asdict(scope), **results}
    write_json(out / f"gpu-{slug}.json", content)
    print(f"\nsaved {out / f'gpu-{slug}.json'}")
    for path in gpu_plots.save(results, out / f"gpu-{slug}", where):
        print(f"saved {path}")
    return 1 if results["failures"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
