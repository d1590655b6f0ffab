"""How the package is built and loaded: CPU or CUDA, one list of sources, the sdist, the check at import."""

import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.checks import import_file

ROOT = Path(__file__).resolve().parents[2]


build = import_file("setup.py")


def why_cpu_only(env=(), **changes):
    """The decision on a machine that has all that a CUDA build needs, but for `changes`."""
    machine = dict(
        torch_version="2.13.0+cu130",
        torch_cuda="13.0",
        torch_hip=None,
        nvcc="/opt/cuda/bin/nvcc",
        nvcc_version="13.2",
        cuda_sources=["csrc/dct/dct_cuda.cu"],
    )
    return build.why_cpu_only(dict(env), **{**machine, **changes})


CPU_TORCH = dict(torch_version="2.13.0+cpu", torch_cuda=None)
MISSING_PIECES = [
    (CPU_TORCH, r"torch 2.13.0\+cpu is built without CUDA"),
    (dict(CPU_TORCH, torch_hip="7.1"), "a ROCm 7.1 build"),
    (dict(nvcc=None, nvcc_version=None), "nvcc was not found .*CUDA_HOME"),
    (dict(nvcc_version=None), "/opt/cuda/bin/nvcc does not run"),
    (dict(nvcc_version="12.8"), r"toolkit is 12.8 \(/opt/cuda/bin/nvcc\), .*CUDA 13.0"),
    (dict(cuda_sources=[]), "lists no CUDA sources"),
]


class TestCpuOrCuda:
    def test_cuda_where_all_is_there(self):
        assert why_cpu_only() is None
        assert why_cpu_only({"DCTPS_FORCE_CUDA": "1"}) is None

    @pytest.mark.parametrize(("changes", "named"), MISSING_PIECES)
    def test_a_missing_piece_means_cpu_and_is_named(self, changes, named):
        assert re.search(named, why_cpu_only(**changes))

    @pytest.mark.parametrize("switch", ["DCTPS_FORCE_CUDA", "FORCE_CUDA"])
    @pytest.mark.parametrize(("changes", "named"), MISSING_PIECES)
    def test_forced_cuda_refuses_and_names_the_piece(self, switch, changes, named):
        with pytest.raises(build.BuildError, match=f"{switch}=1.*{named}"):
            why_cpu_only({switch: "1"}, **changes)

    def test_every_missing_piece_is_named_at_once(self):
        reason = why_cpu_only(**CPU_TORCH, nvcc=None, nvcc_version=None, cuda_sources=[])
        assert all(part in reason for part in ("no CUDA sources", "without CUDA", "nvcc was not found"))

    def test_forced_cpu(self):
        assert why_cpu_only({"DCTPS_FORCE_CPU": "1"}) == "DCTPS_FORCE_CPU=1"

    @pytest.mark.parametrize("switch", ["DCTPS_FORCE_CUDA", "FORCE_CUDA"])
    def test_both_forced_is_an_error(self, switch):
        with pytest.raises(build.BuildError, match=f"{switch}=1 and DCTPS_FORCE_CPU=1"):
            why_cpu_only({switch: "1", "DCTPS_FORCE_CPU": "1"})

    @pytest.mark.parametrize("off", ["", "0", "false", "OFF", "no"])
    def test_switched_off_is_off(self, off):
        assert "without CUDA" in why_cpu_only({"FORCE_CUDA": off, "DCTPS_FORCE_CPU": off}, **CPU_TORCH)

    def test_a_switch_that_is_neither_on_nor_off_is_refused(self):
        with pytest.raises(build.BuildError, match="DCTPS_FORCE_CPU must be 1 or 0, got 'maybe'"):
            why_cpu_only({"DCTPS_FORCE_CPU": "maybe"})

    def test_default_archs_are_those_that_nvcc_knows(self):
        assert build.default_arch_list("compute_75\ncompute_80\ncompute_86\n") == "7.5;8.0;8.6+PTX"
        assert (
            build.default_arch_list("compute_90 compute_100 compute_120 compute_121") == "9.0;10.0;12.0+PTX"
        )

    @pytest.mark.parametrize(
        ("gpus", "archs"),
        [
            ([(9, 0)], "9.0+PTX"),
            ([(8, 9), (8, 0), (8, 9)], "8.0;8.9+PTX"),
            ([(10, 3)], "10.0+PTX"),  # whose code it runs
            ([(11, 0)], "10.0+PTX"),  # by its PTX
            ([(12, 1)], "10.0+PTX"),  # newer than this nvcc
            ([(6, 1), (9, 0)], "9.0+PTX"),  # older than any that the package runs on
            ([(6, 1)], "8.0;8.9;9.0;10.0+PTX"),
        ],
    )
    def test_default_archs_are_those_of_the_gpus_here(self, gpus, archs):
        listed = "compute_70 compute_80 compute_87 compute_89 compute_90 compute_100 compute_103 compute_110"
        assert build.default_arch_list(listed, gpus) == archs

    def test_nvcc_uses_all_cores_or_as_many_as_jobs(self):
        known = "--split-compile <number>"
        assert build.nvcc_append_flags({}, known) == "--split-compile=0"
        assert build.nvcc_append_flags({"MAX_JOBS": "3"}, known) == "--split-compile=3"
        assert build.nvcc_append_flags({"NVCC_APPEND_FLAGS": "-v"}, known) == "-v --split-compile=0"
        for given in ("", "-split-compile 2"):
            assert build.nvcc_append_flags({"NVCC_APPEND_FLAGS": given}, known if given else "") == given

    def test_cuda_home_prefers_the_variable_and_sees_through_wrappers(self, tmp_path):
        toolkit = tmp_path / "toolkit" / "bin"
        on_path = tmp_path / "bin"
        for folder in (toolkit, on_path):
            folder.mkdir(parents=True)
        real = toolkit / "nvcc"
        real.write_text(f"#!/bin/sh\necho '#$ TOP={toolkit}/..' >&2\n")
        wrapper = on_path / "nvcc"
        wrapper.write_text(f'#!/bin/sh\nexec {real} "$@"\n')
        for script in (real, wrapper):
            script.chmod(0o755)
        assert build.find_cuda_home({"PATH": str(on_path)}) == str(toolkit.parent)
        assert build.find_cuda_home({"PATH": str(on_path), "CUDA_HOME": "/named"}) == "/named"


