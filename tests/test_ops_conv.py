"""The fused convolution: accuracy against the dense twin, gradients, memory formats, determinism, errors."""

import functools
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck
from torch.nn import functional as F

import dctps_ext
from dctps_ext import _C, reference
from tests.checks import DTYPES, assert_accurate, random_support, relative_error

# What is promised of bits and memory is promised of algorithm="fast", which is one of these forms.
dctps_conv2d = functools.partial(dctps_ext.dctps_conv2d, algorithm="fast")
FORMS = ("taps", "patches", "direct")


# The emulator takes milliseconds for what a GPU does in microseconds.
EMULATED = "emulated" in _C.isas()


@pytest.fixture(autouse=True, scope="module")
def small_gpu():
    """Few multiprocessors, so that the rule for tiles makes some of more than a few pixels."""
    if EMULATED:
        _C.emulator_limits(sm_count=2)
    yield
    if EMULATED:
        _C.emulator_limits()


# in, out, kernel, and the keywords of conv2d
GEOMETRIES = {
    "3x3": (4, 6, (3, 3), dict(padding=1)),
    "1x1": (16, 8, (1, 1), dict()),
    "pointwise_strided": (8, 16, (1, 1), dict(stride=2)),
    "5x5_no_padding": (3, 6, (5, 5), dict()),
    "strided": (5, 7, (3, 3), dict(stride=2, padding=1)),
    "dilated": (4, 9, (3, 3), dict(dilation=2, padding=2)),
    "grouped": (8, 6, (3, 3), dict(groups=2, padding=1)),
    "depthwise": (8, 8, (3, 3), dict(groups=8, padding=1)),
    "depthwise_vectors": (48, 48, (3, 3), dict(groups=48, stride=(2, 1), padding=(1, 2))),
    "depthwise_multiplier": (4, 12, (3, 3), dict(groups=4, padding=1)),
    "asymmetric": (3, 10, (2, 5), dict(stride=(1, 2), padding=(2, 0), dilation=(3, 1))),
    "same": (3, 5, (3, 3), dict(padding="same")),
    "same_even_kernel": (3, 5, (4, 2), dict(padding="same")),
    "same_dilated": (3, 5, (2, 3), dict(padding="same", dilation=(3, 2))),
    "valid": (3, 5, (3, 2), dict(padding="valid")),
    "more_filters_than_inputs": (1, 40, (3, 3), dict(padding=1)),
    "kernel_of_the_image": (2, 3, (11, 9), dict()),
}


# On a GPU there is one form, but for 1x1 kernels: the emulator runs it once.
CASES = [
    (form, name) for name in GEOMETRIES for form in FORMS if not EMULATED or form == "taps" or name == "1x1"
]


def operands(geometry, dtype, batch=3, density=0.1, height=11, width=9):
    channels, filters, kernel, keywords = geometry
    generator = torch.Generator().manual_seed(0)
    n = kernel[0] * kernel[1] * channels // keywords.get("groups", 1)
    support = random_support(filters, n, density)
    x, values, alpha, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for shape in ((batch, channels, height, width), (support.nnz,), (), (filters,))
    )
    return x, values, support, alpha, bias, dict(kernel_size=kernel, **keywords)


def twin(x, values, support, alpha, bias, keywords, dtype=torch.float64):
    """The same convolution by torch on the dense filters."""
    keywords = dict(keywords)
    weight = reference.conv_weight(
        reference.dense_weight(values, support, alpha), keywords.pop("kernel_size")
    )
    return F.conv2d(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype), **keywords)


def run_form(x, values, support, alpha, bias, keywords, dy=None, form="fast", device="cpu"):
    """(y, dy, gradients) on the CPU, computed on `device`."""
    keywords = dict(keywords, algorithm=form)
    leaves = [t.to(device, copy=True).requires_grad_() for t in (x, values, alpha, bias)]
    y = dctps_conv2d(leaves[0], leaves[1], support.to(device), leaves[2], leaves[3], **keywords)
    if dy is None:
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    gradients = torch.autograd.grad(y, leaves, dy.to(device))
    return y.cpu(), dy, tuple(gradient.cpu() for gradient in gradients)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form,name", CASES)
