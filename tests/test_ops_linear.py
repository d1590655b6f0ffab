"""dct, idct, sparse_linear, the fused linear layer: accuracy, gradients, determinism, layouts, errors."""

import functools
import resource
from pathlib import Path

import numpy as np
import pytest
import scipy.fft
import scipy.sparse
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck
from torch.nn import functional as F

import dctps_ext
from dctps_ext import Support, reference
from tests.checks import DTYPES, assert_accurate, random_support, relative_error

# What is promised of bits, errors of the kernels and memory is promised of algorithm="fast".
dctps_linear = functools.partial(dctps_ext.dctps_linear, algorithm="fast")


SIZES = (1, 2, 3, 5, 7, 16, 27, 82, 97, 120, 576, 641, 1000, 1021, 4608)
# Square ones, then each size beside its neighbour, a small one and a large one, both ways round.
PAIRS = sorted(
    {(q, q) for q in SIZES}
    | {pair for a, b in zip(SIZES, SIZES[1:], strict=False) for pair in ((a, b), (b, a))}
    | {pair for q in SIZES for pair in ((q, 7), (7, q), (q, 1000), (1000, q))}
    | {(512, 4608), (64, 27), (2, 4608), (4608, 82), (257, 3000), (6, 75), (16, 150), (120, 400)}
)


def operands(m, n, dtype, nnz=None, rows=19, seed=0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    support = Support.random(m, n, min(m * n, 3 * max(m, n)) if nnz is None else nnz, seed=seed)
    x = torch.randn(rows, n, generator=generator, dtype=torch.float64).to(dtype)
    values = torch.randn(support.nnz, generator=generator, dtype=torch.float64).to(dtype)
    alpha = torch.tensor(0.75, dtype=dtype)
    bias = torch.randn(m, generator=generator, dtype=torch.float64).to(dtype)
    return tuple(operand.to(device) for operand in (x, values, support, alpha, bias))


@functools.lru_cache(maxsize=4)
def dct_matrix(m, n):
    return reference.dct_matrix(m, n)


def dense_weight(values, support, alpha):
    return float(alpha) * dct_matrix(*support.shape) + reference.dense_sparse(values, support)


def oracle_gradients(dy, x, values, support, alpha):
    """The four gradients of the layer in float64, by the dense matrix."""
    rows = torch.repeat_interleave(torch.arange(support.shape[0]), support.crow.diff())
    dy, x = dy.double(), x.double()
    return (
        dy @ dense_weight(values, support, alpha),
        (dy[:, rows] * x[:, support.col.long()]).sum(0),
        (dy @ dct_matrix(*support.shape) * x).sum(),
        dy.sum(0),
    )


# ---- accuracy


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("m,n", PAIRS)
def test_forward_and_backward_agree_with_the_dense_twin(device, m, n, dtype):
    x, values, support, alpha, bias = operands(m, n, dtype)
    leaves = [t.clone().to(device).requires_grad_() for t in (x, values, alpha, bias)]
    y = dctps_linear(leaves[0], leaves[1], support.to(device), leaves[2], leaves[3])
    weight = dense_weight(values, support, alpha)
    half = dtype.itemsize == 2  # only there is torch's own error needed, and its 16-bit matmul is slow
    torch_y = F.linear(x, weight.to(dtype), bias) if half else None
    assert_accurate(y.cpu(), F.linear(x.double(), weight, bias.double()), dtype, torch_y)

    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(dtype)
    gradients = [gradient.cpu() for gradient in torch.autograd.grad(y, leaves, dy.to(device))]
    oracles = oracle_gradients(dy, x, values, support, alpha)
    assert_accurate(gradients[0], oracles[0], dtype, dy @ weight.to(dtype) if half else None)
    assert_accurate(gradients[1], oracles[1], dtype)
    assert_accurate(gradients[3], oracles[3], dtype)
    # dalpha is one sum with cancellation: its error is measured against the sizes it is summed from.
    scale = (dy.double() @ dct_matrix(m, n)).mul(x.double()).abs().sum()
    bound = {torch.float64: 1e-12, torch.float32: 2e-6}.get(dtype, 2 * torch.finfo(dtype).eps)
    assert (gradients[2].double() - oracles[2]).abs() <= bound * scale


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "m,n", [(1, 1), (7, 16), (82, 97), (120, 64), (641, 576), (1021, 1000), (300, 1024), (4608, 5)]
)
def test_every_instruction_set_agrees_with_the_dense_twin(backend, m, n, dtype):
    test_forward_and_backward_agree_with_the_dense_twin(backend, m, n, dtype)


