"""How near the linear layers come to the hardware's limit, held against the goals of `linear_goals`.

Sections: `dct` (the transforms against scipy, ducc0, FFTW, a composed rfft DCT and a copy), `forward` and
`step` (the layer against nn.Linear, torch.sparse and a copy), `auto` (the choice of algorithm at small q),
`scaling` (time over q at fixed B*q), `overhead` (a tiny call), `memory` (bytes beside the results). All peers
have the same inputs, dtype float32 and number of threads, and are checked against float64 before they are
timed. FFTW gets scaled inputs and gives unscaled outputs, so its scaling is not in its time.
"""

import argparse
import dataclasses
import functools
import importlib
import inspect
import logging
import math
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.fft
import torch
from tqdm import tqdm

import dctps_ext
from dctps_ext.experiments.record import environment, use_threads, write_json

from . import layers, linear_plots
from .layers import COPY, DCTPS, INPUTS, PASSES, SPARSE, TOLERANCE, Case, Problem, count_threads
from .linear_goals import DENSITIES, GOALS, LINEAR, OURS, TRANSFORMS, block_of, fits, judge
from .timing import Peer, interleave, page_faults, peak_bytes, validate

logger = logging.getLogger(__name__)

SECTIONS = ("dct", *PASSES, "auto", "scaling", "overhead", "memory")
OPTIONAL = {"ducc0": "ducc0", "FFTW": "pyfftw"}  # peer -> the module that it needs
COMPOSED, FRESH_COPY = "rfft", "fresh copy"
ALGORITHMS = ("auto", "fast", "dense")
LARGEST_TWIN = 4096  # larger dense weights would fill the memory; their time goes on as q at fixed B*q


@dataclass(frozen=True)
class Scope:
    """How much to measure. `layer_batches` are numbers of rows, or None for `layer_elements` / q."""

    dct_sizes: tuple
    dct_elements: int
    layer_sizes: tuple
    layer_batches: tuple
    layer_elements: int
    auto_sizes: tuple
    auto_densities: tuple
    auto_batches: tuple
    scaling_sizes: tuple
    scaling_elements: int
    memory_sizes: tuple
    memory_elements: int
    rounds: int
    seconds: float  # a case and pass, beyond the fewest rounds


FULL = Scope(
    dct_sizes=(256, 576, 1000, 1021, 1024, 2048, 4096, 4608),
    dct_elements=2**22,
    layer_sizes=(256, 1024, 4096),
    layer_batches=(1, 256, 1024, None),
    layer_elements=2**23,
    auto_sizes=(16, 32, 64, 120),
    auto_densities=(0.001, 0.05, 0.2),
    auto_batches=(256, 4096),
    scaling_sizes=(
        *(256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 4608, 6144, 8192),
        *(12288, 16384, 24576, 32768),
    ),
    scaling_elements=2**21,
    memory_sizes=(1024, 4096, 8192),
    memory_elements=2**21,
    rounds=21,
    seconds=6.0,
)
QUICK = Scope(
    dct_sizes=(256, 1021),
    dct_elements=2**17,
    layer_sizes=(256, 1024),
    layer_batches=(1, 256),
    layer_elements=2**18,
    auto_sizes=(16, 120),
    auto_densities=(0.05,),
    auto_batches=(256,),
    scaling_sizes=(256, 512, 1024, 2048),
    scaling_elements=2**17,
    memory_sizes=(1024,),
    memory_elements=2**19,
    rounds=5,
    seconds=1.0,
)


def _row(section, threads, pass_, case, nnz, peer, timing, error, **more):
    return {
        **{"section": section, "threads": threads, "pass": pass_, "dtype": "float32"},
        **{"q": case.q, "density": case.density, "batch": case.batch, "nnz": nnz},
        **{"peer": peer.name, "note": peer.note, "seconds": timing.median},
        "seconds_quartiles": [timing.lower, timing.upper],
        **{"rounds": timing.rounds, "calls_per_round": timing.calls, "relative_error": error, **more},
    }


# The transforms


def missing_peers():
    """The optional peers that are not installed: name -> module."""
    return {peer: module for peer, module in OPTIONAL.items() if importlib.util.find_spec(module) is None}