def test_forward_and_backward_agree_with_the_dense_twin(backend, form, name, dtype, channels_last):
    x, values, support, alpha, bias, keywords = operands(GEOMETRIES[name], dtype)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x = x.contiguous(memory_format=memory_format)
    y, dy, gradients = run_form(x, values, support, alpha, bias, keywords, form=form, device=backend)
    doubles = [t.double().requires_grad_() for t in (x, values, alpha, bias)]
    oracle = twin(doubles[0], doubles[1], support, doubles[2], doubles[3], keywords)
    half = dtype.itemsize == 2
    assert_accurate(
        y, oracle.detach(), dtype, twin(x, values, support, alpha, bias, keywords, dtype) if half else None
    )
    if x.shape[1] > 1:  # with one channel the two formats are the same
        assert y.is_contiguous(memory_format=memory_format)
        assert gradients[0].is_contiguous(memory_format=memory_format)
    oracles = torch.autograd.grad(oracle, doubles, dy.double())
    for index in (0, 1, 3):
        assert_accurate(gradients[index], oracles[index], dtype)
    scale = torch.autograd.grad(oracle_alpha_scale(doubles, support, keywords, dy), doubles[2])[0]
    bound = {torch.float64: 1e-12, torch.float32: 2e-6}.get(dtype, 2 * torch.finfo(dtype).eps)
    assert (gradients[2].double() - oracles[2]).abs() <= bound * scale.abs()


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("dilation", [1, 3])
def test_rows_so_wide_that_a_patch_spans_several_tiles(backend, dilation, threads, count, channels_last):
    threads(count)
    geometry = (3, 5, (5, 3), dict(padding=(2 * dilation, dilation), dilation=dilation))
    x, values, support, alpha, bias, keywords = operands(
        geometry, torch.float32, batch=2, height=7, width=350
    )
    x = x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    y, dy, gradients = run_form(x, values, support, alpha, bias, keywords, form="taps", device=backend)
    doubles = [t.double().requires_grad_() for t in (x, values, alpha, bias)]
    oracle = twin(doubles[0], doubles[1], support, doubles[2], doubles[3], keywords)
    assert_accurate(y, oracle.detach(), torch.float32)
    for index, wanted in enumerate(torch.autograd.grad(oracle, doubles, dy.double())):
        if index != 2:
            assert_accurate(gradients[index], wanted, torch.float32)


# On AVX-512 such rows follow each other without padding; a pixel that is not finite shows who reads it.
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("width", [2, 8, 16, 32])
def test_rows_of_whole_vectors_do_not_see_their_neighbours(
    backend, width, dtype, threads, count, channels_last
):
    if backend == "cuda" or _C.isa() == "emulated":
        pytest.skip("about the CPU's line of cells")
    threads(count)
    for kernel, keywords in (
        ((3, 3), dict(padding=1)),
        ((5, 4), dict(padding=2, groups=2)),
        ((3, 3), dict(padding=1, stride=2)),
        ((3, 3), dict(padding=(0, 2), dilation=2)),
        ((3, 3), dict(padding=3, dilation=2)),
        ((2, 7), dict(padding=(1, 3))),
    ):
        geometry = (4, 6, kernel, keywords)
        x, values, support, alpha, bias, keywords = operands(
            geometry, dtype, batch=4, density=0.3, height=10, width=width
        )
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        x = x.contiguous(memory_format=memory_format)
        doubles = [t.double().requires_grad_() for t in (x, values, alpha, bias)]
        oracle = twin(doubles[0], doubles[1], support, doubles[2], doubles[3], keywords)
        y, dy, gradients = run_form(x, values, support, alpha, bias, keywords, form="taps")
        assert_accurate(y, oracle.detach(), dtype)
        wanted = torch.autograd.grad(oracle, doubles, dy.double(), retain_graph=True)
        for index in (0, 1, 3):
            assert_accurate(gradients[index], wanted[index], dtype)
        for place in ((1, slice(None), 2, -1), (2, slice(None), 1, 0)):
            infinite_x, infinite_dy = x.clone(), dy.clone()
            infinite_x[place] = infinite_dy[place] = torch.inf
            y, _, (dx, *_) = run_form(
                infinite_x, values, support, alpha, bias, keywords, dy=infinite_dy, form="taps"
            )
            for result, expected in (
                (y, twin(infinite_x, values, support, alpha, bias, keywords)),
                (dx, torch.autograd.grad(oracle, doubles[0], infinite_dy.double(), retain_graph=True)[0]),
            ):
                assert torch.equal(result.isfinite(), expected.isfinite())