@pytest.mark.parametrize("q", [2048, 4096, 8192, 8191, 10007])
def test_float32_stays_accurate_at_large_lengths(device, q):
    x = torch.from_numpy(np.random.default_rng(q).standard_normal((2, q))).float()
    for ours, scipys in ((dctps_ext.dct, scipy.fft.dct), (dctps_ext.idct, scipy.fft.idct)):
        oracle = torch.from_numpy(scipys(x.double().numpy(), norm="ortho"))
        assert relative_error(ours(x.to(device)).cpu(), oracle) < 2e-6


@pytest.mark.parametrize("q", SIZES)
def test_dct_is_scipys_orthonormal_dct(backend, q):
    x = np.random.default_rng(q).standard_normal((3, q))
    ours = dctps_ext.dct(torch.from_numpy(x).to(backend))
    assert relative_error(ours.cpu(), torch.from_numpy(scipy.fft.dct(x, norm="ortho"))) < 1e-12
    assert relative_error(dctps_ext.idct(ours).cpu(), torch.from_numpy(x)) < 1e-12


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 40), st.integers(0, 2**31))
def test_dct_and_idct_are_transposes_for_any_shape(device, m, n, rows, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, n, generator=generator, dtype=torch.float64).to(device)
    v = torch.randn(rows, m, generator=generator, dtype=torch.float64).to(device)
    y = dctps_ext.dct(x, m)
    assert relative_error(y, reference.dct(x, m)) < 1e-12
    assert relative_error(dctps_ext.idct(v, n), reference.idct(v, n)) < 1e-12
    assert torch.allclose((y * v).sum(), (dctps_ext.idct(v, n) * x).sum(), rtol=1e-9, atol=1e-9)


@given(st.integers(1, 60), st.integers(1, 60), st.floats(0, 1), st.integers(0, 1000), st.integers(1, 40))
def test_sparse_products_agree_with_scipy(device, m, n, density, seed, rows):
    support = random_support(m, n, density, seed)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, n, generator=generator, dtype=torch.float64, requires_grad=True)
    values = torch.randn(support.nnz, generator=generator, dtype=torch.float64, requires_grad=True)
    matrix = scipy.sparse.csr_array(
        (values.detach().numpy(), support.col.numpy(), support.crow.numpy()), shape=(m, n)
    )
    y = dctps_ext.sparse_linear(x.to(device), values.to(device), support.to(device)).cpu()
    assert relative_error(y, torch.from_numpy((matrix @ x.detach().numpy().T).T)) < 1e-12
    dy = torch.randn(rows, m, generator=generator, dtype=torch.float64)
    dx, dvalues = torch.autograd.grad(y, (x, values), dy)
    assert relative_error(dx, torch.from_numpy((matrix.T @ dy.numpy().T).T)) < 1e-12
    rows_of = np.repeat(np.arange(m), np.diff(support.crow.numpy()))
    oracle = (dy.T @ x.detach())[rows_of, support.col.long()]
    assert relative_error(dvalues, oracle) < 1e-12


# ---- layouts


