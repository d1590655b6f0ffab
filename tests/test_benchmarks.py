"""The benchmark suite: peers are right, a wrong one is never timed, goals and noise are judged as stated."""

import copy
import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import dctps_ext

pytest.importorskip("matplotlib")
pytest.importorskip("pytest_benchmark")

from benchmarks import compare, conftest, goals, peers, problems, report, results, suite, tables, timing
from benchmarks.problems import Case

ROOT = Path(__file__).resolve().parents[1]
TINY = suite.SCOPES["tiny"]


def make_peer(name="peer", result=None, call=lambda i: None):
    return timing.Peer(call, result or (lambda: {"y": torch.ones(3)}), name)


# ---- timing


def test_validate_gives_the_largest_relative_error():
    want = torch.tensor([3.0, 4.0], dtype=torch.float64)
    peer = make_peer(result=lambda: {"y": want.float(), "dx": want.float() + torch.tensor([0.0, 5e-4])})
    oracle = {"y": (want, None), "dx": (want, None)}
    assert timing.validate(peer, oracle, 1e-3) == pytest.approx(1e-4, rel=1e-2)
    oracle["dx"] = want, 1.0
    assert timing.validate(peer, oracle, 1e-3) == pytest.approx(5e-4, rel=1e-2)


@pytest.mark.parametrize(
    "result",
    [
        {"y": 2 * torch.ones(3)},
        {"y": torch.full((3,), float("nan"))},
        {"y": torch.ones(1)},
        {"y": torch.ones(3), "dx": torch.ones(3)},
        {},
    ],
)
def test_validate_refuses_a_wrong_result(result):
    with pytest.raises(timing.WrongResult, match="^culprit: "):
        timing.validate(make_peer("culprit", lambda: result), {"y": (torch.ones(3), None)}, 1e-5)


def test_interleave_times_every_peer_in_every_round():
    log = []
    three = [make_peer(name, call=lambda i, name=name: log.append((name, i))) for name in "abc"]
    timings = timing.interleave(three, inputs=2, rounds=4)
    assert all((len(t.samples), t.calls) == (4, 1) and min(t.samples) >= 0 for t in timings)
    assert [name for name, _ in log[-12:]] == list("abcbcacababc")
    for name in "abc":
        inputs = [i for who, i in log if who == name]
        assert inputs == [k % 2 for k in range(len(inputs))]  # each call on the next input


def test_interleave_ends_early_when_slow():
    assert len(timing.interleave([make_peer()], 1, 40, seconds=0.0)[0].samples) == timing.FEWEST_ROUNDS
    assert len(timing.interleave([make_peer()], 1, 3, seconds=0.0)[0].samples) == 3


def test_interleave_calls_until_a_stretch_is_filled():
    timings = timing.interleave([make_peer()], 1, 2, clock=lambda work: work() or 1.0, stretch_seconds=7.5)
    assert timings[0].calls == 8  # of a second each, by this clock


def test_page_faults_are_counted_per_call():
    import mmap

    def call(i):
        with mmap.mmap(-1, 64 * mmap.PAGESIZE) as pages:
            for page in range(64):
                pages[page * mmap.PAGESIZE] = 1

    assert 64 <= timing.page_faults(call, 4) < 128


def test_peak_bytes_counts_what_lives_at_once():
    def call():
        first = torch.empty(1000, dtype=torch.uint8)
        del first
        second, third = torch.empty(2000, dtype=torch.uint8), torch.empty(500, dtype=torch.uint8)
        return second, third

    assert timing.peak_bytes(call) == 2500


def test_peak_bytes_is_above_a_start_that_frees():
    kept = {}

    def call():
        kept.clear()
        kept["a"] = torch.empty(4000, dtype=torch.uint8)

    assert timing.peak_bytes(call) == 4000


def test_peak_rss_sees_memory_that_is_used_and_given_back():
    size = 64 << 20
    peak = timing.peak_rss(lambda: torch.ones(size, dtype=torch.uint8).max())
    assert peak is None or size - (1 << 20) <= peak < 2 * size


# ---- problems and peers


