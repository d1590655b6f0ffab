"""The figures of a result: complexity, crossover map, transforms, layers and networks, storage.

Colours are Okabe and Ito's, which the colour-blind tell apart; lines differ in marker and dash too.
"""

import numpy as np

from .goals import fits, fitted_seconds
from .peers import CONV, COPY, DCTPS, DENSE, FRESH_COPY, LINEAR, OURS, PLAIN, SPARSE
from .problems import TRANSFORMS
from .results import blocks, origin, quartiles, short_name
from .tables import count_threads

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE, GREY = (
    *("#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#999999"),
)
# peer -> (colour, marker, dash, label)
LOOKS = {
    DCTPS: (VERMILION, "o", "-", "DCTpS (this package)"),
    OURS: (VERMILION, "o", "-", "dctps_ext (this package)"),
    LINEAR: (BLACK, "s", "--", "dense: nn.Linear"),
    CONV: (BLACK, "s", "--", "dense: nn.Conv2d"),
    DENSE: (BLACK, "s", "--", "dense (stored matrix)"),
    SPARSE: (BLUE, "^", "-.", "torch.sparse (S x alone)"),
    PLAIN: (BLUE, "^", "-.", "sparse layers of the package (S x alone)"),
    COPY: (GREY, "x", ":", "copy (lower limit)"),
    FRESH_COPY: (GREY, "+", ":", "copy into a fresh output"),
    "scipy": (BLUE, "^", "-.", "scipy"),
    "scipy in place": (SKY, "v", "-.", "scipy, in place"),
    "ducc0": (GREEN, "D", "-.", "ducc0"),
    "FFTW": (PURPLE, "P", "-.", "FFTW"),
    "VkFFT": (PURPLE, "P", "-.", "VkFFT"),
    "Hadamard": (GREEN, "D", "-.", "fast-hadamard-transform (another transform)"),
    "rfft": (ORANGE, "*", "-.", "composed of torch.fft.rfft"),
}
PASSES = {
    "forward": "forward",
    "backward": "backward",
    "step": "training step",
    "inference": "inference",
    "dct": "DCT-II",
    "idct": "DCT-III",
}
FIXED_DENSITY = 0.01
SMALLEST_SHOWN = 256  # q from here on are those of the complexity picture


def save(result, folder, stem):
    """Save a PNG for each figure that the result has rows for; returns their paths."""
    _backend()
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    figures = {
        "complexity": complexity,
        "crossover": crossover,
        "transforms": transforms,
        "speedups": speedups,
        "storage": storage,
    }
    for name, draw in figures.items():
        figure = draw(result)
        if figure is not None:
            paths.append(write(figure, folder / f"{stem}-{name}.png"))
    return paths


def write(figure, path, **metadata):
    """Save a figure as PNG and close it; returns the path."""
    pyplot = _backend()
    figure.savefig(path, dpi=130, metadata=metadata)
    pyplot.close(figure)
    return path


def _backend():
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _ticks(axis, values, names=None):
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    axis.set_major_locator(FixedLocator(values))
    axis.set_major_formatter(FixedFormatter([f"{v:g}" for v in values] if names is None else names))
    axis.set_minor_locator(NullLocator())


def _line(axis, points, name, label=None):
    """A peer's line: points (x, row), with its quartiles."""
    colour, marker, dash, title = LOOKS[name]
    points = sorted(points, key=lambda point: point[0])
    x, median = [p[0] for p in points], np.array([1e3 * p[1]["seconds"] for p in points])
    spread = np.abs(np.array([quartiles(p[1]) for p in points]).T * 1e3 - median)
    axis.errorbar(
        x,
        median,
        spread,
        color=colour,
        marker=marker,
        linestyle=dash,
        capsize=2,
        label=title if label is None else label,
    )


# ---- complexity


def _grid(result, pass_):
    """Rows of the section grid: {(q, density): {peer: row}} of one pass."""
    grid = {}
    for peers in blocks(result["rows"]).values():
        row = next(iter(peers.values()))
        if (row["section"], row["pass"]) == ("grid", pass_):
            grid[row["q"], row["density"]] = peers
    return grid


