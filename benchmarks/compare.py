"""What changed from one result to another beyond noise: `python -m benchmarks.compare A.json B.json`.

The rule. Of each pass of each case, c = ln(time in B / time in A) of a peer of the package, less the median
of the same over the other peers, whose code did not change: they carry the machine's own drift. The standard
error of a median of n rounds is 1.2533 * 0.7413 * (upper quartile - lower quartile) / sqrt(n); s is the root
of the sum of the squares of the two relative ones, of the other peers' mean one, and of the spread (standard
deviation) of the other peers' drifts. A change is beyond noise where |c| > 3 s and |c| > ln 1.05. Bytes do
not vary: a change by more than 1% of what is held and allocated is reported.
"""

import argparse
import math
import statistics
from pathlib import Path

from .peers import AUTO, DCTPS, FAST, OURS
from .results import blocks, device_of, origin, quartiles, read
from .tables import aligned, size

OWN = (OURS, DCTPS, AUTO, FAST)
SIGMAS, SMALLEST = 3.0, math.log(1.05)
SMALLEST_BYTES = 0.01


def _error(row):
    """Standard error of the median of a row's rounds, relative to it."""
    lower, upper = quartiles(row)
    return 1.2533 * 0.7413 * (upper - lower) / math.sqrt(len(row["samples"])) / row["seconds"]


def change(before, after, name):
    """(c, s) of the peer `name`, see above; `before` and `after` map peers to rows of one pass."""

    def drift(peer):
        return math.log(after[peer]["seconds"] / before[peer]["seconds"])

    def errors(peer):
        return math.hypot(_error(before[peer]), _error(after[peer]))

    others = [peer for peer in before if peer in after and peer not in OWN]
    own, own_error = drift(name), errors(name)
    if not others:
        return own, own_error
    drifts = [drift(peer) for peer in others]
    spread = statistics.stdev(drifts) if len(drifts) > 1 else 0.0
    mean_error = math.fsum(map(errors, others)) / len(others)
    return own - statistics.median(drifts), math.hypot(own_error, mean_error, spread)


def compare(before, after):
    """Text lines: what changed from one result to another, and how much is in one only."""
    a, b = blocks(before["rows"]), blocks(after["rows"])
    changed, memory, compared = [], [], 0
    for block in a:
        if block not in b:
            continue
        for name in (n for n in a[block] if n in OWN and n in b[block]):
            compared += 1
            old, new = a[block][name], b[block][name]
            c, s = change(a[block], b[block], name)
            what = _name(old)
            if abs(c) > max(SIGMAS * s, SMALLEST):
                times = [f"{1e6 * row['seconds']:.1f}" for row in (old, new)]
                changed.append((c, [what, *times, f"{math.exp(c):.3f}x", f"{s:.1%}"]))
            held = old["peak_bytes"] + old["held_bytes"], new["peak_bytes"] + new["held_bytes"]
            if abs(held[1] - held[0]) > SMALLEST_BYTES * held[0]:
                memory.append([what, *map(size, held)])
    lines = [f"A: {origin(before)}", f"B: {origin(after)}"]
    if device_of(before["environment"]) != device_of(after["environment"]):
        lines.append("NOT COMPARABLE: the devices differ.")
    lines += ["", f"{compared} times compared, {len(changed)} changed beyond noise"]
    if changed:
        rows = [cells for _, cells in sorted(changed, key=lambda entry: -entry[0])]
        lines += aligned(["", "A us", "B us", "B / A, less drift", "s"], rows)
    lines += ["", f"{len(memory)} changes of memory"]
    if memory:
        lines += aligned(["", "A", "B"], memory)
    for one, other, letter in ((a, b, "A"), (b, a, "B")):
        only = sum(block not in other for block in one)
        if only:
            lines.append(f"{only} passes of cases are in {letter} alone.")
    return lines


def _name(row):
    shape = row["model"] or f"{row['n']} -> {row['m']}"
    kernel = f" {row['kernel']}x{row['kernel']}" if row["kind"] == "conv" else ""
    p = f" p={100 * row['density']:g}%" if row["density"] else ""
    kind = row["kind"] if row["section"] == "ops" else f"{row['section']} {row['pass']}"
    return f"{kind}{kernel} {shape}{p} B={row['batch']} {row['dtype']} {row['threads']}t {row['peer']}"


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("before", type=Path, metavar="A.json")
    parser.add_argument("after", type=Path, metavar="B.json")
    arguments = parser.parse_args(argv)
    try:
        results = [read(path) for path in (arguments.before, arguments.after)]
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print("\n".join(compare(*results)))


if __name__ == "__main__":
    main()
