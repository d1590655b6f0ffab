"""The figures of benchmarks/gpu.py: transforms and fused layer against a clone, the layer against cuBLAS."""

from .gpu_goals import AUTO, CLONE, GOALS
from .linear_goals import LINEAR, OURS

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito's palette
MARKERS = "os^Dv*"


def save(results, stem, where):
    """Save a PNG for each figure that has rows, named from `stem`; returns their paths."""
    import matplotlib

    matplotlib.use("Agg")
    stem.parent.mkdir(parents=True, exist_ok=True)
    figures = {
        "dct": ("dct", OURS, CLONE, "time of a clone / time", _by_section),
        "fused": ("fused", OURS, CLONE, "time of a clone / time", _by_nonzeros),
        "dense": ("dense", AUTO, LINEAR, "time of cuBLAS on merged W / time", _by_density),
    }
    paths = []
    for name, (kind, ours, other, label, series) in figures.items():
        rows = [row for row in results["rows"] if row["section"].split()[0] == kind]
        panels = _panels(rows, ours, other, series)
        if panels:
            paths.append(_figure(panels, label, where, stem.with_name(f"{stem.name}-{name}.png"), kind))
    return paths


def _by_section(row):
    return row["pass"], row["section"].split()[1]


def _by_nonzeros(row):
    return f"{row['section'].split()[1]}, {row['pass']}", f"p n = {row['nnz'] / row['q']:g}"


def _by_density(row):
    panel = f"{row['section'].split()[1]}, {row['pass']}"
    rows = "full batch" if row["full_batch"] else f"B = {row['batch']}"
    return panel, f"p = {100 * row['density']:.2g}%, {rows}"


def _panels(rows, ours, other, series):
    """{panel: {label: [(q, time of the other / ours)]}}."""
    largest = {}
    for row in rows:
        key = row["section"], row["q"]
        largest[key] = max(largest.get(key, 0), row["batch"])
    rows = [{**row, "full_batch": row["batch"] == largest[row["section"], row["q"]]} for row in rows]
    keys = ("section", "pass", "q", "density", "batch")
    times = {(*(row[key] for key in keys), row["peer"]): row["seconds"] for row in rows}
    panels = {}
    for row in rows:
        block = tuple(row[key] for key in keys)
        if row["peer"] == ours and (*block, other) in times:
            panel, label = series(row)
            points = panels.setdefault(panel, {}).setdefault(label, [])
            points.append((row["q"], times[(*block, other)] / row["seconds"]))
    return panels


def _figure(panels, label, where, path, kind):
    from matplotlib import pyplot
    from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

    columns = min(len(panels), 3 if len(panels) > 4 else 2)
    lines = -(-len(panels) // columns)
    figure, axes = pyplot.subplots(
        lines,
        columns,
        figsize=(1.8 + 4.6 * columns, 0.7 + 3.8 * lines),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    sizes = sorted({q for lines_ in panels.values() for points in lines_.values() for q, _ in points})
    names = list(dict.fromkeys(name for lines_ in panels.values() for name in lines_))
    looks = {name: (COLOURS[k % 6], MARKERS[k % 6]) for k, name in enumerate(names)}
    for axis, (panel, lines_) in zip(axes.flat, panels.items(), strict=False):
        for name, points in lines_.items():
            colour, marker = looks[name]
            axis.plot(*zip(*sorted(points), strict=True), color=colour, marker=marker, label=name)
        axis.axhline(1, color="#000000", linestyle=":", linewidth=1)
        axis.set_title(panel)
        axis.grid(True, which="major", alpha=0.3)
        axis.set_xscale("log")
        if kind == "dense":
            axis.set_yscale("log")
        else:
            axis.set_ylim(bottom=0)
        axis.xaxis.set_major_locator(FixedLocator([q for q in sizes if q & (q - 1) == 0] or sizes))
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_locator(NullLocator())
        axis.tick_params(axis="x", labelrotation=60)
    for axis in axes[-1]:
        axis.set_xlabel("length q" if kind == "dct" else "layer size q = inputs = outputs")
    for axis in axes[:, 0]:
        axis.set_ylabel(label)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside right upper")
    targets = sorted({goal.target for goal in GOALS if goal.section.split()[0] == kind})
    figure.suptitle(
        f"{where}; the goals are in benchmarks/gpu_goals.py ({min(targets):g} to {max(targets):g})",
        fontsize=10,
    )
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return path
