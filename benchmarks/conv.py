"""How the convolutions compare with torch's dense ones, held against their goals.

Every shape is timed in both memory formats; the dense time is that of the faster format, and so is DCTpS's. A
training step is the forward and the backward pass to x and all parameters. All peers are checked against a
float64 oracle before they are timed, and timed in interleaved rounds.
"""

import argparse
import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

import dctps_ext
from dctps_ext import reference
from dctps_ext.experiments.record import environment, use_threads, write_json

from .layers import INPUTS, PASSES, TOLERANCE, busy_warning, count_threads, device_slug
from .timing import Peer, interleave, validate

logger = logging.getLogger(__name__)

DENSE, DCTPS = "nn.Conv2d", "DCTpS"
FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
STEP_SHARE = 0.8  # of a forward goal, for a training step


@dataclass(frozen=True)
class Case:
    """A convolution of `size` x `size` images; `goal`: the least dense time over DCTpS time, forward."""

    channels: int
    filters: int
    kernel: int
    size: int
    batch: int
    density: float
    goal: float
    stride: int = 1
    dilation: int = 1
    groups: int = 1

    @property
    def title(self):
        more = "".join(
            f", {name} {value}"
            for name, value in (("stride", self.stride), ("dilation", self.dilation), ("groups", self.groups))
            if value > 1
        )
        return (
            f"{self.kernel}x{self.kernel}, {self.channels} -> {self.filters}, {self.size}x{self.size}, "
            f"batch {self.batch}{more}, p = {100 * self.density:g}%"
        )

    def keywords(self):
        return dict(
            stride=self.stride,
            padding=self.dilation * (self.kernel // 2),
            dilation=self.dilation,
            groups=self.groups,
        )


def _threes(density, goals):
    return [Case(c, c, 3, 32, 16, density, goal) for c, goal in zip((64, 128, 256, 512), goals, strict=True)]


SCOPES = {
    "full": (
        *_threes(0.001, (5.5, 6.5, 10, 12)),
        *_threes(0.01, (4.5, 5.5, 7.5, 8.5)),
        Case(256, 64, 1, 32, 32, 0.001, 2.5),
        Case(512, 128, 1, 16, 32, 0.001, 4),
        Case(2048, 512, 1, 4, 32, 0.001, 12),
        Case(512, 2048, 1, 4, 32, 0.001, 12),
        # Under "auto" never slower than dense.
        Case(64, 64, 5, 16, 16, 0.01, 1),
        Case(64, 64, 7, 16, 16, 0.01, 1),
        Case(128, 128, 3, 16, 16, 0.01, 1, stride=2),
        Case(128, 128, 3, 16, 16, 0.01, 1, dilation=2),
        Case(128, 128, 3, 16, 16, 0.01, 1, groups=2),
        Case(128, 128, 3, 16, 16, 0.1, 1, groups=128),
        Case(128, 256, 1, 16, 16, 0.01, 1, stride=2),
        Case(3, 64, 3, 32, 16, 0.01, 1),
        Case(16, 16, 3, 32, 16, 0.01, 1),
        Case(32, 32, 3, 32, 16, 0.01, 1),
        Case(512, 512, 3, 4, 32, 0.001, 1),
        Case(512, 512, 3, 2, 32, 0.001, 1),
    ),
    "quick": (Case(4, 6, 3, 6, 2, 0.1, 1), Case(8, 4, 1, 5, 2, 0.1, 1)),
}


def peers_of(case, pass_):
    """The peers of a case and what their results must be."""
    generator = torch.Generator().manual_seed(0)
    layer = dctps_ext.DCTpSConv2d(
        case.channels, case.filters, case.kernel, density=case.density, **case.keywords()
    )
    with torch.no_grad():
        layer.values.normal_(0, 0.1, generator=generator)
        layer.bias.normal_(generator=generator)
    dense_weight = reference.dense_weight(
        layer.values.detach().double(), layer.support, layer.alpha.detach().double()
    )
    weight = reference.conv_weight(dense_weight, (case.kernel, case.kernel))
    shape = (case.batch, case.channels, case.size, case.size)
    inputs = [torch.randn(shape, generator=generator) for _ in range(INPUTS)]
    x = inputs[0].double().requires_grad_()
    y = torch.nn.functional.conv2d(x, weight, layer.bias.detach().double(), **case.keywords())
    gradient = torch.randn(y.shape, generator=generator)
    oracle = [(y.detach(), None)]
    if pass_ == "step":
        oracle.append((torch.autograd.grad(y, x, gradient.double())[0], None))
    peers = []
    for name, memory_format in FORMATS.items():
        dense = torch.nn.Conv2d(case.channels, case.filters, case.kernel, **case.keywords())
        with torch.no_grad():
            dense.weight.copy_(weight)
            dense.bias.copy_(layer.bias)
        dense.to(memory_format=memory_format)
        images = [t.contiguous(memory_format=memory_format).requires_grad_(pass_ == "step") for t in inputs]
        dy = gradient.contiguous(memory_format=memory_format)
        for kind, module in ((DENSE, dense), (DCTPS, layer)):
            peers.append(_peer(f"{kind}, {name}", module, images, dy, pass_))
    return peers, oracle


def _peer(name, module, images, dy, pass_):
    @torch.no_grad()
    def forward(i):
        return module(images[i])

    def step(i):
        images[i].grad = None
        module.zero_grad(set_to_none=True)
        y = module(images[i])
        y.backward(dy)
        return y

    def result():
        if pass_ == "forward":
            return (forward(0),)
        return step(0).detach(), images[0].grad

    held = sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))
    return Peer(name, forward if pass_ == "forward" else step, result, held)