def complexity(result, passes=("forward", "step")):
    """Time against q at one density and against the density at one q, with the fit."""
    grids = {pass_: grid for pass_ in passes if (grid := _grid(result, pass_))}
    if not grids:
        return None
    pyplot = _backend()
    figure, axes = pyplot.subplots(
        len(grids), 2, figsize=(11, 0.6 + 4.1 * len(grids)), squeeze=False, layout="constrained"
    )
    constants = {fit["pass"]: fit for fit in fits(result["rows"])}
    for (pass_, grid), (over_q, over_p) in zip(grids.items(), axes, strict=True):
        densities = {p for q, p in grid}
        p = min(densities, key=lambda d: abs(np.log(d / FIXED_DENSITY)))
        chosen = {
            q: grid[q, p]
            for q, d in grid
            if d == p and (q >= SMALLEST_SHOWN or max(grid)[0] < SMALLEST_SHOWN)
        }
        counts = {q: sum(k == q for k, _ in grid) for q, _ in grid}
        q0 = max(counts, key=lambda q: (counts[q], q <= 1024, q))
        fixed = {d: grid[q0, d] for q, d in grid if q == q0}
        panels = (
            (over_q, chosen, f"against the size q, at p = {100 * p:g}%"),
            (over_p, fixed, f"against the density p, at q = {q0}"),
        )
        for axis, points, title in panels:
            for name in (LINEAR, SPARSE, DCTPS, COPY):
                line = [(x, peers[name]) for x, peers in points.items() if name in peers]
                if line:
                    _line(axis, line, name)
            axis.set(xscale="log", yscale="log", title=f"{PASSES[pass_]}: {title}", ylabel="time a call [ms]")
            axis.grid(True, which="major", alpha=0.3)
        elements = max(q * peers[DCTPS]["batch"] for q, peers in chosen.items())
        if pass_ in constants:
            fit = constants[pass_]
            q = np.geomspace(min(chosen), max(chosen), 60)
            d = np.geomspace(min(fixed), max(fixed), 60)
            label = "fit: a q log2(q) B + b p m n B + c q B"
            times = [1e3 * fitted_seconds(fit, k, p * k * k, elements / k) for k in q]
            over_q.plot(q, times, color=ORANGE, linewidth=3, alpha=0.6, zorder=0, label=label)
            batch = fixed[max(fixed)][DCTPS]["batch"]
            times = [1e3 * fitted_seconds(fit, q0, k * q0 * q0, batch) for k in d]
            over_p.plot(d, times, color=ORANGE, linewidth=3, alpha=0.6, zorder=0)
            text = f"fit: a = {fit['a_ns']:.3f} ns, b = {fit['b_ns']:.3f} ns, c = {fit['c_ns']:.3f} ns"
            over_q.text(0.03, 0.94, text, transform=over_q.transAxes, fontsize=8)
        over_q.set_xlabel(f"layer size q = m = n (inputs = outputs); batch B = {elements} / q")
        batch = fixed[max(fixed)][DCTPS]["batch"]
        over_p.set_xlabel(f"density p of S; batch B = {batch}")
        _ticks(over_q.xaxis, [q for q in sorted(chosen) if q & (q - 1) == 0])
        over_q.tick_params(axis="x", labelrotation=45 if len(chosen) > 6 else 0)
        _ticks(over_p.xaxis, sorted(fixed), [f"{100 * d:g}%" for d in sorted(fixed)])
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=9, loc="outside lower center", ncols=3)
    row = next(iter(chosen.values()))[DCTPS]
    figure.suptitle(_subject(result, f"{row['dtype']}, {count_threads(row['threads'])}"), fontsize=10)
    return figure


def _subject(result, more=""):
    return origin(result) + (f"; {more}" if more else "")


