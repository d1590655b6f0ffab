"""Supports: the packed index, sampling (golden values, uniformity, extremes), validation, devices."""

import copy
import hashlib
import pickle

import numpy as np
import pytest
import scipy.sparse
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dctps_ext import Support

relaxed = settings(deadline=None, max_examples=60)


@st.composite
def shapes_and_nnz(draw):
    m, n = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    return m, n, draw(st.integers(0, m * n))


def check_index(support):
    """Every promise of the packed index, against scipy.sparse."""
    m, n = support.shape
    assert support.index.dtype == torch.int32 and support.index.dim() == 1
    assert support.index.numel() == (m + 1) + (n + 1) + 3 * support.nnz
    parts = (support.crow, support.col, support.ccol, support.row, support.perm)
    assert torch.equal(torch.cat(parts), support.index)
    for part in parts:
        assert part.untyped_storage().data_ptr() == support.index.untyped_storage().data_ptr()
    crow, col, ccol, row, perm = (part.numpy() for part in parts)
    data = np.arange(support.nnz)
    csr = scipy.sparse.csr_array((data + 1, col, crow), shape=(m, n))
    assert csr.has_canonical_format  # sorted, no duplicate
    csc = scipy.sparse.csc_array(csr)
    csc.sort_indices()
    np.testing.assert_array_equal(ccol, csc.indptr)
    np.testing.assert_array_equal(row, csc.indices)
    np.testing.assert_array_equal(perm, csc.data - 1)


# ---- sampling


@relaxed
@given(shapes_and_nnz(), st.integers(0, 2**63 - 1), st.booleans())
def test_random_support_has_nnz_distinct_positions_in_a_valid_index(sizes, seed, per_row):
    m, n, nnz = sizes
    support = Support.random(m, n, nnz, seed, per_row=per_row)
    assert (support.shape, support.nnz, support.seed, support.per_row) == ((m, n), nnz, seed, per_row)
    check_index(support)
    if per_row:
        lengths = support.crow.diff()
        assert lengths.min() >= nnz // m and lengths.max() <= -(-nnz // m)
    assert Support.random(m, n, nnz, seed, per_row=per_row) == support


GOLDEN_POSITIONS = {
    (5, 7, 10, 0, False): [2, 3, 4, 5, 10, 12, 16, 17, 31, 34],
    (3, 4, 9, 0, False): [0, 3, 4, 5, 6, 8, 9, 10, 11],
    (5, 7, 12, 0, True): [0, 1, 5, 7, 9, 12, 14, 17, 21, 23, 28, 32],
}
GOLDEN_HASHES = {
    (4096, 1000, 40960, 0, False): "b5d930da56d1aaf4",
    (4096, 1000, 40960, 1, False): "df07bcc55eefff7c",
    (1000, 4096, 41234, 0, True): "a77f3953f5904efb",
    (64, 576, 30000, 7, False): "b3eb0a045deaf4aa",
    (64, 576, 30000, 7, True): "1125bcf36b302e10",
    (3_000_000, 2_000_000, 5000, 2**63 - 1, False): "f4bf3bab510bd89e",
}


@pytest.mark.parametrize("case", GOLDEN_POSITIONS)
def test_random_support_is_the_same_forever_small(case):
    m, n, nnz, seed, per_row = case
    support = Support.random(m, n, nnz, seed, per_row=per_row)
    assert support.mask().flatten().nonzero().flatten().tolist() == GOLDEN_POSITIONS[case]


@pytest.mark.parametrize("case", GOLDEN_HASHES)
def test_random_support_is_the_same_forever_large(case):
    m, n, nnz, seed, per_row = case
    support = Support.random(m, n, nnz, seed, per_row=per_row)
    rows = np.repeat(np.arange(m), np.diff(support.crow.numpy()))
    positions = (rows * n + support.col.numpy()).astype("<i8")
    assert hashlib.sha256(positions.tobytes()).hexdigest()[:16] == GOLDEN_HASHES[case]


def test_global_random_state_is_neither_used_nor_changed():
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    a = Support.random(20, 30, 50, seed=4)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    torch.manual_seed(1)
    assert Support.random(20, 30, 50, seed=4) == a


def test_every_argument_changes_the_support():
    base = Support.random(20, 30, 50, seed=4)
    assert base != Support.random(20, 30, 50, seed=5)
    assert base != Support.random(20, 30, 50, seed=4, per_row=True)
    more = Support.random(20, 30, 51, seed=4)
    # Not merely one position more than before.
    assert (base.mask() & more.mask()).sum() < 25