@given(
    leading=st.lists(st.integers(0, 4), max_size=3),
    n=st.integers(1, 40),
    m=st.integers(1, 40),
    layout=st.sampled_from(["contiguous", "transposed", "sliced", "expanded", "reversed_dims", "offset"]),
    dtype=st.sampled_from(DTYPES),
)
def test_any_leading_dimensions_and_strides(device, leading, n, m, layout, dtype):
    shape = (*leading, n)

    def randn(*shape):
        return torch.randn(shape).to(device, dtype)

    x = randn(*shape)
    if layout == "transposed":
        x = randn(*shape[::-1]).permute(*reversed(range(len(shape))))
    elif layout == "sliced":
        x = randn(*leading, 3 * n + 1)[..., 1 : 1 + 3 * n : 3]
    elif layout == "expanded":
        x = randn(n).expand(shape)
    elif layout == "reversed_dims" and len(shape) > 2:
        x = randn(leading[1], leading[0], *shape[2:]).transpose(0, 1)
    elif layout == "offset":
        x = randn(*leading, n + 3)[..., 3:]
    assert x.shape == shape
    support = random_support(m, n, 0.2).to(device)
    values = randn(support.nnz)
    y = dctps_linear(x, values, support, 0.5)
    assert y.shape == (*leading, m) and y.dtype == dtype and y.is_contiguous()
    assert torch.equal(y, dctps_linear(x.contiguous(), values, support, 0.5))
    assert torch.equal(dctps_ext.idct(x, m), dctps_ext.idct(x.contiguous(), m))


def test_a_vector_and_an_empty_batch(device):
    x, values, support, alpha, bias = operands(6, 9, torch.float32, device=device)
    one = dctps_linear(x[0], values, support, alpha, bias)
    assert one.shape == (6,) and torch.equal(one, dctps_linear(x, values, support, alpha, bias)[0])
    leaves = [t.clone().requires_grad_() for t in (x[:0], values, alpha, bias)]
    y = dctps_linear(leaves[0], leaves[1], support, leaves[2], leaves[3])
    assert y.shape == (0, 6)
    y.sum().backward()
    assert leaves[0].grad.shape == (0, 9)
    for leaf in leaves[1:]:
        assert torch.equal(leaf.grad, torch.zeros_like(leaf))


def test_no_entries_and_no_dct_part(device):
    x = torch.randn(4, 9, device=device)
    nothing = Support.random(6, 9, 0).to(device)
    empty = torch.empty(0, device=device)
    assert torch.equal(dctps_linear(x, empty, nothing, 1.0), dctps_ext.dct(x, 6))
    assert torch.equal(dctps_linear(x, empty, nothing, None), torch.zeros(4, 6, device=device))
    full = Support.random(6, 9, 54).to(device)
    values = torch.randn(54, device=device)
    assert torch.equal(dctps_linear(x, values, full, None), dctps_ext.sparse_linear(x, values, full))


# ---- derivatives