def dct_peers(pass_, inputs, threads):
    """All ways to the orthonormal DCT-II ("dct") or DCT-III ("idct") of the rows of `inputs`."""
    arrays = [x.numpy() for x in inputs]
    y = torch.empty_like(inputs[0])
    library = {"dct": scipy.fft.dct, "idct": scipy.fft.idct}[pass_]
    ours = {"dct": dctps_ext.dct, "idct": dctps_ext.idct}[pass_]
    own = [a.copy() for a in arrays]  # orthonormal, so however often it is done in place, nothing overflows

    def scipy_fresh(i):
        return library(arrays[i], norm="ortho", workers=threads)

    def scipy_in_place(i):
        return library(own[i], norm="ortho", workers=threads, overwrite_x=True)

    def scipy_in_place_result():
        return (torch.from_numpy(library(arrays[0].copy(), norm="ortho", overwrite_x=True)),)

    def ours_result():
        return (ours(inputs[0]),)

    peers = [
        Peer(OURS, lambda i: ours(inputs[i]), ours_result, 0, "fresh output"),
        Peer("scipy", scipy_fresh, lambda: (torch.from_numpy(scipy_fresh(0)),), 0, "pocketfft, fresh output"),
        Peer("scipy in place", scipy_in_place, scipy_in_place_result, 0, "pocketfft, overwrite_x=True"),
    ]
    missing = missing_peers()
    if "ducc0" not in missing:
        peers.append(_ducc0_peer(pass_, arrays, y, threads))
    if "FFTW" not in missing:
        peers.append(_fftw_peer(pass_, arrays, y, threads))
    composed = composed_call(pass_, inputs, y)
    peers.append(Peer(COMPOSED, composed, lambda: (composed(0),), y.nbytes, "Makhoul by torch.fft, out="))

    def copy(i):
        return y.copy_(inputs[i])

    peers.append(Peer(COPY, copy, lambda: (copy(0),), y.nbytes, "into a preallocated output"))
    peers.append(
        Peer(FRESH_COPY, lambda i: inputs[i].clone(), lambda: (inputs[0].clone(),), 0, "torch.clone")
    )
    return peers


def _ducc0_peer(pass_, arrays, y, threads):
    import ducc0

    kind, out = {"dct": 2, "idct": 3}[pass_], y.numpy()

    def call(i):
        return ducc0.fft.dct(arrays[i], kind, axes=(1,), inorm=1, out=out, nthreads=threads)

    return Peer("ducc0", call, lambda: (torch.from_numpy(call(0)),), y.nbytes, "out=")


def _fftw_peer(pass_, arrays, y, threads):
    import pyfftw

    q = y.shape[1]
    scale = np.full(q, math.sqrt(1 / (2 * q)), np.float32)
    scale[0] = math.sqrt(1 / (4 * q)) if pass_ == "dct" else math.sqrt(1 / q)
    sources = [torch.from_numpy(a if pass_ == "dct" else a * scale).clone().numpy() for a in arrays]
    # Planned on tensors of its own, for measuring overwrites them; torch's are aligned for SIMD.
    scratch, out = torch.empty_like(y).numpy(), y.numpy()
    direction = {"dct": "FFTW_REDFT10", "idct": "FFTW_REDFT01"}[pass_]
    plan = pyfftw.FFTW(
        scratch, out, axes=(-1,), direction=direction, flags=("FFTW_MEASURE",), threads=threads
    )

    def call(i):
        plan.update_arrays(sources[i], out)
        plan.execute()

    def result():
        call(0)
        return (torch.from_numpy(out * scale if pass_ == "dct" else out.copy()),)

    held = y.nbytes + sum(a.nbytes for a in sources)
    return Peer("FFTW", call, result, held, "FFTW_MEASURE, preallocated output, scaling not timed")


def composed_call(pass_, inputs, y):
    """`call(i)` of the DCT ("dct", "idct") of float32 `inputs[i]` into `y`, put together from torch.fft."""
    return {"dct": _composed_dct, "idct": _composed_idct}[pass_](inputs, y)


