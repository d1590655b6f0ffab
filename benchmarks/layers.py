"""DCTpS layers against nn.Linear, nn.Conv2d, torch.sparse CSR and a plain copy: time, memory and error.

Every peer computes on the same inputs with the same number of threads, in float32. nn.Linear holds the weight
alpha*D + S itself, so it and DCTpS compute the same function. torch.sparse computes S x alone, without the
DCT. The copy moves x to y (and dy to dx): the least that any layer must do. A training step is the forward
pass and the backward pass to x and to all parameters, from a random gradient of the output.
"""

import argparse
import dataclasses
import logging
import math
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.fft
import scipy.sparse
import torch
import torch.nn.functional as F
from tqdm import tqdm

import dctps_ext
from dctps_ext.experiments.record import environment, use_threads, write_json

from .timing import Peer, interleave, peak_bytes, validate

logger = logging.getLogger(__name__)

TOLERANCE = 1e-5  # relative, float32; the tests hold the package to less
ALPHA = 0.8  # any value but 1, so that a forgotten alpha shows
INPUTS = 4  # inputs that calls rotate through
DCTPS, SPARSE, COPY = "DCTpS", "torch.sparse", "copy"
DENSE = {"linear": "nn.Linear", "conv": "nn.Conv2d"}
PASSES = ("forward", "step")


@dataclass(frozen=True)
class Case:
    """A shape: a linear layer q -> q on `batch` rows, or a 3x3 conv of q channels to q on `size`^2 images."""

    kind: str
    q: int
    density: float
    batch: int
    size: int = 0

    @property
    def title(self):
        if self.kind == "linear":
            return f"Linear {self.q} -> {self.q}, density {100 * self.density:g}%, batch {self.batch}"
        return (
            f"Conv2d 3x3, {self.q} -> {self.q} channels, {self.size}x{self.size}, "
            f"density {100 * self.density:g}%, batch {self.batch}"
        )


@dataclass(frozen=True)
class Scope:
    """How much to measure."""

    cases: tuple
    rounds: int


def _grid(sizes, densities, batch):
    return tuple(Case("linear", q, p, batch) for q in sizes for p in densities)


SCOPES = {
    "full": Scope(
        (
            *_grid((256, 512, 1024, 2048, 4096), (0.01, 0.001), 512),
            Case("conv", 64, 0.01, 64, 32),
            Case("conv", 256, 0.01, 64, 8),
        ),
        rounds=21,
    ),
    "demo": Scope((*_grid((256, 1024, 4096), (0.01, 0.001), 256), Case("conv", 64, 0.01, 8, 32)), rounds=7),
    "quick": Scope((Case("linear", 48, 0.05, 8), Case("conv", 4, 0.1, 2, 6)), rounds=2),
}


