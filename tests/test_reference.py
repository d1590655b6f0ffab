"""The oracle itself: against scipy.fft, extended precision, and the formulas written as loops."""

import math

import numpy as np
import pytest
import scipy.fft
import torch
import torch.nn.functional as F

from dctps_ext import Support, reference

SIZES = [
    (1, 1),
    (1, 5),
    (5, 1),
    (2, 3),
    (3, 2),
    (7, 7),
    (16, 27),
    (82, 120),
    (97, 16),
    (120, 641),
    (1021, 10),
]


def scipy_dct_matrix(m, n):
    q = max(m, n)
    return scipy.fft.dct(np.eye(q), type=2, norm="ortho", axis=0)[:m, :n]


@pytest.mark.parametrize("m, n", SIZES)
def test_dct_matrix_is_scipys_orthonormal_dct_truncated(m, n):
    d = reference.dct_matrix(m, n)
    assert d.shape == (m, n) and d.dtype == torch.float64
    np.testing.assert_allclose(d.numpy(), scipy_dct_matrix(m, n), atol=3e-15, rtol=0)


@pytest.mark.parametrize("q", [1, 2, 3, 16, 97, 641, 1000])
def test_dct_matrix_is_orthonormal(q):
    d = reference.dct_matrix(q, q)
    torch.testing.assert_close(d @ d.T, torch.eye(q, dtype=torch.float64), atol=2e-14, rtol=0)


def test_dct_matrix_entries_have_full_relative_accuracy():
    # In extended precision where the platform has it: small entries, next to a zero of the cosine, count too.
    if np.finfo(np.longdouble).eps > 1e-18:
        pytest.skip("longdouble is no wider than float64 here")
    m = n = q = 1000
    k, i = np.meshgrid(np.arange(m), np.arange(n), indexing="ij")
    # sin of the distance to the nearest zero has no cancellation.
    t = k * (2 * i + 1) % (4 * q)
    pi = np.longdouble("3.14159265358979323846264338327950288")
    distance = np.where(t <= 2 * q, q - t, t - 3 * q).astype(np.longdouble)
    exact = np.sin(pi * distance / (2 * q)) * np.sqrt(np.longdouble(2) / q)
    exact[0] = np.sqrt(np.longdouble(1) / q)
    d = reference.dct_matrix(m, n).numpy()
    nonzero = exact != 0
    assert np.array_equal(d[~nonzero], np.zeros((~nonzero).sum()))
    assert np.max(np.abs(d[nonzero] / exact[nonzero] - 1)) < 4 * np.finfo(np.float64).eps


def test_dct_matrix_rounds_to_the_dtype_that_is_asked_for():
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(reference.dct_matrix(5, 9, dtype), reference.dct_matrix(5, 9).to(dtype))


@pytest.mark.parametrize("m, n", SIZES)
def test_dct_and_idct_are_d_and_its_transpose(m, n):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, n, generator=generator, dtype=torch.float64)
    v = torch.randn(3, 2, m, generator=generator, dtype=torch.float64)
    d = torch.from_numpy(scipy_dct_matrix(m, n))
    torch.testing.assert_close(reference.dct(x, m), x @ d.T, atol=1e-13, rtol=0)
    torch.testing.assert_close(reference.idct(v, n), v @ d, atol=1e-13, rtol=0)
    assert reference.dct(x).shape == x.shape
    assert reference.dct(x.float(), m).dtype == torch.float64
    assert reference.dct(x, m, dtype=torch.float32).dtype == torch.float32


def test_dense_sparse_puts_values_in_csr_order():
    support = Support.from_indices([2, 0, 2], [1, 3, 0], (3, 4))
    values = torch.tensor([1.0, 2.0, 3.0])
    expected = torch.zeros(3, 4, dtype=torch.float64)
    expected[0, 3], expected[2, 0], expected[2, 1] = 1, 2, 3
    assert torch.equal(reference.dense_sparse(values, support), expected)


@pytest.mark.parametrize("alpha", [None, 0.5, torch.tensor(-2.0)])
def test_dctps_linear_is_its_formula(alpha):
    support = Support.random(4, 6, 9, seed=1)
    values = torch.arange(1.0, 10.0)
    x = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    bias = torch.arange(4.0)
    expected = x @ reference.dense_sparse(values, support).T + bias
    if alpha is not None:
        expected = expected + float(alpha) * reference.dct(x, 4)
    torch.testing.assert_close(reference.dctps_linear(x, values, support, alpha, bias), expected)
    torch.testing.assert_close(
        reference.sparse_linear(x, values, support), x @ reference.dense_sparse(values, support).T
    )


@pytest.mark.parametrize("groups", [1, 2])
def test_conv_weight_follows_the_formula_entry_by_entry(groups):
    out, channels, kernel = 4, 6, (3, 2)
    per_group = channels // groups
    n = kernel[0] * kernel[1] * per_group
    d = scipy_dct_matrix(out, n)
    weight = reference.conv_weight(reference.dct_matrix(out, n), kernel)
    assert weight.shape == (out, per_group, *kernel)
    for o in range(out):
        for c in range(per_group):
            for a in range(kernel[0]):
                for b in range(kernel[1]):
                    entry = d[o, (a * kernel[1] + b) * per_group + c]
                    assert math.isclose(weight[o, c, a, b], entry, abs_tol=1e-14)
    assert torch.equal(reference.conv_matrix(weight), reference.dct_matrix(out, n))


def test_dctps_conv2d_is_a_convolution_with_that_weight():
    support = Support.random(4, 18, 20, seed=2)
    values = torch.arange(1.0, 21.0)
    x = torch.randn(2, 6, 9, 8, generator=torch.Generator().manual_seed(0))
    settings = {"stride": (1, 2), "padding": (2, 1), "dilation": (2, 1), "groups": 2}
    weight = reference.conv_weight(reference.dense_weight(values, support, 0.7), (3, 2))
    expected = F.conv2d(x.double(), weight, torch.arange(4.0).double(), **settings)
    y = reference.dctps_conv2d(x, values, support, 0.7, torch.arange(4.0), **settings, kernel_size=(3, 2))
    torch.testing.assert_close(y, expected)
    support = Support.random(4, 9 * 6, 20, seed=2)
    same = reference.dctps_conv2d(x, values, support, None, padding="same", kernel_size=3)
    assert same.shape == (2, 4, 9, 8) and same.dtype == torch.float64


def test_the_oracle_is_differentiable_in_everything():
    support = Support.random(3, 5, 6, seed=1)
    tensors = [
        torch.randn(
            shape, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(0)
        )
        for shape in ((2, 5), (6,), (), (3,))
    ]
    assert torch.autograd.gradcheck(lambda x, v, a, b: reference.dctps_linear(x, v, support, a, b), tensors)
