"""All that needs a GPU, in under ten minutes and without a network: build, tests, sanitizer, benchmarks.

    python tools/gpu_check.py --out DIR          (make gpu-check OUT=DIR)

Runs in the Python that runs it, with what is installed there. Each stage has its own time limit, and a
failing one stops only those that need what it makes. DIR gets `summary.json` (device, versions, commit,
command, every stage's outcome, the compiler's report on the kernels), `log.txt` (all output) and the JSON and
PNG of the benchmarks. Exit status: 0 all stages passed, 1 one failed or ran out of time, 2 none failed but
some could not be run, as without a GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOTAL_SECONDS = 570  # of the ten minutes; a stage gets what is left of it, if that is less than its limit
NEEDED = {  # what the tests and benchmarks import
    "tests": ("pytest", "hypothesis", "numpy", "scipy"),
    "benchmarks": ("matplotlib", "numpy", "pytest", "pytest_benchmark", "scipy", "tqdm"),
}
# Small enough for a sanitizer, which slows a kernel down a hundred times; every op, dtype and kind of length.
REDUCED = "tests/test_cuda.py::test_every_op_agrees_with_float64_on_the_cpu"
ANY_ARCH = "9.0"  # built for where there is no GPU to ask, which rehearses the build
ASK_TORCH = """\
import torch
if torch.cuda.is_available():
    p = torch.cuda.get_device_properties(0)
    print(torch.version.cuda, p.name, f"{p.major}.{p.minor}", sep="|")
else:
    print(torch.version.cuda or "")
