"""The benchmark of the linear layers: right peers, goals judged as stated, a fit that finds its constants."""

import contextlib
import dataclasses
import io
import json
import math

import pytest
import torch

import dctps_ext

pytest.importorskip("matplotlib")

from benchmarks import linear, linear_goals, timing
from benchmarks.layers import Case

TINY = linear.Scope(
    dct_sizes=(16,),
    dct_elements=64,
    layer_sizes=(24,),
    layer_batches=(1, None),
    layer_elements=96,
    auto_sizes=(16,),
    auto_densities=(0.2,),
    auto_batches=(3,),
    scaling_sizes=(16, 32),
    scaling_elements=128,
    memory_sizes=(64,),
    memory_elements=2**10,
    rounds=2,
    seconds=0.0,
)


# Peers


@pytest.mark.parametrize("pass_", ["dct", "idct"])
@pytest.mark.parametrize("q", [1, 2, 5, 12, 17])
def test_every_way_to_a_dct_is_right_however_often_it_is_called(pass_, q):
    inputs = [torch.randn(3, q, generator=torch.Generator().manual_seed(i)) for i in range(linear.INPUTS)]
    before = [x.clone() for x in inputs]
    right = getattr(dctps_ext.reference, pass_)(inputs[0].double())
    peers = linear.dct_peers(pass_, inputs, threads=1)
    missing = linear.missing_peers()
    assert [p.name for p in peers] == [
        name
        for name in ("dctps_ext", *linear.TRANSFORMS, "rfft", "copy", "fresh copy")
        if name not in missing
    ]
    for peer in peers:
        for i in range(len(inputs)):
            peer.call(i)
        timing.validate(peer, [(inputs[0] if "copy" in peer.name else right, None)], linear.TOLERANCE)
    assert all(map(torch.equal, inputs, before))


@pytest.mark.parametrize("measure", ["dct", "scaling", "auto"])
def test_a_wrong_result_is_never_timed(monkeypatch, measure):
    def interleave(*arguments):
        raise AssertionError("timed")

    dct, forward = dctps_ext.dct, dctps_ext.DCTpSLinear.forward
    monkeypatch.setattr(linear, "interleave", interleave)
    monkeypatch.setattr(dctps_ext, "dct", lambda x: dct(x) * 1.0001)
    monkeypatch.setattr(dctps_ext.DCTpSLinear, "forward", lambda self, x: forward(self, x) * 1.0001)
    with pytest.raises(timing.WrongResult, match="^(dctps_ext|DCTpS|auto): result 0 is off by"):
        if measure == "dct":
            linear.measure_dct(TINY, 16, 1)
        else:
            getattr(linear, f"measure_{measure}")(TINY, Case("linear", 16, 0.0, 4), 1)


def test_interleave_ends_early_when_slow(monkeypatch):
    monkeypatch.setattr(timing, "MINIMUM_SECONDS", 0.0)
    peer = timing.Peer("peer", lambda i: None, lambda: (), 0)
    assert timing.interleave([peer], 1, 40, seconds=0.0)[0].rounds == timing.FEWEST_ROUNDS
    assert timing.interleave([peer], 1, 3, seconds=0.0)[0].rounds == 3


def test_page_faults_are_counted_per_call():
    import mmap

    def call(i):
        with mmap.mmap(-1, 64 * mmap.PAGESIZE) as pages:
            for page in range(64):
                pages[page * mmap.PAGESIZE] = 1

    assert 64 <= timing.page_faults(call, 4) < 128


def test_memory_beside_the_results_is_counted_in_a_fresh_process():
    (row,) = linear.measure_memory(TINY, Case("linear", 64, 0.01, 16), "backward", 1)
    nnz = round(0.01 * 64 * 64)
    assert row["results_bytes"] == 4 * (16 * 64 + nnz + 64 + 1)  # dx, dvalues, dbias, dalpha
    assert row["extra_bytes"] == row["torch_peak_bytes"] + row["scratch_peak_bytes"] - row["results_bytes"]
    assert 0 <= row["extra_bytes"] <= 4 * 2**20 and row["scratch_peak_bytes"] > 0


# Goals


def rows_of(section, seconds, threads=1, **more):
    """A row for each peer in `seconds`."""
    common = {"section": section, "threads": threads, "pass": section, "q": 256, "density": 0.01, "batch": 8}
    return [{**common, "peer": peer, "seconds": s, **more} for peer, s in seconds.items()]


def goal_of(text):
    (goal,) = (g for g in linear_goals.GOALS if g.text == text)
    return goal


