"""Cost of an initialisation: seconds, the peak of torch's allocators, floating point operations."""

import gc
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Cost:
    """What one call cost.

    Attributes:
        seconds: wall time, torch's profiler recording allocations meanwhile (a few per cent).
        peak_bytes: the most that torch's allocators held above what it held at its lowest before; scratch
            memory of libraries outside it is not counted.
        flops: floating point operations of matrix products and convolutions, forward and backward, as
            torch's `FlopCounterMode` counts them (two for a multiply-add); elementwise ones and those of this
            package's own layers are not counted. None where they were not asked for.
    """

    seconds: float
    peak_bytes: int
    flops: int | None


def measure(call: Callable[[], object], count_flops: bool = True) -> tuple[object, Cost]:
    """(result, `Cost`) of `call()`, which runs twice, because counting FLOPs slows small operations much.

    Without `count_flops` it runs once: for what trains, such as "imp", whose counted run takes minutes.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it writes two lines to stderr at every use
    flops = None
    if count_flops:
        with FlopCounterMode(display=False) as counter:
            call()
        flops = counter.get_total_flops()
    gc.collect()  # else garbage of earlier work may be freed meanwhile, of which the profiler warns on stderr
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        start = time.perf_counter()
        result = call()
        seconds = time.perf_counter() - start
    return result, Cost(seconds, peak_of(record), flops)


def peak_of(record: profile) -> int:
    """The most bytes held during a profile with `profile_memory=True`, above the least held before."""
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = lowest = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        lowest = min(lowest, held)  # a call may begin by freeing what the previous one left, e.g. gradients
        peak = max(peak, held - lowest)
    return peak
