"""The GPU benchmark, as far as a CPU can tell: oracle, peers, goals; a wrong result has no time."""

import json

import pytest
import torch

import dctps_ext

pytest.importorskip("matplotlib")

from benchmarks import gpu, gpu_goals
from benchmarks.linear_goals import LINEAR, OURS, judge


@pytest.mark.parametrize("q", [1, 2, 5, 12, 17])
def test_the_oracle_is_the_orthonormal_dct(q):
    x = torch.randn(4, q, generator=torch.Generator().manual_seed(q))
    torch.testing.assert_close(gpu.exact_dct(x), dctps_ext.reference.dct(x.double()), rtol=0, atol=1e-12)
    torch.testing.assert_close(gpu.exact_idct(x), dctps_ext.reference.idct(x.double()), rtol=0, atol=1e-12)


def test_the_problems_results_are_those_of_the_dense_twin():
    problem = gpu.Problem(gpu.REHEARSAL, 24, "float32", nnz=100, gradients=True)
    x, dy = problem.inputs[0].double(), problem.gradients[0].double()
    sparse = dctps_ext.reference.dense_sparse(problem.values, problem.support)
    weight = float(problem.alpha) * dctps_ext.reference.dct_matrix(24, 24) + sparse
    assert len(problem.rows) == len(x) <= gpu.SAMPLED_ROWS
    close = {"rtol": 0, "atol": 1e-10}
    torch.testing.assert_close(problem.exact_forward(), x @ weight.T + problem.bias.double(), **close)
    torch.testing.assert_close(problem.merged_weight().double(), weight, rtol=1e-6, atol=1e-6)
    (dx, _), (dvalues, _), (dalpha, _), (dbias, _) = problem.exact_backward()
    torch.testing.assert_close(dx, dy @ weight, **close)
    all_places = (dy.T @ x)[problem.row_of, problem.column_of]
    torch.testing.assert_close(dvalues, all_places[problem.entries()], **close)
    torch.testing.assert_close(dalpha, (dy * dctps_ext.reference.dct(x)).sum(), **close)
    torch.testing.assert_close(dbias, dy.sum(0), **close)


def test_few_rows_are_rotated_through_as_many_inputs_as_fill_the_same_bytes():
    problem = gpu.Problem(gpu.REHEARSAL, 16, "bfloat16", batch=3)
    assert problem.batch == 3
    assert sum(x.nbytes for x in problem.inputs) >= gpu.REHEARSAL.tensor_bytes
    assert gpu.FULL.tensor_bytes >= 256 * 2**20


def test_a_rehearsal_measures_every_section_and_judges_nothing(tmp_path, capsys):
    assert gpu.main(["--rehearse", "--out", str(tmp_path)]) == 0
    saved = json.loads((tmp_path / "gpu-rehearsal.json").read_text())
    assert {row["section"].split()[0] for row in saved["rows"]} == set(gpu.SECTIONS)
    assert saved["goals"] == [] and saved["failures"] == [] and saved["left_out"] == 0
    assert saved["notes"] == ["Rehearsed on a CPU: none of these figures is a GPU's."]
    assert {"device", "versions", "commit", "command"} <= set(saved["environment"])
    assert {path.name for path in tmp_path.glob("*.png")} == {
        f"gpu-rehearsal-{name}.png" for name in ("dct", "fused", "dense")
    }
    sparse = {(row["pass"], row["peer"]) for row in saved["rows"] if row["section"] == "sparse float32"}
    assert {
        (p, peer) for p in ("spmm", "spmm transposed", "sddmm") for peer in (OURS, "torch.sparse")
    } == sparse
    assert "met" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("op", "sections"),
    [
        ("dct", {"dct", "fused"}),
        ("dctps_linear_backward", {"fused", "dense"}),
        ("sddmm", {"sparse", "fused"}),
    ],
)
def test_a_wrong_result_is_a_failure_and_has_no_time(monkeypatch, op, sections):
    right = getattr(gpu.ops, op)

    def wrong(*arguments):
        result = right(*arguments)
        first, *others = result if isinstance(result, tuple) else (result,)
        spoilt = first + 0.1 * first.abs().max()
        return (spoilt, *others) if others else spoilt

    class Ops:
        def __getattr__(self, name):
            return wrong if name == op else getattr(torch.ops.dctps_ext, name)

    monkeypatch.setattr(gpu, "ops", Ops())
    results = gpu.run(gpu.REHEARSAL, gpu.SECTIONS)
    assert {failure.split()[0] for failure in results["failures"]} == sections
    assert all("is off by" in failure for failure in results["failures"])


def test_a_budget_leaves_cases_out_and_says_how_many():
    results = gpu.run(gpu.REHEARSAL, ("dct", "sparse"), seconds=0.0)
    assert results["left_out"] == len(gpu.work(gpu.REHEARSAL, ("dct", "sparse"))) - 1
    assert len(results["rows"]) > 0


# ---- goals


def row(section, pass_, q, peer, seconds, nnz=0, batch=100):
    return {
        **{"section": section, "threads": 1, "pass": pass_, "q": q, "density": nnz / q**2},
        **{"batch": batch, "nnz": nnz, "peer": peer, "seconds": seconds},
    }


def verdict(text, rows):
    (goal,) = (goal for goal in gpu_goals.GOALS if text in goal.text)
    return judge(goal, {"rows": rows}, 1)


def test_the_fraction_of_a_clone_counts_in_its_range_but_for_primes():
    rows = [
        row("dct float32", "dct", q, peer, seconds)
        for q, ours in ((1024, 1.1), (1021, 9.0), (2048, 1.05), (4096, 5.0))
        for peer, seconds in ((OURS, ours), ("clone", 1.0))
    ]
    judged = verdict("DCT float32: fraction of clone, q in 1..2048", rows)
    assert judged["met"] and judged["measured"] == pytest.approx(1 / 1.1) and judged["worst"] == "dct q=1024"
    judged = verdict("DCT float32: fraction of clone, q in 2049..8192", rows)
    assert not judged["met"] and judged["measured"] == pytest.approx(0.2)
    assert verdict("DCT bfloat16: fraction of clone, q in 1..512", rows)["met"] is None


def test_backward_is_held_against_the_forward_of_the_same_layer():
    rows = [
        row("fused float32", pass_, 1024, OURS, seconds, nnz)
        for nnz, times in ((6 * 1024, (1.0, 2.5)), (20 * 1024, (1.0, 9.0)))
        for pass_, seconds in zip(("forward", "backward"), times, strict=True)
    ]
    judged = verdict("fused backward float32", rows)
    assert judged["met"] and judged["values"] == {"backward q=1024 p=0.586% B=100": 2.5}


def test_the_best_layout_of_torch_sparse_counts():
    rows = [
        row("sparse float32", "spmm", 64, peer, seconds, 100)
        for peer, seconds in ((OURS, 1.0), ("torch.sparse", 5.0), ("torch.sparse", 1.5))
    ]
    judged = verdict("SpMM, SDDMM", rows)
    assert judged["measured"] == 1.5 and not judged["met"]


def test_auto_is_held_against_cublas_in_each_precision():
    for precision in ("float32", "TF32", "bfloat16"):
        rows = [
            row(f"dense {precision}", "forward", 256, peer, seconds, 100)
            for peer, seconds in (("auto", 1.0), (LINEAR, 0.9))
        ]
        assert not verdict(f"auto over cuBLAS on merged W, {precision}", rows)["met"]