class TestSources:
    def write(self, root, text, *files):
        for name in files:
            path = root / "csrc" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        (root / "csrc").mkdir(exist_ok=True)
        (root / "csrc" / "sources.txt").write_text(text)
        return build.read_sources(root)

    def test_kinds_comments_and_order(self, tmp_path):
        text = "# list\nkernel b.cpp\n\nkernel a.cpp  # second\ntorch x/c.cpp\n"
        sources = self.write(tmp_path, text, "a.cpp", "b.cpp", "x/c.cpp")
        assert sources["kernel"] == ["csrc/b.cpp", "csrc/a.cpp"]
        assert sources["torch"] == ["csrc/x/c.cpp"]
        assert sources["cuda"] == []

    @pytest.mark.parametrize(
        ("text", "named"),
        [
            ("kernel a.cpp\nkernels b.cpp\n", "sources.txt:2: expected .*got 'kernels b.cpp'"),
            ("kernel\n", "sources.txt:1: expected"),
            ("core gone.cpp\n", "sources.txt:1: csrc/gone.cpp does not exist"),
            ("core a.cpp\nkernel a.cpp\n", "sources.txt:2: csrc/a.cpp is listed twice"),
        ],
    )
    def test_a_wrong_line_is_named(self, tmp_path, text, named):
        with pytest.raises(build.BuildError, match=named):
            self.write(tmp_path, text, "a.cpp")

    def test_every_source_of_the_tree_is_listed(self):
        listed = {path for paths in build.read_sources().values() for path in paths}
        found = (path for pattern in ("*.cpp", "*.cu") for path in (ROOT / "csrc").rglob(pattern))
        assert {str(path.relative_to(ROOT)) for path in found} == listed

    def test_kernels_see_no_torch(self):
        sources = build.read_sources()
        for path in sources["kernel"] + sources["core"] + sources["standalone"] + sources["cuda"]:
            text = (ROOT / path).read_text(encoding="utf-8")
            assert not re.search(r"#include <(torch|ATen|c10)/", text), path


