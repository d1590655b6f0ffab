"""`pytest benchmarks/`: every job of the suite as tests, one for each peer.

The first test of a job measures all of its peers, interleaved (see benchmarks/timing.py); each test then
hands the rounds of its own peer to pytest-benchmark, so that its reports, JSON files and comparisons work. A
result that is wrong fails all tests of its job: nothing of it is timed.
"""

import time

import pytest

from benchmarks import suite
from benchmarks.peers import DCTPS, entries


def _jobs(config):
    option = config.option
    return suite.jobs(suite.SCOPES[option.scope], option.sections, config.suite_threads, option.device)


def _name(case, pass_):
    parts = (case.section, pass_, case.title, case.dtype, f"{case.threads}t")
    return "-".join(parts).replace(", ", "-").replace(" -> ", "x").replace(" ", "_")


def pytest_generate_tests(metafunc):
    jobs, ids = [], []
    for case, pass_ in _jobs(metafunc.config):
        timed = case.section not in ("memory", "storage")
        if timed != (metafunc.function is test_time):
            continue
        for peer in [entry.name for entry in entries(case, pass_)] if timed else [DCTPS]:
            jobs.append((case, pass_, peer) if timed else (case, pass_))
            ids.append(f"{_name(case, pass_)}-{peer}" if timed else _name(case, pass_))
    metafunc.parametrize(
        "case, pass_, peer" if metafunc.function is test_time else "case, pass_", jobs, ids=ids
    )


def _rows(store, config, case, pass_):
    name = suite.key(case, pass_)
    if config.suite_deadline and time.monotonic() > config.suite_deadline and name not in store.jobs:
        pytest.skip("--seconds have passed")
    return store.rows(name, lambda: suite.measure(suite.SCOPES[config.option.scope], case, pass_))


class Replay:
    """A clock for pytest-benchmark that tells the rounds that were measured before."""

    def __init__(self, row):
        self.samples, self.now, self.readings = list(row["samples"]), 0.0, 0
        self.calls = row["calls_per_round"]

    def __call__(self):
        if self.readings % 2:
            self.now += self.samples.pop(0) * self.calls
        self.readings += 1
        return self.now


def test_time(request, store, case, pass_, peer, benchmark):
    row = next((row for row in _rows(store, request.config, case, pass_) if row["peer"] == peer), None)
    if row is None:
        benchmark.skipped = True
        pytest.skip(f"{peer} was left out: the notes of {store.path} say why")
    benchmark.group = _name(case, pass_)
    benchmark.extra_info.update(row)
    benchmark._timer = Replay(row)
    benchmark.pedantic(_nothing, rounds=len(row["samples"]), iterations=row["calls_per_round"])


def _nothing():
    """What is replayed has been done already."""


def test_memory(request, store, case, pass_):
    if not _rows(store, request.config, case, pass_):
        pytest.skip(f"the notes of {store.path} say why")
