"""`pytest benchmarks/`: its options, and the results that its tests share. See benchmarks/test_suite.py."""

import time

import pytest

from benchmarks import results, suite


def _list(text):
    return tuple(text.split(","))


def pytest_addoption(parser):
    group = parser.getgroup("suite", "the benchmark suite")
    group.addoption("--scope", choices=sorted(suite.SCOPES), default="standard", help="how much to measure")
    group.addoption(
        "--quick", action="store_const", const="quick", dest="scope", help="the same as --scope quick"
    )
    group.addoption(
        "--sections", type=_list, default=suite.SECTIONS, help=f"some of {','.join(suite.SECTIONS)}"
    )
    group.addoption(
        "--threads", type=_list, default=("1", "2"), help="numbers of torch threads, 1,2 by default"
    )
    group.addoption("--device", choices=("cpu", "cuda"), default="cpu")
    group.addoption("--seconds", type=float, default=None, help="start no job after this long")
    group.addoption("--out", default=None, help="result file, build/bench/SCOPE.json by default")


def pytest_configure(config):
    option = config.option
    unknown = [name for name in option.sections if name not in suite.SECTIONS]
    if unknown:
        raise pytest.UsageError(
            f"--sections: expected some of {','.join(suite.SECTIONS)}, got {unknown[0]!r}"
        )
    if not all(count.isdigit() and int(count) for count in option.threads):
        raise pytest.UsageError(f"--threads: expected numbers from 1 on, got {','.join(option.threads)}")
    config.suite_threads = tuple(sorted({int(count) for count in option.threads}))
    config.suite_store = None
    config.suite_deadline = None if option.seconds is None else time.monotonic() + option.seconds


def store_of(config):
    """The run's `Store`, made when it is first asked for."""
    if config.suite_store is None:
        option = config.option
        path = option.out or f"build/bench/{option.scope}.json"
        arguments = {"sections": list(option.sections), "threads": list(config.suite_threads)}
        try:
            config.suite_store = results.Store(path, option.scope, {**arguments, "device": option.device})
        except ValueError as error:
            raise pytest.UsageError(str(error)) from None
    return config.suite_store


@pytest.fixture
def store(request):
    return store_of(request.config)


def pytest_collection_modifyitems(config, items):
    if items and not config.option.collectonly:
        store_of(config)  # so that a partial file of another run stops this one before it begins


def pytest_benchmark_update_machine_info(config, machine_info):
    store = store_of(config)
    machine_info["suite"] = {"environment": store.environment, "scope": store.scope}


def pytest_sessionfinish(session, exitstatus):
    config = session.config
    store = getattr(config, "suite_store", None)
    if (
        store is None
        or not store.jobs
        or exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
    ):
        return  # an interrupted run goes on from its partial file
    store.finish([results.busy_warning(store.environment, max(config.suite_threads))])


def pytest_terminal_summary(terminalreporter, config):
    store = getattr(config, "suite_store", None)
    if store is not None and store.path.exists():
        terminalreporter.write_line(
            f"results: {store.path}; tables and plots: python -m benchmarks.report {store.path}"
        )
