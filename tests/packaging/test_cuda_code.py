"""tools/cuda_code.py finds spills, stack and narrow accesses: in given text, and in planted kernels."""

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from tests.checks import import_file

tool = import_file("tools/cuda_code.py")

# Of nvcc 13.0, in its order; `helper` was not inlined.
PTXAS = """\
[1/2] /usr/local/cuda/bin/nvcc -c a.cu
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z4fineI6ConfigI6__halfLi80EEEv4Args' for 'sm_90'
ptxas info    : Function properties for _Z4fineI6ConfigI6__halfLi80EEEv4Args
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 18 registers, used 1 barriers, 256 bytes smem
ptxas info    : Compile time = 15.275 ms
ptxas info    : Compiling entry function '_Z13really_spillsI6ConfigIfLi80EEEv4Args' for 'sm_90'
ptxas info    : Function properties for _Z13really_spillsI6ConfigIfLi80EEEv4Args
    480 bytes stack frame, 552 bytes spill stores, 556 bytes spill loads
ptxas info    : Function properties for _Z6helperf
    16 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 480 bytes cumulative stack size
[2/2] /usr/local/cuda/bin/nvcc -c b.cu
ptxas info    : Compiling entry function '_Z13really_spillsI6ConfigIdLi80EEEv4Args' for 'sm_75'
ptxas info    : Function properties for _Z13really_spillsI6ConfigIdLi80EEEv4Args
    64 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 26 registers, used 0 barriers, 64 bytes cumulative stack size
"""
SASS = """\
	Function : _Z4fineI6ConfigI6__halfLi80EEEv4Args
		.target	sm_90
		Function : _Z4fineI6ConfigI6__halfLi80EEEv4Args
        /*0050*/                   LDG.E R0, desc[UR6][R2.64] ;               /* 0x0000000602007981 */
        /*00e0*/                   LDG.E.128.CONSTANT R4, desc[UR6][R4.64] ;  /* 0x0000000604047981 */
        /*00f0*/                   LDGSTS.E.BYPASS.128 [R9], desc[UR6][R4.64] ;
        /*0100*/                   LDS.128 R4, [R4] ;
        /*0130*/              @!P0 STG.E.EF.U16 desc[UR6][R2.64], R4 ;
        /*0140*/                   STG.E.64 desc[UR6][R8.64], R13 ;
"""


def test_ptxas_output_is_read():
    fine, spills, helper, double = tool.parse_ptxas(PTXAS)
    assert (fine.arch, fine.registers, fine.barriers, fine.static_shared_bytes) == ("sm_90", 18, 1, 256)
    assert fine.name == "void fine<Config<__half, 80> >(Args)" and fine.local_bytes == 0
    assert (spills.stack_bytes, spills.spill_store_bytes, spills.spill_load_bytes) == (480, 552, 556)
    assert spills.registers == 32 and helper.registers is None and helper.stack_bytes == 16
    assert double.is_double and double.arch == "sm_75" and not spills.is_double


def test_local_memory_is_a_fault_but_for_float64():
    said = tool.faults(tool.parse_ptxas(PTXAS))
    assert len(said) == 2
    assert "sm_90: void really_spills<Config<float, 80> >(Args): 480 bytes of stack, 552 stored" in said[0]
    assert "helper(float): 16 bytes of stack" in said[1]


def test_accesses_are_counted_by_width():
    (counts,) = (count for (_, arch), count in tool.parse_sass(SASS).items() if arch == "sm_90")
    assert counts == {"LDG.128": 1, "LDG.32": 1, "LDGSTS.128": 1, "STG.16": 1, "STG.64": 1}


def must_be_wide(monkeypatch, load, store):
    """Make the tool ask wide loads, and wide stores, of kernels with such names."""
    monkeypatch.setattr(tool, "MUST_BE_WIDE", {"load": re.compile(load), "store": re.compile(store)})


def test_a_kernel_that_should_be_wide_and_is_not_is_named(monkeypatch):
    function = tool.Function("void fine<float>(Args)", "sm_90", 18, accesses={"LDG.128": 2, "STG.64": 1})
    must_be_wide(monkeypatch, "fine", "fine")
    (said,) = tool.narrow([function])
    assert "no 128-bit store" in said
    must_be_wide(monkeypatch, "fine", "other")
    assert tool.narrow([function]) == []
    must_be_wide(monkeypatch, "fine", "fine")
    function.accesses["STG.128"] = 1
    assert tool.narrow([function]) == []


