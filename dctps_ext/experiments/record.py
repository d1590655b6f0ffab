"""What scripts share: the record that result files carry, whole-or-nothing files, a fixed thread count."""

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import torch

_LIBRARIES = ("dctps_ext", "torch", "numpy", "scipy", "scikit-learn")


def environment(more=()):
    """What a measurement depends on, as a JSON-able dict; `more` names further libraries it used.

    Keys: `device` (the CPU's name), `gpu` (the GPU's, None without one), `machine`, `cores` (those this
    process may use), `load` (processes that ran or waited to, averaged over the last minute; None where the
    system does not tell), `isa` (the kernels' choice), `versions` (library name -> version), `commit` (of
    this source tree, "+changes" when files differ from it, None outside a git checkout), `command` and `date`
    (UTC, ISO 8601).
    """
    from dctps_ext import _C

    return {
        "device": _cpu_name(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "isa": _C.isa(),
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in (*_LIBRARIES, *more)},
        },
        "commit": _commit(),
        "command": shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]]),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def write_json(path, content):
    """Write `content` to `path` as indented JSON, whole or not at all; NaN and infinity are errors."""
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def write_atomically(path, write):
    """Create `path`, all of it or nothing: `write(file)` on a binary file beside it, then a rename."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def use_threads(count):
    """Run the block with `count` torch threads, and restore the previous number after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _cpu_name():
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(name):
    if name == "torch":
        return torch.__version__  # with the build's suffix (+cpu, +cu130), which the metadata may leave out
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit():
    def git(*arguments):
        command = ["git", *arguments]
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        # Installed below some other project's checkout, the answer would be that project's commit.
        git("ls-files", "--error-unmatch", __file__)
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("DCTPS_COMMIT") or None  # of a copy without git (tools/gpu_check.py)