"""


@dataclass
class Stage:
    """A command and how it may end.

    Attributes:
        name: of the stage.
        command: what is run in the root of the repository.
        seconds: its limit.
        after: stages that must have passed.
        cannot: why it cannot run here; empty where it can.
        env: beside the environment.
    """

    name: str
    command: list[str]
    seconds: float
    after: tuple[str, ...] = ()
    cannot: str = ""
    env: dict[str, str] = field(default_factory=dict)


def missing(group: str) -> list[str]:
    return [name for name in NEEDED[group] if importlib.util.find_spec(name) is None]


def not_installed(group: str) -> str:
    names = missing(group)
    return f"not installed: {', '.join(names)}" if names else ""


def output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def about(commit: str) -> dict:
    """Device, versions, commit, command: what every figure depends on."""
    cuda, name, capability = [*output([sys.executable, "-c", ASK_TORCH]).split("|"), "", ""][:3]
    versions = {"python": sys.version.split()[0], "cuda": cuda}
    for package in ("torch", "triton", "pytest", "hypothesis", "matplotlib", "scipy", "numpy"):
        versions[package] = output(
            [sys.executable, "-c", f"from importlib.metadata import version; print(version({package!r}))"]
        )
    release = re.search(r"release (\S+),", output(["nvcc", "--version"]))
    smi = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit"]
    return {
        "device": name or None,
        "capability": capability or None,
        "nvidia_smi": output([*smi, "--format=csv,noheader"]) or None,
        "versions": {
            name: version or None for name, version in {**versions, "nvcc": release and release[1]}.items()
        },
        "not_installed": sorted({name for group in NEEDED for name in missing(group)}),
        "cores": len(os.sched_getaffinity(0)),
        "commit": commit
        or output(["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"])
        or None,
        "command": shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]]),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
    }


def stages(facts: dict, out: Path) -> list[Stage]:
    python = sys.executable
    no_gpu = "" if facts["device"] else "torch finds no GPU"
    sanitizer = shutil.which("compute-sanitizer")
    pytest = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=5"]
    suite = [*pytest, "benchmarks", "--benchmark-quiet"]
    no_cuda = "" if facts["versions"]["cuda"] else "this Python's torch has no CUDA"
    no_nvcc = "" if facts["versions"]["nvcc"] else "nvcc was not found"
    log = str(out / "build.log")
    listed = [
        Stage(
            "build",
            [python, "setup.py", "build_ext", "--inplace"],
            240,
            cannot=no_nvcc or no_cuda,
            env={
                "DCTPS_FORCE_CUDA": "1",
                "TORCH_CUDA_ARCH_LIST": facts["capability"] or ANY_ARCH,
            },
        ),
        Stage(
            "kernels",
            [python, "tools/cuda_code.py", log, "--json", str(out / "kernels.json")],
            60,
            ("build",),
        ),
        Stage("guest", [*pytest, "tests/test_cuda.py"], 120, ("build",), no_gpu or not_installed("tests")),
        Stage(
            "ops",
            [*pytest, "tests/test_ops_linear.py", "tests/test_ops_conv.py", "-k", "cuda"],
            200,
            ("build",),
            no_gpu or not_installed("tests"),
        ),
        Stage(
            "benchmarks",
            [
                *suite,
                "--device",
                "cuda",
                "--scope",
                "gpu",
                "--seconds",
                "150",
                "--out",
                str(out / "gpu.json"),
            ],
            200,
            ("build",),
            no_gpu or not_installed("benchmarks"),
            {"DCTPS_COMMIT": facts["commit"] or ""},
        ),
        Stage(
            "report",
            [python, "-m", "benchmarks.report", str(out / "gpu.json")],
            60,
            ("build",),
            no_gpu or not_installed("benchmarks"),
        ),
    ]
    for tool in ("memcheck", "racecheck", "synccheck"):
        only = [] if tool == "memcheck" else ["-k", "float32 or bfloat16"]
        command = [sanitizer or "", "--tool", tool, "--error-exitcode", "99"]
        listed.append(
            Stage(
                tool,
                [*command, *pytest, REDUCED, *only],
                90,
                ("build",),
                no_gpu or ("" if sanitizer else "compute-sanitizer was not found") or not_installed("tests"),
                # Each tensor an allocation of its own, so that an overrun leaves it.
                {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            )
        )
    if no_gpu:
        built = any((ROOT / "dctps_ext").glob("_C*.so"))
        not_built = "dctps_ext is not built here" if (no_nvcc or no_cuda) and not built else ""
        listed.append(
            Stage(
                "rehearsal",
                [*suite, "--scope", "tiny", "--threads", "1", "--out", str(out / "rehearsal.json")],
                120,
                cannot=not_installed("benchmarks") or not_built,
            )
        )
    return listed


def run(stage: Stage, log: Path, seconds: float) -> tuple[str, str, float]:
    """(outcome, its last lines, seconds) of a stage, all of its output appended to `log`."""
    begin = time.monotonic()
    with open(log, "ab") as file:
        start = file.tell()
        file.write(f"\n==== {stage.name}: {shlex.join(stage.command)}\n".encode())
        file.flush()
        process = subprocess.Popen(
            stage.command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | stage.env,
            start_new_session=True,  # so that a limit ends the compilers and workers below it too
        )
        try:
            code = process.wait(seconds)
            outcome = "passed" if code == 0 else f"failed with status {code}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            outcome = f"failed: stopped after {seconds:.0f} s"
    with open(log, "rb") as file:
        file.seek(start)
        text = file.read().decode(errors="replace")
    # Progress bars overwrite their line; what they left last is what counts.
    lines = [line.rsplit("\r", 1)[-1] for line in text.strip().splitlines()]
    if stage.name == "build":
        (log.parent / "build.log").write_text(text, encoding="utf-8")
    return outcome, "\n".join(lines[-12:]), time.monotonic() - begin


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python tools/gpu_check.py", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu-check", metavar="DIR")
    parser.add_argument("--commit", default="", help="where the tree is a copy that git knows nothing of")
    arguments = parser.parse_args(argv)
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    log = out / "log.txt"
    log.write_bytes(b"")
    begin = time.monotonic()
    facts = about(arguments.commit)
    print(f"{facts['device'] or 'no GPU'}; " + ", ".join(f"{k} {v}" for k, v in facts["versions"].items()))
    if facts["not_installed"]:
        print(f"not installed: {', '.join(facts['not_installed'])}")
    outcomes: dict[str, dict] = {}
    for stage in stages(facts, out):
        left = TOTAL_SECONDS - (time.monotonic() - begin)
        unmet = [name for name in stage.after if outcomes[name]["outcome"] != "passed"]
        why = (
            stage.cannot
            or (f"{unmet[0]} did not pass" if unmet else "")
            or ("" if left > 5 else "no time left")
        )
        if why:
            outcome, last, seconds = f"skipped: {why}", "", 0.0
        else:
            outcome, last, seconds = run(stage, log, min(stage.seconds, left))
        outcomes[stage.name] = {**asdict(stage), "outcome": outcome, "took": round(seconds, 1), "last": last}
        print(f"{stage.name:<12} {seconds:>6.1f} s  {outcome}", flush=True)
        if outcome.startswith("failed"):
            print("    " + last.replace("\n", "\n    "), flush=True)
        kernels = out / "kernels.json"
        summary = {
            **facts,
            "seconds": round(time.monotonic() - begin, 1),
            "stages": outcomes,
            "kernels": json.loads(kernels.read_text(encoding="utf-8")) if kernels.is_file() else None,
        }
        # After every stage, so that whoever stops this has what there is.
        (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    for name in ("build.log", "kernels.json"):  # in log.txt and summary.json
        (out / name).unlink(missing_ok=True)
    ended = [stage["outcome"] for stage in outcomes.values()]
    failed, skipped = (sum(end.startswith(word) for end in ended) for word in ("failed", "skipped"))
    print(f"{len(ended) - failed - skipped} passed, {failed} failed, {skipped} skipped; results in {out}")
    return 1 if failed else 2 if skipped else 0


if __name__ == "__main__":
    sys.exit(main())