def test_extremes():
    for per_row in (False, True):
        assert Support.random(3, 4, 12, per_row=per_row).mask().all()
        assert not Support.random(3, 4, 0, per_row=per_row).mask().any()
        check_index(Support.random(1, 1, 1, per_row=per_row))
        # Far too large for an array of m*n: 2^42 positions.
        check_index(Support.random(2**21, 2**21, 1000, seed=3, per_row=per_row))


def p_value(counts, expected):
    return scipy.stats.chisquare(counts, np.full(len(counts), expected)).pvalue


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("nnz", [3, 13, 22])  # sparse, nearly half, and by the complement
def test_positions_are_uniform(nnz, per_row):
    m, n, trials = 4, 7, 500
    total = torch.zeros(m, n)
    for seed in range(trials):
        total += Support.random(m, n, nnz, seed, per_row=per_row).mask()
    counts = total.flatten().numpy()
    # Positions of one trial exclude each other, so the statistic is below chi-square's by 1 - nnz/(m n):
    # scale it.
    expected = trials * nnz / (m * n)
    statistic = ((counts - expected) ** 2 / expected).sum() / (1 - nnz / (m * n))
    p = scipy.stats.chi2.sf(statistic, m * n - 1)
    assert 1e-4 < p < 1 - 1e-4


@pytest.mark.parametrize("per_row", [False, True])
def test_sets_are_uniform_not_only_positions(per_row):
    m, n, nnz, trials = 2, 3, 2, 500
    seen: dict[tuple, int] = {}
    for seed in range(trials):
        key = tuple(Support.random(m, n, nnz, seed, per_row=per_row).mask().flatten().tolist())
        seen[key] = seen.get(key, 0) + 1
    possible = 9 if per_row else 15  # one column in each of two rows; or 6 choose 2
    assert len(seen) == possible
    assert p_value(list(seen.values()), trials / possible) > 1e-4


def test_rows_with_one_more_are_uniform():
    m, n, trials = 7, 5, 500
    total = torch.zeros(m)
    for seed in range(trials):
        total += Support.random(m, n, 2 * m + 3, seed, per_row=True).crow.diff() - 2
    expected = trials * 3 / m
    statistic = ((total - expected) ** 2 / expected).sum() / (1 - 3 / m)
    assert 1e-4 < scipy.stats.chi2.sf(float(statistic), m - 1) < 1 - 1e-4


def test_a_large_support_is_uniform_over_rows_columns_and_diagonals():
    n = 1000
    support = Support.random(n, n, 200_000, seed=11)
    rows = np.repeat(np.arange(n), np.diff(support.crow.numpy()))
    cols = support.col.numpy()
    for kind in (rows, cols, (rows + cols) % n, (rows * 7 + cols * 3) % n):
        counts = np.bincount(kind, minlength=n)
        statistic = ((counts - 200) ** 2 / 200).sum() / 0.8
        assert 1e-4 < scipy.stats.chi2.sf(statistic, n - 1) < 1 - 1e-4


# ---- explicit supports


@relaxed
@given(shapes_and_nnz(), st.integers(0, 1000), st.randoms(use_true_random=False))
def test_the_constructors_agree(sizes, seed, random):
    m, n, nnz = sizes
    support = Support.random(m, n, nnz, seed)
    from_mask = Support.from_mask(support.mask())
    pairs = support.mask().nonzero().tolist()
    random.shuffle(pairs)
    from_indices = Support.from_indices([r for r, _ in pairs], [c for _, c in pairs], (m, n))
    from_csr = Support.from_csr(support.crow, support.col, (m, n))
    for other in (from_mask, from_indices, from_csr):
        check_index(other)
        assert other == support and hash(other) == hash(support)
        assert other.seed is None and not other.per_row
        assert torch.equal(other.index, support.index)


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor, lambda x: torch.tensor(x, dtype=torch.int32)])
def test_indices_may_be_sequences_arrays_or_tensors(kind):
    support = Support.from_indices(kind([2, 0, 2]), kind([1, 3, 0]), (3, 4))
    assert support.mask().nonzero().tolist() == [[0, 3], [2, 0], [2, 1]]


def test_equality_is_of_positions():
    a = Support.from_indices([0], [1], (2, 2))
    assert a != Support.from_indices([0], [0], (2, 2))
    assert a != Support.from_indices([0], [1], (2, 3))
    assert a != Support.from_indices([0, 1], [1, 1], (2, 2))
    assert a != "a support"
    assert len({a, Support.from_mask(a.mask())}) == 1


