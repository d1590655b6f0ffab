"""The CUDA kernels on the emulator: lengths, layouts, device limits, bits, bytes moved, bank conflicts.

Run by a Python whose `_C` is the emulated build (DCTPS_EXTENSION); skipped with any other.
"""

import numpy as np
import pytest
import scipy.fft
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dctps_ext
from dctps_ext import _C
from tests.checks import DTYPES, assert_accurate, relative_error

pytestmark = pytest.mark.skipif("emulated" not in _C.isas(), reason="needs the emulated build of _C")

SM75 = {"major": 7, "minor": 5, "sm_count": 40, "shared_bytes_per_block": 65536, "shared_bytes_per_sm": 65536}
SM120 = {
    "major": 12,
    "minor": 0,
    "sm_count": 170,
    "shared_bytes_per_block": 101376,
    "shared_bytes_per_sm": 102400,
}


@pytest.fixture(autouse=True)
def emulated():
    before = _C.isa()
    _C.set_isa("emulated")
    yield
    _C.emulator_limits()
    _C.emulator_seed(0)
    _C.set_isa(before)


def oracle(x, out, transform):
    """dct or idct of the rows of x, zero-padded to q, in float64, truncated."""
    q = max(x.shape[-1], out)
    padded = np.zeros((*x.shape[:-1], q))
    padded[..., : x.shape[-1]] = x.double().numpy()
    function = scipy.fft.dct if transform is dctps_ext.dct else scipy.fft.idct
    return torch.from_numpy(function(padded, norm="ortho")[..., :out])


def launches_of(function):
    _C.emulator_reset()
    function()
    return _C.emulator_counters()


def check(transform, n, out, dtype, rows=3):
    x = torch.randn(rows, n, generator=torch.Generator().manual_seed(n + out), dtype=torch.float64).to(dtype)
    expected = oracle(x, out, transform)
    # A 16-bit result's own rounding is what torch could at best lose too.
    assert_accurate(transform(x, out), expected, dtype)


TRANSFORMS = pytest.mark.parametrize("transform", [dctps_ext.dct, dctps_ext.idct], ids=["dct", "idct"])


# ---- lengths


# Every cut into passes: powers of two (one pass, two, up to three between paired ends), odd radices before
# them, odd lengths, Bluestein for even and odd ones.
LENGTHS = (
    *(2**i for i in range(14)),
    *(3, 5, 7, 9, 11, 13, 15, 27, 49, 121, 169, 225, 1001, 1155),  # odd
    *(
        6,
        10,
        12,
        20,
        24,
        26,
        48,
        66,
        96,
        120,
        144,
        182,
        576,
        640,
        1000,
        1430,
        2304,
        4608,
        4620,
    ),  # even, mixed
    *(17, 31, 34, 97, 514, 1021, 1502, 2042),  # large primes
)


@TRANSFORMS
@pytest.mark.parametrize("q", LENGTHS)
def test_every_cut_into_passes_agrees_with_scipy(q, transform):
    for dtype in DTYPES if q <= 256 else (torch.float64, torch.float32):
        check(transform, q, q, dtype)


@TRANSFORMS
@pytest.mark.parametrize("limits", [{}, SM75, SM120], ids=["sm_90", "sm_75", "sm_120"])
def test_rows_that_fit_and_rows_that_do_not(limits, transform):
    """Up to the largest row that a block's shared memory holds, and past it through scratch memory."""
    _C.emulator_limits(**limits)
    shared = limits.get("shared_bytes_per_block", 232448)
    for q in (8192, 16384, 32768, 65536):
        x = torch.randn(2, q)
        (launch,) = launches_of(lambda x=x: transform(x))
        fits = 4 * q <= shared
        assert launch["shared_bytes"] == (4 * q if fits else 0)
        assert ("scratch" in launch["memory"]) == (not fits)
        assert relative_error(transform(x), oracle(x, q, transform)) < 2e-6


@TRANSFORMS
def test_scratch_memory_serves_more_rows_than_blocks_and_every_kind_of_length(transform):
    _C.emulator_limits(sm_count=1, shared_bytes_per_block=1024, shared_bytes_per_sm=1024)
    for q in (512, 1000, 1021, 1155):
        for dtype in DTYPES:
            check(transform, q, q, dtype, rows=5)