def test_a_dct_is_held_against_the_best_of_the_three_libraries():
    goal = goal_of("DCT over the best of scipy, ducc0, FFTW, q=256")
    rows = rows_of("dct", {"dctps_ext": 2, "scipy": 12, "ducc0": 8, "FFTW": 9, "rfft": 1, "copy": 1})
    entry = linear_goals.judge(goal, {"rows": rows}, 1)
    assert (entry["measured"], entry["target"], entry["sense"], entry["met"]) == (4, 4, ">=", True)
    assert entry["worst"] == "dct" and entry["values"] == {"dct": 4}
    slower = rows_of("dct", {"dctps_ext": 2, "FFTW": 7}, **{"pass": "idct"})
    entry = linear_goals.judge(goal, {"rows": rows + slower}, 1)
    assert (entry["measured"], entry["worst"], entry["met"]) == (3.5, "idct", False)


def test_a_bound_from_above_takes_the_largest():
    goal = goal_of("DCT: times a copy, smooth q in 256..4096")
    rows = [
        *rows_of("dct", {"dctps_ext": 2.5, "copy": 1}),
        *rows_of("dct", {"dctps_ext": 3.5, "copy": 1}, q=1024),
        *rows_of("dct", {"dctps_ext": 9, "copy": 1}, q=1021),  # prime, so it does not count
    ]
    entry = linear_goals.judge(goal, {"rows": rows}, 1)
    assert (entry["measured"], entry["worst"], entry["sense"], entry["met"]) == (
        3.5,
        "dct q=1024",
        "<=",
        False,
    )


def test_more_threads_are_held_against_one():
    goal = goal_of("forward over nn.Linear, q=256, p=1%")
    one = [
        *rows_of("forward", {"DCTpS": 1, "nn.Linear": 20}),
        *rows_of("forward", {"DCTpS": 1, "nn.Linear": 10}, batch=9),
        *rows_of("forward", {"DCTpS": 1, "nn.Linear": 1}, batch=1),  # has a goal of its own
    ]
    two = [
        *rows_of("forward", {"DCTpS": 1, "nn.Linear": 16}, 2),
        *rows_of("forward", {"DCTpS": 1, "nn.Linear": 9}, 2, batch=9),
    ]
    results = {"rows": one + two}
    assert linear_goals.judge(goal, results, 1)["measured"] == 10
    entry = linear_goals.judge(goal, results, 2)
    assert (entry["relative"], entry["target"], entry["measured"]) == (True, 0.85, 0.8)
    assert (entry["worst"], entry["met"]) == ("B=8", False)
    assert linear_goals.judge(goal, {"rows": two}, 2)["met"] is None  # nothing to hold it against
    # A bound from above: the ratio may grow by as much as another may shrink.
    goal = goal_of("a tiny call: times nn.Linear's, q=16, B=1")
    rows = rows_of("overhead", {"DCTpS": 4, "nn.Linear": 1}) + rows_of(
        "overhead", {"DCTpS": 5, "nn.Linear": 1}, 2
    )
    assert linear_goals.judge(goal, {"rows": rows}, 1)["met"]
    assert linear_goals.judge(goal, {"rows": rows}, 2)["measured"] == pytest.approx(0.8)


def test_limits_of_memory_hold_for_any_number_of_threads():
    goal = goal_of("forward: MiB a thread beside the output")
    row = {"pass": "forward", "q": 64, "density": 0.01}
    memory = [{**row, "threads": t, "extra_bytes": b * 2**20} for t, b in ((1, 2), (2, 5))]
    results = {"rows": [], "memory": memory}
    assert linear_goals.judge(goal, results, 1)["met"]
    entry = linear_goals.judge(goal, results, 2)
    assert (entry["relative"], entry["measured"], entry["target"], entry["met"]) == (False, 2.5, 2, False)


def test_what_was_not_measured_is_neither_met_nor_missed():
    for goal in linear_goals.GOALS:
        entry = linear_goals.judge(goal, {"rows": [], "memory": []}, 1)
        assert entry["met"] is None and entry["measured"] is None and entry["values"] == {}


def test_goals_are_those_of_the_issue():
    targets = {g.text: g.target for g in linear_goals.GOALS}
    assert targets["forward over nn.Linear, q=4096, p=0.1%"] == 110
    assert targets["training step over nn.Linear's, q=4096, p=1%"] == 35
    assert len(targets) == len(linear_goals.GOALS) == 27
    assert {g.section for g in linear_goals.GOALS} == set(linear.SECTIONS)


# The fit