def oracle_alpha_scale(doubles, support, keywords, dy):
    """alpha times the sum of the magnitudes that dalpha is summed from."""
    x, _, alpha, _ = doubles
    empty = dctps_ext.Support.random(*support.shape, 0)
    part = twin(
        x.detach(), torch.empty(0, dtype=torch.float64), empty, torch.ones(()).double(), None, keywords
    )
    return alpha * (part * dy.double()).abs().sum()


@settings(max_examples=30 if EMULATED else 150)
@given(
    batch=st.integers(0, 9),
    groups=st.integers(1, 3),
    channels=st.integers(1, 4),
    filters=st.integers(1, 6),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    layout=st.sampled_from(["contiguous", "channels_last", "cropped", "transposed"]),
    density=st.floats(0, 1),
    form=st.sampled_from(FORMS),
)
def test_any_geometry(
    device, batch, groups, channels, filters, kernel, stride, padding, dilation, size, layout, density, form
):
    geometry = (
        groups * channels,
        groups * filters,
        kernel,
        dict(stride=stride, padding=padding, dilation=dilation, groups=groups),
    )
    x, values, support, alpha, bias, keywords = operands(geometry, torch.float64, batch, density, *size)
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "cropped":
        x = F.pad(x, (1, 2, 3, 1))[..., 3:-1, 1:-2]
    elif layout == "transposed":
        x = x.transpose(2, 3).contiguous().transpose(2, 3)
    if any(s + 2 * p < d * (k - 1) + 1 for s, p, d, k in zip(size, padding, dilation, kernel, strict=True)):
        with pytest.raises(ValueError, match="x: expected a padded input at least as large as the kernel"):
            run_form(x, values, support, alpha, bias, keywords, form=form, device=device)
        return
    y, dy, gradients = run_form(x, values, support, alpha, bias, keywords, form=form, device=device)
    doubles = [t.clone().requires_grad_() for t in (x, values, alpha, bias)]
    oracle = twin(doubles[0], doubles[1], support, doubles[2], doubles[3], keywords)
    assert relative_error(y, oracle) < 1e-12
    for gradient, expected in zip(gradients, torch.autograd.grad(oracle, doubles, dy), strict=True):
        assert (gradient - expected).abs().max().item() < 1e-10 if expected.numel() else True


SECOND_ORDER = ["grouped", "asymmetric", "same_even_kernel", "more_filters_than_inputs"]


@pytest.mark.parametrize("name", ["tiny"] if EMULATED else SECOND_ORDER)
def test_gradients_to_second_order(device, name):
    if name == "tiny":
        tiny = (2, 2, (2, 1), dict(groups=2, padding=(1, 0)))
        x, values, support, alpha, bias, keywords = operands(tiny, torch.float64, 1, 0.5, 2, 1)
    else:
        x, values, support, alpha, bias, keywords = operands(
            GEOMETRIES[name], torch.float64, batch=2, height=6, width=5
        )
    inputs = [t.to(device).requires_grad_() for t in (x, values, alpha, bias)]
    support = support.to(device)

    def function(x, values, alpha, bias):
        return dctps_conv2d(x, values, support, alpha, bias, **keywords)

    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)

    def without_dct(x, values):
        return dctps_conv2d(x, values, support, None, **keywords)

    assert gradcheck(without_dct, inputs[:2])
    assert gradgradcheck(without_dct, inputs[:2])