@TRANSFORMS
@settings(max_examples=60)
@given(st.integers(1, 700), st.integers(1, 700), st.integers(1, 9), st.sampled_from(DTYPES))
def test_padding_and_truncation_for_any_shape(transform, n, out, rows, dtype):
    _C.set_isa("emulated")
    check(transform, n, out, dtype, rows)


# ---- layouts


@TRANSFORMS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [40, 256, 512, 1000])
def test_any_stride_and_alignment_gives_the_bits_of_the_contiguous_input(n, dtype, transform):
    plain = torch.randn(5, n).to(dtype)
    expected = transform(plain)
    wide = torch.zeros(5, 3 * n + 7, dtype=dtype)
    for view in (
        wide[:, 1 : n + 1],  # misaligned
        wide[:, : 3 * n : 3],  # strided
        torch.zeros(n, 5, dtype=dtype).t(),  # columns
        torch.zeros(5, n + 16, dtype=dtype)[:, 8 : n + 8],  # aligned, padded rows
    ):
        view.copy_(plain)
        assert torch.equal(transform(view), expected)
    row = plain[2].expand(4, n)  # row stride 0
    assert torch.equal(transform(row), expected[2].expand(4, n))


# ---- repeatable bits


@TRANSFORMS
@pytest.mark.parametrize("q", [7, 32, 128, 256, 1000, 1024, 1021])
def test_bits_depend_on_neither_the_batch_nor_the_order_of_threads(q, transform):
    x = torch.randn(11, q)
    whole = transform(x)
    for row in (0, 3, 10):
        assert torch.equal(whole[row], transform(x[row]))
        assert torch.equal(whole[row:], transform(x[row:]))
    for seed in (1, 2, 3):
        _C.emulator_seed(seed)
        assert torch.equal(whole, transform(x))
    x[4] = float("nan")
    poisoned = transform(x)
    assert poisoned[4].isnan().all()
    rest = torch.arange(11) != 4
    assert torch.equal(poisoned[rest], whole[rest])


def test_a_grid_of_more_blocks_than_its_first_dimension_takes():
    x = torch.randn(9, 4096)
    expected = dctps_ext.dct(x)
    _C.emulator_most_blocks(4)
    try:
        assert torch.equal(dctps_ext.dct(x), expected)
    finally:
        _C.emulator_most_blocks(2**31 - 1)


# ---- what they move


@TRANSFORMS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n,out", [(1024, 1024), (1024, 100), (100, 1024), (1000, 777), (97, 97), (2048, 64)])
def test_x_is_read_once_and_y_written_once(n, out, dtype, transform):
    """The plan's tables aside: they are the same for all rows and stay in the caches."""
    rows = 37
    x = torch.randn(rows, n).to(dtype)
    (launch,) = launches_of(lambda: transform(x, out))
    into, onto = ("x", "y") if transform is dctps_ext.dct else ("dy", "dx")
    memory = launch["memory"]
    assert memory[into] == {"loaded": rows * n * x.itemsize, "stored": 0}
    assert memory[onto] == {"loaded": 0, "stored": rows * out * x.itemsize}
    assert set(memory) <= {into, onto, "tables", "alpha"}


# A backward block has eight rows, taken in one turn, or in float64 in two: each reads S and adds to the sums.
LAYERS = pytest.mark.parametrize(
    "m,n,rows", [(256, 256, 1024), (100, 300, 560), (300, 100, 560), (1000, 1000, 600)]
)


def layer_of(m, n, rows, dtype):
    """Leaves of a layer with p*n = 4, and the bytes of x, y, bias and S."""
    support = dctps_ext.Support.random(m, n, 4 * m)
    generator = torch.Generator().manual_seed(m + n)
    x, values, alpha, bias = (
        torch.randn(shape, generator=generator).to(dtype).requires_grad_()
        for shape in ((rows, n), (support.nnz,), (), (m,))
    )
    accumulator = 8 if dtype is torch.float64 else 4  # what the kernels get values, alpha and bias as
    size = {
        "x": rows * n * dtype.itemsize,
        "y": rows * m * dtype.itemsize,
        "values": support.nnz * accumulator,
        "index": support.nnz * 4,
        "bias": m * accumulator,
        "partials": (support.nnz + m) * accumulator,
    }
    return lambda: dctps_ext.dctps_linear(x, values, support, alpha, bias, algorithm="fast"), size


