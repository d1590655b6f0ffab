"""How every benchmark measures: results checked first, interleaved rounds, memory counted beside time."""

import ctypes
import math
import os
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from dctps_ext.pruning.cost import peak_of

FEWEST_ROUNDS = 5  # a limit in seconds never leaves fewer
SLEEP_CYCLES = 1_000_000  # about half a millisecond of a GPU


class WrongResult(AssertionError):
    """A peer's result is further from the oracle than the tolerance, so its time would mean nothing."""


@dataclass(frozen=True)
class Peer:
    """One competitor in a comparison, or one of the ways in which it can be called.

    Attributes:
        call: `call(i)` does the timed work once on input number i; benchmarks rotate i through the inputs.
        result: `result()` returns what one call on input 0 computes: a dict, name -> tensor.
        name: who it is, as tables print it; the registry sets it.
        of: which of the problem's oracles it is held against: "whole" (alpha*D + S), "sparse" (S alone),
            "copy" or another that the problem knows.
        lacks: names in the oracle that this peer does not compute, e.g. the gradient of alpha.
        held_bytes: parameters, indices and preallocated buffers that it keeps between calls, its inputs left
            out.
        note: what a reader must know of it, e.g. which layout was taken.
    """

    call: Callable[[int], object]
    result: Callable[[], dict]
    name: str = ""
    of: str = "whole"
    lacks: tuple = ()
    held_bytes: int = 0
    note: str = ""


@dataclass(frozen=True)
class Timing:
    """Seconds a call: one for each round, which averages `calls` calls; and their median."""

    samples: tuple
    calls: int

    @property
    def median(self):
        return statistics.median(self.samples)


def relative_error(got, want, scale=None):
    """||got - want|| / scale, 2-norms in float64; `scale` is ||want|| where not given. 0/0 counts as 0."""
    if got.shape != want.shape:
        return math.inf
    distance = (got.double() - want.double()).norm().item()
    scale = want.double().norm().item() if scale is None else scale
    return 0.0 if distance == 0 else distance / scale if scale > 0 else math.inf


def validate(peer, oracle, tolerance, pick=lambda name, tensor: tensor):
    """The largest relative error of a peer's results.

    Args:
        peer: a `Peer`.
        oracle: name -> (wanted tensor, scale of its error or None for its own norm).
        tolerance: the largest relative error that is let through.
        pick: `pick(name, tensor)` takes from a result the entries that the oracle holds.

    Raises:
        WrongResult: an error is above the tolerance or not a number, or the names are not the oracle's.
    """
    results = peer.result()
    expected = oracle.keys() - set(peer.lacks)
    if results.keys() != expected:
        raise WrongResult(f"{peer.name}: expected results {sorted(expected)}, got {sorted(results)}")
    worst = 0.0
    for name, got in results.items():
        error = relative_error(pick(name, got), *oracle[name])
        if not error <= tolerance:
            raise WrongResult(
                f"{peer.name}{f' ({peer.note})' if peer.note else ''}: {name} is off by {error:.2e} relative "
                f"to the float64 oracle, more than {tolerance:.0e}"
            )
        worst = max(worst, error)
    return worst


def wall_seconds(work):
    """How long `work()` takes by the clock."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def gpu_seconds(work):
    """How long the GPU takes over what `work()` puts on the current stream, by CUDA events.

    The GPU sleeps while the first of it is put there, so that it finds work waiting and never waits itself.
    """
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(SLEEP_CYCLES)
    begin.record()
    work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def interleave(
    peers, inputs, rounds, description="timing", seconds=math.inf, clock=wall_seconds, stretch_seconds=0.0
):
    """Time peers in interleaved rounds, so that a disturbance of the machine falls on all of them.

    Each round times every peer once, starting with another one each time; a timed stretch is as many calls as
    fill `stretch_seconds`, each on the next of `inputs` inputs. Long stretches show the steady state: in the
    first milliseconds after another peer's turn, caches hold that one's data. One stretch of each before the
    rounds is the warm-up. Slow peers may end it early, once `seconds` have passed in `FEWEST_ROUNDS` rounds.
    `clock(work)` measures a stretch: `wall_seconds`, or `gpu_seconds` where peers work on a GPU.

    Returns:
        A list of `Timing`, in the order of `peers`.
    """
    counters = [0] * len(peers)

    def stretch(k, calls):
        call, i = peers[k].call, counters[k]
        counters[k] += calls

        def work():
            for step in range(i, i + calls):
                call(step % inputs)

        return clock(work) / calls

    for k in range(len(peers)):
        stretch(k, inputs)
    calls = [max(1, math.ceil(stretch_seconds / stretch(k, 1))) for k in range(len(peers))]
    measured = [[] for _ in peers]
    begin = time.perf_counter()
    for r in tqdm(range(rounds), desc=description, unit="round", leave=False, mininterval=0.5, disable=None):
        for k in range(len(peers)):
            k = (k + r) % len(peers)
            measured[k].append(stretch(k, calls[k]))
        if r + 1 >= FEWEST_ROUNDS and time.perf_counter() - begin >= seconds:
            break
    return [Timing(tuple(values), count) for values, count in zip(measured, calls, strict=True)]


# Memory


def page_faults(call, inputs):
    """Pages of memory that the system handed out a call, over one call on each of `inputs` inputs.

    A fresh output costs one fault for each of its pages where the allocator gives memory back in between.
    """
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for i in range(inputs):
        call(i)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / inputs


def peak_bytes(call, device="cpu"):
    """The most bytes that torch's allocator held during `call()` above what it held before.

    On a CPU `call` runs twice, and the allocation events of torch.profiler are counted; kernels' own scratch
    outside torch's allocator is not in it. On a GPU the caching allocator tells.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - held
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it writes two lines to stderr at every use
    call()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    return peak_of(record)


def peak_rss(call):
    """How far `call()` raised the process's resident memory at its highest, in bytes; None where unknown.

    The allocator first returns to the system what it can; pages that it keeps all the same are reused unseen,
    so this is a lower bound of what the call needed, and Linux counts in batches of pages, each core its own:
    a MiB may be missing. Linux tells, others do not.
    """
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def read(field):
        line = next(line for line in status.read_text().splitlines() if line.startswith(field))
        return 1024 * int(line.split()[1])

    try:
        ctypes.CDLL(None).malloc_trim(0)
        reset.write_text("5")  # the highest so far becomes the present
        before = read("VmRSS")
        call()
        return max(0, read("VmHWM") - before)
    except (OSError, AttributeError, StopIteration):
        return None