# ---- bad input


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: Support.random(0, 3, 0), ValueError, r"m: expected an integer in \[1, 2147483647\], got 0"),
        (lambda: Support.random(3, 2**31, 0), ValueError, r"n: expected .* got 2147483648"),
        (lambda: Support.random(2.5, 3, 0), TypeError, "m: expected an integer, got float"),
        (lambda: Support.random(2, 3, 7), ValueError, r"nnz: expected an integer in \[0, 6\], got 7"),
        (lambda: Support.random(2, 3, -1), ValueError, r"nnz: expected an integer in \[0, 6\], got -1"),
        (lambda: Support.random(2**20, 2**20, 2**31), ValueError, r"nnz: expected .* got 2147483648"),
        (lambda: Support.random(2, 3, 1, seed=-1), ValueError, r"seed: expected .* got -1"),
        (lambda: Support.random(2, 3, 1, seed="x"), TypeError, "seed: expected an integer, got str"),
        (lambda: Support.from_mask([[True]]), TypeError, r"mask: expected a torch.bool tensor, got list"),
        (lambda: Support.from_mask(torch.ones(2, 2)), TypeError, r"mask: .* got a torch.float32 tensor"),
        (lambda: Support.from_mask(torch.ones(2) > 0), ValueError, r"mask: expected 2 dimensions .* \(2,\)"),
        (
            lambda: Support.from_indices([0, 2], [0, 0], (2, 2)),
            ValueError,
            r"rows: expected .* \[0, 1\], got 2",
        ),
        (
            lambda: Support.from_indices([0, 1], [0, -1], (2, 2)),
            ValueError,
            r"cols: expected .* \[0, 1\], got -1",
        ),
        (
            lambda: Support.from_indices([0, 0], [1, 1], (2, 2)),
            ValueError,
            r"distinct positions, got \(0, 1\) more",
        ),
        (
            lambda: Support.from_indices([0, 0], [1], (2, 2)),
            ValueError,
            "cols: expected as many as rows, 2, got 1",
        ),
        (
            lambda: Support.from_indices([0.5], [1], (2, 2)),
            TypeError,
            "rows: expected integers, got a torch.float32",
        ),
        (
            lambda: Support.from_indices([[0]], [1], (2, 2)),
            ValueError,
            r"rows: expected 1 dimension, .* \(1, 1\)",
        ),
        (
            lambda: Support.from_csr([0, 2], [1, 0], (1, 2)),
            ValueError,
            "col: .* unsorted columns: 1 then 0 in row 0",
        ),
        (
            lambda: Support.from_csr([0, 2], [1, 1], (1, 2)),
            ValueError,
            "col: .* a duplicate: 1 then 1 in row 0",
        ),
        (
            lambda: Support.from_csr([0, 1], [2], (1, 2)),
            ValueError,
            r"col: expected indices in \[0, 1\], got 2",
        ),
        (
            lambda: Support.from_csr([0, 1, 1], [1], (1, 2)),
            ValueError,
            r"crow: expected m \+ 1 = 2 elements, got 3",
        ),
        (
            lambda: Support.from_csr([0, 1], [0, 1], (1, 2)),
            ValueError,
            "crow: expected to go from 0 to nnz = 2",
        ),
        (
            lambda: Support.from_csr([0, 2, 1, 2], [0, 1], (3, 2)),
            ValueError,
            "crow: .* got 2 then 1 at row 1",
        ),
    ],
)
def test_errors_name_argument_expectation_and_what_came(call, error, message):
    with pytest.raises(error, match=message):
        call()


# ---- devices


def test_copies_and_pickles_keep_everything():
    support = Support.random(5, 6, 7, seed=8, per_row=True)
    for twin in (copy.deepcopy(support), pickle.loads(pickle.dumps(support))):
        assert twin == support and (twin.seed, twin.per_row) == (8, True)
        assert torch.equal(twin.index, support.index)
    assert support.to("cpu") is support


def test_a_random_support_survives_the_meta_device_and_an_explicit_one_does_not():
    support = Support.random(50, 60, 70, seed=8, device="meta")
    assert support.index.is_meta and support.nnz == 70 and support.col.shape == (70,)
    assert torch.equal(support.to("cpu").index, Support.random(50, 60, 70, seed=8).index)
    with torch.device("meta"):
        assert Support.random(5, 6, 7).index.is_meta
    explicit = Support.from_indices([0], [1], (2, 2)).to("meta")
    with pytest.raises(RuntimeError, match="explicit support on the meta device"):
        explicit.to("cpu")


def test_repr_says_what_it_is():
    assert (
        repr(Support.random(4, 5, 2, seed=9)) == "Support(4x5, nnz=2, density=10.000%, seed=9, device='cpu')"
    )
    assert "explicit" in repr(Support.from_indices([0], [1], (2, 2)))
    assert "per_row=True" in repr(Support.random(4, 5, 2, per_row=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_same_support_on_a_gpu():
    on_gpu = Support.random(50, 60, 70, seed=8, device="cuda")
    assert on_gpu.index.is_cuda and on_gpu == Support.random(50, 60, 70, seed=8)
    assert Support.from_mask(on_gpu.mask()).index.is_cuda