def bytes_of(launch):
    """What a launch moves of global memory, but for what all threads share in caches: tables, alpha."""
    memory = launch["memory"].items()
    return sum(use["loaded"] + use["stored"] for name, use in memory if name not in ("tables", "alpha"))


@LAYERS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_forward_moves_x_y_and_s_for_each_block(m, n, rows, dtype):
    forward, size = layer_of(m, n, rows, dtype)
    (launch,) = launches_of(forward)
    s = size["values"] + size["index"] + 4 * (m + 1) + size["bias"]
    assert launch["memory"]["x"]["loaded"] == size["x"] and launch["memory"]["y"]["stored"] == size["y"]
    assert launch["blocks"] <= rows / 2
    assert bytes_of(launch) <= 1.05 * (size["x"] + size["y"] + launch["blocks"] * s)


@LAYERS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_backward_moves_x_dy_dx_s_for_each_block_and_the_partial_sums(m, n, rows, dtype):
    forward, size = layer_of(m, n, rows, dtype)
    y = forward()
    gather, backward, add_up = launches_of(lambda: y.backward(torch.ones_like(y)))
    blocks = backward["blocks"]
    memory = backward["memory"]
    assert (
        memory["x"]["loaded"] == memory["dx"]["stored"] == size["x"] and memory["dy"]["loaded"] == size["y"]
    )
    assert 7 * blocks < rows <= 8 * blocks
    turns = 2 if dtype is torch.float64 else 1
    s = size["values"] + size["index"] + 4 * (n + 1)
    partials = blocks * size["partials"]
    moved = 2 * size["x"] + size["y"] + turns * blocks * s + (2 * turns - 1) * partials
    assert bytes_of(backward) <= 1.05 * moved
    # The rest is small: S by columns, made once a call, and the sums of the partial sums.
    assert bytes_of(gather) <= 2 * size["values"] + size["index"]
    assert bytes_of(add_up) <= 1.05 * (partials + size["partials"] + size["index"])


# Bytes of shared memory that an element costs, stored and loaded: an exchange between passes 4 + 4, and 4 + 4
# for the tile from which y is stored, or to which dy is loaded, in 16-byte pieces. (Plus what the few values
# cost that are their own partners.) Then the bytes that the banks' cycles could have moved, of dct and idct.
# The figures of docs/kernels-cuda.md.
SHARED_BYTES = {
    256: (25, 28, 33),
    512: (24, 28, 33),
    1024: (24, 31, 32),
    2048: (24, 30, 31),
    4096: (32, 38, 38),
    8192: (32, 37, 37),
    16384: (32, 37, 37),
    32768: (32, 38, 38),
}