@pytest.mark.parametrize(("m", "n"), [(1, 1), (5, 12), (12, 5), (17, 17)])
def test_the_oracles_transforms_are_those_of_the_reference(m, n):
    x = torch.randn(4, n, generator=torch.Generator().manual_seed(m))
    v = torch.randn(4, m, generator=torch.Generator().manual_seed(n))
    reference = dctps_ext.reference
    torch.testing.assert_close(problems.exact_dct(x, m), reference.dct(x.double(), m), rtol=0, atol=1e-12)
    torch.testing.assert_close(problems.exact_idct(v, n), reference.idct(v.double(), n), rtol=0, atol=1e-12)


def test_a_problem_samples_rows_from_the_first_to_the_last(monkeypatch):
    monkeypatch.setattr(problems, "SAMPLED_ROWS", 3)
    monkeypatch.setattr(problems, "SAMPLED_VALUES", 5)
    problem = problems.Linear(Case("linear", "linear", m=9, n=7, density=0.4, batch=11))
    weight = problem.weight.double()
    dense = dctps_ext.reference.dense_sparse(problem.values, problem.support)
    want = problem.alpha * dctps_ext.reference.dct_matrix(9, 7) + dense
    torch.testing.assert_close(weight, want, rtol=1e-6, atol=1e-6)
    exact = problem.oracle("whole", "step")
    x, dy = problem.inputs[0].double(), problem.gradients[0].double()
    close = {"rtol": 0, "atol": 1e-10}
    torch.testing.assert_close(exact["y"][0], (x @ want.T + problem.bias)[[0, 5, 10]], **close)
    torch.testing.assert_close(exact["dx"][0], (dy @ want)[[0, 5, 10]], **close)
    every = (dy.T @ x)[problem.rows, problem.columns]
    torch.testing.assert_close(exact["values"][0], problem.pick("values", every), **close)
    assert len(exact["values"][0]) == 5 and problem.pick("values", every)[-1] == every[-1]
    torch.testing.assert_close(exact["alpha"][0], (dy * dctps_ext.reference.dct(x, 9)).sum(), **close)
    torch.testing.assert_close(exact["bias"][0], dy.sum(0), **close)


@pytest.mark.parametrize("kind", [*problems.TRANSFORMS, *problems.PRODUCTS])
@pytest.mark.parametrize("q", [1, 2, 5, 12, 17])
def test_every_peer_of_an_op_is_right_however_often_it_is_called(kind, q):
    case = Case("ops", kind, m=q, n=q, density=0.0 if kind in problems.TRANSFORMS else 0.4, batch=3)
    problem = problems.problem_of(case)
    before = [x.clone() for x in problem.inputs]
    known = [entry for entry in peers.entries(case, "forward") if not entry.missing]
    assert {"dctps_ext", "dense"} <= {entry.name for entry in known}
    for entry in known:
        for way in entry.ways(problem, "forward"):
            for i in range(len(before)):
                way.call(i)
            timing.validate(way, problem.oracle(way.of, "forward"), 1e-5, problem.pick)
    assert all(map(torch.equal, problem.inputs, before))


def test_the_registry_has_the_peers_of_each_comparison():
    def names(device="cpu", **fields):
        case = Case(**{"m": 64, "n": 64, "device": device, **fields})
        pass_ = fields["section"] == "networks" and "inference" or "forward"
        return {entry.name for entry in peers.entries(case, pass_)}

    ffts = {"dctps_ext", "scipy", "scipy in place", "ducc0", "FFTW", "rfft", "dense", "copy", "fresh copy"}
    assert names(section="ops", kind="dct") == ffts
    gpu = {"dctps_ext", "VkFFT", "Hadamard", "rfft", "dense", "copy", "fresh copy"}
    assert names("cuda", section="ops", kind="dct") == gpu
    assert names(section="ops", kind="spmm") == {"dctps_ext", "torch.sparse", "scipy", "dense", "copy"}
    layer = {"nn.Linear", "DCTpS", "torch.sparse", "copy"}
    assert names(section="linear", kind="linear") == names(section="grid", kind="linear") == layer
    assert names("cuda", section="linear", kind="linear") == {*layer, "unfused", "fast"}
    assert names(section="auto", kind="linear") == {"nn.Linear", "auto", "fast", "dense"}
    assert names(section="conv", kind="conv") == {"nn.Conv2d", "DCTpS", "copy"}
    assert names(section="networks", kind="network") == {"dense", "DCTpS", "sparse layers"}
    assert "nn.Linear" not in names(section="grid", kind="linear", m=8192, n=8192)  # would fill the memory


