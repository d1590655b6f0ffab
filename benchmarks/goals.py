"""The goals, as data, and how they are judged; the fit of times to a q log q + b nnz + c q.

A goal is a bound on ratios measured in one run. With one thread the worst ratio is held against the bound;
with more threads every ratio against the same one with one thread, of which it must keep `KEPT`. Limits that
are stated for any number of threads (memory, the fit) are held against their bound for each.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import scipy.optimize

from .peers import (
    AUTO,
    COMPOSED,
    CONV,
    COPY,
    DCTPS,
    DENSE,
    FAST,
    FRESH_COPY,
    LIBRARIES,
    LINEAR,
    OURS,
    SPARSE,
    UNFUSED,
)
from .problems import PRODUCTS, TRANSFORMS
from .results import blocks, short_name

KEPT = 0.85  # on more threads no ratio is worse by more than 15%
FIT_FACTOR = 1.5  # how far a time may lie from the fit and still follow it
FIT_LARGEST_DENSITY = 0.01  # above it the fit is drawn, not judged: the CSR no longer fits the caches
UP = 2**31  # `range(a, UP)`: at least a


@dataclass(frozen=True)
class Goal:
    """A bound on measured ratios.

    Attributes:
        text: what is measured, as tables print it.
        target: the bound.
        where: field -> value, or a tuple or range of values, of the rows that count.
        ours, over: peers; the ratio is the time of the fastest of `over` to that of `ours`.
        most: "" where the ratio should be at least the target; else what should be at most the target:
            "time", that of ours to that of `over`; "backward", a backward's to its forward's; "fit", the
            largest factor between times and fit; "bytes", MiB a thread beside the results.
    """

    text: str
    target: float
    where: dict = field(default_factory=dict)
    ours: str = DCTPS
    over: tuple = ()
    most: str = ""

    @property
    def each(self):
        """Whether the target holds for any number of threads."""
        return self.most in ("fit", "bytes")


def matches(row, where):
    """Whether a row is one that `where` (see `Goal`) asks for."""
    return all(row[k] in v if isinstance(v, tuple | range) else row[k] == v for k, v in where.items())


_CPU = {"device": "cpu", "dtype": "float32"}
_GPU = {"device": "cuda", "kind": TRANSFORMS}
_POWERS = (64, 128, 256, 512, 576, 1000, 1024, 2048, 4096, 4608, 8192, 16384, 32768)  # all but the prime
_LARGE = range(2, UP)


def _linear(pass_, text, targets):
    """Goals of layers against nn.Linear: size -> targets at densities 0.1% and 1%."""
    return tuple(
        Goal(
            f"{text}, q={q}, p={100 * p:g}%",
            target,
            {**_CPU, "section": "linear", "pass": pass_, "q": q, "density": p, "batch": _LARGE},
            over=(LINEAR,),
        )
        for q, pair in targets.items()
        for p, target in zip((0.001, 0.01), pair, strict=True)
    )


def _conv(text, targets, kernel, density, share=1.0, pass_="forward"):
    """Goals of convolutions against nn.Conv2d: (inputs, outputs) -> target."""
    where = {**_CPU, "section": "conv", "kernel": kernel, "density": density, "pass": pass_}
    where |= {"stride": 1, "dilation": 1, "groups": 1}
    return tuple(
        Goal(
            f"{text}, {n} -> {m}, p={100 * density:g}%",
            round(share * target, 2),
            {**where, "n": n, "m": m},
            over=(CONV,),
        )
        for (n, m), target in targets.items()
    )


_SPATIAL = {0.001: (5.5, 6.5, 10, 12), 0.01: (4.5, 5.5, 7.5, 8.5)}
_POINTWISE = {(256, 64): 2.5, (512, 128): 4, (2048, 512): 12, (512, 2048): 12}


def _all_conv():
    for p, targets in _SPATIAL.items():
        shapes = {(c, c): target for c, target in zip((64, 128, 256, 512), targets, strict=True)}
        yield from _conv("3x3 forward", shapes, 3, p)
        yield from _conv("3x3 step", shapes, 3, p, 0.8, "step")
    yield from _conv("1x1 forward", _POINTWISE, 1, 0.001)
    yield from _conv("1x1 step", _POINTWISE, 1, 0.001, 0.8, "step")


def _gpu_copy(dtype, target, smallest, largest):
    return Goal(
        f"DCT {dtype}: fraction of clone, q in {smallest}..{largest}",
        target,
        {**_GPU, "dtype": dtype, "q": tuple(q for q in _POWERS if smallest <= q <= largest)},
        OURS,
        (FRESH_COPY,),
    )


GOALS = (
    # The linear layers on a CPU.
    *(
        Goal(
            f"DCT over the best of scipy, ducc0, FFTW, q={q}",
            target,
            {**_CPU, "kind": TRANSFORMS, "q": q},
            OURS,
            LIBRARIES,
        )
        for q, target in {256: 4, 576: 4, 1000: 3, 1021: 1, 1024: 4, 2048: 4, 4096: 3.5, 4608: 3}.items()
    ),
    Goal(
        "DCT: times a copy, smooth q in 256..4096",
        3,
        {**_CPU, "kind": TRANSFORMS, "q": (256, 576, 1000, 1024, 2048, 4096)},
        OURS,
        (COPY,),
        "time",
    ),
    *_linear("forward", "forward over nn.Linear", {256: (18, 12), 1024: (50, 30), 4096: (110, 48)}),
    Goal(
        "forward over nn.Linear, q=4096, B=1",
        20,
        {**_CPU, "section": "linear", "pass": "forward", "q": 4096, "batch": 1},
        over=(LINEAR,),
    ),
    *_linear("step", "training step over nn.Linear's", {1024: (35, 20), 4096: (80, 35)}),
    *(
        Goal(
            f"forward over torch.sparse, p={100 * p:g}%, q >= {q}",
            1,
            {**_CPU, "section": "linear", "pass": "forward", "density": p, "q": range(q, UP)},
            over=(SPARSE,),
        )
        for p, q in ((0.01, 256), (0.001, 1024))
    ),
    Goal(
        'algorithm="auto" forward over nn.Linear (q, p, B)',
        0.9,
        {**_CPU, "section": "auto", "pass": "forward"},
        AUTO,
        (LINEAR,),
    ),
    Goal("times its fit, at worst, for q in 256..32768", FIT_FACTOR, {**_CPU, "section": "grid"}, most="fit"),
    Goal(
        "a tiny call: times nn.Linear's, q=16, B=1",
        4,
        {**_CPU, "section": "overhead", "pass": ("forward", "recorded")},
        over=(LINEAR,),
        most="time",
    ),
    Goal(
        "forward: MiB a thread beside the output", 2, {"section": "memory", "pass": "forward"}, most="bytes"
    ),
    Goal(
        "backward: MiB a thread beside the gradients",
        4,
        {"section": "memory", "pass": "backward"},
        most="bytes",
    ),
    # Convolutions and networks on a CPU.
    *_all_conv(),
    Goal(
        'a convolution under "auto" over nn.Conv2d',
        1,
        {**_CPU, "section": "conv", "pass": ("forward", "step")},
        over=(CONV,),
    ),
    *(
        Goal(
            f"{text}, {model}, p=0.1%, batch 32",
            target,
            {**_CPU, "section": "networks", "model": model, "pass": pass_, "batch": 32, "density": 0.001},
            over=(DENSE,),
        )
        for model, targets in {"vgg19": (5, 4), "resnet50": (1.7, 1.9)}.items()
        for (pass_, text), target in zip(
            (("inference", "inference"), ("step", "training step")), targets, strict=True
        )
    ),
    # The kernels on a GPU.
    *(
        _gpu_copy("float32", t, *ends)
        for t, ends in {0.9: (1, 2048), 0.8: (2049, 8192), 0.65: (8193, 16384)}.items()
    ),
    _gpu_copy("float32", 0.5, 16385, 32768),
    *(
        _gpu_copy("bfloat16", t, *ends)
        for t, ends in {0.85: (1, 512), 0.7: (513, 4096), 0.5: (4097, 16384)}.items()
    ),
    Goal(
        "DCT float32 over the composed rfft DCT",
        5,
        {**_GPU, "dtype": "float32", "q": _POWERS},
        OURS,
        (COMPOSED,),
    ),
    Goal(
        "SpMM, SDDMM over torch's best layout",
        2,
        {"device": "cuda", "dtype": "float32", "kind": PRODUCTS},
        OURS,
        (SPARSE,),
    ),
    *(
        goal
        for dtype in ("float32", "bfloat16")
        for where in (
            {
                "device": "cuda",
                "dtype": dtype,
                "section": "linear",
                "nnz_per_row": range(7),
                "q": range(4097),
            },
        )
        for goal in (
            Goal(
                f"forward {dtype}, p*n <= 6: fraction of a copy",
                0.75,
                {**where, "pass": "forward"},
                ours=FAST,
                over=(COPY,),
            ),
            Goal(
                f"forward {dtype}, p*n <= 6: over the unfused sum",
                1.8,
                {**where, "pass": "forward"},
                ours=FAST,
                over=(UNFUSED,),
            ),
            Goal(
                f"backward {dtype}, p*n <= 6: times the forward",
                3,
                {**where, "pass": "backward"},
                ours=FAST,
                most="backward",
            ),
        )
    ),
    *(
        Goal(
            f"layer over cuBLAS on merged W, {dtype}",
            1,
            {"device": "cuda", "dtype": dtype, "section": "linear", "batch": _LARGE},
            over=(LINEAR,),
        )
        for dtype in ("float32", "tf32", "bfloat16")
    ),
    Goal(
        "layer over cuBLAS, float32, q >= 2048, p <= 0.1%",
        5,
        {
            "device": "cuda",
            "dtype": "float32",
            "section": "linear",
            "q": range(2048, UP),
            "density": (0.0003, 0.001),
        },
        over=(LINEAR,),
    ),
)


def _label(row):
    """What tells apart the ratios of a goal."""
    what = row["kind"] if row["section"] == "ops" else row["pass"]
    return f"{what} {short_name(row)}"


def ratios(goal, rows, threads):
    """The ratios of a goal by label; empty where they were not measured."""
    counting = [
        row
        for row in rows
        if row["threads"] == threads
        and matches({**row, "nnz_per_row": math.ceil(row["nnz"] / row["m"]) if row["m"] else 0}, goal.where)
    ]
    if goal.most == "fit":
        return {f["pass"]: f["worst_factor"] for f in fits(counting)}
    if goal.most == "bytes":
        return {_label(row): row["extra_bytes"] / threads / 2**20 for row in counting}
    if goal.most == "backward":
        forward = {}
        for row in rows:
            if row["pass"] == "forward" and row["peer"] == goal.ours and "seconds" in row:
                forward[_without_pass(row)] = row["seconds"]
        return {
            _label(row): row["seconds"] / forward[_without_pass(row)]
            for row in counting
            if row["peer"] == goal.ours and _without_pass(row) in forward
        }
    found = {}
    for peers in blocks(counting).values():
        others = [peers[name]["seconds"] for name in goal.over if name in peers]
        if goal.ours in peers and others:
            ours = peers[goal.ours]
            speed = min(others) / ours["seconds"]
            found[_label(ours)] = 1 / speed if goal.most else speed
    return found


def _without_pass(row):
    return tuple(
        row[name] for name in ("section", "kind", "m", "n", "density", "batch", "dtype", "device", "threads")
    )


def judge(goal, rows, threads):
    """One line of the table of goals, as a dict.

    Keys: `goal`, `threads`, `relative` (whether to the ratios with one thread), `sense`, `target`, `measured`
    (the worst), `worst` (its label), `met` and `values`. `measured`, `worst` and `met` are None where nothing
    was measured, or nothing with one thread that it could be held against.
    """
    values = ratios(goal, rows, threads)
    relative = threads != 1 and not goal.each
    judged, sense, target = values, "<=" if goal.most else ">=", goal.target
    if relative:
        ones, sense, target = ratios(goal, rows, 1), ">=", KEPT
        judged = {
            label: ones[label] / value if goal.most else value / ones[label]
            for label, value in values.items()
            if label in ones
        }
    worst = (min if sense == ">=" else max)(judged, key=judged.get, default=None)
    measured = judged.get(worst)
    met = None if worst is None else measured >= target if sense == ">=" else measured <= target
    return {
        **{"goal": goal.text, "threads": threads, "relative": relative, "sense": sense, "target": target},
        **{"measured": measured, "worst": worst, "met": met, "values": values},
    }


# The fit


def fit(rows):
    """Constants of time = a*q*log2(q)*B + b*nnz*B + c*q*B for rows of one pass and number of threads.

    Least squares of the relative error, with a, b, c >= 0. The third term is the traffic of x and y.

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
    """The fit of each pass, dtype, device and number of threads of the section `grid`, of q from 256 on."""
    groups = {}
    for row in rows:
        wanted = (row["section"], row["peer"]) == ("grid", DCTPS) and row["q"] >= 256
        if wanted and row["density"] <= FIT_LARGEST_DENSITY:
            groups.setdefault(tuple(row[name] for name in ("device", "dtype", "threads", "pass")), []).append(
                row
            )
    return [
        {
            **dict(zip(("device", "dtype", "threads", "pass"), group, strict=True)),
            "points": len(chosen),
            **fit(chosen),
        }
        for group, chosen in groups.items()
        if len(chosen) >= 3
    ]


def fitted_seconds(constants, q, nnz, batch):
    """The time that a fit gives."""
    a, b, c = (constants[key] * 1e-9 for key in ("a_ns", "b_ns", "c_ns"))
    return batch * (a * q * math.log2(q) + b * nnz + c * q)