class TestGroups:
    sources = {kind: [f"{kind}.cpp"] for kind in build.KINDS}

    def groups(self, machine="x86_64", **options):
        options = {"torch_flags": ["-isystem", "/torch"], "wide_vectors": True, "with_cuda": False, **options}
        return {group.name: group for group in build.make_groups(self.sources, machine, **options)}

    def test_kernels_once_per_isa_and_baseline_linked_first(self):
        groups = self.groups()
        assert list(groups) == ["torch", "core", "kernel-baseline", "kernel-avx2", "kernel-avx512"]
        assert "-DDCTPS_ISA=avx2" in groups["kernel-avx2"].cxx
        assert "-mprefer-vector-width=512" in groups["kernel-avx512"].cxx
        assert "-mprefer-vector-width=512" not in self.groups(wide_vectors=False)["kernel-avx512"].cxx
        assert all("-DDCTPS_HAVE_X86_ISAS=1" in group.cxx for group in groups.values())

    def test_only_kernels_leave_the_baseline(self):
        for name, group in self.groups().items():
            if name not in ("kernel-avx2", "kernel-avx512"):
                assert not [flag for flag in group.cxx if flag.startswith("-m")]

    def test_other_machines_have_the_baseline_alone(self):
        groups = self.groups("aarch64")
        assert list(groups) == ["torch", "core", "kernel-baseline"]
        assert not any("X86" in flag for group in groups.values() for flag in group.cxx)

    def test_only_the_torch_group_sees_torch(self):
        assert [name for name, group in self.groups().items() if "/torch" in group.cxx] == ["torch"]

    def test_builds_share_what_is_the_same_in_all_of_them(self):
        flags = build.emulated_flags({"DCTPS_EMULATED": "1", "DCTPS_SANITIZE": "address,undefined"})
        plain = self.groups()
        assert [name for name, group in plain.items() if not group.common] == ["torch"]
        for other in (
            self.groups(torch_flags=["-isystem", "/other"]),
            self.groups(with_cuda=True),
            self.groups(emulated=flags),
        ):
            common = [group for group in other.values() if group.common]
            assert common and all(group == plain[group.name] for group in common)

    def test_cuda_group_and_definition(self):
        groups = self.groups(with_cuda=True)
        assert groups["cuda"].sources == ["cuda.cpp"]
        assert "-Xptxas -v" in " ".join(groups["cuda"].nvcc)  # tools/cuda_code.py reads it
        assert "-DDCTPS_WITH_CUDA=1" in groups["torch"].cxx
        assert "-DDCTPS_WITH_CUDA=1" not in self.groups()["torch"].cxx

    def test_the_emulated_build_compiles_cuda_sources_for_the_host(self):
        groups = self.groups(emulated=build.emulated_flags({"DCTPS_EMULATED": "1"}))
        assert list(groups) == ["torch", "core", "kernel-baseline", "emulated", "emulator"]
        assert groups["emulated"].sources == ["cuda.cpp"] and not groups["emulated"].nvcc
        for name in ("torch", "core", "emulated", "emulator"):
            assert "-DDCTPS_EMULATED=1" in groups[name].cxx
        assert "-DDCTPS_WITH_CUDA=1" in groups["torch"].cxx
        assert not any("-fsanitize" in flag for group in groups.values() for flag in group.cxx)

    def test_sanitizers_are_for_what_the_emulated_tests_are_about(self):
        flags = build.emulated_flags({"DCTPS_EMULATED": "1", "DCTPS_SANITIZE": "address,undefined"})
        groups = self.groups(emulated=flags)
        sanitized = [name for name, group in groups.items() if "-fsanitize=address,undefined" in group.cxx]
        assert sanitized == ["torch", "core", "emulated"]
        assert "-DDCTPS_ASAN=1" in groups["emulator"].cxx
        with pytest.raises(build.BuildError, match="DCTPS_SANITIZE is for the emulated build"):
            build.emulated_flags({"DCTPS_SANITIZE": "address"})
        assert build.emulated_flags({}) is None

    def test_a_cuda_source_is_included_by_a_host_source(self, tmp_path, monkeypatch):
        monkeypatch.setattr(build, "ROOT", tmp_path)
        assert build.as_host_source("csrc/x.cpp", tmp_path / "objects") == "csrc/x.cpp"
        made = tmp_path / build.as_host_source("csrc/x/y.cu", tmp_path / "objects")
        assert made.read_text() == f'#include "{tmp_path}/csrc/x/y.cu"\n'