LINEAR = Case("linear", "linear", m=24, n=24, density=0.1, batch=3)
CONV = Case("conv", "conv", m=4, n=4, density=0.1, batch=2, kernel=3, size=5)


def record_timing(monkeypatch):
    """The names of the peers that the suite times from now on; the clock always says a second."""
    timed = []

    def interleave(listed, inputs, rounds, *more, **options):
        timed.extend(peer.name for peer in listed)
        return [timing.Timing((1.0,) * rounds, 1) for _ in listed]

    monkeypatch.setattr(suite, "interleave", interleave)
    return timed


@pytest.mark.parametrize("case", [LINEAR, CONV], ids=["linear", "conv"])
@pytest.mark.parametrize("spoilt", ["y", "dx", "values", "alpha"])
def test_a_wrong_layer_is_never_timed(monkeypatch, case, spoilt):
    layer_type = {"linear": dctps_ext.DCTpSLinear, "conv": dctps_ext.DCTpSConv2d}[case.kind]
    forward = layer_type.forward

    def spoil(gradient):
        return gradient + 1e-3 * gradient.norm().clamp_min(1)

    def wrong(self, x):
        if spoilt == "y":
            return forward(self, x) * (1 + 1e-4)
        if x.requires_grad:
            if spoilt == "dx":
                x = x.clone()
                x.register_hook(spoil)
            else:
                getattr(self, spoilt).register_hook(spoil)
        return forward(self, x)

    monkeypatch.setattr(layer_type, "forward", wrong)
    timed = record_timing(monkeypatch)
    with pytest.raises(timing.WrongResult, match=rf"^DCTpS .*: {spoilt} is off by"):
        suite.measure(TINY, case, "step")
    assert "DCTpS" not in timed


def test_a_wrong_network_is_never_timed(monkeypatch):
    case = Case("networks", "network", density=0.05, model="lenet5", batch=2)
    timed = record_timing(monkeypatch)
    forward = dctps_ext.DCTpSConv2d.forward
    monkeypatch.setattr(dctps_ext.DCTpSConv2d, "forward", lambda self, x: forward(self, x) * 1.1)
    for pass_ in ("inference", "step"):
        with pytest.raises(timing.WrongResult, match=r"^DCTpS \(NCHW\): y is off by"):
            suite.measure(TINY, case, pass_)
    assert "DCTpS" not in timed


def test_peers_without_a_kernel_are_left_out_and_named(monkeypatch):
    """Where the package itself has none, as for a convolution on a GPU, the job has no rows."""

    def missing(self, x):
        raise NotImplementedError("no kernel\nand more")

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.Linear, "forward", missing)
        rows, notes = suite.measure(TINY, LINEAR, "forward")
        assert {row["peer"] for row in rows} == {"DCTpS", "torch.sparse", "copy"}
        assert "nn.Linear: no kernel" in notes
    monkeypatch.setattr(dctps_ext.DCTpSLinear, "forward", missing)
    assert suite.measure(TINY, LINEAR, "forward") == ([], ['DCTpS (algorithm="auto"): no kernel'])


def test_memory_beside_the_results_is_counted_in_a_fresh_process():
    case = Case("memory", "linear", m=64, n=64, density=0.01, batch=16)
    (row,), _ = suite.measure(TINY, case, "backward")
    nnz = round(0.01 * 64 * 64)
    assert row["results_bytes"] == 4 * (16 * 64 + nnz + 64 + 1)  # dx, dvalues, dbias, dalpha
    assert row["extra_bytes"] == row["torch_peak_bytes"] + row["scratch_peak_bytes"] - row["results_bytes"]
    assert 0 <= row["extra_bytes"] <= 4 * 2**20 and row["scratch_peak_bytes"] > 0


def test_storage_is_that_of_the_networks_tensors():
    case = Case("storage", "network", density=0.01, model="lenet5", batch=2)
    rows = {method: suite.measure(TINY, case, method)[0][0] for method in ("dense", "dctps")}
    weights = sum(p.numel() for p in dctps_ext.models.lenet5().parameters())
    dense, ours = rows["dense"], rows["dctps"]
    steps = 4 * len(list(dctps_ext.models.lenet5().parameters()))  # Adam counts its steps for each parameter
    assert dense["final_bytes"] == 4 * weights
    assert dense["training_bytes"] == 4 * 4 * weights + steps  # weights, gradients, two moments
    assert dense["initialisation_bytes"] >= 4 * weights
    assert ours["final_bytes"] < ours["training_bytes"] < dense["training_bytes"] / 20


