"""Build of the extension module `dctps_ext._C`: what is compiled, with which flags, with CUDA or without.

Metadata is in pyproject.toml. The list of sources is csrc/sources.txt, which CMakeLists.txt reads too. Torch
must be installed first and must be the torch of run time, so builds are never isolated:

    pip install --no-build-isolation -e .

Environment: DCTPS_FORCE_CUDA=1 or FORCE_CUDA=1 (a missing piece of the CUDA build is an error),
DCTPS_FORCE_CPU=1 (no CUDA even where it could be built), TORCH_CUDA_ARCH_LIST, MAX_JOBS, CXX, CUDA_HOME.

For the tests: DCTPS_EMULATED=1 compiles the CUDA sources for the host, against tests/cuda_emulator, and
DCTPS_SANITIZE=address,undefined adds GCC's sanitizers to that (`make emulated-test` shows how it is run).
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from zlib import crc32

from setuptools import Extension, setup
from setuptools import __version__ as setuptools_version
from setuptools.command.build_ext import build_ext as plain_build_ext

ROOT = Path(__file__).resolve().parent
MODULE = "dctps_ext._C"
KINDS = ("kernel", "core", "torch", "standalone", "cuda")
INSTALL = f"{sys.executable} -m pip install --no-build-isolation -e ."

COMMON_FLAGS = [
    "-O3",
    "-g0",  # Python's own flags ask for -g, which doubles the time and the size of every torch file
    "-fno-wrapv",  # and for -fwrapv, which hides from the vectoriser that an int index does not wrap
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-psabi",
]
# Baseline comes first, here and in the link. Where two objects carry the same inline function of the standard
# library, the linker keeps the first one, and that one must run on every machine.
ISA_FLAGS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mf16c"],
}
AVX512_WIDE = "-mprefer-vector-width=512"  # newer compilers only
NVCC_FLAGS = [
    "-O3",
    "-lineinfo",
    "-Werror",
    "all-warnings",
    "-Xcompiler",
    "-fvisibility=hidden",
    "--threads",
    "4",  # architectures at a time; each one's output stays in one piece
    "-Xptxas",
    "-v",  # registers, stack and spills of every kernel, which tools/cuda_code.py reads
    # torch forbids its own sources the operators of half and bfloat16; the kernels see no torch, and must
    # mean the same to a bare nvcc.
    "-U__CUDA_NO_HALF_OPERATORS__",
    "-U__CUDA_NO_HALF_CONVERSIONS__",
    "-U__CUDA_NO_BFLOAT16_CONVERSIONS__",
    "-U__CUDA_NO_HALF2_OPERATORS__",
]
# For the build of the tests, whose CUDA kernels run on the host. No vptr: torch's classes carry no type
# information for it.
EMULATOR = "tests/cuda_emulator"
EMULATED_FLAGS = ["-DDCTPS_EMULATED=1", "-Wno-unknown-pragmas"]
SANITIZED_FLAGS = [
    "-O1",
    "-g1",
    "-fno-omit-frame-pointer",
    "-fno-sanitize-recover=all",
    "-fno-sanitize=vptr",
    "-Wno-uninitialized",  # which the sanitizers make GCC see where nothing is
    "-Wno-maybe-uninitialized",
]
# Built for where no GPU is there to be asked; the last one's PTX runs on whatever is newer.
CUDA_ARCHS = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0")


class BuildError(SystemExit):
    """A build that cannot go on; its text says why and what to do. A SystemExit: no traceback buries it."""

    def __init__(self, text: str):
        super().__init__(f"\ndctps_ext: {text}\n")


# ------------------------------------------------------------------------------------ what is compiled


def read_sources(root: Path = ROOT) -> dict[str, list[str]]:
    """Read csrc/sources.txt: kind -> paths relative to `root`, in the order of the list."""
    listing = root / "csrc" / "sources.txt"
    if not listing.is_file():
        raise BuildError(f"{listing} is missing: this is not a whole source tree")
    sources: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for number, line in enumerate(listing.read_text(encoding="utf-8").splitlines(), 1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        where = f"csrc/sources.txt:{number}: "
        if len(words) != 2 or words[0] not in KINDS:
            raise BuildError(f"{where}expected '<{'|'.join(KINDS)}> <path below csrc>', got {line.strip()!r}")
        path = f"csrc/{words[1]}"
        if not (root / path).is_file():
            raise BuildError(f"{where}{path} does not exist")
        if any(path in paths for paths in sources.values()):
            raise BuildError(f"{where}{path} is listed twice")
        sources[words[0]].append(path)
    return sources


def isas(machine: str) -> list[str]:
    """The instruction sets that the kernels are compiled for on this machine: see ISA_FLAGS."""
    return list(ISA_FLAGS) if machine.lower() in ("x86_64", "amd64") else ["baseline"]


@dataclass(frozen=True)
class Group:
    """Sources that share their flags and their object folder.

    `common`: the same for every torch and in every kind of build, so that all of them share these objects.
    """

    name: str
    sources: list[str]
    cxx: list[str] = field(default_factory=list)
    nvcc: list[str] = field(default_factory=list)
    common: bool = False


def make_groups(
    sources: dict[str, list[str]],
    machine: str,
    *,
    torch_flags: list[str],
    wide_vectors: bool,
    with_cuda: bool,
    emulated: list[str] | None = None,
) -> list[Group]:
    """The groups of the extension in link order; 'torch' alone gets `torch_flags` and so can see torch.

    `emulated`: the flags of the build for the tests, None for others; it has the baseline CPU kernels alone.
    """
    names = isas(machine) if emulated is None else ["baseline"]
    x86 = ["-DDCTPS_HAVE_X86_ISAS=1"] if len(isas(machine)) > 1 else []
    own = [*COMMON_FLAGS, *(x86 if emulated is None else emulated)]
    kernel_flags = [*COMMON_FLAGS, *x86]  # of the emulated build too, which takes the objects of the others
    cuda_kernels = with_cuda or emulated is not None
    with_torch = own + torch_flags + (["-DDCTPS_WITH_CUDA=1"] if cuda_kernels else [])
    groups = [
        Group("torch", sources["torch"], with_torch),
        Group("core", sources["core"], own, common=emulated is None),
    ]
    for isa in names:
        flags = [f"-DDCTPS_ISA={isa}", *ISA_FLAGS[isa]]
        if isa == "avx512" and wide_vectors:
            flags.append(AVX512_WIDE)
        groups.append(Group(f"kernel-{isa}", sources["kernel"], kernel_flags + flags, common=True))
    if with_cuda:
        groups.append(Group("cuda", sources["cuda"], nvcc=list(NVCC_FLAGS)))
    if emulated is not None:
        groups.append(Group("emulated", sources["cuda"], own))
        # Without sanitizers, as it runs for every access; tests/test_cuda_emulator.py has it run with them.
        asan = ["-DDCTPS_ASAN=1"] if any("address" in flag for flag in emulated) else []
        groups.append(
            Group("emulator", [f"{EMULATOR}/emulator.cpp"], [*COMMON_FLAGS, *EMULATED_FLAGS, *asan])
        )
    return [group for group in groups if group.sources]


def emulated_flags(env) -> list[str] | None:
    """The flags of the emulated build; None unless DCTPS_EMULATED asks for it."""
    sanitizers = env.get("DCTPS_SANITIZE", "")
    if not is_set(env, "DCTPS_EMULATED"):
        if sanitizers:
            raise BuildError("DCTPS_SANITIZE is for the emulated build: set DCTPS_EMULATED=1 too")
        return None
    return [*EMULATED_FLAGS, *([f"-fsanitize={sanitizers}", *SANITIZED_FLAGS] if sanitizers else [])]


def as_host_source(path: str, folder: Path) -> str:
    """A .cpp that includes a CUDA source, as torch hands every .cu to nvcc; other sources as they are."""
    if not path.endswith(".cu"):
        return path
    target = folder / Path(path).with_suffix(".cpp").name
    text = f'#include "{ROOT / path}"\n'
    if not target.is_file() or target.read_text(encoding="utf-8") != text:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    return str(target.relative_to(ROOT))


# ------------------------------------------------------------------------------------ CPU or CUDA


def is_set(env, name: str) -> bool:
    """Whether a switch of the environment is on; refuses what is neither on nor off."""
    value = env.get(name, "").strip().lower()
    if value in ("1", "true", "on", "yes"):
        return True
    if value in ("", "0", "false", "off", "no"):
        return False
    raise BuildError(f"environment variable {name} must be 1 or 0, got {env[name]!r}")


def why_cpu_only(
    env, *, torch_version, torch_cuda, torch_hip, nvcc, nvcc_version, cuda_sources
) -> str | None:
    """None: build with CUDA. A text: build for the CPU alone, and why. Raises where a forced choice fails.

    Decided by what is installed, never by torch.cuda.is_available(): build machines rarely have a GPU.
    `torch_cuda`, `torch_hip`: torch.version.cuda and .hip, or None; `nvcc`: its path or None; `nvcc_version`:
    "13.0", say, or None.
    """
    force_cuda = [name for name in ("DCTPS_FORCE_CUDA", "FORCE_CUDA") if is_set(env, name)]
    if is_set(env, "DCTPS_EMULATED"):
        return "the CUDA kernels are emulated on the CPU"
    force_cpu = is_set(env, "DCTPS_FORCE_CPU")
    if force_cuda and force_cpu:
        raise BuildError(f"{force_cuda[0]}=1 and DCTPS_FORCE_CPU=1 contradict each other: unset one")
    if force_cpu:
        return "DCTPS_FORCE_CPU=1"
    missing = []
    if not cuda_sources:
        missing.append("csrc/sources.txt lists no CUDA sources")
    if torch_cuda is None:
        kind = f"a ROCm {torch_hip} build" if torch_hip else "built without CUDA"
        missing.append(f"torch {torch_version} is {kind}")
    if nvcc is None:
        missing.append(
            "nvcc was not found (install the CUDA toolkit, then put nvcc on PATH or set CUDA_HOME)"
        )
    elif nvcc_version is None:
        missing.append(f"{nvcc} does not run (`{nvcc} --version` names no release)")
    elif torch_cuda is not None and nvcc_version.split(".")[0] != torch_cuda.split(".")[0]:
        missing.append(
            f"the CUDA toolkit is {nvcc_version} ({nvcc}), torch {torch_version} is built with CUDA"
            f" {torch_cuda} (the major versions must agree; CUDA_HOME picks the toolkit)"
        )
    if missing and force_cuda:
        why = "; and ".join(missing)
        raise BuildError(
            f"{force_cuda[0]}=1 asks for a CUDA build, but {why}. Install what is missing (docs/install.md "
            f"names it), or unset {force_cuda[0]} for a CPU build."
        )
    return "; ".join(missing) or None


def find_cuda_home(env) -> str | None:
    """The CUDA toolkit's folder: CUDA_HOME, CUDA_PATH, that of the nvcc on PATH, /usr/local/cuda; or None.

    torch takes the parent of nvcc's folder, which is wrong where the nvcc on PATH is a wrapper script (as on
    Debian and on many clusters), so nvcc itself is asked.
    """
    if home := env.get("CUDA_HOME") or env.get("CUDA_PATH"):
        return home
    if nvcc := shutil.which("nvcc", path=env.get("PATH")):
        plan = output_of([nvcc, "--dryrun", "-x", "cu", "-c", os.devnull])
        top = re.search(r"^#\$ TOP=(.+)$", plan, re.M)
        home = Path(top[1].strip()).resolve() if top else None
        return str(home if home and (home / "bin" / "nvcc").is_file() else Path(nvcc).resolve().parent.parent)
    return "/usr/local/cuda" if Path("/usr/local/cuda/bin/nvcc").is_file() else None


def nvcc_release(nvcc: str | None) -> str | None:
    """'13.0' from `nvcc --version`; None where it does not run."""
    found = re.search(r"release (\d+\.\d+)", output_of([nvcc, "--version"]) if nvcc else "")
    return found[1] if found else None


def default_arch_list(listed: str, gpus: Iterable[tuple[int, int]] = ()) -> str:
    """TORCH_CUDA_ARCH_LIST where it is unset: what runs on `gpus`, compute capabilities, else CUDA_ARCHS.

    Of CUDA_ARCHS those that nvcc lists. A GPU takes the last one that is not newer: its code, or else, as all
    newer GPUs do, the PTX that the last of the list comes with.
    """
    known = set(re.findall(r"compute_(\d+)", listed))
    archs = [arch for arch in CUDA_ARCHS if arch.replace(".", "") in known]
    chosen = set()
    for gpu in gpus:
        chosen.update([arch for arch in archs if tuple(map(int, arch.split("."))) <= gpu][-1:])
    return ";".join(arch for arch in archs if arch in chosen or not chosen) + "+PTX"


def nvcc_append_flags(env, known: str) -> str:
    """NVCC_APPEND_FLAGS with MAX_JOBS cores, by default all, on one file: the largest takes minutes on one.

    `known`: what `nvcc --help` says, as not every release can. In the environment, because among the flags of
    a file another MAX_JOBS would be a reason to compile it again.
    """
    given = env.get("NVCC_APPEND_FLAGS", "")
    if "--split-compile" not in known or "split-compile" in given:
        return given
    jobs = env.get("MAX_JOBS", "")
    return f"{given} --split-compile={jobs if jobs.isdigit() else 0}".lstrip()


def output_of(command: list[str]) -> str:
    """stdout and stderr of a command; empty where it cannot be run or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, stdin=subprocess.DEVNULL)
    except OSError:
        return ""
    return done.stdout + done.stderr if done.returncode == 0 else ""