def synthetic(a, b, c, densities=(0.0, 0.001, 0.01)):
    constants = {"a_ns": a, "b_ns": b, "c_ns": c}
    rows = []
    for q in (256, 1024, 3072, 8192, 32768):
        for p in densities:
            row = {"q": q, "nnz": round(p * q * q), "batch": 2**21 // q}
            rows.append({**row, "seconds": linear_goals.fitted_seconds(constants, **row)})
    return rows


@pytest.mark.parametrize("constants", [(0.08, 0.2, 1.5), (0.05, 0.1, 0.0), (0.0, 0.3, 1.0)])
def test_fit_recovers_known_constants(constants):
    fit = linear_goals.fit(synthetic(*constants))
    assert [fit[k] for k in ("a_ns", "b_ns", "c_ns")] == pytest.approx(constants, rel=1e-6, abs=1e-9)
    assert fit["worst_factor"] == pytest.approx(1)


def test_fit_tells_how_far_a_time_lies_from_it():
    rows = synthetic(0.08, 0.2, 1.5) * 3
    rows[7]["seconds"] *= 3
    rows[7] = dict(rows[7])
    assert 1.5 < linear_goals.fit(rows)["worst_factor"] < 4
    assert linear_goals.fit(synthetic(0.08, 0.2, 0, densities=(0.0,)))["b_ns"] == 0


# The run


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """One tiny run of all sections but memory: what it printed, its JSON and its folder."""
    out = tmp_path_factory.mktemp("out")
    sections = ",".join(s for s in linear.SECTIONS if s != "memory")
    patch = pytest.MonkeyPatch()
    patch.setattr(timing, "MINIMUM_SECONDS", 0.0)
    patch.setattr(linear, "OPTIONAL", {**linear.OPTIONAL, "FFTW": "no_such_module"})
    with patch.context(), contextlib.redirect_stdout(io.StringIO()) as printed:
        linear.main(["--threads", "2", "1", "--sections", sections, "--out", str(out)], scope=TINY)
    patch.undo()
    (path,) = out.glob("linear-*.json")
    return printed.getvalue(), json.loads(path.read_text()), out


def test_result_file_says_where_its_numbers_come_from(tiny):
    _, content, _ = tiny
    record = content["environment"]
    assert record["device"] and record["isa"] == dctps_ext._C.isa()
    assert {"torch", "scipy", "ducc0", "no_such_module"} <= record["versions"].keys()
    assert record.keys() >= {"commit", "command", "load", "cores", "date"}
    assert content["scope"] == json.loads(json.dumps(dataclasses.asdict(TINY)))


def test_rows_cover_sections_passes_and_threads(tiny):
    _, content, _ = tiny
    rows = content["rows"]
    assert {(r["section"], r["threads"], r["pass"]) for r in rows} == {
        (section, threads, pass_)
        for threads in (1, 2)
        for section, passes in {
            "dct": ("dct", "idct"),
            "forward": ("forward",),
            "step": ("step",),
            "auto": ("forward", "step"),
            "scaling": ("forward", "step"),
            "overhead": ("forward", "step", "recorded"),
        }.items()
        for pass_ in passes
    }
    for row in rows:
        low, high = row["seconds_quartiles"]
        assert 0 < low <= row["seconds"] <= high and row["rounds"] == 2
        assert 0 <= row["relative_error"] <= linear.TOLERANCE
        assert row["dtype"] == "float32" and row["nnz"] == round(row["density"] * row["q"] ** 2)
        assert "load" in row
    assert {r["peer"] for r in rows if r["section"] == "auto"} == {*linear.algorithms(), "nn.Linear"}
    assert {r["peer"] for r in rows if r["section"] == "forward"} == {
        "DCTpS",
        "nn.Linear",
        "torch.sparse",
        "copy",
    }
    assert {(f["threads"], f["pass"]) for f in content["fits"]} == {
        (t, p) for t in (1, 2) for p in ("forward", "step")
    }
    assert all(f["points"] == 6 and math.isfinite(f["worst_factor"]) for f in content["fits"])
    keys = {"section", "goal", "threads", "relative", "sense", "target", "measured", "worst", "met", "values"}
    assert all(goal.keys() == keys for goal in content["goals"])
    assert len(content["goals"]) == 2 * sum(g.section != "memory" for g in linear_goals.GOALS)


def test_tables_list_every_goal_and_name_who_is_left_out(tiny):
    printed, content, out = tiny
    assert "Left out: FFTW, as no_such_module is not installed." in printed
    assert "A small run" in printed
    lines = [line for line in printed.replace(str(out), "").splitlines() if "Left out" not in line]
    assert max(map(len, lines)) <= 110
    for goal in content["goals"]:
        assert any(line.strip().startswith(goal["goal"]) for line in lines)
    (met,) = (
        goal for goal in content["goals"] if goal["goal"].startswith("a tiny call") and goal["threads"] == 1
    )
    assert met["measured"] > 0 and met["met"] == (met["measured"] <= 4)


def test_plots_are_saved(tiny):
    _, _, out = tiny
    names = {path.name.partition("linear-")[2] for path in out.glob("*.png")}
    for end in ("dct", "scaling", "layer-1-thread", "layer-2-threads"):
        assert any(name.endswith(f"{end}.png") for name in names)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in out.glob("*.png"))


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("--threads", "0", "--threads: expected at least 1, got 0"),
        (
            "--sections",
            "dct,speed",
            "expected some of dct,forward,step,auto,scaling,overhead,memory, got 'speed'",
        ),
    ],
)
def test_arguments_are_checked(capsys, argument, value, message):
    with pytest.raises(SystemExit):
        linear.main(["--quick", argument, value])
    assert message in capsys.readouterr().err