@pytest.mark.parametrize(
    ("kernel", "load", "store"),
    [
        ("linear_forward_kernel<dctps::LinearConfig<float, true> >", True, True),
        ("layer_backward_kernel<dctps::LayerConfig<dctps::Half, 8, (dctps::DctPart)1> >", True, False),
        ("layer_forward_kernel<dctps::LayerConfig<float, 0, (dctps::DctPart)1> >", False, False),
        ("add_up_kernel<float>", False, False),
    ],
)
def test_which_kernels_must_be_wide(kernel, load, store):
    found = {kind: names.search(f"void dctps::{kernel}(Args)") for kind, names in tool.MUST_BE_WIDE.items()}
    assert {kind: match is not None for kind, match in found.items()} == {"load": load, "store": store}


def test_the_table_has_a_line_for_each_function():
    lines = tool.markdown(tool.parse_ptxas(PTXAS)).splitlines()
    assert len(lines) == 2 + 4 and "| `fine<Config<__half, 80> >` | sm_90 | 18 | 0 | 0 | 256 |" in lines[2]


def test_a_log_in_which_nothing_was_compiled_is_an_error(tmp_path, capsys):
    log = tmp_path / "build.log"
    log.write_text("ninja: no work to do.\n")
    assert tool.main([str(log)]) == 1
    assert "was nothing compiled?" in capsys.readouterr().err


# ---- real kernels

KERNELS = """
struct Args { const float* x; float* y; const int* places; };
template <class T, int kValues> struct Config {};

template <class T, int kValues>
__device__ void run(const Args& a) {  // an index that is known at run time only: an array in local memory
  T values[kValues];
  for (int i = 0; i < kValues; ++i) values[i] = T(a.x[threadIdx.x + i]);
  for (int i = 0; i < 9; ++i) values[a.places[i]] += T(1);
  for (int i = 0; i < kValues; ++i) a.y[threadIdx.x + i] = float(values[i]);
}
template <class C> __global__ void local_array(Args a);
template <> __global__ void local_array<Config<float, 8>>(Args a) { run<float, 8>(a); }
template <> __global__ void local_array<Config<double, 8>>(Args a) { run<double, 8>(a); }

template <class C> __global__ void __launch_bounds__(1024, 2) spills(Args a);  // 32 registers for 80 values
template <> __global__ void __launch_bounds__(1024, 2) spills<Config<float, 80>>(Args a) {
  float values[80];
#pragma unroll
  for (int i = 0; i < 80; ++i) values[i] = a.x[threadIdx.x + i * 7];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 80; ++i) a.y[threadIdx.x + i * 3] = values[i] * values[(i * 7 + 3) % 80];
}
template <class C> __global__ void wide(Args a);
template <> __global__ void wide<Config<float, 4>>(Args a) {
  reinterpret_cast<float4*>(a.y)[threadIdx.x] = reinterpret_cast<const float4*>(a.x)[threadIdx.x];
}
template <class C> __global__ void narrow(Args a);
template <> __global__ void narrow<Config<float, 1>>(Args a) { a.y[threadIdx.x] = a.x[threadIdx.x]; }
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """(log of the compiler, object file) of planted kernels, good ones and bad ones."""
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not on PATH")
    folder = tmp_path_factory.mktemp("planted")
    (folder / "planted.cu").write_text(KERNELS)
    command = [
        "nvcc",
        "-O3",
        "--std=c++20",
        "-arch=sm_90",
        "-Xptxas",
        "-v",
        "-c",
        "planted.cu",
        "-o",
        "planted.o",
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder / "log").write_text(done.stdout + done.stderr)
    return folder / "log", folder / "planted.o"


def test_planted_spills_and_local_arrays_are_caught(compiled, capsys):
    log, _ = compiled
    assert tool.main([str(log)]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2  # neither the float64 one nor the good ones
    array, spills = sorted(said)
    assert re.search(r"local_array<Config<float, 8>.*: 32 bytes of stack, 0 stored", array)
    assert re.search(
        r"spills<Config<float, 80>.*: \d+ bytes of stack, [1-9]\d* stored and [1-9]\d* loaded", spills
    )


def test_planted_narrow_accesses_are_caught(compiled, capsys, monkeypatch):
    log, module = compiled
    # Triton carries one: here, or where `make cuda-link` builds.
    shared = import_file("tools/cuda_link.py").CACHE.glob("cuda-venv/lib/python*/site-packages")
    packages = [Path(sysconfig.get_path("purelib")), *shared]
    if tool.find_cuobjdump(tuple(packages)) is None:
        pytest.skip("cuobjdump is not installed")
    must_be_wide(monkeypatch, "wide|narrow", "wide|narrow")
    arguments = [str(log), "--module", str(module)]
    assert tool.main([*arguments, *(f"--packages={folder}" for folder in packages)]) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if "128-bit" in line]
    assert len(said) == 2 and all("narrow<Config<float, 1>" in line for line in said)