def _twiddles(q):
    """c_k exp(-i pi k / 2q) for k = 0..q/2, computed in double precision."""
    k = torch.arange(q // 2 + 1, dtype=torch.float64)
    c = torch.full_like(k, math.sqrt(2 / q))
    c[0] = math.sqrt(1 / q)
    return torch.polar(c, -math.pi * k / (2 * q)).to(torch.complex64)


def _composed_dct(inputs, y):
    q = y.shape[1]
    half = q // 2 + 1
    twiddles, v = _twiddles(q).to(y.device), torch.empty_like(y)
    spectrum = torch.empty(len(y), half, dtype=torch.complex64, device=y.device)

    def call(i):
        x = inputs[i]
        v[:, : (q + 1) // 2] = x[:, ::2]
        v[:, (q + 1) // 2 :] = x[:, 1::2].flip(1)
        torch.fft.rfft(v, out=spectrum)
        spectrum.mul_(twiddles)
        y[:, :half] = spectrum.real
        torch.neg(spectrum.imag[:, 1 : q - half + 1].flip(1), out=y[:, half:])
        return y

    return call


def _composed_idct(inputs, y):
    q = y.shape[1]
    half = q // 2 + 1
    # V_k = exp(i pi k / 2q) (y_k - i y_{q-k}) / c_k, with y_q = 0.
    twiddles = _twiddles(q).to(torch.complex128).reciprocal().to(y.device, torch.complex64)
    spectrum = torch.zeros(len(y), half, dtype=torch.complex64, device=y.device)
    v = torch.empty_like(y)

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

    return call


@torch.no_grad()
def measure_dct(scope, q, threads):
    """The rows of one length."""
    case = Case("dct", q, 0.0, max(1, scope.dct_elements // q))
    generator = torch.Generator().manual_seed(q)
    inputs = [torch.randn(case.batch, q, generator=generator) for _ in range(INPUTS)]
    rows = []
    with use_threads(threads):
        for pass_, library in (("dct", scipy.fft.dct), ("idct", scipy.fft.idct)):
            right = torch.from_numpy(library(inputs[0].double().numpy(), norm="ortho"))
            peers = dct_peers(pass_, inputs, threads)
            errors = [
                validate(peer, [(inputs[0] if "copy" in peer.name else right, None)], TOLERANCE)
                for peer in peers
            ]
            timings = interleave(peers, INPUTS, scope.rounds, f"{pass_}, q {q}", scope.seconds)
            for peer, timing, error in zip(peers, timings, errors, strict=True):
                faults = page_faults(peer.call, INPUTS)
                rows.append(
                    _row("dct", threads, pass_, case, 0, peer, timing, error, page_faults_per_call=faults)
                )
    return rows


# The layer


def measure_layer(scope, passes, case, threads):
    """The rows of sections `forward` and `step` for one case."""
    rows = layers.measure(case, threads, scope.rounds, passes, scope.seconds)
    return [{"section": row["pass"], **row} for row in rows]


def _layer_peer(problem, layer, name, pass_):
    return layers.module_peer(
        problem, layer, name, pass_, lambda: (layer.values.grad, layer.bias.grad, layer.alpha.grad)
    )


def _twin_peer(problem, pass_):
    dense = problem.dense
    return layers.module_peer(
        problem,
        dense,
        LINEAR,
        pass_,
        lambda: (problem.on_support(dense.weight.grad), dense.bias.grad),
    )


def _measure_peers(section, problem, pass_, peers, scope, threads):
    """Check and time peers that compute alpha*D + S, or copy."""
    right = problem.oracle(of_sparse=False)
    copied = [(problem.inputs[0], None), (problem.gradients[0], None)]
    errors = []
    for peer in peers:
        results = copied if peer.name == COPY else right[:-1] if peer.name == LINEAR else right
        errors.append(validate(peer, results[:1] if pass_ == "forward" else results, TOLERANCE))
    case = problem.case
    timings = interleave(peers, INPUTS, scope.rounds, f"{section}, {case.title}, {pass_}", scope.seconds)
    nnz = problem.layer.support.nnz
    return [
        _row(section, threads, pass_, case, nnz, peer, timing, error)
        for peer, timing, error in zip(peers, timings, errors, strict=True)
    ]


def algorithms():
    """Those that this build lets the user choose; "auto" alone stands for the layer as it is."""
    known = "algorithm" in inspect.signature(dctps_ext.DCTpSLinear).parameters
    return ALGORITHMS if known else ALGORITHMS[:1]


def measure_auto(scope, case, threads):
    """The rows of each algorithm against nn.Linear for one case."""
    names = algorithms()
    with use_threads(threads):
        problem = Problem(case)
        twins = {}
        for name in names:
            keyword = {"algorithm": name} if len(names) > 1 else {}
            twins[name] = dctps_ext.DCTpSLinear(case.q, case.q, density=case.density, **keyword)
            twins[name].load_state_dict(problem.layer.state_dict())
        rows = []
        for pass_ in PASSES:
            peers = [_layer_peer(problem, layer, name, pass_) for name, layer in twins.items()]
            peers.append(_twin_peer(problem, pass_))
            rows += _measure_peers("auto", problem, pass_, peers, scope, threads)
        return rows


def measure_scaling(scope, case, threads):
    """The rows of one size and density; nn.Linear, whose time has no density, beside density 0 only."""
    twin = case.density == 0 and case.q <= LARGEST_TWIN
    with use_threads(threads):
        problem = Problem(case, twin=twin)
        rows = []
        for pass_ in PASSES:
            peers = [_layer_peer(problem, problem.layer, DCTPS, pass_), layers.copy_peer(problem, pass_)]
            if twin:
                peers.append(_twin_peer(problem, pass_))
            rows += _measure_peers("scaling", problem, pass_, peers, scope, threads)
        return rows


def measure_overhead(scope, threads):
    """The rows of a tiny call: without gradients, recording them, and with the backward pass."""
    with use_threads(threads):
        problem = Problem(Case("linear", 16, 0.01, 1))
        rows = []
        for pass_ in (*PASSES, "recorded"):
            peers = []
            for module, make in (
                (problem.dense, lambda p: _twin_peer(problem, p)),
                (problem.layer, lambda p: _layer_peer(problem, problem.layer, DCTPS, p)),
            ):
                peer = make("step" if pass_ == "recorded" else pass_)
                if pass_ == "recorded":  # checked as a step, timed without the backward pass
                    peer = dataclasses.replace(peer, call=_recorder(module, problem.inputs))
                peers.append(peer)
            rows += _measure_peers("overhead", problem, pass_, peers, scope, threads)
        return rows


def _recorder(module, inputs):
    inputs = [x.clone().requires_grad_() for x in inputs]
    return lambda i: module(inputs[i])


# Memory


def measure_memory(scope, case, pass_, threads):
    """One row, measured in a process of its own: scratch is kept by threads, and theirs must be new."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return [pool.submit(memory_of, case, pass_, threads).result()]


def memory_of(case, pass_, threads):
    """Peak bytes of a layer's forward or backward pass, and how many of them are beside its results.

    Allocations of torch and scratch of the kernels, from when the inputs (and the graph) are there. Plans,
    O(q) constants that are cached for good, are not counted.
    """
    with use_threads(threads):
        problem = Problem(case, twin=False)
        layer, x, g = problem.layer, problem.inputs[0], problem.gradients[0]
        right = problem.oracle(of_sparse=False)
        dctps_ext._C.release_workspace()
        dctps_ext._C.reset_workspace_peak()
        if pass_ == "forward":
            with torch.no_grad():
                torch_bytes = peak_bytes(lambda: layer(x))
                results = (layer(x),)
        else:
            x.requires_grad_()
            graphs = [layer(x), layer(x)]  # peak_bytes calls twice
            dctps_ext._C.release_workspace()
            dctps_ext._C.reset_workspace_peak()

            def backward():
                x.grad = None
                layer.zero_grad(set_to_none=True)
                graphs.pop().backward(g)

            torch_bytes = peak_bytes(backward)
            results = (x.grad, layer.values.grad, layer.bias.grad, layer.alpha.grad)
            right = right[1:]
        scratch = dctps_ext._C.workspace_peak_bytes()
        peer = Peer(DCTPS, lambda i: None, lambda: results, 0)
        error = validate(peer, right[: len(results)], TOLERANCE)
        kept = sum(t.nbytes for t in results)
    return {
        **{"section": "memory", "threads": threads, "pass": pass_, "dtype": "float32"},
        **{"q": case.q, "density": case.density, "batch": case.batch, "nnz": layer.support.nnz},
        **{"peer": DCTPS, "relative_error": error, "results_bytes": kept, "torch_peak_bytes": torch_bytes},
        **{"scratch_peak_bytes": scratch, "extra_bytes": torch_bytes + scratch - kept},
    }


# The run


def work(scope, sections, threads):
    """What to do: pairs (key of the results, function that gives rows)."""
    jobs = []

    def add(function, *arguments, key="rows"):
        jobs.append((key, functools.partial(function, scope, *arguments, threads)))

    if "dct" in sections:
        for q in scope.dct_sizes:
            add(measure_dct, q)
    passes = tuple(p for p in PASSES if p in sections)
    if passes:
        for q in scope.layer_sizes:
            for batch in scope.layer_batches:
                for p in DENSITIES:
                    add(measure_layer, passes, Case("linear", q, p, batch or scope.layer_elements // q))
    if "auto" in sections:
        for q in scope.auto_sizes:
            for p in scope.auto_densities:
                for batch in scope.auto_batches:
                    add(measure_auto, Case("linear", q, p, batch))
    if "scaling" in sections:
        for q in scope.scaling_sizes:
            for p in (0.0, *DENSITIES):
                add(measure_scaling, Case("linear", q, p, max(1, scope.scaling_elements // q)))
    if "overhead" in sections:
        add(measure_overhead)
    if "memory" in sections:
        for q in scope.memory_sizes:
            for p in DENSITIES:
                for pass_ in ("forward", "backward"):
                    case = Case("linear", q, p, max(1, scope.memory_elements // q))
                    add(measure_memory, case, pass_, key="memory")
    return jobs


def run(scope, sections, threads_list):
    """Measure; returns the results: `rows` and `memory`, then `fits` and `goals` made of them.

    Every row carries `load`, the system's load average of the last minute when it was measured, which counts
    this benchmark too.
    """
    results = {"rows": [], "memory": []}
    jobs = [job for threads in threads_list for job in work(scope, sections, threads)]
    for key, job in tqdm(jobs, desc="linear", unit="case"):
        rows = job()
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        results[key] += [{**row, "load": load} for row in rows]
    results["fits"] = fits(results["rows"])
    results["goals"] = [
        judge(goal, results, threads)
        for goal in GOALS
        for threads in threads_list
        if goal.section in sections
    ]
    return results


# Tables

COLUMNS = {
    "dct": (OURS, (*TRANSFORMS, COMPOSED, COPY, FRESH_COPY)),
    "forward": (DCTPS, (LINEAR, SPARSE, COPY)),
    "step": (DCTPS, (LINEAR, SPARSE, COPY)),
    "auto": (LINEAR, ALGORITHMS),
    "scaling": (DCTPS, (LINEAR, COPY)),
    "overhead": (DCTPS, (LINEAR,)),
}


def tables(results):
    """Every section as aligned text, at most 110 columns wide."""
    lines = ["Median times of interleaved rounds, float32; B rows of length q, density p of S."]
    for section, (ours, others) in COLUMNS.items():
        blocks = {}
        for row in results["rows"]:
            if row["section"] == section:
                blocks.setdefault(block_of(row), {})[row["peer"]] = row
        for threads, pass_ in dict.fromkeys((block[1], block[2]) for block in blocks):
            relation = "time of nn.Linear / its time" if ours == LINEAR else f"its time / time of {ours}"
            title = section if section == pass_ else f"{section}: {pass_}"
            lines += ["", f"{title}, {count_threads(threads)}; columns at the right: {relation}"]
            widths = [max(len(other), 8) for other in others]
            heads = " ".join(f"{other:>{w}}" for other, w in zip(others, widths, strict=True))
            lines.append(f"  {'q':>6} {'p':>5} {'B':>6} {ours + ' us':>13} {heads}")
            for (_, t, p, q, density, batch), peers in blocks.items():
                if (t, p) != (threads, pass_):
                    continue
                base = peers[ours]["seconds"]
                cells = []
                for other, width in zip(others, widths, strict=True):
                    ratio = peers[other]["seconds"] / base if other in peers else None
                    ratio = 1 / ratio if ratio and ours == LINEAR else ratio
                    cells.append(f"{'-' if ratio is None else f'{ratio:.2f}':>{width}}")
                shown = "" if section == "dct" else f"{100 * density:g}%"
                lines.append(f"  {q:>6} {shown:>5} {batch:>6} {1e6 * base:>13.1f} " + " ".join(cells))
    faults = _page_note(results["rows"])
    if faults:
        lines += ["", *faults]
    for fit in results["fits"]:
        lines += [
            "",
            f"scaling: {fit['pass']}, {count_threads(fit['threads'])}, {fit['points']} points: "
            "time = a q log2(q) B + b nnz B + c q B",
            f"  a = {fit['a_ns']:.4f} ns, b = {fit['b_ns']:.4f} ns, c = {fit['c_ns']:.4f} ns; "
            f"every time within a factor {fit['worst_factor']:.2f} of it",
        ]
    if results["memory"]:
        lines += ["", "memory: peak bytes of one pass"]
        lines.append(
            f"  {'threads':>7} {'pass':<8} {'q':>6} {'p':>5} {'B':>6} {'results':>12} {'torch peak':>12}"
            f" {'scratch':>12} {'beside results':>14}"
        )
        for r in results["memory"]:
            lines.append(
                f"  {r['threads']:>7} {r['pass']:<8} {r['q']:>6} {100 * r['density']:>4g}% {r['batch']:>6}"
                f" {r['results_bytes']:>12} {r['torch_peak_bytes']:>12} {r['scratch_peak_bytes']:>12}"
                f" {r['extra_bytes']:>14}"
            )
    return "\n".join(lines)


def _page_note(rows):
    """What the op's fresh output costs in pages, where the allocator takes them anew from the system."""
    ours = [row for row in rows if row["section"] == "dct" and row["peer"] == OURS]
    if not ours:
        return []
    worst = max(ours, key=lambda row: row["page_faults_per_call"])
    pages = worst["q"] * worst["batch"] * 4 / 4096
    share = worst["page_faults_per_call"] / pages
    return [
        f"Page faults of {OURS}'s fresh outputs: at most {worst['page_faults_per_call']:.0f} a call, for "
        f"{pages:.0f} pages of 4 KiB of output;",
        f"pages {'weigh' if share > 0.5 else 'do not weigh'} in its times. The fresh copy pays for the same "
        "pages, the copy does not.",
    ]


def goal_table(goals, where=None):
    """The goals as aligned text: bound, worst measured ratio, met or missed; `where` in place of threads."""
    lines = []
    for threads in dict.fromkeys(goal["threads"] for goal in goals):
        title = f"Goals, {where or count_threads(threads)}: the worst of the ratios that the section measured"
        if threads > 1:
            title += "; (kept): over the same with 1 thread"
        lines += [title, f"  {'goal':<57} {'bound':>7} {'measured':>8}  {'':<12} where worst"]
        for goal in goals:
            if goal["threads"] != threads:
                continue
            text = f"{goal['goal']}{' (kept)' if goal['relative'] else ''}"
            bound = f"{goal['sense']} {goal['target']:g}"
            shown, verdict = "-", "not measured"
            if goal["met"] is not None:
                shown, verdict = f"{goal['measured']:.2f}", "met" if goal["met"] else "MISSED"
            lines.append(f"  {text:<57} {bound:>7} {shown:>8}  {verdict:<12} {goal['worst'] or ''}")
        lines.append("")
    judged = [goal for goal in goals if goal["met"] is not None]
    lines.append(f"met: {sum(goal['met'] for goal in judged)} of {len(judged)} measured")
    return "\n".join(lines)


def _sections(text):
    names = tuple(text.split(","))
    unknown = [name for name in names if name not in SECTIONS]
    if unknown:
        raise argparse.ArgumentTypeError(f"expected some of {','.join(SECTIONS)}, got {unknown[0]!r}")
    return names


def main(argv=None, scope=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.linear", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few sizes and rounds, under a minute")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], metavar="N", help="default: 1 2")
    parser.add_argument(
        "--sections", type=_sections, default=SECTIONS, metavar="A,B", help=f"default: {','.join(SECTIONS)}"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="default: benchmarks/results; --quick: build/quick"
    )
    arguments = parser.parse_args(argv)
    if min(arguments.threads) < 1:
        parser.error(f"--threads: expected at least 1, got {min(arguments.threads)}")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    threads_list = sorted(set(arguments.threads))
    scope = scope or (QUICK if arguments.quick else FULL)
    out = arguments.out or Path("build/quick" if arguments.quick else "benchmarks/results")

    record = environment(OPTIONAL.values())
    notes = [
        note
        for note in (
            layers.busy_warning(record, threads_list[-1]),
            *(f"Left out: {peer}, as {module} is not installed." for peer, module in missing_peers().items()),
            ""
            if len(algorithms()) > 1
            else 'Left out: "fast" and "dense", as the layer takes no algorithm=.',
            ""
            if scope is FULL
            else "A small run: it shows that the benchmark works, its ratios mean little.",
        )
        if note
    ]
    for note in notes:
        logger.warning("%s", note)
    results = run(scope, arguments.sections, threads_list)
    print(
        f"{record['device']}, {record['cores']} cores, {record['isa']}, torch {record['versions']['torch']}\n"
    )
    print(tables(results))
    print()
    print(goal_table(results["goals"]))
    print("\n".join(notes))
    stem = f"linear-{layers.device_slug(record)}"
    write_json(
        out / f"{stem}.json",
        {"environment": record, "notes": notes, "scope": dataclasses.asdict(scope), **results},
    )
    print(f"\nsaved {out / f'{stem}.json'}")
    for path in linear_plots.save(results, out / stem, record["device"]):
        print(f"saved {path}")


if __name__ == "__main__":
    main()
