"""Compare a network trained as DCTpS, as random sparse and dense; `make demo` runs it on the digits.

The CIFAR-10 comparison, resumable when killed:
`python -m dctps_ext.experiments.demo --dataset cifar10 --data DIR --densities 0.01 0.001
--checkpoints build/cifar10 --out build/cifar10/result.json`
"""

import argparse
import logging
from pathlib import Path

from tqdm.contrib.logging import logging_redirect_tqdm

from . import data, train
from .record import environment, write_json


def compare(arguments):
    """Train DCTpS and random sparse at each density, and dense: the data set and what `train.run` gave."""
    plan = [train.settings_from(arguments, m, d) for d in arguments.densities for m in ("dctps", "sparse")]
    plan.append(train.settings_from(arguments, "dense", None))
    dataset = data.load(arguments.dataset, arguments.data)
    results = []
    for settings in plan:
        checkpoint = None
        if arguments.checkpoints:
            checkpoint = Path(arguments.checkpoints) / f"{settings.title.replace(' ', '-')}.pt"
        results.append(train.run(settings, checkpoint, dataset=dataset))
    return dataset, results


def table(results):
    """The comparison as aligned text."""
    names = {"dctps": "DCTpS", "sparse": "random sparse", "dense": "dense"}
    lines = [
        f"{'network':<14} {'density':>8} {'lr':>6} {'trainable':>10} {'memory':>10} {'test accuracy':>14} "
        f"{'training':>10}"
    ]
    for result in results:
        settings = result["settings"]
        density = "" if settings["density"] is None else f"{100 * settings['density']:g}%"
        lines.append(
            f"{names[settings['method']]:<14} {density:>8} {settings['lr']:>6g} {result['parameters']:>10,} "
            f"{result['bytes'] / 1024:>6.1f} KiB {100 * result['test_accuracy']:>13.2f}% "
            f"{result['seconds']:>8.1f} s"
        )
    return "\n".join(lines)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m dctps_ext.experiments.demo", description=__doc__)
    train.add_arguments(parser)
    parser.add_argument(
        "--densities", type=float, nargs="+", default=[0.01], metavar="P", help="default: 0.01"
    )
    parser.add_argument(
        "--checkpoints", metavar="DIR", help="keep a checkpoint of each run here and resume from it"
    )
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with logging_redirect_tqdm():
        try:
            dataset, results = compare(arguments)
        except (ValueError, FileNotFoundError) as error:
            parser.error(str(error))
    shared = results[0]["settings"]
    print(
        f"\n{shared['model']} on {dataset.title}: {len(dataset.train_labels):,} training and "
        f"{len(dataset.test_labels):,} test images, {shared['epochs']} epochs,\n"
        f"batches of {shared['batch_size']}, {shared['optimizer']}, "
        f"{shared['allocation']} allocation, seed {shared['seed']}, threads: {shared['threads']}. "
        "Memory: parameters and buffers.\n"
    )
    print(table(results))
    if arguments.out:
        write_json(arguments.out, {"environment": environment(), "dataset": dataset.title, "runs": results})


if __name__ == "__main__":
    main()