@pytest.mark.parametrize("m,n", [(5, 9), (9, 5), (1, 1), (8, 8), (3, 1)])
def test_gradients_of_all_ops_to_second_order(device, m, n):
    x, values, support, alpha, bias = (
        t.requires_grad_() if isinstance(t, torch.Tensor) else t
        for t in operands(m, n, torch.float64, nnz=(m * n + 1) // 2, rows=3, device=device)
    )
    v = torch.randn(3, m, dtype=torch.float64, device=device, requires_grad=True)
    index = support.index
    cases = (
        (lambda x: dctps_ext.dct(x, m), (x,)),
        (lambda v: dctps_ext.idct(v, n), (v,)),
        (lambda x, values: dctps_ext.sparse_linear(x, values, support), (x, values)),
        (
            lambda v, values: torch.ops.dctps_ext.sparse_linear_transposed(v, values, index, m, n),
            (v, values),
        ),
        (lambda v, x: torch.ops.dctps_ext.sddmm(v, x, index, m, n), (v, x)),
        (lambda *a: dctps_linear(a[0], a[1], support, a[2], a[3]), (x, values, alpha, bias)),
        (lambda x, values: dctps_linear(x, values, support, None), (x, values)),
    )
    for function, inputs in cases:
        assert gradcheck(function, inputs)
        assert gradgradcheck(function, inputs)


@pytest.mark.parametrize("needed", range(1, 16))
def test_each_gradient_can_be_asked_for_alone(device, needed):
    x, values, support, alpha, bias = operands(12, 20, torch.float64)
    leaves = [
        t.clone().to(device).requires_grad_(bool(needed >> i & 1))
        for i, t in enumerate((x, values, alpha, bias))
    ]
    y = dctps_linear(leaves[0], leaves[1], support.to(device), leaves[2], leaves[3])
    dy = torch.randn_like(y)
    y.backward(dy)
    for leaf, oracle in zip(leaves, oracle_gradients(dy.cpu(), x, values, support, alpha), strict=True):
        assert (leaf.grad is not None) == leaf.requires_grad
        if leaf.requires_grad:
            assert relative_error(leaf.grad.cpu(), oracle) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(device, dtype):
    x, values, support, alpha, bias = (
        t.requires_grad_() if isinstance(t, torch.Tensor) else t
        for t in operands(6, 10, dtype, device=device)
    )
    v = torch.randn(len(x), 6, dtype=dtype, device=device, requires_grad=True)
    ops, shape = torch.ops.dctps_ext, (support.index, 6, 10)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    for op, arguments in (
        (ops.dct, (x, 6)),
        (ops.idct, (v, 10)),
        (ops.sparse_linear, (x, values, *shape)),
        (ops.sparse_linear_transposed, (v, values, *shape)),
        (ops.sddmm, (v, x, *shape)),
        (ops.dctps_linear, (x, values, support.index, alpha, bias, 6, 10, "fast")),
        (ops.dctps_linear, (x, values, support.index, None, None, 6, 10, "auto")),
        (ops.dctps_linear_backward, (v, x, values, support.index, alpha, 6, 10, "fast", [True] * 4)),
        (
            ops.dctps_linear_backward,
            (v, x, values, support.index, alpha, 6, 10, "dense", [False, True, False, True]),
        ),
    ):
        assert set(opcheck(op.default, arguments, test_utils=tests).values()) == {"SUCCESS"}


def test_torch_compile_captures_the_layer_as_one_graph(device):
    x, values, support, alpha, bias = operands(6, 10, torch.float32, device=device)
    values.requires_grad_()

    def layer(x, values):
        return torch.relu(dctps_linear(x, values, support, alpha, bias))

    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    expected = layer(x, values)
    assert torch.equal(compiled(x, values), expected)
    (grad,) = torch.autograd.grad(compiled(x, values).sum(), values)
    assert torch.equal(grad, torch.autograd.grad(expected.sum(), values)[0])


def test_autocast_casts_as_for_a_dense_layer(device):
    x, values, support, alpha, bias = operands(6, 10, torch.float32, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        y = dctps_linear(x.bfloat16(), values, support, alpha, bias)
    cast = (t.bfloat16() for t in (alpha, bias))
    assert torch.equal(y, dctps_linear(x.bfloat16(), values.bfloat16(), support, *cast))


# ---- determinism


def all_results(x, values, support, alpha, bias):
    leaves = [t.clone().requires_grad_() for t in (x, values, alpha, bias)]
    y = dctps_linear(leaves[0], leaves[1], support, leaves[2], leaves[3])
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    return y, *torch.autograd.grad(y, leaves, dy)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("m,n,rows", [(64, 97, 333), (1000, 1024, 150), (300, 1021, 70), (3, 5, 1000)])
def test_results_do_not_depend_on_the_number_of_threads_or_the_run(device, m, n, rows, dtype, threads):
    arguments = operands(m, n, dtype, nnz=m * n // 10, rows=rows, device=device)
    threads(1)
    single = all_results(*arguments)
    # An emulated GPU knows nothing of torch's threads, and takes its time.
    for count in (2,) if dctps_ext._C.isa() == "emulated" else (2, 3, 4, 2):
        threads(count)
        for first, second in zip(single, all_results(*arguments), strict=True):
            assert torch.equal(first, second)


@given(
    st.integers(1, 200), st.integers(1, 200), st.integers(1, 60), st.integers(0, 59), st.sampled_from(DTYPES)
)
def test_a_rows_result_does_not_depend_on_the_rest_of_the_batch(device, m, n, rows, row, dtype):
    x, values, support, alpha, bias = operands(m, n, dtype, rows=rows, device=device)
    row %= rows
    whole = dctps_linear(x, values, support, alpha, bias)
    assert torch.equal(whole[row], dctps_linear(x[row], values, support, alpha, bias))
    assert torch.equal(whole[row:], dctps_linear(x[row:], values, support, alpha, bias))
    assert torch.equal(dctps_ext.idct(x, m)[row], dctps_ext.idct(x[row], m))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("m,n", [(64, 97), (97, 64), (16, 16)])
def test_rows_that_share_their_look_at_a_dense_support_have_the_bits_of_each_alone(
    backend, m, n, dtype, threads
):
    """From 8 entries a row of S on, whole tiles of rows go through S two at a time."""
    threads(1)
    x, values, support, alpha, bias = operands(m, n, dtype, nnz=min(12 * m, m * n), rows=85, device=backend)
    y = dctps_linear(x, values, support, alpha, bias)
    sparse = dctps_ext.sparse_linear(x, values, support)
    for row in range(0, 85, 7):
        part = slice(row, row + 1)
        assert torch.equal(y[part], dctps_linear(x[part], values, support, alpha, bias))
        assert torch.equal(sparse[part], dctps_ext.sparse_linear(x[part], values, support))


@pytest.mark.parametrize("q", [7, 64, 97, 641])
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_a_non_finite_row_stays_alone(backend, q, poison):
    x, values, support, alpha, bias = operands(q, q, torch.float32, rows=37, device=backend)
    clean = dctps_linear(x, values, support, alpha, bias)
    x[5, q // 2] = poison
    y = dctps_linear(x, values, support, alpha, bias)
    assert not y[5].isfinite().any()
    others = torch.arange(37) != 5
    assert torch.equal(y[others], clean[others])


# ---- memory


def test_a_forward_allocates_its_output_and_bounded_scratch(threads):
    threads(1)
    q, rows = 4096, 64
    x, values, support, alpha, bias = operands(q, q, torch.float32, nnz=q, rows=rows)
    dctps_ext._C.release_workspace()
    dctps_ext._C.reset_workspace_peak()
    held = dctps_ext._C.workspace_bytes()  # by other threads, from earlier work
    with torch.profiler.profile(profile_memory=True) as profile:
        y = dctps_linear(x, values, support, alpha, bias)
    allocated = sum(e.self_cpu_memory_usage for e in profile.events() if e.self_cpu_memory_usage > 0)
    assert allocated == y.nbytes  # no q x q matrix, no copy of the input
    assert dctps_ext._C.workspace_peak_bytes() - held <= 2 * 2**20


# ---- errors


def test_errors_name_the_argument_what_was_expected_and_what_came():
    x, values, support, alpha, bias = operands(6, 10, torch.float32)
    call = dctps_linear
    for error, match, arguments in (
        (
            ValueError,
            r"x: expected a last dimension of size 10, got shape \[5, 11\]",
            (torch.randn(5, 11), values, support, alpha),
        ),
        (ValueError, r"values: expected shape \[30\], got \[17\]", (x, values[:17], support, alpha)),
        (
            TypeError,
            "values: expected the dtype of the input, Float, got Double",
            (x, values.double(), support, alpha),
        ),
        (
            TypeError,
            "x: expected dtype float64, float32, float16 or bfloat16, got Long",
            (x.long(), values, support, alpha),
        ),
        (TypeError, "support: expected a dctps_ext.Support, got Tensor", (x, values, support.index, alpha)),
        (ValueError, r"alpha: expected shape \[\], got \[2\]", (x, values, support, torch.ones(2))),
        (TypeError, "alpha: expected the dtype of the input", (x, values, support, alpha.double())),
        (
            TypeError,
            "alpha: expected a scalar tensor, a finite number or None, got 'one'",
            (x, values, support, "one"),
        ),
        (
            TypeError,
            "alpha: expected a scalar tensor, a finite number or None, got nan",
            (x, values, support, float("nan")),
        ),
        (ValueError, r"bias: expected shape \[6\], got \[7\]", (x, values, support, alpha, torch.ones(7))),
        (TypeError, "bias: expected the dtype of the input", (x, values, support, alpha, bias.double())),
        (
            ValueError,
            r"x: expected a last dimension of size 10, got shape \[\]",
            (torch.tensor(1.0), values, support, alpha),
        ),
    ):
        with pytest.raises(error, match=match):
            call(*arguments)
    with pytest.raises(ValueError, match="dct: out_features: expected a size from 1"):
        dctps_ext.dct(x, 0)
    with pytest.raises(ValueError, match="idct: in_features: expected a size from 1"):
        dctps_ext.idct(x, -3)
    with pytest.raises(ValueError, match="dct: x: expected at least one dimension"):
        dctps_ext.dct(torch.tensor(1.0))
    with pytest.raises(ValueError, match="dct: x's last dimension: expected a size from 1"):
        dctps_ext.dct(torch.empty(3, 0))
    with pytest.raises(TypeError, match="dct: x: expected dtype float64"):
        dctps_ext.dct(x.to(torch.complex64))
    with pytest.raises(ValueError, match="sparse_linear: x: expected a last dimension of size 10"):
        dctps_ext.sparse_linear(x[:, :9], values, support)
    with pytest.raises(ValueError, match="support: expected the index of a support of shape"):
        torch.ops.dctps_ext.sparse_linear(x, values, support.index[:-1], 6, 10)
    with pytest.raises(ValueError, match="sddmm: x: expected the leading dimensions of v"):
        torch.ops.dctps_ext.sddmm(torch.randn(4, 6), x, support.index, 6, 10)


def test_meta_tensors_give_shapes():
    support = random_support(6, 10, 0.2)
    x, values = torch.empty(3, 10, device="meta"), torch.empty(support.nnz, device="meta")
    y = torch.ops.dctps_ext.dctps_linear(x, values, support.index.to("meta"), None, None, 6, 10, "auto")
    assert y.device.type == "meta" and y.shape == (3, 6)


def test_forward_mode_is_refused_instead_of_taken_for_zero():
    x, values, support, alpha, bias = operands(6, 10, torch.float32)
    for function in (
        dctps_ext.dct,
        dctps_ext.idct,
        lambda x: dctps_ext.sparse_linear(x, values, support),
        lambda x: dctps_linear(x, values, support, alpha, bias),
    ):
        with pytest.raises(NotImplementedError, match="forward-mode derivatives .* not implemented"):
            torch.func.jvp(function, (x,), (x,))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(values, values)
        with pytest.raises(NotImplementedError, match="dctps_linear: forward-mode"):
            dctps_linear(x, dual, support, alpha)
        assert dctps_linear(x, values, support, alpha).shape == (len(x), 6)  # no tangent, no error


# ---- the dense form


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("m,n", [(1, 1), (16, 16), (27, 64), (97, 5), (300, 200)])
def test_the_dense_form_gives_the_same_results(device, m, n, dtype):
    x, values, support, alpha, bias = operands(m, n, dtype, nnz=m * n // 3, rows=40, device=device)
    results = {}
    for algorithm in ("fast", "dense"):
        leaves = [t.clone().requires_grad_() for t in (x, values, alpha, bias)]
        y = dctps_ext.dctps_linear(leaves[0], leaves[1], support, *leaves[2:], algorithm=algorithm)
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(y)
        results[algorithm] = y, *torch.autograd.grad(y, leaves, dy)
    tolerance = {torch.float64: 1e-11, torch.float32: 1e-5}.get(dtype, 8 * torch.finfo(dtype).eps)
    for fast, dense in zip(results["fast"], results["dense"], strict=True):
        assert fast.shape == dense.shape and fast.dtype == dense.dtype
        scale = max(fast.double().abs().max().item() if fast.numel() else 0, (40 * max(m, n)) ** 0.5)
        assert (fast.double() - dense.double()).abs().le(tolerance * scale).all()


def test_auto_is_one_of_the_two_and_knows_when():
    def is_dense(q, density, rows):
        x, values, support, alpha, bias = operands(q, q, torch.float32, nnz=round(density * q * q), rows=rows)
        with torch.profiler.profile() as profile:
            dctps_ext.dctps_linear(x, values, support, alpha, bias)
        return any("addmm" in event.name or event.name[6:] == "linear" for event in profile.events())

    assert is_dense(16, 0.2, 4096)
    assert is_dense(32, 0.3, 4096)
    assert not is_dense(256, 0.01, 4096)
    assert not is_dense(1024, 0.01, 64)
    assert is_dense(256, 1.0, 4096)
    assert not is_dense(64, 0.05, 1)


def test_gradients_of_the_dense_form_to_second_order(device):
    x, values, support, alpha, bias = (
        t.requires_grad_() if isinstance(t, torch.Tensor) else t
        for t in operands(5, 8, torch.float64, nnz=11, rows=3, device=device)
    )

    def function(x, values, alpha, bias):
        return dctps_ext.dctps_linear(x, values, support, alpha, bias, algorithm="dense")

    assert gradcheck(function, (x, values, alpha, bias))
    assert gradgradcheck(function, (x, values, alpha, bias))


def test_an_unknown_algorithm_is_an_error():
    x, values, support, alpha, bias = operands(5, 8, torch.float32)
    for call in (
        lambda: dctps_ext.dctps_linear(x, values, support, alpha, algorithm="quick"),
        lambda: dctps_ext.DCTpSLinear(8, 5, algorithm="quick"),
    ):
        with pytest.raises(ValueError, match="algorithm: expected 'auto', 'fast' or 'dense', got 'quick'"):
            call()


def test_deterministic_mode_makes_auto_fast(device):
    x, values, support, alpha, bias = operands(16, 16, torch.float32, rows=300, device=device)
    torch.use_deterministic_algorithms(True)
    try:
        y = dctps_ext.dctps_linear(x, values, support, alpha, bias)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(y, dctps_linear(x, values, support, alpha, bias))


def test_the_dense_form_keeps_its_dtype_under_autocast():
    x, values, support, alpha, bias = operands(6, 10, torch.float32)
    x.requires_grad_()
    y = dctps_ext.dctps_linear(x, values, support, alpha, bias, algorithm="dense")
    (expected,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (dx,) = torch.autograd.grad(y.sum(), x)
    assert dx.dtype == torch.float32 and torch.equal(dx, expected)


def test_a_dense_form_costs_no_square_of_the_longer_side():
    x, values, support, alpha, bias = operands(3, 20000, torch.float32, nnz=10, rows=4)
    with torch.profiler.profile(profile_memory=True) as profile:
        y = dctps_ext.dctps_linear(x, values, support, alpha, bias, algorithm="dense")
    assert max(e.self_cpu_memory_usage for e in profile.events()) <= 3 * 20000 * 8
    assert relative_error(y, dctps_linear(x, values, support, alpha, bias)) < 1e-5


# ---- found by review


@pytest.mark.parametrize("nnz", [20, 900, 1850])  # the last: long columns of S
def test_the_bits_of_dx_do_not_depend_on_which_parameters_need_gradients(backend, nnz):
    x, values, support, alpha, bias = operands(40, 50, torch.float32, nnz=nnz, rows=33, device=backend)
    results = []
    for needs in (True, False):
        leaf = x.clone().requires_grad_()
        parameters = [t.clone().requires_grad_(needs) for t in (values, alpha, bias)]
        y = dctps_linear(leaf, parameters[0], support, *parameters[1:])
        results.append(torch.autograd.grad(y, leaf, x.new_tensor(range(y.numel())).sin().view_as(y))[0])
    assert torch.equal(*results)


def test_the_bits_of_gradients_do_not_depend_on_strides(backend):
    """Neither those of rows nor those of sums over them."""
    x, values, support, alpha, bias = operands(600, 500, torch.float32, nnz=2000, rows=70, device=backend)
    dy = x.new_tensor(range(70 * 600)).sin().view(70, 600)
    results = []
    for layout in (torch.Tensor.contiguous, lambda t: t.t().contiguous().t()):
        leaves = [layout(x).requires_grad_(), *(t.clone().requires_grad_() for t in (values, alpha, bias))]
        y = dctps_linear(leaves[0], leaves[1], support, *leaves[2:])
        results.append(torch.autograd.grad(y, leaves, layout(dy)))
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


def test_a_mixture_with_meta_tensors_is_an_error():
    x, values, support, alpha, bias = operands(6, 10, torch.float32)
    for arguments in (
        (x, values.to("meta"), support, alpha, bias),
        (x, values, support.to("meta"), alpha, bias),
        (x, values, support, alpha.to("meta"), bias),
        (x.to("meta"), values, support, alpha, bias),
    ):
        with pytest.raises(ValueError, match="expected all tensors on one device, got .*meta"):
            dctps_linear(*arguments)
    with pytest.raises(ValueError, match="expected all tensors on one device"):
        dctps_ext.sparse_linear(x, values, support.to("meta"))
    layer = dctps_ext.DCTpSLinear(10, 6, device="meta")
    assert layer(torch.empty(3, 10, device="meta")).shape == (3, 6)


def test_an_index_of_another_shape_is_an_error_even_of_equal_length():
    x, values, support, alpha, bias = operands(6, 10, torch.float32)
    with pytest.raises(ValueError, match="whose row and column starts do not fit"):
        torch.ops.dctps_ext.sparse_linear(torch.randn(5, 6), values, support.index, 10, 6)


def test_sparse_linear_casts_under_autocast():
    x, values, support, *_ = operands(6, 10, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert dctps_ext.sparse_linear(x.bfloat16(), values, support).dtype == torch.bfloat16


def test_an_empty_batch_of_a_huge_length_costs_nothing():
    before = dctps_ext._C.plan_bytes()
    assert dctps_ext.dct(torch.empty(0, 1 << 27)).shape == (0, 1 << 27)
    assert dctps_ext._C.plan_bytes() == before


def test_a_number_for_alpha_may_vary_under_torch_compile():
    x, values, support, _, bias = operands(6, 10, torch.float32)
    compiled = torch.compile(
        lambda x, alpha: dctps_linear(x, values, support, alpha, bias), backend="aot_eager", fullgraph=True
    )
    for alpha in (0.5, 0.25, 0.125):
        assert torch.equal(compiled(x, alpha), dctps_linear(x, values, support, alpha, bias))


# ---- large results and memory


def test_a_large_result_takes_few_page_faults():
    """Small pages cost more than the transform: torch.empty alone faults once for each 4 KiB."""
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.exists() or "[never]" in setting.read_text():
        pytest.skip("this system has no transparent huge pages")
    x = torch.ones(16384, 1024)  # 64 MiB: the allocator takes fresh pages for so much
    dctps_ext.dct(x[:16])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    y = dctps_ext.dct(x)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < y.nbytes / 4096 / 4


@pytest.mark.parametrize("q,rows", [(1024, 300), (1024, 2117), (1001, 2200)])
def test_results_past_the_caches_have_the_same_bits(backend, q, rows, threads):
    """From 4 MiB on, or 1 MiB of rows 4 KiB apart. Rows of 1001 values do not start on cache lines."""
    threads(2)
    x, values, support, alpha, bias = operands(q, q, torch.float32, rows=rows, device=backend)
    assert x.nbytes >= (1 if q == 1024 else 4) * 2**20
    y = dctps_linear(x, values, support, alpha, bias)
    v = dctps_ext.idct(x)
    for start in (0, rows // 2, rows - 5):
        part = slice(start, start + 5)
        assert torch.equal(y[part], dctps_linear(x[part], values, support, alpha, bias))
        assert torch.equal(v[part], dctps_ext.idct(x[part]))


@pytest.mark.parametrize("q", [1024, 4096, 8192])
def test_a_backward_allocates_its_gradients_and_bounded_scratch(q, threads):
    threads(1)
    x, values, support, alpha, bias = operands(q, q, torch.float32, nnz=q * q // 100, rows=32)
    dy = torch.randn(32, q)
    backward = torch.ops.dctps_ext.dctps_linear_backward
    dctps_ext._C.release_workspace()
    dctps_ext._C.reset_workspace_peak()
    held = dctps_ext._C.workspace_bytes()  # by other threads, from earlier work
    with torch.profiler.profile(profile_memory=True) as profile:
        gradients = backward(dy, x, values, support.index, alpha, q, q, "fast", [True] * 4)
    allocated = sum(e.self_cpu_memory_usage for e in profile.events() if e.self_cpu_memory_usage > 0)
    scratch = allocated - sum(gradient.nbytes for gradient in gradients)
    scratch += dctps_ext._C.workspace_peak_bytes() - held
    assert scratch <= 4 * 2**20


def test_as_many_threads_work_as_torch_is_set_to(threads):
    for count in (1, 2, 3):
        threads(count)
        assert dctps_ext._C.threads_at_work() == count
