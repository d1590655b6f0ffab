"""How every benchmark measures: results checked first, interleaved rounds, memory by torch's profiler."""

import math
import os
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from dctps_ext.pruning.cost import peak_of

MINIMUM_SECONDS = 2e-3  # a timed stretch is at least this long, so that the clock's reading does not count
FEWEST_ROUNDS = 5  # a limit in seconds never leaves fewer
SLEEP_CYCLES = 1_000_000  # about half a millisecond of a GPU


class WrongResult(AssertionError):
    """A peer's result is further from the oracle than the tolerance, so its time would mean nothing."""


@dataclass(frozen=True)
class Peer:
    """One competitor in a comparison.

    Attributes:
        name: who it is, as tables print it.
        call: `call(i)` does the timed work once on input number i; benchmarks rotate i through `inputs`.
        result: `result()` returns the tensors of one call on input 0, in the order of the oracle's.
        held_bytes: parameters, indices and preallocated buffers that it keeps between calls, its inputs left
        out.
        note: what a reader must know of it, e.g. which layout was taken.
    """

    name: str
    call: Callable[[int], object]
    result: Callable[[], tuple]
    held_bytes: int
    note: str = ""


@dataclass(frozen=True)
class Timing:
    """Seconds a call over the rounds: median and quartiles; a round averages `calls` calls."""

    median: float
    lower: float
    upper: float
    rounds: int
    calls: int


def relative_error(got, want, scale=None):
    """||got - want|| / scale, 2-norms in float64; `scale` is ||want|| where not given. 0/0 counts as 0."""
    if got.shape != want.shape:
        return math.inf
    distance = (got.double() - want.double()).norm().item()
    scale = want.double().norm().item() if scale is None else scale
    return 0.0 if distance == 0 else distance / scale if scale > 0 else math.inf


def validate(peer, oracle, tolerance):
    """The largest relative error of a peer's results.

    Args:
        peer: a `Peer`.
        oracle: pairs (wanted tensor, scale or None for its own norm) in the order of `peer.result()`.
        tolerance: the largest relative error that is let through.

    Raises:
        WrongResult: an error is above the tolerance or not a number, or the peer gives another number of
        tensors.
    """
    results = peer.result()
    if len(results) != len(oracle):
        raise WrongResult(f"{peer.name}: expected {len(oracle)} results, got {len(results)}")
    errors = [relative_error(got, *wanted) for got, wanted in zip(results, oracle, strict=True)]
    for position, error in enumerate(errors):
        if not error <= tolerance:
            raise WrongResult(
                f"{peer.name}: result {position} is off by {error:.2e} relative to the float64 oracle, "
                f"more than {tolerance:.0e}"
            )
    return max(errors)


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


def interleave(peers, inputs, rounds, description="timing", seconds=math.inf, clock=wall_seconds):
    """Time peers in interleaved rounds, so that a disturbance of the machine falls on all of them.

    Each round times every peer once, starting with another one each time; a timed stretch is as many calls as
    fill `MINIMUM_SECONDS`, each on the next of `inputs` inputs. One stretch of each before the rounds is the
    warm-up. Slow peers may end it early: once `seconds` have passed in `FEWEST_ROUNDS` rounds or more.
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
    calls = [max(1, math.ceil(MINIMUM_SECONDS / stretch(k, 1))) for k in range(len(peers))]
    measured = [[] for _ in peers]
    begin = time.perf_counter()
    for r in tqdm(range(rounds), desc=description, unit="round", leave=False, mininterval=0.5):
        for k in range(len(peers)):
            k = (k + r) % len(peers)
            measured[k].append(stretch(k, calls[k]))
        if r + 1 >= FEWEST_ROUNDS and time.perf_counter() - begin >= seconds:
            break
    timings = []
    for values, count in zip(measured, calls, strict=True):
        lower, median, upper = _quartiles(values)
        timings.append(Timing(median, lower, upper, len(values), count))
    return timings


def _quartiles(values):
    if len(values) == 1:
        return values * 3
    return statistics.quantiles(values, n=4, method="inclusive")


def page_faults(call, inputs):
    """Pages of memory that the system handed out a call, over one call on each of `inputs` inputs.

    A fresh output costs one fault for each of its pages where the allocator gives memory back in between.
    """
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for i in range(inputs):
        call(i)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / inputs


def peak_bytes(call):
    """The most bytes that torch's allocator held during `call()` above what it held before.

    Read from the allocation events of torch.profiler, so kernels' own scratch outside torch's allocator is
    not in it.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it writes two lines to stderr at every use
    call()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    return peak_of(record)
