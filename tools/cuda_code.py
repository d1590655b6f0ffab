"""What nvcc made of the kernels: registers, stack, spills by ptxas, widths of global accesses by cuobjdump.

    python tools/cuda_code.py build/cuda-link/build.log [--module _C.so] [--json FILE] [--markdown FILE]

Fails where a kernel of float32, float16 or bfloat16 keeps anything in local memory: a stack frame or a spill.
Kernels of float64 are there for gradient checks and may, so they are only shown. With --module, the machine
code is read too, and a kernel that should move 16 bytes at a time but never does fails. No GPU is needed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

COMPILING = re.compile(r"Compiling entry function '(\S+)' for '(sm_\w+)'")
PROPERTIES = re.compile(r"Function properties for (\S+)")
MEMORY = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers(?:, used (\d+) barriers)?")
STATIC_SHARED = re.compile(r"(\d+) bytes smem")
ACCESS = re.compile(
    r"\b(LDG|LDGSTS|STG)\b[.\w]*"
)  # LDG.E.128.CONSTANT, LDGSTS.E.BYPASS.128, STG.E.EF.U16, ...
WIDTH = re.compile(r"\.[US]?(8|16|64|128|256)\b")
# Kernels that must be able to move 16 bytes at a time. Those with S (layer_*) store y and dx as their threads
# finish them, an element each, side by side over a warp; with no rows in shared memory (0) they gather.
MUST_BE_WIDE = {
    "load": re.compile(r"\blinear_(forward|backward)_kernel|\blayer_\w+_kernel<\S*LayerConfig<\S+, [1-9]"),
    "store": re.compile(r"\blinear_(forward|backward)_kernel"),
}
WIDE = {"load": ("LDG.128", "LDGSTS.128", "LDG.256"), "store": ("STG.128", "STG.256")}


@dataclass
class Function:
    """A kernel, or a device function that was not inlined into one, on one architecture."""

    name: str
    arch: str
    registers: int | None = None  # a thread; None for device functions
    barriers: int | None = None
    stack_bytes: int = 0
    spill_store_bytes: int = 0
    spill_load_bytes: int = 0
    static_shared_bytes: int = 0
    accesses: dict[str, int] = field(default_factory=dict)  # "LDG.128" -> instructions; with --module only

    @property
    def is_double(self) -> bool:
        return re.search(r"\bdouble\b", self.name) is not None

    @property
    def local_bytes(self) -> int:
        return self.stack_bytes + self.spill_store_bytes + self.spill_load_bytes


def demangle(text: str) -> str:
    """`text` with C++ symbols readable; as it is where binutils' c++filt is missing."""
    if shutil.which("c++filt") is None:
        return text
    return subprocess.run(["c++filt"], input=text, capture_output=True, text=True, check=True).stdout


def parse_ptxas(text: str) -> list[Function]:
    """The functions that `ptxas -v` tells of in the output of any number of compilations."""
    functions: list[Function] = []
    arch = kernel = current = None
    for line in text.splitlines():
        if found := COMPILING.search(line):
            kernel, arch = found[1], found[2]
        elif (found := PROPERTIES.search(line)) and arch is not None:
            current = Function(found[1], arch)
            functions.append(current)
        elif (found := MEMORY.search(line)) and current is not None:
            current.stack_bytes, current.spill_store_bytes, current.spill_load_bytes = map(
                int, found.groups()
            )
        elif (found := USED.search(line)) and kernel is not None:
            # After the properties of the kernel and of all that it calls.
            used = next(f for f in reversed(functions) if (f.name, f.arch) == (kernel, arch))
            used.registers, used.barriers = int(found[1]), int(found[2] or 0)
            if shared := STATIC_SHARED.search(line):
                used.static_shared_bytes = int(shared[1])
    names = demangle("\n".join(f.name for f in functions)).splitlines()
    for function, name in zip(functions, names, strict=True):
        function.name = name
    return functions


def parse_sass(text: str) -> dict[tuple[str, str], dict[str, int]]:
    """Counts of global loads and stores by width in bits, by (kernel, arch), from `cuobjdump -sass`."""
    counts: dict[tuple[str, str], Counter] = {}
    arch = current = None
    for line in text.splitlines():
        if found := re.search(r"^\s*arch = (sm_\w+)|\.target\s+(sm_\w+)", line):
            arch = found[1] or found[2]
        elif found := re.search(r"Function : (\S+)", line):
            current = counts.setdefault((found[1], arch), Counter())
        elif current is not None and (found := ACCESS.search(line)):
            width = WIDTH.search(found[0])
            current[f"{found[1]}.{width[1] if width else 32}"] += 1
    names = demangle("\n".join(name for name, _ in counts)).splitlines()
    return {
        (name, key[1]): dict(sorted(count.items()))
        for name, (key, count) in zip(names, counts.items(), strict=True)
    }


