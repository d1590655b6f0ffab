"""Tables of a result: every section as aligned text, the goals, the fit."""

from .goals import GOALS, fits, judge
from .peers import AUTO, DCTPS, LINEAR, OURS, PLAIN, SPARSE
from .results import blocks, short_name

_HEADS = {"ops": OURS, "auto": LINEAR}  # peers whose time is shown in full; of other sections it is DCTpS


def size(count):
    """Bytes with a unit."""
    if count is None:
        return "-"
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            break
        count, unit = count / 1024, {"B": "KiB", "KiB": "MiB", "MiB": "GiB"}[unit]
    return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"


def count_threads(count):
    return f"{count} thread{'s' if count > 1 else ''}"


def aligned(heads, rows):
    """Rows of text under their heads: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    return [
        "  "
        + "  ".join(
            c.ljust(w) if k == 0 else c.rjust(w) for k, (c, w) in enumerate(zip(cells, widths, strict=True))
        )
        for cells in (heads, *rows)
    ]


def sections(rows):
    """Tables of the timed rows: our time, what it allocates, and the time of each peer over ours."""
    lines, tables = [], {}
    for peers in blocks(rows).values():
        row = next(iter(peers.values()))
        kind = row["kind"] if row["section"] == "ops" else row["pass"]
        tables.setdefault((row["section"], kind, row["dtype"], row["threads"], row["device"]), []).append(
            peers
        )
    for (section, kind, dtype, threads, device), chosen in tables.items():
        ours = _HEADS.get(section, DCTPS)
        others = [name for name in dict.fromkeys(n for peers in chosen for n in peers) if name != ours]
        where = count_threads(threads) if device == "cpu" else device
        lines += ["", f"{section}: {kind}, {dtype}, {where}; at the right: time of each / time of {ours}"]
        body = []
        for peers in chosen:
            row = peers.get(ours)
            if row is None:
                continue
            times = [f"{peers[n]['seconds'] / row['seconds']:.2f}" if n in peers else "-" for n in others]
            memory = [size(row["peak_bytes"]), size(row["peak_rss_bytes"])]
            body.append([short_name(row), f"{1e6 * row['seconds']:.1f}", *memory, *times])
        lines += aligned(["", f"{ours} us", "peak", "RSS", *others], body)
    return lines


def _memory(rows):
    body = [
        [
            short_name(r),
            r["pass"],
            str(r["threads"]),
            size(r["results_bytes"]),
            size(r["torch_peak_bytes"]),
            size(r["scratch_peak_bytes"]),
            size(r["peak_rss_bytes"]),
            size(r["extra_bytes"]),
        ]
        for r in rows
        if "extra_bytes" in r
    ]
    heads = ["", "pass", "threads", "results", "torch peak", "scratch", "RSS", "beside results"]
    return (
        ["", "memory: peak bytes of one pass of DCTpS, in a fresh process", *aligned(heads, body)]
        if body
        else []
    )


def _storage(rows):
    stages = ("initialisation", "training", "final")
    body = [
        [
            f"{r['model']} p={100 * r['density']:g}% {r['peer']}",
            f"{r['nnz']:,}",
            *(size(r[f"{s}_bytes"]) for s in stages),
        ]
        for r in rows
        if "final_bytes" in r
    ]
    title = "storage: peak while the network is made; held in training (with Adam's state); saved at the end"
    return ["", title, *aligned(["", "trainable", *stages], body)] if body else []


def _fits(rows):
    lines = []
    for f in fits(rows):
        lines += [
            "",
            f"fit: {f['pass']}, {f['dtype']}, {count_threads(f['threads'])}, {f['points']} points: "
            "time = a q log2(q) B + b nnz B + c q B",
            f"  a = {f['a_ns']:.4f} ns, b = {f['b_ns']:.4f} ns, c = {f['c_ns']:.4f} ns; "
            f"every time within a factor {f['worst_factor']:.2f} of it",
        ]
    return lines


def _losses(rows):
    """Where a layer or network of the package is slower than its dense twin."""
    lost = []
    for peers in blocks(rows).values():
        dense = peers.get(LINEAR) or peers.get("nn.Conv2d") or peers.get("dense")
        ours = next((peers[name] for name in (AUTO, DCTPS) if name in peers), None)
        if ours and dense and ours["seconds"] > dense["seconds"]:
            what = f"{ours['section']} {ours['pass']} {short_name(ours)} {ours['dtype']}"
            ratio = ours["seconds"] / dense["seconds"]
            lost.append((ratio, f"  {what}, {count_threads(ours['threads'])}: {ratio:.2f}x"))
    if not lost:
        return []
    return ["", "Slower than dense (grid: the package's own kernels, without the choice of 'auto'):"] + [
        line for _, line in sorted(lost, reverse=True)
    ]


def goals(rows):
    """The goals that something was measured for: bound, worst measured ratio, met or missed."""
    lines, judged = [], []
    for threads in sorted({row["threads"] for row in rows}):
        met = [entry for goal in GOALS if (entry := judge(goal, rows, threads))["met"] is not None]
        if not met:
            continue
        title = f"Goals, {count_threads(threads)}: the worst of the ratios measured"
        lines += ["", title + ("; (kept): over the same with 1 thread" if threads > 1 else "")]
        body = [
            [
                f"{entry['goal']}{' (kept)' if entry['relative'] else ''}",
                f"{entry['sense']} {entry['target']:g}",
                f"{entry['measured']:.2f}",
                "met" if entry["met"] else "MISSED",
                entry["worst"],
            ]
            for entry in met
        ]
        lines += aligned(["goal", "bound", "measured", "", "where worst"], body)
        judged += met
    if judged:
        lines += ["", f"met: {sum(entry['met'] for entry in judged)} of {len(judged)} measured"]
    return lines


def report(result):
    """All tables of a result as text."""
    rows = result["rows"]
    judged = [] if result.get("scope") == "demo" else goals(rows)  # which are not for a glance of seconds
    lines = [
        "time: median of interleaved rounds. peak: allocated during a call beside what is held between",
        "calls, by torch's allocator and as kernel scratch; RSS: what the process grew by. p: density of S;",
        "B: rows or images.",
        *sections(rows),
        *_memory(rows),
        *_storage(rows),
        *_fits(rows),
        *_losses(rows),
        *judged,
    ]
    if any(row["peer"] == SPARSE for row in rows):
        lines += ["", f"{SPARSE}: S x alone, without the DCT, in the fastest of its layouts (see the JSON)."]
    if any(row["peer"] == PLAIN for row in rows):
        lines += [f"{PLAIN}: the package's layers without the DCT, offset='none'."]
    return "\n".join([*lines, "", *result["notes"]]).rstrip("\n")
