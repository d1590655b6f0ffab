"""Tables and plots of a result file: `python -m benchmarks.report FILE.json`."""

import argparse
from pathlib import Path

from dctps_ext.experiments.record import write_atomically

from . import plots, tables
from .results import origin, read


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument(
        "result", type=Path, metavar="FILE.json", help="of the suite, or pytest-benchmark's of it"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="for the PNGs and the text; default: FILE's folder"
    )
    arguments = parser.parse_args(argv)
    try:
        result = read(arguments.result)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    out = arguments.out or arguments.result.parent
    stem = arguments.result.stem
    text = f"{origin(result)}\n{result['environment']['command']}\n\n{tables.report(result)}\n"
    print(text)
    pictures = plots.save(result, out, stem)
    printed = out / f"{stem}.txt"
    write_atomically(printed, lambda file: file.write(text.encode()))
    for path in (printed, *pictures):
        print(f"saved {path}")


if __name__ == "__main__":
    main()
