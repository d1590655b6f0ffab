"""Every method of the paper, dense, sparse and DCTpS networks on equal terms; `make compare` runs it.

One epoch of LeNet-5 on scikit-learn's digits for each method and density: test accuracy, what the
initialisation cost, what training holds. Resumable when killed: `--checkpoints DIR`. A method that breaks
down (`pruning.PruningBreakdown`) has no network to train; the table says why.
"""

import argparse
import dataclasses
import json
import logging
from functools import partial
from pathlib import Path

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from dctps_ext import pruning

from . import data, train
from .record import environment, write_atomically, write_json

DENSITIES = (0.01, 0.001)
RIGL_INTERVAL = 10  # steps; RigL's own 100 are more than one short epoch has
BATCH_SIZE = 16  # so that an epoch of the digits has 90 steps
NAMES = {
    "dense": "Dense",
    "sparse": "Random sparse, redrawn values",
    "uniform": "Sparse (uniform)",
    "epl": "Sparse (EPL)",
    "epf": "Sparse (EPF)",
    "erk": "Sparse (ERK)",
    "snip": "SNIP",
    "grasp": "GraSP",
    "force": "FORCE",
    "iter_snip": "Iter-SNIP",
    "synflow": "SynFlow",
    "imp": "IMP",
    "hyperplane": "Hyperplane Projection",
    "dctps": "DCTpS",
}


def plan(arguments):
    """The `train.Settings` of every row."""
    rows = [("dense", None, None)]
    for density in arguments.densities:
        rows += [(method, density, None) for method in NAMES if method != "dense"]
        rows += [(method, density, arguments.rigl) for method in ("sparse", "dctps")]
    return [train.settings_from(arguments, *row) for row in rows]


def row(settings, dataset, checkpoints):
    """One network's result: `train.run`'s and "initialisation", or only "settings" and "breakdown"."""
    record = checkpoint = model = None
    if checkpoints is not None:
        name = settings.title.replace(" ", "-")
        record, checkpoint = (Path(checkpoints) / f"{name}.{suffix}" for suffix in ("json", "pt"))
    if record is not None and checkpoint.exists():
        saved = json.loads(record.read_text())
    else:
        saved = {"settings": dataclasses.asdict(settings)}
        try:
            initialise = partial(train.initialise, settings, dataset)
            model, cost = pruning.measure(initialise, count_flops=settings.method != "imp")
            saved["initialisation"] = dataclasses.asdict(cost)
        except pruning.PruningBreakdown as breakdown:
            return {**saved, "breakdown": str(breakdown)}
        if record is not None:
            write_json(record, saved)
    return {**train.run(settings, checkpoint, dataset=dataset, model=model), **saved}


def table(results):
    """The comparison as a Markdown table, and below it the breakdowns."""
    heads = ["method", "density", "lr", "test accuracy", "trainable", "seconds at init", "peak KiB at init"]
    heads += ["MFLOP at init", "KiB held: parameters", "optimizer", "index or U", "sum"]
    rows, notes = [heads], []
    for result in results:
        settings = result["settings"]
        name = NAMES[settings["method"]] + ("" if settings["rigl"] is None else " + RigL")
        density = "" if settings["density"] is None else f"{100 * settings['density']:g}%"
        if "breakdown" in result:
            rows.append([name, density, "", "breaks down", *[""] * 8])
            notes.append(f"{density}: {result['breakdown']}")
            continue
        cost, held = result["initialisation"], result["held"]
        rows.append(
            [
                name,
                density,
                f"{settings['lr']:g}",
                f"{100 * result['test_accuracy']:.1f}%",
                f"{result['parameters']:,}",
                f"{cost['seconds']:.3f}",
                f"{cost['peak_bytes'] / 1024:,.1f}",
                "" if cost["flops"] is None else f"{cost['flops'] / 1e6:,.0f}",
                *(f"{held[part] / 1024:,.1f}" for part in ("parameters", "optimizer", "index")),
                f"{sum(held.values()) / 1024:,.1f}",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [_line(cells, widths) for cells in rows]
    lines.insert(1, _line(["-" * w if i < 2 else "-" * (w - 1) + ":" for i, w in enumerate(widths)], widths))
    if notes:
        lines += ["", "Breaks down at", "", *(f"- {note}" for note in notes)]
    return "\n".join(lines)


def _line(cells, widths):
    padded = (c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
    return "| " + " | ".join(padded) + " |"


def parser():
    parser = argparse.ArgumentParser(prog="python -m dctps_ext.experiments.compare", description=__doc__)
    train.add_arguments(parser)
    parser.add_argument("--densities", type=float, nargs="+", default=list(DENSITIES), metavar="P")
    parser.add_argument("--rigl", type=int, default=RIGL_INTERVAL, metavar="STEPS", help="default: 10")
    parser.add_argument("--checkpoints", metavar="DIR", help="keep every run here, and resume from it")
    parser.set_defaults(epochs=1, batch_size=BATCH_SIZE)
    return parser


def main(argv=None):
    arguments = parser().parse_args(argv)
    logging.basicConfig(format="%(message)s")  # warnings only: a line for each conversion would bury the bar
    with logging_redirect_tqdm():
        try:
            dataset = data.load(arguments.dataset, arguments.data)
            _ = dataset.statistics  # so that no method is charged with them
            bar = tqdm(plan(arguments), desc="methods", unit="network")
            results = [row(settings, dataset, arguments.checkpoints) for settings in bar]
        except (ValueError, FileNotFoundError) as error:
            parser().error(str(error))
    shared = results[0]["settings"]
    text = (
        f"{shared['model']} on {dataset.title}: {len(dataset.train_labels):,} training and "
        f"{len(dataset.test_labels):,} test images, epochs: {shared['epochs']}, batches of "
        f"{shared['batch_size']}, {shared['optimizer']}, seed {shared['seed']}, threads: "
        f"{shared['threads']}. {arguments.allocation.upper()} for DCTpS and redrawn values; RigL every "
        f"{arguments.rigl} steps.\n\n{table(results)}"
    )
    print(f"\n{text}")
    if arguments.out:
        write_json(arguments.out, {"environment": environment(), "dataset": dataset.title, "runs": results})
        out = Path(arguments.out).with_suffix(".md")
        write_atomically(out, lambda file: file.write(f"{text}\n".encode()))


if __name__ == "__main__":
    main()