class Problem:
    """A case made concrete: the layer, its dense twin, inputs, output gradients and the float64 oracle.

    A linear case can do without the twin, `twin=False`; then nothing of size m x n is ever made.
    """

    def __init__(self, case, twin=True):
        self.case = case
        generator = torch.Generator().manual_seed(0)
        if case.kind == "linear":
            self.layer = dctps_ext.DCTpSLinear(case.q, case.q, density=case.density)
            self.dense = torch.nn.Linear(case.q, case.q) if twin else None
            shape = (case.batch, case.q)
        else:
            self.layer = dctps_ext.DCTpSConv2d(case.q, case.q, 3, padding=1, density=case.density)
            self.dense = torch.nn.Conv2d(case.q, case.q, 3, padding=1)
            shape = (case.batch, case.q, case.size, case.size)
        with torch.no_grad():
            # S at the scale of the DCT's own entries, so that an error in either shows.
            per_row = case.density * max(self.layer.support.shape)
            self.layer.values.normal_(0, 1 / math.sqrt(per_row or 1), generator=generator)
            self.layer.alpha.fill_(ALPHA)
            self.layer.bias.normal_(generator=generator)
        self.inputs = [torch.randn(shape, generator=generator) for _ in range(INPUTS)]
        self.gradients = [
            torch.randn(shape, generator=generator) for _ in range(INPUTS)
        ]  # m = n here, stride 1
        support = self.layer.support
        self.rows = torch.repeat_interleave(torch.arange(support.shape[0]), support.crow.diff())
        self.columns = support.col.long()
        if twin:
            # The DCT of the oracle is scipy's, which shares nothing with the package.
            m, n = support.shape
            sparse = torch.zeros(m, n, dtype=torch.float64)
            sparse[self.rows, self.columns] = self.layer.values.detach().double()
            identity = np.eye(max(m, n))[:, :n]
            dct = scipy.fft.dct(identity, axis=0, norm="ortho", overwrite_x=True)[:m]
            weight = self._shaped(torch.from_numpy(dct).mul_(ALPHA).add_(sparse))
            with torch.no_grad():
                self.dense.weight.copy_(weight)
                self.dense.bias.copy_(self.layer.bias)
            if case.kind == "conv":
                self.weight, self.sparse = weight, self._shaped(sparse)

    def _shaped(self, matrix):
        return matrix if self.case.kind == "linear" else matrix.unflatten(1, (3, 3, -1)).permute(0, 3, 1, 2)

    def on_support(self, weight):
        """The entries of a weight (or its gradient) on the support, in CSR order."""
        if self.case.kind == "conv":
            weight = weight.permute(0, 2, 3, 1).flatten(1)
        return weight[self.rows, self.columns]

    def oracle(self, of_sparse):
        """What is right on input 0, in float64: pairs (tensor, scale of its error, None for its own norm).

        In order: y, dx, the gradient of `values`; and for alpha*D + S those of the bias and of alpha.
        """
        oracle = self._linear_oracle if self.case.kind == "linear" else self._conv_oracle
        y, dx, dvalues, dbias, dalpha = oracle(of_sparse)
        results = [(y, None), (dx, None), (dvalues, None)]
        if of_sparse:
            return results
        # dalpha sums terms of either sign over all of y, so its scale is at least that of random signs.
        return [*results, (dbias, None), (dalpha, max(abs(dalpha.item()), y.numel() ** 0.5))]

    def _conv_oracle(self, of_sparse):
        weight = (self.sparse if of_sparse else self.weight).clone().requires_grad_()
        bias = None if of_sparse else self.layer.bias.detach().double().requires_grad_()
        x = self.inputs[0].double().requires_grad_()
        y = F.conv2d(x, weight, bias, padding=1)
        y.backward(self.gradients[0].double())
        dvalues = self.on_support(weight.grad)
        if of_sparse:
            return y.detach(), x.grad, dvalues, None, None
        dct_part = (weight.detach() - self.sparse) / ALPHA
        return y.detach(), x.grad, dvalues, bias.grad, (weight.grad * dct_part).sum()

    def _linear_oracle(self, of_sparse):
        """Through scipy's DCT and sparse products, so that it serves sizes whose dense W would not fit."""
        x, g = (t[0].double().numpy() for t in (self.inputs, self.gradients))
        rows, columns, crow = (t.numpy() for t in (self.rows, self.columns, self.layer.support.crow))
        values = self.layer.values.detach().double().numpy()
        sparse = scipy.sparse.csr_array((values, columns, crow), shape=self.layer.support.shape)
        xt, gt = np.ascontiguousarray(x.T), np.ascontiguousarray(g.T)
        y, dx = (sparse @ xt).T, (sparse.T @ gt).T
        dvalues = np.empty_like(values)
        chunk = max(1, 2**23 // len(x))  # entries at a time, to bound the memory of the gathered rows
        for start in range(0, len(values), chunk):
            part = slice(start, start + chunk)
            np.einsum("tb,tb->t", gt[rows[part]], xt[columns[part]], out=dvalues[part])
        if of_sparse:
            return *map(torch.from_numpy, (y, dx, dvalues)), None, None
        t = scipy.fft.idct(g, norm="ortho")  # D^T g, as m = n
        y = y + ALPHA * scipy.fft.dct(x, norm="ortho") + self.layer.bias.detach().double().numpy()
        results = (y, dx + ALPHA * t, dvalues, g.sum(axis=0), np.asarray(np.vdot(t, x)))
        return tuple(map(torch.from_numpy, results))


def module_peer(problem, module, name, pass_, gradients):
    """A `Peer` that runs an nn.Module; `gradients()` reads its parameters', in the oracle's order."""
    inputs = [x.clone().requires_grad_(pass_ == "step") for x in problem.inputs]

    @torch.no_grad()
    def forward(i):
        return module(inputs[i])

    def step(i):
        x = inputs[i]
        x.grad = None
        module.zero_grad(set_to_none=True)
        y = module(x)
        y.backward(problem.gradients[i])
        return y

    def result():
        if pass_ == "forward":
            return (forward(0),)
        y = step(0)
        return y.detach(), inputs[0].grad, *gradients()

    held = sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))
    return Peer(name, forward if pass_ == "forward" else step, result, held)


