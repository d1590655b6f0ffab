"""Benchmarks: a wrong result is never timed, and result files say where their numbers come from."""

import json

import pytest
import torch

import dctps_ext
from benchmarks import layers, timing


def make_peer(name="peer", result=None, call=lambda i: None):
    return timing.Peer(name, call, result or (lambda: (torch.ones(3),)), held_bytes=0)


def test_validate_gives_the_largest_relative_error():
    want = torch.tensor([3.0, 4.0], dtype=torch.float64)
    peer = make_peer(result=lambda: (want.float(), want.float() + torch.tensor([0.0, 5e-4])))
    assert timing.validate(peer, [(want, None), (want, None)], 1e-3) == pytest.approx(1e-4, rel=1e-2)
    assert timing.validate(peer, [(want, None), (want, 1.0)], 1e-3) == pytest.approx(5e-4, rel=1e-2)


@pytest.mark.parametrize(
    "result",
    [(2 * torch.ones(3),), (torch.full((3,), float("nan")),), (torch.ones(1),), (torch.ones(3),) * 2],
)
def test_validate_refuses_a_wrong_result(result):
    with pytest.raises(timing.WrongResult, match="^culprit: "):
        timing.validate(make_peer("culprit", lambda: result), [(torch.ones(3), None)], 1e-5)


@pytest.mark.parametrize("case", layers.SCOPES["quick"].cases, ids=lambda case: case.kind)
@pytest.mark.parametrize("spoilt", ["y", "dx", "values", "alpha"])
def test_a_wrong_layer_is_never_timed(monkeypatch, case, spoilt):
    name = {"linear": "DCTpSLinear", "conv": "DCTpSConv2d"}[case.kind]
    layer_type = getattr(dctps_ext, name)
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

    timed = []

    def timer(peers, inputs, rounds, description="timing", seconds=0.0):
        timed.extend(peer.name for peer in peers)
        return [timing.Timing(1.0, 1.0, 1.0, rounds, 1) for _ in peers]

    monkeypatch.setattr(layer_type, "forward", wrong)
    monkeypatch.setattr(layers, "interleave", timer)
    position = {"y": 0, "dx": 1, "values": 2, "alpha": 4}[spoilt]
    with pytest.raises(timing.WrongResult, match=rf"^DCTpS: result {position} is off by"):
        layers.measure(case, threads=1, rounds=1)
    # A wrong gradient shows only in the step, so its forward passes may have been timed before.
    assert timed.count("DCTpS") == (0 if spoilt == "y" else 1)


def test_interleave_times_every_peer_in_every_round(monkeypatch):
    monkeypatch.setattr(timing, "MINIMUM_SECONDS", 0.0)
    log = []
    peers = [make_peer(name, call=lambda i, name=name: log.append((name, i))) for name in "abc"]
    timings = timing.interleave(peers, inputs=2, rounds=4)
    assert len(timings) == 3 and all((t.rounds, t.calls) == (4, 1) for t in timings)
    assert all(0 <= t.lower <= t.median <= t.upper for t in timings)
    order = [name for name, _ in log[-12:]]
    assert order == list("abcbcacababc")
    for name in "abc":
        inputs = [i for who, i in log if who == name]
        assert inputs == [k % 2 for k in range(len(inputs))]  # each call on the next input


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


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """One quick run with two numbers of threads: what it printed, its JSON and its folder."""
    import contextlib
    import io

    pytest.importorskip("matplotlib")
    out = tmp_path_factory.mktemp("out")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        layers.main(["--quick", "--threads", "1", "2", "--out", str(out)])
    (path,) = out.glob("layers-*.json")
    return printed.getvalue(), json.loads(path.read_text()), out


def test_result_file_says_where_its_numbers_come_from(quick):
    _, content, _ = quick
    record = content["environment"]
    assert record["device"] and record["cores"] >= 1 and record["isa"] == dctps_ext._C.isa()
    assert record["versions"]["torch"] == torch.__version__
    assert {"python", "numpy", "scipy", "dctps_ext"} <= record["versions"].keys()
    assert record.keys() >= {"commit", "command", "date"}
    assert "pytest" in record["command"]


def test_rows_cover_every_peer_pass_and_thread_count(quick):
    _, content, _ = quick
    rows = content["rows"]
    keys = [(r["threads"], r["kind"], r["pass"], r["peer"]) for r in rows]
    expected = [
        (threads, kind, pass_, peer)
        for threads in (1, 2)
        for kind, peers in (
            ("linear", ["nn.Linear", "DCTpS", "torch.sparse", "copy"]),
            ("conv", ["nn.Conv2d", "DCTpS", "copy"]),
        )
        for pass_ in ("forward", "step")
        for peer in peers
    ]
    assert keys == expected
    for row in rows:
        low, high = row["seconds_quartiles"]
        assert 0 < low <= row["seconds"] <= high
        assert 0 <= row["relative_error"] <= layers.TOLERANCE
        assert row["held_bytes"] > 0 and row["peak_bytes"] >= 0
        if row["peer"] in layers.DENSE.values():
            assert row["time_over_dense"] == 1
            # nn.Linear holds its weight and bias; a step makes their gradients, y and dx.
            weights = row["m"] * row["n"] + row["m"]
            assert row["held_bytes"] == 4 * weights
            if row["pass"] == "step":
                assert row["peak_bytes"] >= 4 * (row["nnz"] + weights)


def test_report_fits_100_columns_and_plots_are_saved(quick):
    printed, _, out = quick
    lines = printed.replace(str(out), "").splitlines()
    assert max(map(len, lines)) <= 100
    assert sum("DCTpS  " in line for line in lines) == 8
    for threads in ("1-thread", "2-threads"):
        (path,) = out.glob(f"layers-*-{threads}.png")
        assert path.read_bytes().startswith(b"\x89PNG")


def test_threads_are_checked(capsys):
    with pytest.raises(SystemExit):
        layers.main(["--quick", "--threads", "0"])
    assert "--threads: expected at least 1, got 0" in capsys.readouterr().err


def test_report_says_where_dctps_loses():
    def row(kind, q, ratio):
        return {
            **{
                "kind": kind,
                "q": q,
                "title": f"{kind} {q}",
                "threads": 1,
                "pass": "forward",
                "peer": "DCTpS",
            },
            **{"seconds": 1e-3, "seconds_quartiles": [1e-3, 1e-3], "time_over_dense": ratio, "held_bytes": 1},
            **{"peak_bytes": 5 << 20, "relative_error": 1e-7},
        }

    text = layers.report([row("linear", 64, 1.5), row("linear", 512, 0.25), row("conv", 8, 3.0)])
    assert "1.5x slower" in text and "4.0x faster" in text and "5.0 MiB" in text
    assert "loses to nn.Linear somewhere at q = 64." in text and "loses to nn.Conv2d" in text
    winning = layers.report([row("linear", 512, 0.25), row("conv", 8, 0.5)])
    assert "loses" not in winning
