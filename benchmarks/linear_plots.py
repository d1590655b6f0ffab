"""The figures of benchmarks/linear.py: transforms over q, time over q with its fit, the layer over q."""

import numpy as np

from . import layers
from .layers import COPY, DCTPS, PASSES, count_threads
from .linear_goals import LINEAR, OURS, fitted_seconds

# Okabe and Ito's palette, told apart by markers too.
DCT_LOOKS = {
    OURS: ("#D55E00", "o"),
    "scipy": ("#0072B2", "^"),
    "scipy in place": ("#56B4E9", "v"),
    "ducc0": ("#009E73", "D"),
    "FFTW": ("#CC79A7", "s"),
    "rfft": ("#E69F00", "P"),
    "fresh copy": ("#999999", "x"),
}
DENSITY_LOOKS = {0.0: ("#0072B2", "o"), 0.001: ("#009E73", "s"), 0.01: ("#D55E00", "^")}
PASS_TITLES = {"forward": "forward", "step": "training step (forward + backward)"}


def save(results, stem, device):
    """Save a PNG for each section that was measured, named from `stem`; returns their paths."""
    import matplotlib

    matplotlib.use("Agg")
    paths = []
    rows = {}
    for row in results["rows"]:
        rows.setdefault(row["section"], []).append(row)
    stem.parent.mkdir(parents=True, exist_ok=True)
    if "dct" in rows:
        paths.append(_dct(rows["dct"], stem.with_name(f"{stem.name}-dct.png"), device))
    if "scaling" in rows:
        path = stem.with_name(f"{stem.name}-scaling.png")
        paths.append(_scaling(rows["scaling"], results["fits"], path, device))
    if all(pass_ in rows for pass_ in PASSES):
        both = [row for pass_ in PASSES for row in rows[pass_]]
        # At the largest batch that every size has.
        sizes = {row["q"] for row in both}
        shared = set.intersection(*({r["batch"] for r in both if r["q"] == q} for q in sizes))
        for threads in sorted({row["threads"] for row in both}) if shared else ():
            name = f"{stem.name}-layer-{count_threads(threads).replace(' ', '-')}.png"
            paths.append(stem.with_name(name))
            chosen = [row for row in both if (row["threads"], row["batch"]) == (threads, max(shared))]
            layers.plot(chosen, paths[-1], device)
    return paths


def _grid(rows, passes):
    """A figure with a row of axes for each number of threads and a column for each pass."""
    from matplotlib import pyplot

    threads = sorted({row["threads"] for row in rows})
    figure, axes = pyplot.subplots(
        len(threads),
        len(passes),
        figsize=(1.6 + 5 * len(passes), 0.7 + 4.2 * len(threads)),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    panels = [(axes[i, j], t, p) for i, t in enumerate(threads) for j, p in enumerate(passes)]
    for axis, t, p in panels:
        axis.set_title(f"{PASS_TITLES.get(p, p)}, {count_threads(t)}")
        axis.grid(True, which="major", alpha=0.3)
    return figure, axes, panels


def _finish(figure, axes, xlabel, ylabel, sizes, path):
    from matplotlib import pyplot
    from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

    for axis in axes[-1]:
        axis.set_xlabel(xlabel)
    for axis in axes[:, 0]:
        axis.set_ylabel(ylabel)
    for axis in axes.flat:
        axis.xaxis.set_major_locator(FixedLocator(sizes))
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_locator(NullLocator())
        axis.tick_params(axis="x", labelrotation=60)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), fontsize=8, loc="outside right upper")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return path


def _points(rows, threads, pass_, peer, density=None):
    """q and seconds of the matching rows, by q."""
    return sorted(
        (row["q"], row["seconds"])
        for row in rows
        if (row["threads"], row["pass"], row["peer"]) == (threads, pass_, peer)
        and (density is None or row["density"] == density)
    )


def _dct(rows, path, device):
    figure, axes, panels = _grid(rows, ("dct", "idct"))
    for axis, threads, pass_ in panels:
        limit = dict(_points(rows, threads, pass_, COPY))
        for peer, (colour, marker) in DCT_LOOKS.items():
            points = _points(rows, threads, pass_, peer)
            if points:
                q, seconds = zip(*points, strict=True)
                over = [s / limit[k] for k, s in points]
                axis.plot(q, over, color=colour, marker=marker, label=peer)
        axis.axhline(1, color="#000000", linestyle=":", label="copy (preallocated output)")
        axis.set(xscale="log", yscale="log")
    elements = max(row["q"] * row["batch"] for row in rows)
    figure.suptitle(f"{device}, float32, B = {elements} / q rows", fontsize=10)
    sizes = [q for q in sorted({row["q"] for row in rows}) if q not in (1000, 1021)]  # too near 1024
    return _finish(figure, axes, "length q", "time / time of a copy", sizes, path)


def _scaling(rows, fits, path, device):
    figure, axes, panels = _grid(rows, PASSES)
    constants = {(fit["threads"], fit["pass"]): fit for fit in fits}
    for axis, threads, pass_ in panels:
        for density in sorted({row["density"] for row in rows}):
            points = _points(rows, threads, pass_, DCTPS, density)
            q, seconds = zip(*points, strict=True)
            colour, marker = DENSITY_LOOKS[density]
            label = f"DCTpS, p = {100 * density:g}%"
            milliseconds = [1e3 * s for s in seconds]
            axis.plot(q, milliseconds, color=colour, marker=marker, linestyle="none", label=label)
            elements = max(row["q"] * row["batch"] for row in rows)
            curve = np.geomspace(q[0], q[-1], 60)
            fitted = [
                1e3 * fitted_seconds(constants[threads, pass_], k, density * k * k, elements / k)
                for k in curve
            ]
            axis.plot(curve, fitted, color=colour, linestyle="-", label=f"fit, p = {100 * density:g}%")
        for peer, colour, marker, dash in ((LINEAR, "#000000", "D", "--"), (COPY, "#999999", "x", ":")):
            points = _points(rows, threads, pass_, peer, 0.0)
            if points:
                q, seconds = zip(*points, strict=True)
                axis.plot(
                    q, [1e3 * s for s in seconds], color=colour, marker=marker, linestyle=dash, label=peer
                )
        fit = constants[threads, pass_]
        text = (
            f"a q log2(q) B + b nnz B + c q B\na = {fit['a_ns']:.3f} ns, b = {fit['b_ns']:.3f} ns, "
            f"c = {fit['c_ns']:.3f} ns"
        )
        axis.text(0.03, 0.97, text, transform=axis.transAxes, va="top", fontsize=8)
        axis.set(xscale="log", yscale="log")
    figure.suptitle(f"{device}, float32, B = {elements} / q rows", fontsize=10)
    sizes = [q for q in sorted({row["q"] for row in rows}) if q & (q - 1) == 0]
    return _finish(figure, axes, "layer size q = inputs = outputs", "time a call [ms]", sizes, path)
