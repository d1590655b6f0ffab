"""Builds the extension against a CUDA build of torch, links it, imports it, checks it; needs nvcc and no GPU.

    python tools/cuda_link.py [--archs all]

Uses the Python that runs it where that has a CUDA build of torch, else a virtual environment of its own in
${XDG_CACHE_HOME:-~/.cache}/dctps, which all clones share and the first run fills (gigabytes). The build goes
to build/cuda-link and leaves the one in place alone. Where nvcc is missing, or the packages cannot be had, it
says so and succeeds; with CI=true in the environment the latter is an error.
"""

from __future__ import annotations

import argparse
import fcntl
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "cuda-link"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dctps"
# Another torch than the one that the tests run with, so that each CI run compiles against two.
PACKAGES = ("torch==2.14.1", "setuptools>=77", "ninja", "numpy")
ONE_ARCH = "9.0"
LOOK = "import ninja, numpy, setuptools, torch; print(torch.__version__.split('+')[0], torch.version.cuda)"


class Skip(Exception):
    """Why nothing can be linked here, though nothing is wrong with the code."""


def import_setup():
    """setup.py as a module, for its search for nvcc and its list of architectures."""
    spec = importlib.util.spec_from_file_location("dctps_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def torch_of(python: Path | str) -> tuple[str, str] | None:
    """(torch's version, its CUDA version) of a Python that has all that a build needs, else None."""
    done = subprocess.run([str(python), "-c", LOOK], capture_output=True, text=True, cwd=CACHE.anchor)
    words = done.stdout.split()
    return (words[0], words[1]) if done.returncode == 0 and len(words) == 2 and words[1] != "None" else None


def cached_python() -> Path:
    """The Python of the shared environment, which is made, or mended, where it is not as it should be."""
    venv = CACHE / "cuda-venv"
    python = venv / "bin" / "python"
    wanted = PACKAGES[0].split("==")[1]
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "cuda-venv.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another clone may be making it
        if python.is_file() and (torch_of(python) or ("",))[0] == wanted:
            return python
        print(f"   installing {PACKAGES[0]} into {venv} (gigabytes, once)", flush=True)
        for command in (
            [sys.executable, "-m", "venv", str(venv)],
            [str(python), "-m", "pip", "install", "-q", "--no-input", *PACKAGES],
        ):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                said = (done.stderr + done.stdout).strip().splitlines()
                why = next(
                    (line for line in reversed(said) if "error" in line.lower()), said[-1] if said else ""
                )
                raise Skip(f"{PACKAGES[0]} cannot be installed into {venv} ({why.strip()})")
        if torch_of(python) is None:
            raise Skip(f"{PACKAGES[0]} of this platform is not a CUDA build")
    return python


def find_tools(setup) -> tuple[str, Path | str, str, str]:
    """(CUDA_HOME, the Python to build with, its torch's version, all versions in words)."""
    home = setup.find_cuda_home(os.environ)
    nvcc = shutil.which("nvcc", path=str(Path(home) / "bin")) if home else None
    release = setup.nvcc_release(nvcc)
    if release is None:
        raise Skip("nvcc was not found (install the CUDA toolkit, then put nvcc on PATH or set CUDA_HOME)")
    python: Path | str = sys.executable
    found = torch_of(python)
    if found is None or found[1].split(".")[0] != release.split(".")[0]:
        python = cached_python()
        found = torch_of(python)
    if found[1].split(".")[0] != release.split(".")[0]:
        raise Skip(f"nvcc is {release}, but torch {found[0]} is built with CUDA {found[1]}")
    return home, python, found[0], f"torch {found[0]}, CUDA {found[1]}, nvcc {release}"


def run(command: list[str], log: Path, env: dict[str, str]) -> None:
    """Run a command with its output in `log`; on failure show the end of that, and stop."""
    with open(log, "w", encoding="utf-8") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, env=env)
    if done.returncode:
        text = log.read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [line for line in text if re.search(r"\berror\b", line, re.I)][:20]
        print("\n".join([*errors, "...", *text[-20:]]), file=sys.stderr)
        raise SystemExit(f"cuda-link: failed; the whole output is in {log}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tools/cuda_link.py", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--archs", default=ONE_ARCH, help=f"as in TORCH_CUDA_ARCH_LIST, or 'all'; {ONE_ARCH} by default"
    )
    arguments = parser.parse_args()
    setup = import_setup()
    archs = ";".join(setup.CUDA_ARCHS) if arguments.archs == "all" else arguments.archs
    try:
        home, python, torch_version, words = find_tools(setup)
    except Skip as why:
        print(f"   cuda-link: SKIPPED: {why}")
        return int("nvcc was not found" not in str(why) and os.environ.get("CI") == "true")
    print(f"   {words}, for {archs.replace(';', ' ')}", flush=True)
    start = time.monotonic()
    site = FOLDER / "lib"
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    # ptxas speaks only when it runs, so the kernels are compiled each time.
    for objects in (ROOT / "build").glob(f"objects-*/torch{torch_version}*/cuda"):
        shutil.rmtree(objects)
    # torch calls the ninja that it finds. That is to be the other builds' where they have one: a ninja of
    # another version does not read their log, and would make all objects again that it could share.
    beside = [str(Path(sys.executable).parent), str(Path(home) / "bin")]
    folders = [*beside, os.environ.get("PATH", ""), str(Path(python).parent)]
    env = os.environ | {
        "PATH": os.pathsep.join(folders),
        "CUDA_HOME": home,
        "DCTPS_FORCE_CUDA": "1",
        "TORCH_CUDA_ARCH_LIST": archs,
        "PYTHONPATH": str(site),
    }
    log = FOLDER / "build.log"
    run([str(python), "setup.py", "build", "--build-lib", str(site)], log, env)
    built = time.monotonic()
    module = next((site / "dctps_ext").glob("_C.*.so"))
    checks = [str(python), str(ROOT / "tools" / "cuda_import.py"), str(module)]
    run(checks, FOLDER / "import.log", env)
    print(f"   {(FOLDER / 'import.log').read_text(encoding='utf-8').strip()}", flush=True)
    packages = subprocess.check_output(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    ).strip()
    command = [sys.executable, str(ROOT / "tools" / "cuda_code.py"), str(log), "--module", str(module)]
    command += ["--packages", packages, "--json", str(FOLDER / "kernels.json")]
    done = subprocess.run([*command, "--markdown", str(FOLDER / "kernels.md")], env=env)
    print(f"   built in {built - start:.0f} s, all in {time.monotonic() - start:.0f} s; {FOLDER}", flush=True)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