def copy_peer(problem, pass_):
    """The physical limit: x to y, and in a step dy to dx."""
    sources = (problem.inputs,) if pass_ == "forward" else (problem.inputs, problem.gradients)
    targets = [torch.empty_like(s[0]) for s in sources]

    def call(i):
        for source, target in zip(sources, targets, strict=True):
            target.copy_(source[i])

    def result():
        call(0)
        return tuple(targets)

    return Peer(
        COPY, call, result, sum(t.numel() * t.element_size() for t in targets), "x to y; step: and dy to dx"
    )


def _csr(crow, col, values, shape):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(crow, col, values, shape, check_invariants=True)


def sparse_peers(problem, pass_):
    """The ways to compute S x with torch.sparse, of which the fastest is kept.

    A step is composed of torch.sparse calls by hand, because its own autograd forms the dense m x n gradient.
    """
    support, n = problem.layer.support, problem.case.q
    values = problem.layer.values.detach().clone()
    crow, col = support.crow.clone(), support.col.clone()
    csr = _csr(crow, col, values, support.shape)
    # The transpose: `order` sorts the CSR entries by (column, row).
    order = torch.argsort(problem.columns * support.shape[0] + problem.rows)
    column_starts = F.pad(torch.bincount(problem.columns, minlength=n).cumsum(0), (1, 0)).to(torch.int32)
    row_of = problem.rows[order].to(torch.int32)
    transposed = _csr(column_starts, row_of, values[order], support.shape[::-1])
    ones = _csr(crow, col, torch.ones_like(values), support.shape)
    stored = sum(t.numel() * t.element_size() for t in (values, crow, col))

    # [features, batch]: MKL's better side. The inputs lie so already, as in a network kept in this layout.
    major = [x.T.contiguous() for x in problem.inputs]
    major_gradients = [g.T.contiguous() for g in problem.gradients]
    y, dx = torch.empty_like(major[0]), torch.empty_like(major[0])

    def forward_major(i):
        return torch.mm(csr, major[i], out=y)

    def forward_rows(i):
        return (csr @ problem.inputs[i].T).T

    def forward_linear(i):
        return F.linear(problem.inputs[i], csr)

    def backward_major(i):
        transposed.values().copy_(values[order])
        torch.mm(transposed, major_gradients[i], out=dx)
        return torch.sparse.sampled_addmm(ones, major_gradients[i], major[i].T, beta=0.0)

    def backward_rows(i):
        transposed.values().copy_(values[order])
        g = problem.gradients[i]
        return (transposed @ g.T).T, torch.sparse.sampled_addmm(ones, g.T, problem.inputs[i], beta=0.0)

    def step_major(i):
        forward_major(i)
        return y, dx, backward_major(i)

    def step_rows(i):
        return forward_rows(i), *backward_rows(i)

    if pass_ == "forward":
        buffers = y.numel() * y.element_size()
        return [
            Peer(
                SPARSE, forward_major, lambda: (forward_major(0).T,), stored + buffers, "CSR @ x[n, B], out="
            ),
            Peer(SPARSE, forward_rows, lambda: (forward_rows(0),), stored, "(CSR @ x.T).T"),
            Peer(SPARSE, forward_linear, lambda: (forward_linear(0),), stored, "F.linear(x, CSR)"),
        ]

    def major_result():
        a, b, gradient = step_major(0)
        return a.T, b.T, gradient.values()

    def rows_result():
        a, b, gradient = step_rows(0)
        return a, b, gradient.values()

    stored = 3 * stored + order.numel() * order.element_size()
    buffers = 2 * y.numel() * y.element_size()
    return [
        Peer(
            SPARSE,
            step_major,
            major_result,
            stored + buffers,
            "CSR, CSR of S^T, sampled_addmm; x[n, B], out=",
        ),
        Peer(SPARSE, step_rows, rows_result, stored, "CSR, CSR of S^T, sampled_addmm; x[B, n]"),
    ]


def measure(case, threads, rounds, passes=PASSES, seconds=math.inf):
    """Check and time all peers of one case, for `seconds` a pass at most; returns a row for each peer."""
    with use_threads(threads):
        problem = Problem(case)
        whole = problem.oracle(of_sparse=False)
        sparse = problem.oracle(of_sparse=True) if case.kind == "linear" else None
        rows = []
        for pass_ in passes:
            rows += _measure_pass(problem, pass_, whole, sparse, threads, rounds, seconds)
        return rows