# ------------------------------------------------------------------------------------ what must be there


def torch_missing(why: ImportError) -> BuildError:
    """The error for a build that cannot import torch, among them every isolated build."""
    return BuildError(
        "cannot build, because this build cannot import PyTorch.\n"
        f"  ({why})\n"
        "The extension is compiled against the PyTorch it will run with, so that one comes first, and\n"
        "the build is not isolated from it:\n\n"
        f"    {sys.executable} -m pip install torch 'setuptools>=77' ninja\n"
        f"    {INSTALL}\n\n"
        "PyTorch is installed already? Then this was a plain `pip install .`, which hides it from the\n"
        "build: the second command is all you need."
    )


def check_toolchain(compiler: str) -> None:
    """Refuse what would end in a wall of compiler output: no compiler, no Python headers, Windows."""
    if os.name == "nt":
        raise BuildError("Linux and macOS only so far (GCC or Clang); on Windows use WSL")
    if not output_of([*shlex.split(compiler), "--version"]):
        raise BuildError(
            f"no C++ compiler: '{compiler}' does not run. Install one (Debian, Ubuntu: apt install g++; "
            "Fedora: dnf install gcc-c++; macOS: xcode-select --install) or name one in CXX."
        )
    headers = Path(sysconfig.get_paths()["include"])
    if not (headers / "Python.h").is_file():
        raise BuildError(
            f"no Python headers: {headers}/Python.h is missing. Install them "
            "(Debian, Ubuntu: apt install python3-dev; Fedora: dnf install python3-devel)."
        )


