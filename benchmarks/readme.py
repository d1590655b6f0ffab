"""The README's figure and table, from a committed result: `python -m benchmarks.readme` writes both anew.

The figure's PNG carries the result file's SHA-256, so that a test can tell whether it is of that file.
"""

import argparse
import hashlib
import re
from pathlib import Path

from dctps_ext.experiments.record import write_atomically

from . import plots
from .peers import CONV, DCTPS, DENSE, LINEAR, PLAIN, SPARSE
from .results import blocks, origin, read
from .tables import size

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
RESULT = ROOT / "benchmarks" / "results" / "suite-amd-epyc.json"
FIGURE = RESULT.with_name("readme.png")
BLOCK = re.compile(r"(<!-- measured -->\n).*?(<!-- end measured -->)", re.S)


def _wanted(row):
    """Whether a pass of a case is in the README: float32, one thread, forward passes and steps."""
    if row["dtype"] != "float32" or row["threads"] != 1 or row["pass"] == "backward":
        return False
    if row["section"] == "linear":
        return row["q"] in (1024, 4096) and row["batch"] > 1
    if row["section"] == "conv":
        return row["density"] == 0.01 and row["kernel"] == 3 and row["m"] in (64, 256)
    return row["section"] == "networks" and row["model"] in ("lenet5", "vgg19", "resnet50")


def _shape(row):
    p = f"p = {100 * row['density']:g}%"
    if row["model"]:
        return f"{row['model']}, {p}, batch {row['batch']}"
    if row["kind"] == "conv":
        channels = f"{row['n']} to {row['m']} channels"
        return f"Conv2d 3x3, {channels}, {row['size']}x{row['size']}, {p}, batch {row['batch']}"
    return f"Linear {row['n']} to {row['m']}, {p}, batch {row['batch']}"


def _cell(peers, pass_, names):
    """The dense time over that of the first of `names`, with what it takes."""
    row = next((peers[pass_][name] for name in names if name in peers.get(pass_, {})), None)
    if row is None:
        return ""
    dense = next(peers[pass_][name] for name in (LINEAR, CONV, DENSE) if name in peers[pass_])
    ratio = dense["seconds"] / row["seconds"]
    return f"{ratio:.1f}x" if ratio < 10 else f"{ratio:.0f}x"


def table(result):
    """Markdown: a line for each layer and network, and where the numbers come from."""
    lines = [
        "| float32, 1 thread | dense, forward | DCTpS forward | DCTpS training step | S x alone, forward "
        "| weights held: dense, DCTpS |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    cases = {}
    for peers in blocks(result["rows"]).values():
        row = next(iter(peers.values()))
        if _wanted(row):
            pass_ = "forward" if row["pass"] == "inference" else row["pass"]
            cases.setdefault(_shape(row), {})[pass_] = peers
    for shape, peers in cases.items():
        forward = peers["forward"]
        dense = next(forward[name] for name in (LINEAR, CONV, DENSE) if name in forward)
        lines.append(
            f"| {shape} | {1e3 * dense['seconds']:.3g} ms | {_cell(peers, 'forward', (DCTPS,))} "
            f"| {_cell(peers, 'step', (DCTPS,))} | {_cell(peers, 'forward', (SPARSE, PLAIN))} "
            f"| {size(dense['held_bytes'])}, {size(forward[DCTPS]['held_bytes'])} |"
        )
    return "\n".join(
        [
            *lines,
            "",
            f"Speed relative to the dense layer or network, medians of interleaved rounds. {origin(result)}; "
            f"[the result](benchmarks/results/{RESULT.name}) of `{result['environment']['command']}`.",
        ]
    )


def digest(path):
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme", description=__doc__)
    parser.parse_args(argv)
    result = read(RESULT)
    figure = plots.complexity(result, ("forward",))
    plots.write(figure, FIGURE, Source=f"{RESULT.name} sha256 {digest(RESULT)}")
    text = BLOCK.sub(lambda m: f"{m[1]}{table(result)}\n{m[2]}", README.read_text(encoding="utf-8"))
    write_atomically(README, lambda file: file.write(text.encode()))
    print(f"saved {FIGURE} and the table in {README}")


if __name__ == "__main__":
    main()