def _measure_pass(problem, pass_, whole, sparse, threads, rounds, seconds):
    case = problem.case
    layer, dense = problem.layer, problem.dense

    def of_dense():
        return problem.on_support(dense.weight.grad), dense.bias.grad

    def of_layer():
        return layer.values.grad, layer.bias.grad, layer.alpha.grad

    peers = [
        module_peer(problem, dense, DENSE[case.kind], pass_, of_dense),
        module_peer(problem, layer, DCTPS, pass_, of_layer),
    ]
    oracles = [whole[:-1], whole]  # nn.Linear has no alpha
    if case.kind == "linear":
        candidates = sparse_peers(problem, pass_)
        for peer in candidates:
            validate(peer, sparse[:1] if pass_ == "forward" else sparse, TOLERANCE)
        times = [t.median for t in interleave(candidates, INPUTS, 3, "torch.sparse layouts")]
        peers.append(candidates[times.index(min(times))])
        oracles.append(sparse)
    peers.append(copy_peer(problem, pass_))
    oracles.append([(problem.inputs[0], None), (problem.gradients[0], None)])
    if pass_ == "forward":
        oracles = [o[:1] for o in oracles]

    errors = [validate(p, o, TOLERANCE) for p, o in zip(peers, oracles, strict=True)]
    peaks = [_peak(peer) for peer in peers]
    timings = interleave(peers, INPUTS, rounds, f"{case.title}, {pass_}", seconds)
    m, n = layer.support.shape
    return [
        {
            **dataclasses.asdict(case),
            "title": case.title,
            "m": m,
            "n": n,
            "nnz": layer.support.nnz,
            "dtype": "float32",
            "threads": threads,
            "pass": pass_,
            "peer": peer.name,
            "note": peer.note,
            "seconds": timing.median,
            "seconds_quartiles": [timing.lower, timing.upper],
            "rounds": timing.rounds,
            "calls_per_round": timing.calls,
            "time_over_dense": timing.median / timings[0].median,
            "held_bytes": peer.held_bytes,
            "peak_bytes": peak,
            "relative_error": error,
        }
        for peer, timing, peak, error in zip(peers, timings, peaks, errors, strict=True)
    ]


def _peak(peer):
    # The package's scratch lies outside torch's allocator and is kept between calls: its size now is its
    # peak.
    scratch = dctps_ext._C.workspace_bytes() if peer.name == DCTPS else 0
    return peak_bytes(lambda: peer.call(0)) + scratch


def report(rows):
    """The rows as aligned text, at most 100 columns wide, a block for each case and number of threads."""
    lines = [
        "time: median of interleaved rounds. held: parameters, indices, buffers. peak: allocated during a",
        "call on top of that, by torch's allocator and as kernel scratch. error: relative, against float64.",
    ]
    block = None
    for row in rows:
        if block != (row["title"], row["threads"]):
            block = (row["title"], row["threads"])
            lines += ["", f"{row['title']}, float32, {count_threads(row['threads'])}"]
            lines.append(
                f"  {'pass':<8} {'peer':<13} {'time':>11} {'quartiles':>17}  {'against dense':<13}"
                f" {'held':>9} {'peak':>9} {'error':>8}"
            )
        low, high = (1e3 * s for s in row["seconds_quartiles"])
        ratio = row["time_over_dense"]
        against = "" if row["peer"] in DENSE.values() else _against(ratio)
        lines.append(
            f"  {row['pass']:<8} {row['peer']:<13} {1e3 * row['seconds']:>8.3f} ms"
            f" {f'{low:.3f}-{high:.3f}':>17}  {against:<13} {_size(row['held_bytes']):>9}"
            f" {_size(row['peak_bytes']):>9} {row['relative_error']:>8.0e}"
        )
    notes = [f"{SPARSE}: S x alone, without the DCT, in the fastest of its layouts, named in the JSON."]
    if any(r["peer"] == DCTPS and r["time_over_dense"] > 1 for r in rows if r["kind"] == "conv"):
        notes.append("DCTpS loses to nn.Conv2d here.")
    losses = sorted(
        {r["q"] for r in rows if r["kind"] == "linear" and r["peer"] == DCTPS and r["time_over_dense"] > 1}
    )
    if losses:
        notes.append(f"DCTpS loses to nn.Linear somewhere at q = {', '.join(map(str, losses))}.")
    return "\n".join([*lines, "", *notes])


def _against(ratio):
    return f"{1 / ratio:.1f}x faster" if ratio <= 1 else f"{ratio:.1f}x slower"


def count_threads(count):
    return f"{count} thread{'s' if count > 1 else ''}"


def _size(count):
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            break
        count, unit = count / 1024, {"B": "KiB", "KiB": "MiB", "MiB": "GiB"}[unit]
    return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"


