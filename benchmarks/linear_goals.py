"""The goals of the linear layers on a CPU, judged on what benchmarks/linear.py measured; the fit of times.

A goal is a bound on ratios measured in one run. With one thread the worst ratio is held against the bound;
with more threads every ratio against the same one with one thread, of which it must keep `KEPT`. Limits that
are stated for any number of threads (memory, the fit) are held against their bound for each.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.optimize

from .layers import COPY, DCTPS, DENSE, SPARSE

OURS = "dctps_ext"  # the op, beside DCTPS, the layer
TRANSFORMS = ("scipy", "scipy in place", "ducc0", "FFTW")  # the libraries of which the best counts
LINEAR = DENSE["linear"]
KEPT = 0.85  # on more threads no ratio is worse by more than 15%
FIT_FACTOR = 1.5  # how far a time may lie from the fit and still follow it

DCT_TARGETS = {256: 4, 576: 4, 1000: 3, 1021: 1, 1024: 4, 2048: 4, 4096: 3.5, 4608: 3}
SMOOTH = (256, 576, 1000, 1024, 2048, 4096)  # q up to 4096 whose DCT is held against a copy
FORWARD_TARGETS = {256: (18, 12), 1024: (50, 30), 4096: (110, 48)}  # densities 0.1% and 1%
STEP_TARGETS = {1024: (35, 20), 4096: (80, 35)}
DENSITIES = (0.001, 0.01)


@dataclass(frozen=True)
class Goal:
    """A bound on measured ratios.

    Attributes:
        section: of the benchmark, which measures it.
        text: what is measured, as tables print it.
        target: the bound.
        values: `values(results, threads)` gives the ratios by label; empty where they were not measured.
        at_least: whether the ratios should be at least the target, else at most.
        each: whether the target holds for any number of threads.
    """

    section: str
    text: str
    target: float
    values: Callable[[dict, int], dict]
    at_least: bool = True
    each: bool = False


def block_of(row):
    """What rows that are compared with each other have in common."""
    return tuple(row[key] for key in ("section", "threads", "pass", "q", "density", "batch"))


def ratios(results, threads, section, ours, others, wanted, label):
    """How many times faster `ours` is than the fastest of `others`, by label.

    Args:
        results: a dict with the measured `rows`.
        threads, section: of the rows that count.
        ours, others: names of peers.
        wanted: `wanted(row)` says whether a row of `ours` counts.
        label: `label(row)` names its ratio.
    """
    rows = [row for row in results["rows"] if (row["section"], row["threads"]) == (section, threads)]
    best = {}
    for row in rows:
        if row["peer"] in others:
            best[block_of(row)] = min(best.get(block_of(row), math.inf), row["seconds"])
    return {
        label(row): best[block_of(row)] / row["seconds"]
        for row in rows
        if row["peer"] == ours and wanted(row) and block_of(row) in best
    }


def faster(section, text, target, ours, others, wanted, label):
    """A goal on how many times faster a peer is."""
    return Goal(
        section,
        text,
        target,
        lambda results, threads: ratios(results, threads, section, ours, others, wanted, label),
    )


def slower(section, text, target, ours, other, wanted, label):
    """A goal on how many times the time of another peer a peer takes."""

    def values(results, threads):
        speeds = ratios(results, threads, section, ours, (other,), wanted, label)
        return {name: 1 / speed for name, speed in speeds.items()}

    return Goal(section, text, target, values, at_least=False)


def _batch(row):
    return f"B={row['batch']}"


def _layer_goals(section, text, targets):
    return [
        faster(
            section,
            f"{text}, q={q}, p={100 * p:g}%",
            target,
            DCTPS,
            (LINEAR,),
            lambda r, q=q, p=p: r["q"] == q and r["density"] == p and r["batch"] > 1,
            _batch,
        )
        for q, pair in targets.items()
        for p, target in zip(DENSITIES, pair, strict=True)
    ]


def _over_sparse(p, q):
    return faster(
        "forward",
        f"forward over torch.sparse, p={100 * p:g}%, q >= {q}",
        1,
        DCTPS,
        (SPARSE,),
        lambda r: r["density"] == p and r["q"] >= q,
        lambda r: f"q={r['q']} B={r['batch']}",
    )


def _memory(pass_, target):
    def values(results, threads):
        return {
            f"q={r['q']} p={100 * r['density']:g}%": r["extra_bytes"] / threads / 2**20
            for r in results["memory"]
            if (r["pass"], r["threads"]) == (pass_, threads)
        }

    kept = {"forward": "output", "backward": "gradients"}[pass_]
    text = f"{pass_}: MiB a thread beside the {kept}"
    return Goal("memory", text, target, values, at_least=False, each=True)


def _fit_values(results, threads):
    return {f["pass"]: f["worst_factor"] for f in fits(results["rows"]) if f["threads"] == threads}


GOALS = (
    *(
        faster(
            "dct",
            f"DCT over the best of scipy, ducc0, FFTW, q={q}",
            target,
            OURS,
            TRANSFORMS,
            lambda r, q=q: r["q"] == q,
            lambda r: r["pass"],
        )
        for q, target in DCT_TARGETS.items()
    ),
    slower(
        "dct",
        "DCT: times a copy, smooth q in 256..4096",
        3,
        OURS,
        COPY,
        lambda r: r["q"] in SMOOTH,
        lambda r: f"{r['pass']} q={r['q']}",
    ),
    *_layer_goals("forward", "forward over nn.Linear", FORWARD_TARGETS),
    faster(
        "forward",
        "forward over nn.Linear, q=4096, B=1",
        20,
        DCTPS,
        (LINEAR,),
        lambda r: r["q"] == 4096 and r["batch"] == 1,
        lambda r: f"p={100 * r['density']:g}%",
    ),
    *_layer_goals("step", "training step over nn.Linear's", STEP_TARGETS),
    _over_sparse(0.01, 256),
    _over_sparse(0.001, 1024),
    faster(
        "auto",
        'algorithm="auto" forward over nn.Linear (q, p, B)',
        0.9,
        "auto",
        (LINEAR,),
        lambda r: r["pass"] == "forward",
        lambda r: f"{r['q']}, {100 * r['density']:g}%, {r['batch']}",
    ),
    Goal(
        "scaling",
        "times its fit, at worst, for q in 256..32768",
        FIT_FACTOR,
        _fit_values,
        at_least=False,
        each=True,
    ),
    slower(
        "overhead",
        "a tiny call: times nn.Linear's, q=16, B=1",
        4,
        DCTPS,
        LINEAR,
        lambda r: r["pass"] != "step",
        lambda r: r["pass"],
    ),
    _memory("forward", 2),
    _memory("backward", 4),
)


def judge(goal, results, threads):
    """One line of the table of goals, as a JSON-able dict.

    Keys: `section`, `goal`, `threads`, `relative` (whether to the ratios with one thread), `sense`, `target`,
    `measured` (the worst), `worst` (its label), `met` and `values`. `measured`, `worst` and `met` are None
    where nothing was measured, or nothing with one thread that it could be held against.
    """
    values = goal.values(results, threads)
    relative = threads != 1 and not goal.each
    judged, sense, target = values, ">=" if goal.at_least else "<=", goal.target
    if relative:
        ones, sense, target = goal.values(results, 1), ">=", KEPT
        judged = {
            label: value / ones[label] if goal.at_least else ones[label] / value
            for label, value in values.items()
            if label in ones
        }
    worst = (min if sense == ">=" else max)(judged, key=judged.get, default=None)
    measured = judged.get(worst)
    met = None if worst is None else measured >= target if sense == ">=" else measured <= target
    return {
        **{"section": goal.section, "goal": goal.text, "threads": threads, "relative": relative},
        **{"sense": sense, "target": target, "measured": measured, "worst": worst, "met": met},
        "values": values,
    }


def fit(rows):
    """Constants of time = a*q*log2(q)*B + b*nnz*B + c*q*B for rows of one pass and number of threads.

    Least squares of the relative error, with a, b, c >= 0.

    Returns:
        A dict with `a_ns`, `b_ns`, `c_ns` in nanoseconds and `worst_factor`, the largest factor between a
        time and the fit.
    """
    q, nnz, batch, seconds = (
        np.array([row[key] for row in rows], float) for key in ("q", "nnz", "batch", "seconds")
    )
    terms = np.stack([q * np.log2(q) * batch, nnz * batch, q * batch], axis=1)
    scale = terms.max(axis=0)
    scale[scale == 0] = 1.0  # no sparse part anywhere
    constants = scipy.optimize.nnls(terms / scale / seconds[:, None], np.ones_like(seconds))[0] / scale
    factor = seconds / (terms @ constants)
    return {
        **dict(zip(("a_ns", "b_ns", "c_ns"), (1e9 * constants).tolist(), strict=True)),
        "worst_factor": float(np.maximum(factor, 1 / factor).max()),
    }


def fits(rows):
    """The fit of each pass and number of threads of the section `scaling`."""
    ours = [row for row in rows if (row["section"], row["peer"]) == ("scaling", DCTPS)]
    groups = {}
    for row in ours:
        groups.setdefault((row["threads"], row["pass"]), []).append(row)
    return [
        {"threads": threads, "pass": pass_, "points": len(group), **fit(group)}
        for (threads, pass_), group in groups.items()
    ]


def fitted_seconds(constants, q, nnz, batch):
    """The time that a fit gives."""
    a, b, c = (constants[key] * 1e-9 for key in ("a_ns", "b_ns", "c_ns"))
    return batch * (a * q * math.log2(q) + b * nnz + c * q)