def find_cuobjdump(more: tuple[Path, ...] = ()) -> str | None:
    """CUDA's disassembler: that of the toolkit, of PATH, or of a Triton package below one of `more`."""
    homes = [Path(os.environ[name]) / "bin" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    folders = [*homes, *map(Path, os.environ.get("PATH", "").split(os.pathsep)), Path("/usr/local/cuda/bin")]
    folders += [folder / "triton" / "backends" / "nvidia" / "bin" for folder in more]
    return shutil.which("cuobjdump", path=os.pathsep.join(map(str, folders)))


def read_module(cuobjdump: str, module: Path) -> dict[tuple[str, str], dict[str, int]]:
    """`parse_sass` of a compiled extension."""
    command = [cuobjdump, "-sass", str(module)]
    return parse_sass(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def faults(functions: list[Function]) -> list[str]:
    """What is wrong, one line each: local memory outside float64."""
    return [
        f"{f.arch}: {f.name}: {f.stack_bytes} bytes of stack, {f.spill_store_bytes} stored and "
        f"{f.spill_load_bytes} loaded in spills"
        for f in functions
        if f.local_bytes and not f.is_double
    ]


def narrow(functions: list[Function]) -> list[str]:
    """Kernels that `MUST_BE_WIDE` names, and whose machine code never moves 16 bytes in that direction."""
    return [
        f"{f.arch}: {f.name}: no 128-bit {kind} among {f.accesses}"
        for f in functions
        for kind, names in MUST_BE_WIDE.items()
        if f.registers is not None and names.search(f.name)
        if not any(name in f.accesses for name in WIDE[kind])
    ]


def short(name: str) -> str:
    """A kernel's name without namespaces, return type and arguments."""
    name = re.sub(r"\b(?:dctps|\(anonymous namespace\))::", "", name)
    name = re.sub(r"^void\s+", "", name)
    return re.sub(r"\((?:[^()]|\([^()]*\))*\)$", "", name).replace("|", "\\|")


def markdown(functions: list[Function]) -> str:
    """A table, a line for each kernel and architecture."""
    lines = [
        "| kernel | arch | registers | stack [B] | spills [B] | static shared [B] | global accesses |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for f in sorted(functions, key=lambda f: (short(f.name), int(re.sub(r"\D", "", f.arch)))):
        accesses = ", ".join(f"{name} x{count}" for name, count in f.accesses.items())
        registers = "" if f.registers is None else f.registers
        spills = f.spill_store_bytes + f.spill_load_bytes
        lines.append(
            f"| `{short(f.name)}` | {f.arch} | {registers} | {f.stack_bytes} | {spills} "
            f"| {f.static_shared_bytes} | {accesses} |"
        )
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python tools/cuda_code.py", description=__doc__.splitlines()[0])
    parser.add_argument("log", type=Path, help="the output of a build whose nvcc was given -Xptxas -v")
    parser.add_argument("--module", type=Path, help="the compiled extension, to read its machine code")
    parser.add_argument("--packages", type=Path, action="append", default=[], help="where a Triton may be")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args(argv)
    functions = parse_ptxas(arguments.log.read_text(encoding="utf-8", errors="replace"))
    wrong = faults(functions)
    if not functions:
        wrong.append(f"{arguments.log}: no line of ptxas -v in it: was nothing compiled?")
    widths = "not looked at"
    if arguments.module is not None:
        cuobjdump = find_cuobjdump(tuple(arguments.packages))
        if cuobjdump is None:
            widths = "not checked: cuobjdump is not installed"
        else:
            accesses = read_module(cuobjdump, arguments.module)
            for function in functions:
                function.accesses = accesses.get((function.name, function.arch), {})
            wide = narrow(functions)
            wrong += wide
            widths = f"{sum(bool(f.accesses) for f in functions)} kernels read, {len(wide)} too narrow"
    if arguments.json:
        text = json.dumps([asdict(f) for f in functions], indent=1) + "\n"
        arguments.json.write_text(text, encoding="utf-8")
    if arguments.markdown:
        arguments.markdown.write_text(markdown(functions), encoding="utf-8")
    kernels = [f for f in functions if f.registers is not None]
    print(
        f"{len(kernels)} kernels on {', '.join(sorted({f.arch for f in functions})) or 'no architecture'}; "
        f"local memory: {len(faults(functions))} of the float32, float16 and bfloat16 ones; "
        f"128-bit accesses: {widths}"
    )
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