def measure(case, threads, rounds, seconds):
    """Check and time all peers of a case; returns a JSON-able row for each pass."""
    rows = []
    with use_threads(threads):
        for pass_ in PASSES:
            peers, oracle = peers_of(case, pass_)
            errors = [validate(peer, oracle, TOLERANCE) for peer in peers]
            timings = interleave(peers, INPUTS, rounds, f"{case.title}, {pass_}", seconds)
            times = {peer.name: t.median for peer, t in zip(peers, timings, strict=True)}
            dense, ours = (min(t for n, t in times.items() if n.startswith(k)) for k in (DENSE, DCTPS))
            goal = case.goal * STEP_SHARE if pass_ == "step" and case.goal > 1 else case.goal
            rows.append(
                {
                    **dataclasses.asdict(case),
                    "title": case.title,
                    "threads": threads,
                    "pass": pass_,
                    "seconds": times,
                    "quartiles": {p.name: (t.lower, t.upper) for p, t in zip(peers, timings, strict=True)},
                    "relative_error": max(e for e, p in zip(errors, peers, strict=True) if DCTPS in p.name),
                    "speedup": dense / ours,
                    "goal": goal,
                    "met": dense / ours >= goal,
                }
            )
    return rows


def report(rows):
    """The table of goals as aligned text."""
    lines = [f"{'convolution':<58} {'pass':<8} {'dense':>10} {'DCTpS':>10} {'speedup':>8} {'goal':>6}  met"]
    for threads in sorted({row["threads"] for row in rows}):
        lines.append(count_threads(threads))
        for row in (r for r in rows if r["threads"] == threads):
            dense, ours = (
                min(t for name, t in row["seconds"].items() if name.startswith(kind))
                for kind in (DENSE, DCTPS)
            )
            lines.append(
                f"{row['title']:<58} {row['pass']:<8} {1e3 * dense:>7.2f} ms {1e3 * ours:>7.2f} ms "
                f"{row['speedup']:>7.2f}x {row['goal']:>5.2f}x  {'yes' if row['met'] else 'no'}"
            )
    return "\n".join(lines)


def plot(rows, path, device):
    """Save speedup and goal of every case of one number of threads, forward beside step, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    titles = list(dict.fromkeys(row["title"] for row in rows))
    figure, axes = pyplot.subplots(
        1, len(PASSES), figsize=(13, 1.5 + 0.3 * len(titles)), sharey=True, layout="constrained"
    )
    for axis, pass_ in zip(axes, PASSES, strict=True):
        chosen = [row for row in rows if row["pass"] == pass_]
        places = [titles.index(row["title"]) for row in chosen]
        axis.barh(places, [row["speedup"] for row in chosen], color="#56B4E9", label="measured")
        axis.plot([row["goal"] for row in chosen], places, "k|", markersize=12, label="goal")
        axis.axvline(1, color="#999999", linewidth=0.8)
        axis.set(xscale="log", xlabel="dense time / DCTpS time", title=pass_)
        axis.set_yticks(range(len(titles)), titles, fontsize=7)
        axis.grid(True, axis="x", which="both", alpha=0.3)
    axes[0].invert_yaxis()
    axes[0].legend(fontsize=8)
    figure.suptitle(f"{device}, {count_threads(rows[0]['threads'])}, float32", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.conv", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?; saves to build/quick")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], metavar="N")
    parser.add_argument("--rounds", type=int, default=15, metavar="N")
    parser.add_argument("--seconds", type=float, default=10.0, help="most for a pass of a case (default: 10)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: benchmarks/results")
    arguments = parser.parse_args(argv)
    for name, least in (("threads", min(arguments.threads)), ("rounds", arguments.rounds)):
        if least < 1:
            parser.error(f"--{name}: expected at least 1, got {least}")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    name = "quick" if arguments.quick else "full"
    out = arguments.out or (Path("build/quick") if arguments.quick else Path("benchmarks/results"))
    record = environment()
    busy = busy_warning(record, max(arguments.threads))
    rows = []
    work = [(threads, case) for threads in arguments.threads for case in SCOPES[name]]
    for threads, case in tqdm(work, desc="conv", unit="case", leave=False):
        rows += measure(case, threads, arguments.rounds, arguments.seconds)
    print(
        f"{record['device']}, {record['cores']} cores, {record['isa']}, torch {record['versions']['torch']}"
    )
    print(report(rows))
    if busy:
        print(busy)
    stem = f"conv-{device_slug(record)}"
    write_json(out / f"{stem}.json", {"environment": record, "rows": rows})
    print(f"saved {out / f'{stem}.json'}")
    for threads in arguments.threads:
        path = out / f"{stem}-{count_threads(threads).replace(' ', '-')}.png"
        plot([row for row in rows if row["threads"] == threads], path, record["device"])
        print(f"saved {path}")


if __name__ == "__main__":
    main()