class TestCMake:
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")

    def words(self, name):
        return re.search(rf"set\({name} ([^)]*)\)", self.text)[1].split()

    def test_flags_are_those_of_setup_py(self):
        python_only = {"-g0", "-fno-wrapv"}  # they undo flags that only Python's own build adds
        assert set(self.words("flags")) | {"-O3"} == set(build.COMMON_FLAGS) - python_only
        for isa in ("avx2", "avx512"):
            assert self.words(f"isa_flags_{isa}") == build.ISA_FLAGS[isa]
        assert build.AVX512_WIDE in self.text

    @pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not on PATH")
    def test_same_sources_and_version(self, tmp_path):
        """CMake compiles each kernel once per instruction set, and nothing of torch's or nvcc's."""
        command = ["cmake", "-S", str(ROOT), "-B", str(tmp_path), "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"]
        done = subprocess.run([*command, "-DBUILD_TESTING=OFF"], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        commands = (tmp_path / "compile_commands.json").read_text()
        sources = build.read_sources()
        for path in (path for paths in sources.values() for path in paths):
            expected = {"torch": 0, "cuda": 0, "kernel": len(build.isas(platform.machine()))}
            kind = next(kind for kind, paths in sources.items() if path in paths)
            assert commands.count(f'"file": "{ROOT / path}"') == expected.get(kind, 1), path
        version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.M)[1]
        assert f"CMAKE_PROJECT_VERSION:STATIC={version}" in (tmp_path / "CMakeCache.txt").read_text()


def run_python(*arguments, cwd, path, **variables):
    """A Python that finds `path` before anything that is installed, and sees the `variables` alone."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(map(str, path)), **variables}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture
def no_torch(tmp_path):
    """A folder for PYTHONPATH in which importing torch fails."""
    folder = tmp_path / "no_torch"
    folder.mkdir()
    (folder / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\")\n")
    return folder


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the tree, as setuptools writes beside the sources; with a stale _build_info.py."""
    target = tmp_path_factory.mktemp("sdist") / "tree"
    generated = (".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", "results", "*.so")
    shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(*generated))
    (target / "dctps_ext" / "_build_info.py").write_text("TORCH = 'stale'\n")
    return target


class TestWithoutTorch:
    def test_sdist_carries_what_a_build_needs(self, tree, no_torch):
        done = run_python("setup.py", "-q", "sdist", cwd=tree, path=[no_torch])
        assert done.returncode == 0, done.stdout + done.stderr
        with tarfile.open(next((tree / "dist").glob("*.tar.gz"))) as archive:
            names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
        needed = {
            "setup.py",
            "pyproject.toml",
            "CMakeLists.txt",
            "Makefile",
            "README.md",
            "LICENSE",
            ".clang-format",
        }
        needed |= {"csrc/sources.txt", ".ci/run"}
        for folder in ("csrc", "dctps_ext", "benchmarks", "docs", "tests", "tools"):
            for pattern in ("*.cpp", "*.h", "*.cu", "*.cuh", "*.py", "*.md"):
                needed |= {str(path.relative_to(tree)) for path in (tree / folder).rglob(pattern)}
        needed.discard("dctps_ext/_build_info.py")
        assert needed - names == set()
        assert not [name for name in names if name.endswith((".so", "_build_info.py", ".pyc"))]

    @pytest.mark.parametrize("command", ["build", "dist_info"])  # dist_info is what pip asks for first
    def test_a_build_says_what_to_install(self, tree, no_torch, command):
        done = run_python("setup.py", "-q", command, cwd=tree, path=[no_torch])
        assert done.returncode != 0
        assert "pip install torch" in done.stderr
        assert "pip install --no-build-isolation -e ." in done.stderr
        assert "Traceback" not in done.stderr


