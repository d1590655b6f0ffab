"""The CUDA emulator itself: planted faults are caught and named, sound kernels pass, counts are right.

The kernels are in tests/cuda_emulator/planted.cu.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EMULATOR = ROOT / "tests" / "cuda_emulator"
PLANTED = EMULATOR / "planted.cu"
KERNELS = re.findall(r"^    CASE\((\w+),", PLANTED.read_text(encoding="utf-8"), re.M)

COMPILER = os.environ.get("CXX", "c++").split()
IS_GCC = "clang" not in subprocess.run([*COMPILER, "--version"], capture_output=True, text=True).stdout
pytestmark = pytest.mark.skipif(not IS_GCC, reason="the emulator needs GCC")

RACE = r"shared bytes \d+ to \d+, which thread \d+ (wrote|read)( at {place})? with no barrier in between"
NOT_REACHED = "a step of the warp that not every lane of its mask reaches: thread {thread} {why}"
NOT_WAITED = r"for which the asynchronous copy of thread \d+ at planted.cu:\d+ was not waited for"
OUT_OF_BOUNDS = "a {what} of {bytes} bytes out of bounds: at byte {at} of {name}"

FAULTS = {
    "missing_barrier": RACE,
    "write_after_read": RACE,
    "two_writers": "a write of shared bytes .*, which thread .* wrote at {place} with no barrier",
    "own_read_hides_others": RACE,
    "never_written": r"thread 63, {place}: a read of shared bytes 256 to 257, which nobody has written",
    "shared_overrun": r"thread 6[23], .* 4 bytes out of bounds: shared byte 2(56|60), but the block has 256",
    "shared_underrun": r"thread 0, .* 4 bytes out of bounds: shared byte -4, but the block has 256",
    "shared_misaligned": r"a write of shared bytes \d+ to \d+, misaligned: 8 bytes must start at .* of 8",
    "missing_warp_barrier": RACE,
    "warp_barrier_between_warps": RACE,
    "half_warp_barrier_for_whole": RACE,
    "shuffle_for_barrier": RACE,
    "shuffle_not_reached": NOT_REACHED.format(thread="(31|63)", why="has returned"),
    "shuffle_after_return": NOT_REACHED.format(thread="40", why="has returned"),
    "shuffle_from_outside": "a shuffle from lane 16, which its mask leaves out",
    "mask_without_caller": "thread (0|32), {place}: a step of the warp whose mask leaves out the caller",
    "product_in_a_branch": NOT_REACHED.format(thread="(31|63)", why="has returned"),
    "divergent_shuffle": r"a divergent step of the warp: thread \d+ is at {place}",
    "barrier_after_return": "a barrier that not every thread of the block reaches: thread 5 has returned",
    "barrier_in_a_branch": "a barrier that not every thread of the block reaches: thread 0 has returned",
    "divergent_barrier": "a divergent barrier: thread 32 waits at the block's barrier at {place}",
    "barrier_against_shuffle": NOT_REACHED.format(
        thread="0", why=r"waits at the block's barrier at planted.cu:\d+"
    ),
    "global_overread": "thread 63, {place}: " + OUT_OF_BOUNDS.format(what="load", bytes=4, at=4096, name="x"),
    "global_overrun": OUT_OF_BOUNDS.format(what="store", bytes=4, at=r"4\d\d\d", name="y"),
    "global_underrun": OUT_OF_BOUNDS.format(what="store", bytes=4, at=-8, name="y"),
    "vector_overrun": OUT_OF_BOUNDS.format(what="load", bytes=16, at=r"\d+", name="x"),
    "global_misaligned": "a load of 16 bytes, misaligned: the address is (4|8|12) past a multiple of 16",
    "writes_read_only": OUT_OF_BOUNDS.format(what="store", bytes=4, at=0, name="x, which is read-only"),
    "between_rows": OUT_OF_BOUNDS.format(what="store", bytes=4, at=r"\d+", name="y"),
    "between_columns": OUT_OF_BOUNDS.format(what="store", bytes=4, at=r"\d+", name="y"),
    "vector_over_columns": OUT_OF_BOUNDS.format(what="load", bytes=8, at=8, name="y"),
    "past_expanded": OUT_OF_BOUNDS.format(what="store", bytes=4, at=64, name="y, which ends at byte 64"),
    "async_not_waited": NOT_WAITED,
    "async_other_group": NOT_WAITED,
    "async_without_barrier": f"{RACE}|which nobody has written|was not waited for",
    "async_into_readers": f"{RACE}|was not waited for",
    "atomic_and_write": f"{RACE}|which nobody has written",
}
SOUND = [name for name in KERNELS if name not in FAULTS]


@pytest.fixture(scope="module", params=["", "address,undefined"], ids=["plain", "sanitized"])
def sanitize(request):
    return request.param


@pytest.fixture(scope="module")
def planted(sanitize, tmp_path_factory):
    """A function that runs a kernel under some seeds and returns the lines that the program prints."""
    program = tmp_path_factory.mktemp("planted") / "planted"
    sources = [EMULATOR / "emulator.cpp", ROOT / "csrc/common/parallel_std.cpp"]
    flags = ["-std=c++20", "-O1", "-g1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-pthread"]
    flags += ["-DDCTPS_EMULATED=1", f"-I{EMULATOR}", f"-I{ROOT}/csrc"]
    if sanitize:
        flags += [f"-fsanitize={sanitize}", "-fno-sanitize-recover=all"]
    command = [*COMPILER, *flags, "-x", "c++", PLANTED, *sources, "-o", program]
    subprocess.run(command, check=True)
    # Where the tests run under a sanitizer themselves, the program brings its own.
    env = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}

    def run(kernel, seeds, *words, **variables):
        command = [program, kernel, str(seeds), *words]
        done = subprocess.run(command, capture_output=True, text=True, env={**env, **variables}, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return run


def test_every_kernel_is_tested():
    assert set(FAULTS) < set(KERNELS) and len(SOUND) >= 9


@pytest.mark.parametrize("kernel", FAULTS)
def test_a_planted_fault_is_caught_and_named(planted, kernel):
    source = PLANTED.read_text(encoding="utf-8")
    body = re.search(
        rf"^__global__ void {kernel}\(Args.*?^(?=__global__|\S* ----|//|}}$)", source, re.M | re.S
    )
    first = source[: body.start()].count("\n") + 1
    at_fault = [first + i for i, line in enumerate(body[0].splitlines()) if line.endswith("// planted")]
    place = f"planted.cu:({'|'.join(map(str, at_fault))})"
    assert at_fault
    lines = planted(kernel, 20)
    assert len(lines) == 20  # no seed hides it
    for line in lines:
        assert re.match(rf"error kernel {kernel}, block [0-3], thread \d+, {place}: ", line), line
        assert re.search(FAULTS[kernel].replace("{place}", place), line), line


RESULTS = {
    "sound_reverse": [t + 1 for t in range(64)] * 4,
    "sound_halves": [t ^ 1 for t in range(64)] * 4,
    "sound_warp_exchange": [t ^ 9 for t in range(64)] * 4,
    "sound_shuffles": [1] * 256,
    "sound_product": [
        1.0 + sum((row + 2 * k) % 5 * ((3 * k + column**2) % 7) for k in range(16))
        for row in range(16)
        for column in range(8)
    ]
    * 2,
    "sound_rows": [float(i % 16 == 11) for i in range(256)],
    "sound_columns": [float(i % 64 == 2) for i in range(256)],
    "sound_expanded": [float(i < 16) for i in range(256)],
    "sound_async": [4 * t + (t ^ 32) for t in range(64)] * 4,
}
COUNTS = {"sound_atomics": [2 * 256], "sound_block_numbers": [1] * 4}


@pytest.mark.parametrize("kernel", SOUND)
def test_a_sound_kernel_passes_under_every_seed(planted, kernel):
    lines = planted(kernel, 50)
    for name, expected in (("done", COUNTS.get(kernel)), ("result", RESULTS.get(kernel))):
        found = [[float(word) for word in line.split()[1:]] for line in lines if line.startswith(name)]
        assert len(found) == 50
        if expected:
            assert all(values[: len(expected)] == expected for values in found)


def test_the_seed_chooses_the_order_of_threads(planted):
    def orders(*words):
        lines = [line for line in planted("sound_order", *words) if line.startswith("done")]
        return [tuple(map(int, line.split()[2:66])) for line in lines]

    found = orders(10)
    assert all(sorted(order) == list(range(64)) for order in found)
    assert len(set(found)) == 10
    assert orders(10) == found


@pytest.mark.parametrize("threads", ["1", "3"])
def test_the_number_of_host_threads_changes_nothing(planted, threads):
    for kernel in ("sound_reverse", "counted"):
        assert planted(kernel, 3, DCTPS_NUM_THREADS=threads) == planted(kernel, 3)


def test_memory_nobody_told_about_is_the_sanitizers(planted, sanitize):
    for kernel, what in (("global_overread", "load of 4"), ("vector_overrun", "load of 16")):
        lines = planted(kernel, 2, "unknown")
        if sanitize:
            error = (
                rf"error kernel {kernel}, block \d, thread \d+, planted.cu:\d+: a {what} bytes out of bounds"
            )
            assert all(re.match(error, line) for line in lines)


def counters(lines):
    """{bytes: ..., sites: [(kind, requests, worst, sum)]} of the one launch that the lines tell about."""
    (launch,) = [line.split() for line in lines if line.startswith("launch")]
    names = ("blocks", "threads", "shared_bytes", "loaded", "stored", "shared_loaded", "shared_stored")
    result = dict(zip(names, map(int, launch[2:]), strict=True))
    sites = [line.split() for line in lines if line.startswith("site")]
    result["sites"] = [(f"{s[2]} {s[3]}", int(s[4]), float(s[5]), float(s[6])) for s in sites]
    return result


def test_bytes_and_requests_are_those_of_a_hand_count(planted):
    found = counters(planted("counted", 1))
    every = 4 * 64  # threads of all blocks
    assert (found["blocks"], found["threads"], found["shared_bytes"]) == (4, 64, 1024)
    assert found["loaded"] == every * (16 + 4)
    assert found["stored"] == every * 4
    assert found["shared_loaded"] == every * 4 + every // 2 * 4
    assert found["shared_stored"] == every * 16
    warps = 4 * 2
    assert found["sites"] == [
        ("global load", warps, 1, warps),  # 16 bytes each, side by side
        ("shared store", 4 * warps, 1, 4 * warps),  # by quarter warps
        ("shared load", warps, 2, 2 * warps),  # every other word: 64 words in 16 banks
        ("shared load", warps, 1, warps),  # 16 lanes, 6 words apart: 16 banks
        ("global load", warps, 8, 8 * warps),  # a sector for every lane, where 4 could hold them
        ("global store", warps, 1, warps),
    ]


@pytest.mark.parametrize(
    ("kernel", "at_once", "conflicts"),
    [
        # Conflicts of each store, from the distance of the lanes in words, modulo 32 banks.
        ("banks_4_bytes", 32, [1, 2, 1, 32]),
        ("banks_8_bytes", 16, [1, 2, 16]),
        ("banks_16_bytes", 8, [1, 2, 1, 8]),
    ],
)
def test_bank_conflicts_are_those_of_a_hand_count(planted, kernel, at_once, conflicts):
    requests = 4 * 32 // at_once  # of one store, in 4 blocks
    (site,) = counters(planted(kernel, 1))["sites"]
    assert site == ("shared store", requests * len(conflicts), max(conflicts), requests * sum(conflicts))


def test_lanes_that_share_a_word_do_not_conflict(planted):
    assert counters(planted("banks_broadcast", 1))["sites"][1] == ("shared load", 8, 1, 8)
    assert counters(planted("banks_2_bytes", 1))["sites"] == [("shared store", 8, 1, 8)]


@pytest.mark.skipif(not shutil.which("nvcc"), reason="needs nvcc")
def test_the_same_kernels_compile_for_a_gpu(tmp_path):
    command = [
        "nvcc",
        "-std=c++20",
        "-arch=sm_80",
        "-Werror",
        "all-warnings",
        f"-I{ROOT}/csrc",
        "-c",
        PLANTED,
    ]
    done = subprocess.run([*command, "-o", tmp_path / "planted.o"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