@pytest.mark.parametrize("groups", [1, 3])
def test_gradients_of_the_direct_form_to_second_order(groups):
    geometry = (3, 3, (2, 2), dict(groups=groups, stride=(2, 1), padding=(1, 0)))
    x, values, support, alpha, bias, keywords = operands(geometry, torch.float64, 2, 0.5, 4, 3)
    inputs = [t.requires_grad_() for t in (x, values, alpha, bias)]

    def function(x, values, alpha, bias):
        return dctps_conv2d(x, values, support, alpha, bias, **keywords, algorithm="direct")

    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


def test_opcheck(device):
    x, values, support, alpha, bias, keywords = operands(GEOMETRIES["grouped"], torch.float32)
    support = support.to(device)
    geometry = (6, [3, 3], [1, 1], [1, 1], [1, 1], 2, "fast")
    ops = torch.ops.dctps_ext
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    for channels_last in (False, True):
        image = x.contiguous(memory_format=torch.channels_last) if channels_last else x
        inputs = [t.detach().to(device, copy=True).requires_grad_() for t in (image, values, alpha, bias)]
        x_, values_, alpha_, bias_ = inputs
        result = opcheck(
            ops.dctps_conv2d.default,
            (x_, values_, support.index, alpha_, bias_, *geometry),
            test_utils=tests,
        )
        assert set(result.values()) == {"SUCCESS"}
        dy = torch.randn(3, 6, 11, 9, device=device)
        result = opcheck(
            ops.dctps_conv2d_backward.default,
            (dy, x_, values_, support.index, alpha_, *geometry, [True] * 4),
            test_utils=tests,
        )
        assert set(result.values()) == {"SUCCESS"}


def test_an_unbatched_image(device):
    x, values, support, alpha, bias, keywords = operands(GEOMETRIES["3x3"], torch.float32)
    x, values, support, alpha, bias = (t.to(device) for t in (x, values, support, alpha, bias))
    whole = dctps_conv2d(x, values, support, alpha, bias, **keywords)
    assert torch.equal(dctps_conv2d(x[1], values, support, alpha, bias, **keywords), whole[1])


