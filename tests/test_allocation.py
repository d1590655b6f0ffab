"""Allocation: exact sums, caps, the formula of each method, determinism, which layers count, errors."""

from fractions import Fraction

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import dctps_ext

METHODS = ["epl", "epf", "uniform", "erk"]
relaxed = settings(deadline=None, max_examples=60)


def linear(m, n):
    return nn.Linear(n, m, device="meta")


@st.composite
def networks(draw):
    layers = []
    for _ in range(draw(st.integers(1, 6))):
        m, n = draw(st.integers(1, 30)), draw(st.integers(1, 30))
        if draw(st.booleans()):
            layers.append(linear(m, n))
        else:
            groups = draw(st.integers(1, 3))
            kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
            layers.append(nn.Conv2d(n * groups, m * groups, kernel, groups=groups, device="meta"))
    return nn.Sequential(*layers)


def sizes(model):
    return {name: layer.weight.numel() for name, layer in model.named_modules() if hasattr(layer, "weight")}


def shares(method, layer):
    """What each method is proportional to, by its definition."""
    shape, size = layer.weight.shape, layer.weight.numel()
    if method == "erk" and isinstance(layer, nn.Conv2d):
        out, per_group, kh, kw = shape
        return Fraction(per_group + out + kh + kw, per_group * out * kh * kw) * size
    if method == "erk":
        return Fraction(sum(shape), size) * size
    return {"epl": 1, "epf": shape[0], "uniform": size}[method]


@relaxed
@given(networks(), st.floats(0, 1), st.sampled_from(METHODS))
def test_counts_sum_to_the_budget_and_fit_and_are_proportional_up_to_rounding(model, density, method):
    counts = dctps_ext.allocate(model, density, method)
    size = sizes(model)
    assert list(counts) == list(size)
    assert sum(counts.values()) == round(density * sum(size.values()))
    assert all(0 <= counts[name] <= size[name] for name in size)
    # There is one rate for all layers but the full ones: count = min(size, rate * share), to within one.
    share = {name: shares(method, layer) for name, layer in model.named_children()}
    open_ = [name for name in size if counts[name] < size[name]]
    rate_low = max((Fraction(counts[name] - 1) / share[name] for name in counts), default=0)
    rate_high = min((Fraction(counts[name] + 1) / share[name] for name in open_), default=None)
    if rate_high is not None:
        assert rate_low < rate_high


@pytest.mark.parametrize(
    "method, expected",
    [
        ("epl", [20, 20, 20]),
        ("epf", [30, 20, 10]),
        ("uniform", [18, 36, 6]),
        ("erk", [20, 34, 6]),
    ],
)
def test_each_method_by_hand(method, expected):
    # Sizes 30x10, 20x30, 10x10: N = 1000; K = 60.
    model = nn.Sequential(linear(30, 10), linear(20, 30), linear(10, 10))
    if method == "erk":  # shares 40, 50, 20 of 110: 21.8, 27.3, 10.9
        expected = [22, 27, 11]
    assert list(dctps_ext.allocate(model, 0.06, method).values()) == expected


def test_surplus_of_a_full_layer_is_shared_again():
    model = nn.Sequential(linear(2, 2), linear(10, 10), linear(10, 10))
    assert list(dctps_ext.allocate(model, 30 / 204, "epl").values()) == [4, 13, 13]
    # Two rounds: the second layer fills up only with the first one's surplus.
    model = nn.Sequential(linear(1, 1), linear(1, 12), linear(10, 10))
    assert list(dctps_ext.allocate(model, 34 / 113, "epl").values()) == [1, 12, 21]


def test_remainders_go_to_the_largest_then_to_the_first():
    model = nn.Sequential(linear(10, 10), linear(10, 10), linear(10, 10))
    assert list(dctps_ext.allocate(model, 5 / 300, "epl").values()) == [2, 2, 1]
    model = nn.Sequential(linear(10, 10), linear(13, 10), linear(11, 10))  # K = 34 of 340, shares 10, 13, 11
    assert list(dctps_ext.allocate(model, 0.1, "epf").values()) == [10, 13, 11]
    # K = 8: 2.35, 3.06, 2.59; the last has the largest remainder.
    assert list(dctps_ext.allocate(model, 8 / 340, "epf").values()) == [2, 3, 3]