def git_commit() -> str | None:
    """The commit of this tree, '-dirty' where files differ from it; None outside git (an sdist)."""
    if not (ROOT / ".git").exists():
        return None
    return output_of(["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]).strip() or None


def build_info_text(**facts) -> str:
    """dctps_ext/_build_info.py, which _load.py reads before it loads `_C`."""
    head = '"""What this build of dctps_ext was made from: written by setup.py, read by _load.py."""\n\n'
    return head + "".join(f"{name.upper()} = {value!r}\n" for name, value in facts.items())


# ------------------------------------------------------------------------------------ the build itself


def make_build_ext() -> type:
    """The build_ext command. Torch is imported here and no sooner: metadata and sdist need none."""
    if home := find_cuda_home(os.environ):
        os.environ["CUDA_HOME"] = home  # torch.utils.cpp_extension reads it when it is imported
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError as error:
        reason = error
        if "dist_info" in sys.argv:  # pip's first question; it would go on to download torch, and then fail
            raise torch_missing(reason) from None

        class NeedsTorch(plain_build_ext):
            def run(self) -> None:
                raise torch_missing(reason)

        return NeedsTorch

    def gpus_here() -> list[tuple[int, int]]:
        """Compute capabilities of the GPUs that torch sees; none where asking fails: no build needs one."""
        try:
            if not torch.cuda.is_available():
                return []
            torch.cuda.init()  # before they are counted, as some that are there may be out of its reach
            return [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
        except (AssertionError, RuntimeError):
            return []

    @contextlib.contextmanager
    def alone(folder: Path):
        """Wait until no other build is at work in this folder, and keep others out."""
        import fcntl  # not on Windows, which is refused by then

        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def one_ninja(folder: Path):
        """Run the ninja files that torch writes inside this block as one graph when the block ends.

        torch writes and runs one ninja file per set of flags. One after the other, every set ends with cores
        idle behind its slowest file; as one graph none wait. A torch without that function runs them in turn.
        """
        run = getattr(cpp_extension, "_run_ninja_build", None)
        if run is None:
            yield
            return
        parts: list[str] = []
        cpp_extension._run_ninja_build = lambda build_directory, *_, **__: parts.append(build_directory)
        try:
            yield
        finally:
            cpp_extension._run_ninja_build = run
        if parts:
            folder.mkdir(parents=True, exist_ok=True)
            text = "".join("subninja {}/build.ninja\n".format(part.replace(" ", "$ ")) for part in parts)
            (folder / "build.ninja").write_text(text, encoding="utf-8")
            try:
                run(str(folder), True, "")
            except RuntimeError as error:
                raise BuildError("compiling failed: the first 'error:' above says why") from error

    class BuildExt(cpp_extension.BuildExtension):
        """torch's BuildExtension, with the kernels compiled once per instruction set, and _build_info.py."""

        def finalize_options(self) -> None:
            super().finalize_options()
            self.compiler_command = cpp_extension.get_cxx_compiler()
            # pip's editable build has a temporary folder here, in which every build would be a whole one.
            # The compiler's version stands in the name, as ninja sees no more of it than "c++".
            compiler = output_of([*shlex.split(self.compiler_command), "--version"])
            target = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
            objects = ROOT / "build" / f"objects-{target}-{crc32(compiler.encode()):08x}"
            self.build_temp = str(objects)
            # What is not common to all builds: a folder for each torch and kind of build, so that none undoes
            # what another has made.
            self.own_objects = objects / f"torch{torch.__version__}"
            self.emulated = emulated_flags(os.environ)
            if self.emulated is not None:
                sanitizers = os.environ.get("DCTPS_SANITIZE", "").replace(",", "-")
                self.own_objects /= f"emulated-{sanitizers}".rstrip("-")
            self.force = True  # always link: what needs compiling is for ninja to tell

        def run(self) -> None:
            check_toolchain(self.compiler_command)
            home = os.environ.get("CUDA_HOME")
            nvcc = shutil.which("nvcc", path=str(Path(home) / "bin")) if home else None
            self.sources = read_sources()
            self.cpu_only = why_cpu_only(
                os.environ,
                torch_version=torch.__version__,
                torch_cuda=torch.version.cuda,
                torch_hip=getattr(torch.version, "hip", None),
                nvcc=nvcc,
                nvcc_version=nvcc_release(nvcc),
                cuda_sources=self.sources["cuda"],
            )
            if self.cpu_only is None:
                if not os.environ.get("TORCH_CUDA_ARCH_LIST"):
                    known = output_of([nvcc, "--list-gpu-arch"])
                    os.environ["TORCH_CUDA_ARCH_LIST"] = default_arch_list(known, gpus_here())
                os.environ["NVCC_APPEND_FLAGS"] = nvcc_append_flags(os.environ, output_of([nvcc, "--help"]))
                cuda = f"CUDA {torch.version.cuda} for {os.environ['TORCH_CUDA_ARCH_LIST']}"
            else:
                cuda = f"CPU only: {self.cpu_only}"
            # build_extension decides what is compiled; torch checks nvcc if it sees a .cu file here.
            self.extensions[0].sources = [path for path in self.sources["cuda"] if self.cpu_only is None]
            print(f"dctps_ext: building for torch {torch.__version__}; {cuda}", flush=True)
            with alone(Path(self.build_temp)):
                super().run()
                self.write_build_info()

        def build_extension(self, ext: Extension) -> None:
            with_cuda = self.cpu_only is None
            settings_of = cpp_extension.CUDAExtension if with_cuda else cpp_extension.CppExtension
            settings = settings_of(ext.name, [])
            torch_headers = list(settings.include_dirs)
            if with_cuda:
                # ATen's CUDA headers want cuBLAS's and more: small toolkits lack them, torch's wheels do not.
                packages = Path(torch.__file__).parent.parent
                torch_headers += [str(folder) for folder in sorted(packages.glob("nvidia/*/include"))]
            # -isystem, so that -Werror is about our own lines. Ninja does not watch such headers, so torch's
            # version stands in the command: another torch, another command, and the files are compiled again.
            torch_flags = [flag for folder in torch_headers for flag in ("-isystem", folder)]
            torch_flags += [*ext.extra_compile_args["cxx"], f'-DDCTPS_TORCH_VERSION="{torch.__version__}"']
            try_wide = [*shlex.split(self.compiler_command), AVX512_WIDE]
            groups = make_groups(
                self.sources,
                platform.machine(),
                torch_flags=torch_flags,
                wide_vectors=bool(output_of([*try_wide, "-E", "-x", "c++", os.devnull])),
                with_cuda=with_cuda,
                emulated=self.emulated,
            )
            headers = [str(ROOT / "csrc")]
            own_headers = headers + self.compiler.include_dirs  # Python's, and the virtual environment's
            self.compiler.include_dirs = []
            if self.emulated is not None:  # its cuda_runtime.h must be found before any other
                own_headers.insert(0, str(ROOT / EMULATOR))
                ext.extra_link_args = [flag for flag in self.emulated if flag.startswith("-fsanitize")]
            # torch asks for C++20 from 2.13 on; the kernels need it under any torch.
            sets_std = torch.__version__ >= (2, 13)
            objects: list[str] = []
            with one_ninja(Path(self.build_temp)):
                for group in groups:
                    folder = (Path(self.build_temp) if group.common else self.own_objects) / group.name
                    std = [] if sets_std and not group.common else ["-std=c++20"]
                    sources = group.sources
                    if self.emulated is not None:
                        sources = [as_host_source(path, folder) for path in sources]
                    objects += self.compiler.compile(
                        list(sources),
                        output_dir=str(folder),
                        include_dirs=headers if group.common else own_headers,
                        extra_postargs={"cxx": group.cxx + std, "nvcc": group.nvcc + std},
                    )
            ext.libraries, ext.library_dirs = settings.libraries, settings.library_dirs
            # All that is left of the parent's work is the link: hand it the objects where it would compile.
            compile_sources = self.compiler.compile
            self.compiler.compile = lambda *_, **__: objects
            try:
                super().build_extension(ext)
            finally:
                self.compiler.compile = compile_sources

        def write_build_info(self) -> None:
            """Next to `_C`, wherever it went: the wheel's tree or, for an editable build, the source tree."""
            target = Path(self.get_ext_fullpath(MODULE)).parent / "_build_info.py"
            with_cuda = self.cpu_only is None
            version = output_of([*shlex.split(self.compiler_command), "--version"]).splitlines()[0]
            text = build_info_text(
                torch=str(torch.__version__),
                cuda=torch.version.cuda if with_cuda else None,
                cuda_archs=os.environ["TORCH_CUDA_ARCH_LIST"] if with_cuda else None,
                cpu_only_because=self.cpu_only,
                python=sys.implementation.cache_tag,
                compiler=version,
                isas=tuple(isas(platform.machine())) if self.emulated is None else ("baseline", "emulated"),
                commit=git_commit(),
            )
            target.write_text(text, encoding="utf-8")

    return BuildExt


def main() -> None:
    """Run setuptools."""
    if int(setuptools_version.split(".")[0]) < 77:
        raise BuildError(
            f"setuptools {setuptools_version} is too old to read pyproject.toml (77 is needed):\n\n"
            f"    {sys.executable} -m pip install -U 'setuptools>=77' ninja\n    {INSTALL}"
        )
    sources = [path for kind in KINDS if kind != "standalone" for path in read_sources()[kind]]
    extension = Extension(MODULE, sources, language="c++", extra_compile_args={"cxx": [], "nvcc": []})
    setup(ext_modules=[extension], cmdclass={"build_ext": make_build_ext()})


if __name__ == "__main__":
    main()