@pytest.mark.parametrize("name", ["3x3", "1x1", "grouped", "strided", "depthwise"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_results_do_not_depend_on_threads_run_or_the_rest_of_the_batch(device, form, name, dtype, threads):
    run = functools.partial(run_form, form=form, device=device)
    arguments = operands(GEOMETRIES[name], dtype, batch=8 if EMULATED else 47)  # several tiles
    threads(1)
    y, dy, gradients = run(*arguments)
    for count in (2, 4):
        threads(count)
        again, _, other = run(*arguments, dy=dy)
        assert torch.equal(y, again)
        for first, second in zip(gradients, other, strict=True):
            assert torch.equal(first, second)
    x, *rest = arguments
    for image in (0, 7, len(x) - 1):
        alone, _, alone_gradients = run(x[image : image + 1], *rest, dy=dy[image : image + 1])
        assert torch.equal(alone[0], y[image])
        assert torch.equal(alone_gradients[0][0], gradients[0][image])


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("density", [0.05, 0.9])  # the latter: long columns of S
def test_an_image_of_few_pixels_has_the_same_bits_in_a_batch(backend, density, channels_last):
    """Alone, its pixels fill no vector; with others, several tiles of them go together."""
    *arguments, keywords = operands((40, 48, (1, 1), {}), torch.float32, 21, density, height=2, width=3)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x, *rest = arguments
    x = x.contiguous(memory_format=memory_format)
    y, dy, gradients = run_form(x, *rest, keywords, device=backend)
    for image in (0, 8, 20):
        part = slice(image, image + 1)
        alone, _, alone_gradients = run_form(x[part], *rest, keywords, dy=dy[part], device=backend)
        assert torch.equal(alone, y[part])
        assert torch.equal(alone_gradients[0], gradients[0][part])


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
def test_images_that_are_fetched_ahead_have_the_bits_of_those_that_are_not(channels_last):
    """8 MiB of x and of y: tiles fetch the next one's, and store past the caches. An image alone is small."""
    geometry = (32, 32, (3, 3), dict(padding=1))
    x, *rest = operands(geometry, torch.float32, 16, density=0.02, height=64, width=64)
    x = x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    y, dy, gradients = run_form(x, *rest, form="taps")
    summed = torch.zeros_like(gradients[1], dtype=torch.float64)
    for image in range(len(x)):
        part = slice(image, image + 1)
        alone, _, alone_gradients = run_form(x[part], *rest, dy=dy[part], form="taps")
        assert torch.equal(alone, y[part])
        assert torch.equal(alone_gradients[0], gradients[0][part])
        summed += alone_gradients[1]
    assert_accurate(gradients[1], summed, torch.float32)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("groups", [1, 3])
def test_threads_that_share_the_filters_of_a_small_image_change_nothing(threads, groups, channels_last):
    geometry = (6, 60, (3, 3), dict(padding=1, groups=groups))  # shares of 16 filters begin within groups
    x, *rest, keywords = operands(geometry, torch.float32, batch=1, density=0.3, height=5, width=6)
    x = x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    results = []
    for count in (1, 4):
        threads(count)
        results.append(dctps_conv2d(x, *rest, **keywords, algorithm="taps"))
    assert torch.equal(*results)


def test_each_thread_takes_filters_of_a_small_image():
    program = """
import torch, dctps_ext
layer, x = dctps_ext.DCTpSConv2d(64, 64, 3, padding=1, algorithm="fast"), torch.randn(1, 64, 5, 6)
for count in (1, 4):
    torch.set_num_threads(count)
    layer(x)
    print(dctps_ext._C.workspace_bytes())
"""
    alone, four = map(int, subprocess.check_output([sys.executable, "-c", program]).split())
    assert four == 4 * alone  # of scratch memory: a tile for each thread


@pytest.mark.parametrize("form", FORMS)
def test_a_non_finite_pixel_spoils_its_own_patches_only(device, form):
    x, values, support, alpha, bias, keywords = operands(GEOMETRIES["3x3"], torch.float32)
    run = functools.partial(run_form, form=form, device=device)
    clean, _, _ = run(x, values, support, alpha, bias, keywords)
    x[1, 2, 5, 5] = float("nan")
    y, _, _ = run(x, values, support, alpha, bias, keywords)
    touched = torch.zeros_like(y, dtype=torch.bool)
    touched[1, :, 4:7, 4:7] = True
    assert y[touched].isnan().all()
    assert torch.equal(y[~touched], clean[~touched])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "channels, size, most", [(64, 32, 2**20), (512, 32, 2**22), (256, 112, 2**22)], ids=str
)
def test_a_forward_holds_no_im2col_matrix(threads, form, channels, size, most):
    threads(1)
    geometry = (channels, 64, (3, 3), dict(padding=1))
    x, values, support, alpha, bias, keywords = operands(
        geometry, torch.float32, 2, density=0.01, height=size, width=size
    )
    dctps_conv2d(x[:, :, :3, :3], values, support, alpha, bias, **keywords, algorithm=form)  # makes plans
    dctps_ext._C.release_workspace()
    dctps_ext._C.reset_workspace_peak()
    held = dctps_ext._C.workspace_bytes()  # by other threads, from earlier work
    with torch.profiler.profile(profile_memory=True) as profile:
        y = dctps_conv2d(x, values, support, alpha, bias, **keywords, algorithm=form)
    allocated = sum(e.self_cpu_memory_usage for e in profile.events() if e.self_cpu_memory_usage > 0)
    assert allocated == y.nbytes
    assert dctps_ext._C.workspace_peak_bytes() - held <= most


@pytest.mark.parametrize("channels, filters, groups", [(96, 96, 96), (3, 64, 1)])
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
def test_small_groups_are_direct_and_hold_a_tile(threads, channels, filters, groups, channels_last):
    """Backward too. The tile is the same for images of 112x112, which are 4.6 MiB of 96 channels."""
    threads(1)
    geometry = (channels, filters, (3, 3), dict(padding=1, groups=groups))
    x, values, support, alpha, bias, keywords = operands(
        geometry, torch.float32, 2, density=0.1, height=112, width=112
    )
    x = x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    leaves = [t.requires_grad_() for t in (x, values, alpha, bias)]
    results = {}
    for form in ("fast", "direct"):
        y = dctps_conv2d(*leaves[:2], support, *leaves[2:], **keywords, algorithm=form)
        dy = torch.ones_like(y)
        dctps_ext._C.release_workspace()
        dctps_ext._C.reset_workspace_peak()
        held = dctps_ext._C.workspace_bytes()
        dctps_conv2d(*leaves[:2], support, *leaves[2:], **keywords, algorithm=form)
        gradients = torch.autograd.grad(y, leaves, dy)
        assert dctps_ext._C.workspace_peak_bytes() - held <= 2**19
        results[form] = y, *gradients
    for fast, direct in zip(results["fast"], results["direct"], strict=True):
        assert torch.equal(fast, direct)


def test_the_factors_of_a_shape_are_counted_and_shared_by_its_layers():
    def run_layer(channels, seed):
        layer = dctps_ext.DCTpSConv2d(channels, channels, 3, density=0.01, algorithm="fast", seed=seed)
        layer(torch.randn(1, channels, 8, 8)).sum().backward()
        return dctps_ext._C.plan_bytes()

    before = dctps_ext._C.plan_bytes()
    first = run_layer(136, 0)  # a shape that no other test has
    assert before < first < before + 4 * 9 * 136 * 136  # less than the weight
    assert run_layer(136, 1) == first


def test_errors_name_the_argument_what_was_expected_and_what_came():
    x, values, support, alpha, bias, _ = operands(GEOMETRIES["3x3"], torch.float32)

    def call(x=x, values=values, support=support, alpha=alpha, bias=bias, kernel_size=3, **keywords):
        return dctps_conv2d(x, values, support, alpha, bias, kernel_size=kernel_size, **keywords)

    assert call().shape == (3, 6, 9, 7)
    for error, match, keywords in (
        (
            ValueError,
            r"x: expected \[batch, channels, height, width\] or .*got shape \[3, 4\]",
            dict(x=x[..., 0, 0]),
        ),
        (
            ValueError,
            r"x, support: expected kh kw .* = n, got an x of 4 channels and a support of n = 35",
            dict(support=random_support(6, 35, 0.1)),
        ),
        (ValueError, r"x, support: expected .* n = 36, with kernel_size \(2, 2\)", dict(kernel_size=2)),
        (ValueError, "stride: expected two integers of at least 1, got", dict(stride=0)),
        (ValueError, "padding: expected two integers of at least 0, got", dict(padding=-1)),
        (ValueError, "dilation: expected two integers of at least 1, got", dict(dilation=0)),
        (
            ValueError,
            "padding: expected an integer, two integers, 'same' or 'valid', got 'full'",
            dict(padding="full"),
        ),
        (ValueError, "stride: expected 1 with padding='same', got", dict(padding="same", stride=2)),
        (ValueError, "kernel_size: expected an integer or two, got", dict(kernel_size=(3, 3, 3))),
        (ValueError, "x: expected a padded input at least as large as the kernel", dict(x=x[..., :2])),
        (ValueError, r"values: expected shape \[22\], got \[3\]", dict(values=values[:3])),
        (ValueError, r"bias: expected shape \[6\], got \[5\]", dict(bias=bias[:5])),
        (TypeError, "values: expected the dtype of the input", dict(values=values.double())),
        (TypeError, "x: expected dtype float64", dict(x=x.int())),
        (ValueError, "groups: expected a divisor of the input channels, 4", dict(groups=0)),
    ):
        with pytest.raises(error, match=match):
            call(**keywords)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_dense_form_gives_the_same_results(device, name, channels_last):
    x, values, support, alpha, bias, keywords = operands(GEOMETRIES[name], torch.float64)
    x = x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    x, values, support, alpha, bias = (t.to(device) for t in (x, values, support, alpha, bias))
    results = []
    for algorithm in (*FORMS, "dense"):
        leaves = [t.clone().requires_grad_() for t in (x, values, alpha, bias)]
        y = dctps_ext.dctps_conv2d(
            leaves[0], leaves[1], support, *leaves[2:], algorithm=algorithm, **keywords
        )
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(device)
        results.append((y, *torch.autograd.grad(y, leaves, dy)))
    *forms, dense_results = results
    for fast_results in forms:
        for fast, dense in zip(fast_results, dense_results, strict=True):
            for memory_format in (torch.contiguous_format, torch.channels_last) if fast.dim() == 4 else ():
                assert fast.is_contiguous(memory_format=memory_format) == dense.is_contiguous(
                    memory_format=memory_format
                )
            assert torch.allclose(fast, dense, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "memory_format", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"]
)
@pytest.mark.parametrize("name", ["1x1", "3x3", "depthwise"])
def test_the_dense_form_copies_no_image(name, memory_format):
    """Filters whose strides look like the other format's made torch copy x and y from one into the other."""
    channels, filters, kernel, keywords = GEOMETRIES[name]
    groups = keywords.get("groups", 1)
    support = random_support(filters, channels // groups * kernel[0] * kernel[1], 0.2)
    x = torch.randn(2, channels, 24, 24).to(memory_format=memory_format)
    values, alpha = torch.randn(support.nnz), torch.tensor(0.7)
    with torch.profiler.profile(record_shapes=True) as record:
        y = dctps_ext.dctps_conv2d(
            x, values, support, alpha, None, kernel_size=kernel, algorithm="dense", **keywords
        )
    assert y.is_contiguous(memory_format=memory_format)
    copied = [e.input_shapes[0] for e in record.events() if e.name == "aten::copy_"]
    assert all(torch.Size(shape).numel() < 24 * 24 for shape in copied)


def test_auto_never_takes_the_fast_form_where_it_is_known_to_lose():
    def is_dense(channels, filters, kernel, groups=1, padding=0, size=32):
        n = kernel * kernel * channels // groups
        layer = dctps_ext.DCTpSConv2d(
            channels, filters, kernel, padding=padding, groups=groups, nnz=filters * n // 100
        )
        with torch.profiler.profile() as profile:
            layer(torch.randn(8, channels, size, size))
        return any("convolution" in event.name for event in profile.events())

    assert is_dense(16, 64, 1)
    assert is_dense(768, 768, 7, groups=768, padding=3, size=7)  # depthwise, no two outputs see the same taps
    assert not is_dense(32, 32, 3, groups=32)
    assert not is_dense(32, 32, 7, groups=32)
    assert not is_dense(3, 64, 3)  # the first layer of a network
    assert not is_dense(3, 64, 7)
    assert not is_dense(64, 64, 3, groups=32)
    assert not is_dense(32, 32, 3)
    assert not is_dense(512, 512, 3)


def test_sizes_that_overflow_are_an_error():
    x, values, support, alpha, bias, _ = operands(GEOMETRIES["3x3"], torch.float32)
    huge = 3353953467947191203
    with pytest.raises(ValueError, match="kernel_size: expected two integers of at most"):
        torch.ops.dctps_ext.dctps_conv2d(
            x, values, support.index, alpha, bias, 6, [11, huge], [1, 1], [huge // 2, 0], [1, 1], 1, "fast"
        )


def test_a_group_with_an_infinite_input_spoils_no_other_groups_gradient(device):
    x, values, support, alpha, bias, keywords = operands(GEOMETRIES["grouped"], torch.float32)
    _, dy, clean = run_form(x, values, support, alpha, bias, keywords, device=device)
    x[0, 0, 5, 5] = float("inf")  # of the first group
    _, _, spoilt = run_form(x, values, support, alpha, bias, keywords, dy=dy, device=device)
    rows = torch.repeat_interleave(torch.arange(6), support.crow.diff())
    assert torch.equal(spoilt[1][rows >= 3], clean[1][rows >= 3])
    assert not spoilt[1][rows < 3].isfinite().all()