def plot(rows, path, device):
    """Save time against q for the linear rows of one number of threads, forward beside step, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

    rows = [row for row in rows if row["kind"] == "linear"]
    densities = sorted({row["density"] for row in rows}, reverse=True)
    # Okabe and Ito's palette, told apart by markers and dashes too; density by the dash.
    looks = {
        DENSE["linear"]: ("#000000", "s"),
        DCTPS: ("#D55E00", "o"),
        SPARSE: ("#0072B2", "^"),
        COPY: ("#999999", "x"),
    }
    names = {DCTPS: DCTPS, SPARSE: f"{SPARSE} (S x alone)"}  # the peers that depend on the density
    dashes = ["-", "--", ":", "-."]
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.8), sharey=True, layout="constrained")
    for axis, pass_ in zip(axes, PASSES, strict=True):
        for peer, (colour, marker) in looks.items():
            for density, dash in zip(densities if peer in names else densities[:1], dashes, strict=False):
                points = sorted(
                    (r["q"], 1e3 * r["seconds"], *(1e3 * s for s in r["seconds_quartiles"]))
                    for r in rows
                    if (r["pass"], r["peer"], r["density"]) == (pass_, peer, density)
                )
                q, median, low, high = zip(*points, strict=True)
                spread = [np.subtract(median, low), np.subtract(high, median)]
                label = names.get(peer, peer) + (f", {100 * density:g}%" if peer in names else "")
                axis.errorbar(
                    q, median, spread, color=colour, marker=marker, linestyle=dash, capsize=2, label=label
                )
        sizes = sorted({row["q"] for row in rows})
        axis.set(xscale="log", yscale="log", xlabel="layer size q = inputs = outputs")
        axis.xaxis.set_major_locator(FixedLocator(sizes))
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_title({"forward": "forward", "step": "training step (forward + backward)"}[pass_])
        axis.grid(True, which="major", alpha=0.3)
    axes[0].set_ylabel("time a call [ms], median and quartiles")
    axes[1].legend(fontsize=8)
    first = rows[0]
    figure.suptitle(
        f"{device}, {count_threads(first['threads'])}, float32, batch {first['batch']}", fontsize=10
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def busy_warning(record, threads):
    """What to say of an `environment()` too busy for a benchmark with so many threads, "" where it is not."""
    if record["load"] is None or record["load"] + threads <= record["cores"] + 0.5:
        return ""
    # Libraries whose threads spin at a barrier lose whole time slices then, and ratios mean nothing.
    return (
        f"NOT TO BE TRUSTED: the machine was busy, load {record['load']:.1f} on {record['cores']} cores "
        f"before {count_threads(threads)} of this benchmark."
    )


def device_slug(record):
    """The device's name as a part of file names."""
    return re.sub("[^a-z0-9]+", "-", record["device"].lower()).strip("-")


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layers", description=__doc__)
    scope = parser.add_mutually_exclusive_group()
    scope.add_argument(
        "--demo", action="store_true", help="few sizes, under a minute on 2 cores; saves to build/demo"
    )
    scope.add_argument("--quick", action="store_true", help="tiny sizes: does it run?; saves to build/quick")
    parser.add_argument(
        "--threads",
        type=int,
        nargs="+",
        default=[torch.get_num_threads()],
        metavar="N",
        help="numbers of torch threads to measure with, one after the other (default: torch's own choice)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: benchmarks/results")
    arguments = parser.parse_args(argv)
    if min(arguments.threads) < 1:
        parser.error(f"--threads: expected at least 1, got {min(arguments.threads)}")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    name = "demo" if arguments.demo else "quick" if arguments.quick else "full"
    out = arguments.out or (Path("benchmarks/results") if name == "full" else Path("build") / name)

    record = environment()
    busy = busy_warning(record, max(arguments.threads))
    if busy:
        logger.warning("%s", busy)
    rows = []
    work = [(threads, case) for threads in arguments.threads for case in SCOPES[name].cases]
    for threads, case in tqdm(work, desc="layers", unit="case", leave=False):
        rows += measure(case, threads, SCOPES[name].rounds)
    print(
        f"{record['device']}, {record['cores']} cores, {record['isa']}, torch {record['versions']['torch']}"
    )
    print(report(rows))
    if busy:
        print(busy)
    stem = f"layers-{device_slug(record)}"
    write_json(out / f"{stem}.json", {"environment": record, "rows": rows})
    print(f"\nsaved {out / f'{stem}.json'}")
    for threads in arguments.threads:
        path = out / f"{stem}-{count_threads(threads).replace(' ', '-')}.png"
        plot([row for row in rows if row["threads"] == threads], path, record["device"])
        print(f"saved {path}")


if __name__ == "__main__":
    main()