@TRANSFORMS
@pytest.mark.parametrize("q", SHARED_BYTES)
def test_shared_traffic_and_bank_conflicts_of_powers_of_two(q, transform):
    x = torch.randn(max(1, 4096 // q), q)
    (launch,) = launches_of(lambda: transform(x))
    assert launch["blocks"] <= 8  # the emulator looks at these
    bytes_moved, *bytes_of_cycles = SHARED_BYTES[q]
    assert launch["shared_loaded"] + launch["shared_stored"] <= (bytes_moved + 0.5) * x.numel()
    shared = [site for site in launch["sites"] if site["kind"].startswith("shared")]
    cycles = sum(site["mean"] * site["requests"] for site in shared)  # of 128 bytes each
    assert 128 * cycles <= (bytes_of_cycles[transform is dctps_ext.idct] + 0.6) * x.numel()
    exchanges = [site for site in shared if site["place"].startswith("dct_kernel.cuh")]
    assert len(exchanges) >= 6
    assert max(site["worst"] for site in exchanges) <= 2


# ---- convolutions


def convolution(
    channels, filters, batch, size, dtype=torch.float32, density=0.01, groups=1, padding=1, **keywords
):
    """x and the support of a 3x3 convolution, and a function of x: y, dx, dvalues, dalpha, dbias."""
    generator = torch.Generator().manual_seed(0)
    n = 9 * channels // groups
    support = dctps_ext.Support.random(filters, n, round(density * filters * n), seed=0)
    x, values, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for shape in ((batch, channels, size, size), (support.nnz,), (filters,))
    )
    alpha = torch.tensor(0.7, dtype=dtype)
    keywords = dict(padding=padding, groups=groups, **keywords)

    def run(x, algorithm="taps"):
        leaves = [t.clone().requires_grad_() for t in (x, values, alpha, bias)]
        y = dctps_ext.dctps_conv2d(
            leaves[0], leaves[1], support, *leaves[2:], kernel_size=3, algorithm=algorithm, **keywords
        )
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        return y.detach(), *torch.autograd.grad(y, leaves, dy)

    return x, support, run


def conv_launches(function):
    return [launch for launch in launches_of(function) if launch["kernel"].startswith("conv2d")]


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize(
    "size, dtype, tile",
    [(16, torch.float32, (8, 16)), (32, torch.float32, (8, 16)), (32, torch.bfloat16, (16, 16))],
    ids=str,
)
def test_a_convolution_reads_its_tiles_and_s_once(size, dtype, tile, channels_last):
    """Of x the pixels that a tile's taps see, S for each tile; y, dx and x backward once. Tables aside, which
    all blocks share; alpha counts for every thread, as all ask for it."""
    _C.emulator_limits(sm_count=2)
    x, support, run = convolution(64, 48, 2, size, dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    forward, backward = conv_launches(lambda: run(x))
    cuts = [range(0, size, edge) for edge in tile]
    assert forward["blocks"] == 2 * len(cuts[0]) * len(cuts[1])
    seen = [  # with a pixel more on each side that is inside the image
        sum(min(size, first + cut.step + 1) - max(0, first - 1) for first in cut) for cut in cuts
    ]
    halo = 2 * 64 * seen[0] * seen[1] * x.itemsize
    memory = forward["memory"]
    assert memory["x"] == {"loaded": halo, "stored": 0}
    assert memory["y"] == {"loaded": 0, "stored": 2 * 48 * size * size * x.itemsize}
    csr = support.nnz * (4 + 4) + (48 + 1) * 4
    others = sum(part["loaded"] for name, part in memory.items() if name not in ("x", "tables"))
    assert halo + others <= 1.1 * (halo + forward["blocks"] * csr)
    memory = backward["memory"]
    assert memory["x"] == {"loaded": x.nbytes, "stored": 0}
    assert memory["dx"] == {"loaded": 0, "stored": x.nbytes}
    assert memory["dy"]["loaded"] <= 1.3 * 2 * 48 * size * size * x.itemsize


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
def test_bank_conflicts_of_convolutions(channels_last, dtype):
    _C.emulator_limits(sm_count=2)
    x, _, run = convolution(64, 48, 2, 32, dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    for launch in conv_launches(lambda: run(x)):
        shared = [site for site in launch["sites"] if site["kind"].startswith("shared")]
        assert max(site["worst"] for site in shared) <= (4 if channels_last else 2)
        requests = sum(site["requests"] for site in shared)
        cycles = sum(site["mean"] * site["requests"] for site in shared)
        assert cycles <= 1.25 * requests


@pytest.mark.parametrize(
    "dtype, stride, groups",
    [
        *((dtype, 1, 1) for dtype in DTYPES),
        *((dtype, *more) for dtype in DTYPES[1:] for more in ((2, 1), (1, 2))),
    ],
    ids=str,
)
def test_a_convolution_of_low_rank_in_any_tiles(dtype, stride, groups):
    """In tiles of several images, of a whole one, of a few pixels, and with pixels left in global memory."""
    x, _, run = convolution(64 if groups > 1 else 65, 24, 3, 8, dtype, groups=groups, stride=stride)
    _C.set_isa("baseline")
    expected = run(x, "patches")
    _C.set_isa("emulated")
    small = {**SM75, "shared_bytes_per_block": 16384}
    shapes = set()
    for limits in ({"sm_count": 1}, {**SM75, "sm_count": 2}, {}, small):
        _C.emulator_limits(**limits)
        _C.emulator_reset()
        results = run(x)
        launch = _C.emulator_counters()[0]
        shapes.add((launch["blocks"], launch["shared_bytes"]))
        bound = {torch.float64: 1e-12, torch.float32: 2e-6}.get(dtype, 2 * torch.finfo(dtype).eps)
        for result, reference in zip(results, expected, strict=True):
            assert relative_error(result, reference) <= bound * (1 if result.dim() else 20)
    assert len(shapes) >= 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bits_of_convolutions_depend_on_neither_the_tiles_nor_the_order_of_threads(dtype):
    x, _, run = convolution(64, 40, 5, 9, dtype)
    whole = run(x)
    for seed in (1, 2):
        _C.emulator_seed(seed)
        for result, expected in zip(run(x), whole, strict=True):
            assert torch.equal(result, expected)
    _C.emulator_limits(sm_count=1)  # other tiles
    for result, expected in zip(run(x)[:2], whole[:2], strict=True):
        assert torch.equal(result, expected)


def rank(channels, filters, tolerance=2**-14):
    """Rows of the factors between a pixel and the phases of a 3x3 kernel, in whole eights."""
    angles = np.pi * np.arange(filters)[:, None] / (2 * max(filters, 9 * channels))
    angles = angles * (2 * np.arange(channels) - (channels - 1))
    total = 0
    for part in (np.cos(angles), np.sin(angles)):
        left, values, _ = np.linalg.svd(part, full_matrices=False)
        errors = [np.linalg.norm(left[:, r:] * values[r:], axis=1).max() for r in range(len(values) + 1)]
        total += next(r for r, error in enumerate(errors) if error <= tolerance * (channels / 2) ** 0.5)
    return -(-total // 8) * 8


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("channels, filters", [(64, 48), (33, 160), (96, 64)])
def test_sixteen_bits_multiply_on_tensor_cores_as_often_as_counted(channels, filters, channels_last):
    """An image of 8x8, cut in one direction. A product of matrices is 16 rows, 8 cells, 16 deep; cells go
    out by 32."""

    def whole(count, unit):
        return -(-count // unit)

    _C.emulator_limits(sm_count=1)
    x, _, run = convolution(channels, filters, 1, 8, torch.bfloat16)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    forward, backward = conv_launches(lambda: run(x))
    rows = rank(channels, filters)
    for launch in (forward, backward):
        edge = 8 // launch["blocks"]
        near, far = 4 * whole(8 * edge, 32), 4 * whole(10 * (edge + 2), 32)
        if launch is forward:
            first = far * 2 * whole(rows, 16) * whole(channels, 16)
            second = near * whole(filters, 16) * whole(9 * rows, 16)
        else:
            first = near * whole(rows, 16) * 9 * whole(filters, 16)
            second = near * 2 * whole(whole(channels, 2), 16) * whole(3 * rows, 16)
        assert launch["mma"] == launch["blocks"] * (first + second)


def test_what_takes_no_tensor_cores():
    """Other types, older devices, few channels: the thin products without them."""
    for limits, dtype, channels in (
        (SM75, torch.bfloat16, 64),
        ({}, torch.float32, 64),
        ({}, torch.float64, 64),
        ({}, torch.bfloat16, 4),
    ):
        _C.emulator_limits(**limits)
        x, _, run = convolution(channels, channels, 1, 8, dtype)
        assert [launch["mma"] for launch in conv_launches(lambda run=run, x=x: run(x))] == [0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_non_finite_pixel_spoils_its_own_patches_only_on_tensor_cores(dtype):
    x, _, run = convolution(64, 32, 2, 9, dtype)
    clean = run(x)[0]
    x[1, 5, 4, 3] = float("nan")
    y = run(x)[0]
    touched = torch.zeros_like(y, dtype=torch.bool)
    touched[1, :, 3:6, 2:5] = True
    assert y[touched].isnan().all()
    assert torch.equal(y[~touched], clean[~touched])


def test_a_kernel_that_fits_nowhere_is_an_error_that_says_so():
    x = torch.randn(1, 1, 80, 80)
    support = dctps_ext.Support.random(1, 6400, 3)
    with pytest.raises(RuntimeError, match='a kernel of 80x80 does not fit .* algorithm="dense"'):
        dctps_ext.dctps_conv2d(x, torch.randn(3), support, 1.0, kernel_size=80, algorithm="fast")