class TestLoad:
    """dctps_ext/_load.py in a package of its own, with a torch that is one line."""

    def site(self, folder, *, built_for="2.13.0+cpu", python=sys.implementation.cache_tag, module=""):
        """A folder with an installed dctps_ext (`built_for` None: unbuilt; `module` None: without `_C`)."""
        package = folder / "dctps_ext"
        package.mkdir(parents=True)
        shutil.copy(ROOT / "dctps_ext" / "_load.py", package)
        (package / "__init__.py").write_text("from . import _load\n")
        if built_for is not None:
            (package / "_build_info.py").write_text(build.build_info_text(torch=built_for, python=python))
            if module is not None:
                (package / "_C.py").write_text(module)  # any module of that name will do
        return folder

    def import_it(self, tmp_path, *sites, torch="__version__ = '2.13.0+cpu'\n", cwd=None, **variables):
        fake = tmp_path / "fake"
        fake.mkdir()
        (fake / "torch.py").write_text(torch)
        code = "import dctps_ext, sys; print(sys.modules['dctps_ext._C'].__name__)"
        done = run_python("-S", "-c", code, cwd=cwd or tmp_path, path=[*sites, fake], **variables)
        return done.stdout.strip() if done.returncode == 0 else done.stderr.strip().splitlines()[-1]

    def test_a_build_that_fits_loads(self, tmp_path):
        assert self.import_it(tmp_path, self.site(tmp_path / "site")) == "dctps_ext._C"

    @pytest.mark.parametrize("installed", ["2.14.1+cpu", "2.13.0+cu130", "2.13.0"])
    def test_another_torch_says_rebuild(self, tmp_path, installed):
        message = self.import_it(
            tmp_path, self.site(tmp_path / "site"), torch=f"__version__ = '{installed}'\n"
        )
        said = f"dctps_ext was built for torch 2.13.0+cpu, but torch {installed} is installed: rebuild with:"
        assert message.startswith(f"ImportError: {said}")
        assert "pip install --no-build-isolation" in message

    def test_another_builds_module_is_loaded_with_its_build_info(self, tmp_path):
        site = self.site(tmp_path / "site", built_for="1.0", module="raise ImportError('not this one')\n")
        other = self.site(tmp_path / "other") / "dctps_ext" / "_C.py"
        assert self.import_it(tmp_path, site, DCTPS_EXTENSION=str(other)) == "dctps_ext._C"

    def test_another_build_that_is_not_there_is_named(self, tmp_path):
        where = tmp_path / "nowhere" / "_C.so"
        message = self.import_it(tmp_path, self.site(tmp_path / "site"), DCTPS_EXTENSION=str(where))
        assert message.startswith(
            f"ImportError: dctps_ext is not built: {where.parent} has no compiled module"
        )

    def test_no_torch(self, tmp_path):
        message = self.import_it(
            tmp_path, self.site(tmp_path / "site"), torch="raise ImportError('no torch')\n"
        )
        assert message.startswith("ImportError: dctps_ext needs PyTorch")

    @pytest.mark.parametrize("case", [dict(built_for=None), dict(module=None)])
    def test_not_built_names_the_command(self, tmp_path, case):
        tree = self.site(tmp_path / "tree", **case)
        (tree / "setup.py").touch()
        message = self.import_it(tmp_path, tree)
        assert message.startswith("ImportError: dctps_ext is not built")
        assert f"cd {tree} && {sys.executable} -m pip install --no-build-isolation -e ." in message

    def test_a_source_tree_that_hides_the_installed_package_is_told(self, tmp_path):
        tree = self.site(tmp_path / "tree", built_for=None)
        (tree / "setup.py").touch()
        installed = self.site(tmp_path / "site")
        message = self.import_it(tmp_path, installed, cwd=tree)  # python -c puts the current folder first
        assert f"imported from its source tree, {tree / 'dctps_ext'}" in message
        assert f"hides the installed package in {installed / 'dctps_ext'}" in message
        assert "run Python from another folder" in message

    def test_another_python_is_named(self, tmp_path):
        message = self.import_it(tmp_path, self.site(tmp_path / "site", python="cpython-39", module=None))
        assert "was built for cpython-39, but this is" in message

    def test_a_module_that_does_not_load_says_rebuild(self, tmp_path):
        site = self.site(tmp_path / "site", module="raise ImportError('undefined symbol: _ZN3c10')\n")
        message = self.import_it(tmp_path, site)
        assert "does not load (undefined symbol: _ZN3c10): rebuild with:" in message