def test_erk_of_a_convolution_counts_its_kernel():
    # (64 + 32 + 3 + 3) : (10 + 64)
    model = nn.Sequential(nn.Conv2d(32, 64, 3), nn.Linear(64, 10))
    counts = dctps_ext.allocate(model, 0.01, "erk")
    k = round(0.01 * (64 * 32 * 9 + 640))
    assert counts == {"0": round(k * 102 / 176), "1": round(k * 74 / 176)}


@relaxed
@given(networks(), st.sampled_from(METHODS))
def test_the_ends(model, method):
    assert set(dctps_ext.allocate(model, 0, method).values()) == {0}
    assert dctps_ext.allocate(model, 1, method) == sizes(model)


@relaxed
@given(networks(), st.floats(0, 1), st.floats(0, 1), st.sampled_from(METHODS))
def test_rate_grows_with_density(model, low, high, method):
    assume(low <= high)
    few, many = (dctps_ext.allocate(model, density, method) for density in (low, high))
    # Rounding may move single nonzeros between layers, no more.
    assert all(few[name] <= many[name] + 1 for name in few)


def test_lenet5_of_the_paper():
    counts = dctps_ext.allocate(dctps_ext.models.lenet5(), 0.01)
    assert counts == {"conv1": 123, "conv2": 123, "conv3": 123, "fc1": 123, "fc2": 123}


class Subclass(nn.Linear):
    pass


def test_which_layers_count():
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict(
        {
            "a": nn.Linear(6, 5, bias=True),
            "norm": nn.BatchNorm1d(5),
            "deep": nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), shared),
            "sub": Subclass(3, 3),
            "again": shared,
            "conv1d": nn.Conv1d(2, 2, 3),
        }
    )
    counts = dctps_ext.allocate(model, 0.5, "uniform")
    assert counts == {"a": 15, "deep.0": 36, "deep.2": 8}
    only = dctps_ext.allocate(
        model, 0.5, "uniform", lambda name, layer: isinstance(layer, nn.Linear) and name != "a"
    )
    assert only == {"deep.2": 8}
    assert dctps_ext.allocate(nn.Linear(4, 5), 0.5) == {"": 10}


@pytest.mark.parametrize("method", METHODS)
def test_a_converted_network_has_the_allocation_of_the_original(method):
    model = dctps_ext.models.lenet5()
    before = dctps_ext.allocate(model, 0.02, method)
    dctps_ext.convert_(model, 0.02, method)
    assert dctps_ext.allocate(model, 0.02, method) == before
    assert {name: layer.nnz for name, layer in model.named_children() if hasattr(layer, "nnz")} == before


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ((1.5,), ValueError, r"density: expected a number in \[0, 1\] .*, got 1.5"),
        ((-0.1,), ValueError, r"density: .* got -0.1"),
        ((float("nan"),), ValueError, "density: .* got nan"),
        (("much",), TypeError, "density: expected a number .* got str"),
        ((0.1, "er"), ValueError, "method: expected one of 'epl', 'epf', 'uniform', 'erk', got 'er'"),
        (
            (0.1, "epl", lambda name, layer: False),
            ValueError,
            "model: expected at least one Linear or Conv2d",
        ),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        dctps_ext.allocate(nn.Sequential(nn.Linear(3, 3)), *arguments)


def test_nothing_depends_on_the_random_state():
    model = dctps_ext.models.lenet5()
    state = torch.get_rng_state()
    for method in METHODS:
        assert dctps_ext.allocate(model, 0.013, method) == dctps_ext.allocate(model, 0.013, method)
    assert torch.equal(torch.get_rng_state(), state)