def crossover(result):
    """For each size and density the fastest of dense, sparse and DCTpS, and how DCTpS fares."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    grids = {pass_: grid for pass_ in ("forward", "step") if (grid := _grid(result, pass_))}
    if not grids:
        return None
    pyplot = _backend()
    names, colours = (LINEAR, SPARSE, DCTPS), ("#BBBBBB", SKY, ORANGE)
    sizes = sorted({q for grid in grids.values() for q, _ in grid})
    densities = sorted({p for grid in grids.values() for _, p in grid})
    width = 2.2 + 0.75 * len(sizes) * len(grids)
    figure, axes = pyplot.subplots(
        1,
        len(grids),
        figsize=(max(width, 8), 1.9 + 0.55 * len(densities)),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    for axis, (pass_, grid) in zip(axes[0], grids.items(), strict=True):
        cells = np.full((len(densities), len(sizes)), np.nan)
        for (q, p), peers in grid.items():
            at = densities.index(p), sizes.index(q)
            times = {name: peers[name]["seconds"] for name in names if name in peers}
            winner = min(times, key=times.get)
            cells[at] = names.index(winner)
            ratios = [f"{times[n] / times[DCTPS]:.2g}" if n in times else "-" for n in (LINEAR, SPARSE)]
            bold = "bold" if winner == DCTPS else "normal"
            axis.text(*at[::-1], "\n".join(ratios), ha="center", va="center", fontsize=7.5, fontweight=bold)
        axis.imshow(cells, cmap=ListedColormap(colours), vmin=-0.5, vmax=2.5, aspect="auto", origin="lower")
        axis.set_xticks(range(len(sizes)), sizes, rotation=45)
        axis.set_yticks(range(len(densities)), [f"{100 * p:g}%" for p in densities])
        axis.set(xlabel="layer size q = m = n", title=PASSES[pass_])
    axes[0, 0].set_ylabel("density p of S")
    handles = [
        Patch(facecolor=colour, label=f"{name} is fastest")
        for name, colour in zip(
            ("dense (nn.Linear)", "torch.sparse (S x alone)", "DCTpS"), colours, strict=True
        )
    ]
    if any((q, p) not in grid for grid in grids.values() for q in sizes for p in densities):
        handles.append(Patch(facecolor="white", edgecolor=GREY, label="not measured"))
    figure.legend(handles=handles, fontsize=9, loc="outside lower center", ncols=4)
    row = next(iter(next(iter(grids.values())).values()))[DCTPS]
    text = (
        "in a cell, above: time of dense / time of DCTpS; below: time of torch.sparse / time of DCTpS "
        "(below 1, DCTpS loses)"
    )
    elements = max(r["batch"] * r["q"] for g in grids.values() for ps in g.values() for r in ps.values())
    about = f'{row["dtype"]}, {count_threads(row["threads"])}, B = {elements} / q, algorithm="fast"'
    figure.suptitle(f"{_subject(result, about)}\n{text}", fontsize=9)
    return figure


# ---- transforms


def transforms(result):
    """Times of the DCT and its transpose over the time of a copy, for each number of threads."""
    chosen = {}
    for peers in blocks(result["rows"]).values():
        row = next(iter(peers.values()))
        if row["section"] == "ops" and row["kind"] in TRANSFORMS and row["dtype"] == "float32":
            chosen.setdefault((row["threads"], row["kind"]), {})[row["q"]] = peers
    if not chosen:
        return None
    pyplot = _backend()
    threads = sorted({t for t, _ in chosen})
    sizes = sorted({q for lengths in chosen.values() for q in lengths})
    figure, axes = pyplot.subplots(
        len(threads),
        2,
        figsize=(11, 0.9 + 4.0 * len(threads)),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    handles = {}
    for (t, kind), lengths in chosen.items():
        axis = axes[threads.index(t), TRANSFORMS.index(kind)]
        names = dict.fromkeys(name for peers in lengths.values() for name in peers)
        for name in (name for name in LOOKS if name in names and name != COPY):
            points = [
                (sizes.index(q), p[name]["seconds"] / p[COPY]["seconds"])
                for q, p in sorted(lengths.items())
                if name in p
            ]
            colour, marker, dash, label = LOOKS[name]
            (handles[label],) = axis.plot(
                *zip(*points, strict=True), color=colour, marker=marker, linestyle=dash, linewidth=1
            )
        handles["copy (lower limit)"] = axis.axhline(1, color=GREY, linestyle=":")
        axis.set(yscale="log", title=f"{PASSES[kind]}, {count_threads(t)}")
        axis.grid(True, which="major", alpha=0.3)
        _ticks(axis.xaxis, range(len(sizes)), [f"{q}*" if _is_prime(q) else str(q) for q in sizes])
        axis.tick_params(axis="x", labelrotation=45)
    for axis in axes[-1]:
        axis.set_xlabel("length q" + (" (* prime)" if any(map(_is_prime, sizes)) else ""))
    for axis in axes[:, 0]:
        axis.set_ylabel("time / time of a copy")
    figure.legend(list(handles.values()), list(handles), fontsize=9, loc="outside lower center", ncols=4)
    elements = max(q * peers[OURS]["batch"] for lengths in chosen.values() for q, peers in lengths.items())
    figure.suptitle(_subject(result, f"float32, B = {elements} / q rows of length q"), fontsize=10)
    return figure


def _is_prime(q):
    return q > 3 and all(q % k for k in range(2, int(q**0.5) + 1))


# ---- layers and networks


def speedups(result):
    """How many times faster than dense each layer and network is, as dots: one line a case."""
    panels = {"linear": "linear layers", "conv": "convolutions", "networks": "networks"}
    rows = {section: {} for section in panels}
    threads = min((row["threads"] for row in result["rows"] if row["section"] in panels), default=None)
    for peers in blocks(result["rows"]).values():
        row = next(iter(peers.values()))
        if row["section"] in panels and row["threads"] == threads and row["dtype"] == "float32":
            rows[row["section"]].setdefault(short_name(row), {})[row["pass"]] = peers
    rows = {section: cases for section, cases in rows.items() if cases}
    if not rows:
        return None
    pyplot = _backend()
    heights = [0.34 * len(cases) + 0.9 for cases in rows.values()]
    figure, axes = pyplot.subplots(
        len(rows),
        1,
        figsize=(10, sum(heights) + 1.2),
        height_ratios=heights,
        squeeze=False,
        sharex=True,
        layout="constrained",
    )
    looks = {
        (DCTPS, "forward"): (VERMILION, "o"),
        (DCTPS, "backward"): (VERMILION, "s"),
        (DCTPS, "step"): (VERMILION, "D"),
        (SPARSE, "forward"): (BLUE, "o"),
        (SPARSE, "step"): (BLUE, "D"),
    }
    handles = {}
    for axis, (section, cases) in zip(axes[:, 0], rows.items(), strict=True):
        for y, passes in enumerate(cases.values()):
            for pass_, peers in passes.items():
                dense = next((peers[name] for name in (LINEAR, CONV, DENSE) if name in peers), None)
                for name in (DCTPS, SPARSE, PLAIN):
                    kind = (SPARSE if name == PLAIN else name), "forward" if pass_ == "inference" else pass_
                    if dense is None or name not in peers or kind not in looks:
                        continue
                    colour, marker = looks[kind]
                    face = colour if kind[1] != "backward" else "none"
                    what = "DCTpS" if name == DCTPS else "S x alone (torch.sparse; networks: the package's)"
                    label = f"{what}, {'forward, inference' if kind[1] == 'forward' else PASSES[kind[1]]}"
                    handles[label] = axis.scatter(
                        dense["seconds"] / peers[name]["seconds"],
                        y,
                        color=face,
                        edgecolors=colour,
                        marker=marker,
                        s=42,
                        zorder=3,
                    )
        axis.axvline(1, color=BLACK, linestyle="--", linewidth=1)
        axis.axvspan(1e-3, 1, color=GREY, alpha=0.15, zorder=0)
        axis.set_yticks(range(len(cases)), list(cases), fontsize=8)
        axis.set_ylim(len(cases) - 0.5, -0.5)
        axis.set_title(panels[section], fontsize=10)
        axis.grid(True, axis="x", which="major", alpha=0.3)
        axis.set_xscale("log")
    seen = [
        x
        for axis in axes[:, 0]
        for dots in axis.collections
        if len(dots.get_offsets())
        for x, _ in dots.get_offsets()
    ]
    low, high = min([0.8, *seen]), max([2, *seen])
    axes[-1, 0].set_xlim(low / 1.3, high * 1.3)
    ticks = [
        t
        for t in (0.01, 0.03, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
        if low / 1.3 <= t <= high * 1.3
    ]
    _ticks(axes[-1, 0].xaxis, ticks)
    axes[-1, 0].set_xlabel("speed relative to the dense layer or network (grey: slower than dense)")
    figure.legend(list(handles.values()), list(handles), fontsize=9, loc="outside lower center", ncols=2)
    figure.suptitle(_subject(result, f"float32, {count_threads(threads)}"), fontsize=10)
    return figure


# ---- storage


def storage(result):
    """Bytes of a network at initialisation, in training and at the end, by method."""
    chosen = {}
    for row in result["rows"]:
        if "final_bytes" in row:
            chosen.setdefault((row["model"], row["density"]), []).append(row)
    if not chosen:
        return None
    pyplot = _backend()
    stages = {
        "initialisation": (ORANGE, "", "while the network is made (peak)"),
        "training": (BLUE, "//", "held in training: parameters, gradients, Adam, indices"),
        "final": (GREEN, "..", "saved at the end"),
    }
    most = max(map(len, chosen.values()))
    figure, axes = pyplot.subplots(
        1,
        len(chosen),
        figsize=(2.5 + 4.2 * len(chosen), 1.7 + 0.42 * most),
        squeeze=False,
        sharex=True,
        layout="constrained",
    )
    for axis, ((model, p), rows) in zip(axes[0], chosen.items(), strict=True):
        for k, (stage, (colour, hatch, label)) in enumerate(stages.items()):
            values = [row[f"{stage}_bytes"] / 1024 for row in rows]
            bars = axis.barh(
                [y + 0.27 * (k - 1) for y in range(len(rows))],
                values,
                0.25,
                color=colour,
                hatch=hatch,
                edgecolor="white",
                label=label,
            )
            axis.bar_label(
                bars, [f"{v:,.0f}" if v >= 10 else f"{v:.1f}" for v in values], fontsize=7, padding=2
            )
        axis.set(xscale="log", xlabel="KiB", title=f"{model}, density {100 * p:g}%")
        axis.set_yticks(range(len(rows)), [row["peer"] for row in rows])
        axis.invert_yaxis()
        axis.margins(x=0.15)
        axis.grid(True, axis="x", which="major", alpha=0.3)
        axis.set_axisbelow(True)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), fontsize=9, loc="outside lower center", ncols=1)
    figure.suptitle(_subject(result), fontsize=10)
    return figure