# ---- goals


def rows_of(case, seconds, pass_="forward", nnz=0):
    return [
        {**vars(case), "q": case.q, "nnz": nnz, "pass": pass_, "peer": peer, "seconds": s, "samples": [s]}
        for peer, s in seconds.items()
    ]


def goal_of(text):
    (goal,) = (goal for goal in goals.GOALS if goal.text == text)
    return goal


def test_a_dct_is_held_against_the_best_of_the_libraries():
    goal = goal_of("DCT over the best of scipy, ducc0, FFTW, q=256")
    times = {"dctps_ext": 2, "scipy": 12, "ducc0": 8, "FFTW": 9, "rfft": 1, "copy": 1}
    rows = rows_of(Case("ops", "dct", 256, 256, batch=8), times)
    entry = goals.judge(goal, rows, 1)
    assert (entry["measured"], entry["target"], entry["sense"], entry["met"]) == (4, 4, ">=", True)
    rows += rows_of(Case("ops", "idct", 256, 256, batch=8), {"dctps_ext": 2, "FFTW": 7})
    entry = goals.judge(goal, rows, 1)
    assert (entry["measured"], entry["worst"], entry["met"]) == (3.5, "idct q=256 B=8", False)


def test_a_bound_from_above_takes_the_largest():
    goal = goal_of("DCT: times a copy, smooth q in 256..4096")
    times = {256: 2.5, 1024: 3.5, 1021: 9}  # the prime does not count
    rows = [
        row
        for q, s in times.items()
        for row in rows_of(Case("ops", "dct", q, q), {"dctps_ext": s, "copy": 1})
    ]
    entry = goals.judge(goal, rows, 1)
    assert (entry["measured"], entry["sense"], entry["met"]) == (3.5, "<=", False)


def test_more_threads_are_held_against_one():
    goal = goal_of("forward over nn.Linear, q=256, p=1%")

    def layer(batch, dense, threads=1):
        case = Case("linear", "linear", 256, 256, density=0.01, batch=batch, threads=threads)
        return rows_of(case, {"DCTpS": 1, "nn.Linear": dense})

    one = [*layer(8, 20), *layer(9, 10), *layer(1, 1)]  # a batch of 1 has a goal of its own
    two = [*layer(8, 16, 2), *layer(9, 9, 2)]
    assert goals.judge(goal, one + two, 1)["measured"] == 10
    entry = goals.judge(goal, one + two, 2)
    assert (entry["relative"], entry["target"], entry["measured"], entry["met"]) == (True, 0.85, 0.8, False)
    assert goals.judge(goal, two, 2)["met"] is None  # nothing to hold it against
    # A bound from above: the ratio may grow by as much as another may shrink.
    goal = goal_of("a tiny call: times nn.Linear's, q=16, B=1")
    case = {"section": "overhead", "kind": "linear", "m": 16, "n": 16, "density": 0.01}
    rows = rows_of(Case(**case), {"DCTpS": 4, "nn.Linear": 1})
    rows += rows_of(Case(**case, threads=2), {"DCTpS": 5, "nn.Linear": 1})
    assert goals.judge(goal, rows, 1)["met"]
    assert goals.judge(goal, rows, 2)["measured"] == pytest.approx(0.8)


def test_limits_of_memory_hold_for_any_number_of_threads():
    goal = goal_of("forward: MiB a thread beside the output")
    rows = [
        {**vars(Case("memory", "linear", 64, 64, 0.01, threads=t)), "q": 64, "nnz": 40, "pass": "forward"}
        | {"peer": "DCTpS", "extra_bytes": extra * 2**20}
        for t, extra in ((1, 2), (2, 5))
    ]
    assert goals.judge(goal, rows, 1)["met"]
    entry = goals.judge(goal, rows, 2)
    assert (entry["relative"], entry["measured"], entry["target"], entry["met"]) == (False, 2.5, 2, False)


def test_backward_is_held_against_the_forward_of_the_same_layer():
    goal = goal_of("backward float32, p*n <= 6: times the forward")
    rows = []
    for per_row, (forward, backward) in {6: (1.0, 2.5), 20: (1.0, 9.0)}.items():
        case = Case("linear", "linear", 1024, 1024, per_row / 1024, batch=9, device="cuda")
        for pass_, seconds in (("forward", forward), ("backward", backward)):
            rows += rows_of(case, {"fast": seconds}, pass_, per_row * 1024)
    entry = goals.judge(goal, rows, 1)
    assert entry["met"] and list(entry["values"].values()) == [2.5]


