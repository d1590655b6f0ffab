"""tools/gpu_check.py limits, skips and reports its stages; tools/cuda_link.py says why it links nothing."""

import json
import sys

import pytest

from tests.checks import import_file

check = import_file("tools/gpu_check.py")
link = import_file("tools/cuda_link.py")


def python(code):
    return [sys.executable, "-c", code]


def run(tmp_path, monkeypatch, *stages):
    """(exit status, outcomes by name, the summary) of a run of these stages."""
    monkeypatch.setattr(check, "stages", lambda facts, out: list(stages))
    status = check.main(["--out", str(tmp_path), "--commit", "abc123"])
    summary = json.loads((tmp_path / "summary.json").read_text())
    return status, {name: stage["outcome"] for name, stage in summary["stages"].items()}, summary


def test_a_failing_stage_stops_only_those_that_need_it(tmp_path, monkeypatch):
    Stage = check.Stage
    status, outcomes, summary = run(
        tmp_path,
        monkeypatch,
        Stage("build", python("print('building'); raise SystemExit(3)"), 20),
        Stage("tests", python("print('never')"), 20, after=("build",)),
        Stage("other", python("print('fine')"), 20),
        Stage("gpu", python("print('never')"), 20, cannot="torch finds no GPU"),
    )
    assert status == 1
    assert outcomes == {
        "build": "failed with status 3",
        "tests": "skipped: build did not pass",
        "other": "passed",
        "gpu": "skipped: torch finds no GPU",
    }
    assert summary["commit"] == "abc123" and summary["versions"]["python"] and "device" in summary
    log = (tmp_path / "log.txt").read_text()
    assert "building" in log and "fine" in log and "\nnever" not in log


def test_a_stage_that_outstays_its_limit_is_ended_with_all_that_it_started(tmp_path, monkeypatch):
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    status, outcomes, summary = run(tmp_path, monkeypatch, check.Stage("slow", python(child), 1))
    assert status == 1 and outcomes["slow"] == "failed: stopped after 1 s"
    assert summary["stages"]["slow"]["took"] < 30


@pytest.mark.parametrize(("cannot", "expected"), [("", 0), ("torch finds no GPU", 2)])
def test_the_exit_status_tells_passed_from_skipped(tmp_path, monkeypatch, cannot, expected):
    status, _, _ = run(tmp_path, monkeypatch, check.Stage("one", python("pass"), 20, cannot=cannot))
    assert status == expected


def test_without_a_gpu_its_stages_say_so(tmp_path):
    facts = {"device": None, "capability": None, "commit": None, "versions": {"nvcc": None, "cuda": None}}
    stages = {stage.name: stage for stage in check.stages(facts, tmp_path)}
    assert stages["build"].cannot == "nvcc was not found"
    for name in ("guest", "ops", "benchmarks", "report", "memcheck", "racecheck", "synccheck"):
        assert stages[name].cannot == "torch finds no GPU"
    assert "rehearsal" in stages
    facts |= {"device": "NVIDIA H200", "capability": "9.0", "versions": {"nvcc": "13.0", "cuda": "13.0"}}
    stages = {stage.name: stage for stage in check.stages(facts, tmp_path)}
    assert not stages["build"].cannot and "rehearsal" not in stages
    assert stages["build"].env["TORCH_CUDA_ARCH_LIST"] == "9.0"
    assert sum(stage.seconds for name, stage in stages.items() if name != "kernels") < 2 * check.TOTAL_SECONDS


@pytest.mark.parametrize(("ci", "status"), [("", 0), ("true", 0)])
def test_linking_without_nvcc_is_skipped_and_said(monkeypatch, capsys, ci, status):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CUDA_HOME", "/nowhere")
    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr(sys, "argv", ["cuda_link.py"])
    assert link.main() == status
    assert "SKIPPED: nvcc was not found" in capsys.readouterr().out


@pytest.mark.parametrize(("ci", "status"), [("", 0), ("true", 1)])
def test_linking_without_packages_is_an_error_only_in_ci(monkeypatch, capsys, ci, status):
    def nothing_to_be_had(setup):
        raise link.Skip("torch==2.14.1 cannot be installed")

    monkeypatch.setattr(link, "find_tools", nothing_to_be_had)
    monkeypatch.setattr(sys, "argv", ["cuda_link.py"])
    monkeypatch.setenv("CI", ci)
    assert link.main() == status
    assert "SKIPPED: torch==2.14.1 cannot be installed" in capsys.readouterr().out