def test_what_was_not_measured_is_neither_met_nor_missed():
    for goal in goals.GOALS:
        entry = goals.judge(goal, [], 1)
        assert entry["met"] is None and entry["measured"] is None and entry["values"] == {}


def test_goals_are_those_of_the_issues():
    targets = {goal.text: goal.target for goal in goals.GOALS}
    assert len(targets) == len(goals.GOALS)
    assert targets["forward over nn.Linear, q=4096, p=0.1%"] == 110
    assert targets["training step over nn.Linear's, q=4096, p=1%"] == 35
    assert targets["3x3 forward, 512 -> 512, p=0.1%"] == 12 and targets["3x3 step, 64 -> 64, p=1%"] == 3.6
    assert targets["training step, vgg19, p=0.1%, batch 32"] == 4
    assert targets["DCT bfloat16: fraction of clone, q in 513..4096"] == 0.7


@pytest.mark.parametrize("scope", ["full", "gpu"])
def test_every_goal_has_rows_to_be_judged_on(scope):
    """The scope that is meant for all goals of a device measures each: its jobs' peers make the rows."""
    device = "cuda" if scope == "gpu" else "cpu"
    rows = []
    for case, pass_ in suite.jobs(suite.SCOPES[scope], device=device):
        nnz = round(case.density * case.m * case.n)
        names = {"DCTpS"} if case.section == "memory" else {e.name for e in peers.entries(case, pass_)}
        more = {"extra_bytes": 0} if case.section == "memory" else {}
        rows += [{**row, **more} for row in rows_of(case, dict.fromkeys(names, 1.0), pass_, nnz)]
    for goal in goals.GOALS:
        if goal.where.get("device", "cpu") == device:
            assert goals.judge(goal, rows, 1)["met"] is not None, goal.text


# ---- the fit


def synthetic(a, b, c, densities=(0.001, 0.003, 0.01)):
    constants = {"a_ns": a, "b_ns": b, "c_ns": c}
    rows = []
    for q in (256, 1024, 3072, 8192, 32768):
        for p in densities:
            row = {"q": q, "nnz": round(p * q * q), "batch": 2**21 // q}
            rows.append({**row, "seconds": goals.fitted_seconds(constants, **row)})
    return rows


@pytest.mark.parametrize("constants", [(0.08, 0.2, 1.5), (0.05, 0.1, 0.0), (0.0, 0.3, 1.0)])
def test_fit_recovers_known_constants(constants):
    fit = goals.fit(synthetic(*constants))
    assert [fit[k] for k in ("a_ns", "b_ns", "c_ns")] == pytest.approx(constants, rel=1e-6, abs=1e-9)
    assert fit["worst_factor"] == pytest.approx(1)


def test_fit_tells_how_far_a_time_lies_from_it():
    rows = synthetic(0.08, 0.2, 1.5) * 3
    rows[7] = {**rows[7], "seconds": 3 * rows[7]["seconds"]}
    assert 1.5 < goals.fit(rows)["worst_factor"] < 4
    assert goals.fit(synthetic(0.08, 0.2, 0, densities=(0.0,)))["b_ns"] == 0


# ---- results


def store(path, **more):
    return results.Store(path, "tiny", {"device": "cpu", **more})


def test_an_interrupted_run_goes_on(tmp_path):
    path = tmp_path / "a.json"
    first = store(path)
    first.rows("one", lambda: ([{"peer": "a"}], ["left out"]))
    partial = path.with_name("a.json.partial")
    partial.write_text(partial.read_text() + '{"job": "two", "ro')  # killed while it wrote
    second = store(path)
    assert second.rows("one", lambda: pytest.fail("measured twice")) == [{"peer": "a"}]
    second.rows("two", lambda: ([{"peer": "b"}], ["left out"]))
    assert not path.exists()
    second.finish(["busy"])
    content = results.read(path)
    assert content["rows"] == [{"peer": "a"}, {"peer": "b"}] and content["notes"] == ["busy", "left out"]
    assert content["environment"]["device"] and content["environment"]["command"] and not partial.exists()


def test_a_run_of_another_commit_is_not_continued(tmp_path):
    path = tmp_path / "a.json"
    store(path)
    partial = path.with_name("a.json.partial")
    head = json.loads(partial.read_text())
    head["environment"]["commit"] = "0" * 40
    partial.write_text(json.dumps(head) + "\n")
    with pytest.raises(
        ValueError, match=r"a\.json\.partial: expected a run with commit .*, got one with 000"
    ):
        store(path)


def test_a_failed_job_is_not_measured_again(tmp_path):
    kept, calls = store(tmp_path / "a.json"), []

    def measure():
        calls.append(1)
        raise timing.WrongResult("wrong")

    for _ in range(2):
        with pytest.raises(timing.WrongResult):
            kept.rows("one", measure)
    assert calls == [1] and not kept.jobs


def test_other_files_are_refused(tmp_path):
    (tmp_path / "a.json").write_text('{"rows": []}')
    with pytest.raises(ValueError, match="expected a result file of the suite"):
        results.read(tmp_path / "a.json")


def test_a_busy_machine_is_said():
    record = {"load": 3.0, "cores": 4}
    assert results.busy_warning(record, 1) == ""
    assert "NOT TO BE TRUSTED" in results.busy_warning(record, 2)


# ---- the whole, as a user runs it


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A run of the tiny scope: the process's output, the result file and pytest-benchmark's."""
    folder = tmp_path_factory.mktemp("suite")
    out, theirs = folder / "tiny.json", folder / "theirs.json"
    command = [sys.executable, "-m", "pytest", "benchmarks", "-q", "--scope", "tiny", "--threads", "1"]
    command += ["--benchmark-quiet", "--out", str(out), f"--benchmark-json={theirs}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, out, theirs


def test_result_file_says_where_its_numbers_come_from(tiny):
    record = results.read(tiny[1])["environment"]
    assert record["device"] and record["isa"] == dctps_ext._C.isa()
    assert {"torch", "scipy", "ducc0", "pyfftw", "dctps_ext"} <= record["versions"].keys()
    assert record.keys() >= {"commit", "command", "load", "cores", "date"}
    assert "--scope tiny" in record["command"]


def test_rows_cover_every_job_and_peer(tiny):
    content = results.read(tiny[1])
    jobs = suite.jobs(TINY, threads=(1,))
    assert {case.section for case, _ in jobs} == set(suite.SECTIONS) - {"memory"}
    measured = {(results.identity(row), row["peer"]) for row in content["rows"]}
    for case, pass_ in jobs:
        fields = {**vars(case), "pass": pass_}
        identity = tuple(fields[name] for name in results.IDENTITY)
        if case.section == "storage":
            assert any(identity == block for block, _ in measured)
            continue
        left_out = [note.split(" (")[0].split(":")[0] for note in content["notes"]]
        for entry in peers.entries(case, pass_):
            assert (identity, entry.name) in measured or entry.name in left_out
    for row in content["rows"]:
        if "seconds" not in row:
            continue
        low, high = results.quartiles(row)
        assert 0 < low <= 1.001 * row["seconds"] and row["seconds"] <= 1.001 * high  # it is rounded
        assert len(row["samples"]) == TINY.rounds
        tolerance = problems.TOLERANCES[row["dtype"]]
        if row["model"]:
            tolerance = problems.NETWORK_TOLERANCES[row["pass"]]
        assert 0 <= row["relative_error"] <= tolerance
        assert row["held_bytes"] >= 0 and row["peak_bytes"] >= 0 and "peak_rss_bytes" in row
        if row["peer"] == "nn.Linear":
            assert row["held_bytes"] == 4 * (row["m"] * row["n"] + row["m"])
            if row["pass"] == "step":  # its weight's gradient
                assert row["peak_bytes"] >= 4 * row["m"] * row["n"]


def test_pytest_benchmarks_file_has_the_same_rows_and_rounds(tiny):
    ours, theirs = (results.read(path) for path in tiny[1:])
    timed = [row for row in ours["rows"] if "seconds" in row]
    assert theirs["rows"] == timed and theirs["environment"] == ours["environment"]
    entries = json.loads(tiny[2].read_text())["benchmarks"]
    for entry in entries:
        assert entry["stats"]["rounds"] == len(entry["extra_info"]["samples"])
        assert entry["stats"]["median"] == pytest.approx(entry["extra_info"]["seconds"], rel=2e-3)


def test_a_report_has_tables_and_plots(tiny, tmp_path, capsys):
    report.main([str(tiny[1]), "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    for heading in ("ops: sddmm", "linear: backward", "conv: step", "networks: inference", "auto: forward"):
        assert f"\n{heading}, float32, 1 thread" in printed
    assert "storage: peak" in printed and "lenet5 p=1% DCTpS" in printed
    names = {"complexity", "crossover", "transforms", "speedups", "storage"}
    assert {path.name for path in tmp_path.glob("*.png")} == {f"tiny-{name}.png" for name in names}
    assert (tmp_path / "tiny.txt").read_text() in printed


def test_compare_finds_a_change_and_none_where_there_is_none(tiny, tmp_path, capsys):
    before = results.read(tiny[1])
    for row in before["rows"]:  # rounds that hardly vary
        if "seconds" in row:
            row["samples"] = [row["seconds"] * (1 + 0.001 * k) for k in (-1, 0, 1)]
    after = copy.deepcopy(before)
    timed = [row for row in after["rows"] if "seconds" in row]
    for row in timed:  # another machine, half as fast: drift, no change
        row["seconds"] *= 2
        row["samples"] = [2 * s for s in row["samples"]]
    slower = next(row for row in timed if row["section"] == "linear" and row["peer"] == "DCTpS")
    slower["seconds"] *= 1.5
    slower["samples"] = [1.5 * s for s in slower["samples"]]
    slower["peak_bytes"] += slower["held_bytes"]
    paths = []
    for name, content in (("a", before), ("b", after)):
        paths.append(str(tmp_path / f"{name}.json"))
        results.write(paths[-1], {k: v for k, v in content.items() if k != "rows"}, content["rows"])
    compare.main(paths)
    printed = capsys.readouterr().out
    assert "1 changed beyond noise" in printed and "1.500x" in printed and "1 changes of memory" in printed
    assert "linear forward 24 -> 24 p=5% B=3 float32 1t DCTpS" in printed
    compare.main(paths[:1] * 2)
    assert " 0 changed beyond noise" in capsys.readouterr().out


def test_a_change_within_the_rounds_spread_is_noise():
    case = Case("linear", "linear", 8, 8)
    before = {row["peer"]: row for row in rows_of(case, {"DCTpS": 1.0, "nn.Linear": 1.0})}
    after = copy.deepcopy(before)
    for rows in (before, after):
        for row in rows.values():
            row["samples"] = [row["seconds"] * f for f in (0.7, 0.8, 1.0, 1.3, 1.4)]
    after["DCTpS"]["seconds"] = 1.3
    c, s = compare.change(before, after, "DCTpS")
    assert c == pytest.approx(math.log(1.3)) and c < compare.SIGMAS * s


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("threads", ("0",), "--threads: expected numbers from 1 on, got 0"),
        ("sections", ("ops", "speed"), "--sections: expected some of ops,linear,.* got 'speed'"),
    ],
)
def test_arguments_are_checked(option, value, message):
    options = {"sections": suite.SECTIONS, "threads": ("1",), "seconds": None, option: value}
    with pytest.raises(pytest.UsageError, match=message):
        conftest.pytest_configure(SimpleNamespace(option=SimpleNamespace(**options)))


def test_report_says_where_dctps_loses():
    def rows(section, kind, size, ratio):
        case = Case(section, kind, size, size, kernel=3 if kind == "conv" else 1, batch=2)
        dense = {"linear": "nn.Linear", "conv": "nn.Conv2d"}[kind]
        made = rows_of(case, {"DCTpS": 1e-3 * ratio, dense: 1e-3})
        return [{**row, "peak_bytes": 5 << 20, "peak_rss_bytes": None} for row in made]

    head = {"notes": []}
    text = tables.report(
        {**head, "rows": [*rows("linear", "linear", 64, 1.5), *rows("conv", "conv", 8, 0.2)]}
    )
    assert "Slower than dense" in text and "linear forward q=64 B=2 float32, 1 thread: 1.50x" in text
    assert "5.0 MiB" in text and "conv forward 3x3 8 -> 8 B=2 0x0" not in text.split("Slower than dense")[1]
    assert "Slower" not in tables.report({**head, "rows": rows("linear", "linear", 64, 0.5)})
