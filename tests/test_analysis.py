"""Analysis: the Jacobian's spectrum against dense computation, counts and costs against the formulas."""

import copy
import math

import pytest
import torch
from torch import nn

import dctps_ext
from dctps_ext.analysis import costs, jacobian_singular_values, parameter_counts
from dctps_ext.models import fixup_resnet110, lenet5, mobilenet_v2, resnet18, resnet50, vgg19


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)  # the networks are small: more threads mostly wait for each other


# ---- the Jacobian


def small_network(outputs=12):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(54, outputs),
    )


X = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(1))


def dense_spectrum(model, x):
    """From the Jacobian, formed by torch row by row, in float64."""
    model = copy.deepcopy(model).double()
    jacobian = torch.autograd.functional.jacobian(model, x.double())
    return torch.linalg.svdvals(jacobian.reshape(-1, x.numel()))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("offset", [None, "dct", "none"])
@pytest.mark.parametrize("k", [None, 1, 5, 20])
def test_jacobian_agrees_with_the_dense_one(training, offset, k):
    model = small_network().train(training)
    if offset is not None:
        dctps_ext.convert_(model, 0.2, offset=offset)
    expected = dense_spectrum(model, X)  # 36 values: for k = 1, 5 and 20 the space is built up
    result = jacobian_singular_values(model, X, k)
    assert result.dtype == torch.float64 and len(result) == (k or 36)
    error = (result - expected[: len(result)]).abs().max() / expected[0]
    assert error < (1e-12 if k is None else 1e-6)


def test_more_outputs_than_inputs_and_a_rank_below_k():
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Linear(4, 50), nn.Tanh(), nn.Linear(50, 60))
    x = torch.randn(1, 4)
    torch.testing.assert_close(jacobian_singular_values(wide, x, 2), dense_spectrum(wide, x)[:2])
    torch.testing.assert_close(jacobian_singular_values(wide, x), dense_spectrum(wide, x))
    narrow = nn.Sequential(nn.Linear(40, 2), nn.Linear(2, 30))
    x = torch.randn(1, 40)
    values = jacobian_singular_values(narrow, x, 4)
    torch.testing.assert_close(values[:2], dense_spectrum(narrow, x)[:2])
    assert values[2:].max() < 1e-7 * values[0]


def test_equal_singular_values_are_all_found():
    torch.manual_seed(0)
    rotation = nn.Linear(40, 40, bias=False)
    nn.init.orthogonal_(rotation.weight)
    values = jacobian_singular_values(rotation, torch.randn(1, 40), 8)
    torch.testing.assert_close(values, torch.ones(8).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("exponent", [-50, -100, -280])
@pytest.mark.parametrize("outputs", [8, 40])
def test_values_that_underflow_float32_are_computed(exponent, outputs):
    torch.manual_seed(0)
    linear = [nn.Linear(40, 40, bias=False) for _ in range(20)] + [nn.Linear(40, outputs, bias=False)]
    model = nn.Sequential(*[layer for each in linear for layer in (each, nn.LeakyReLU())]).double()
    with torch.no_grad():
        for layer in linear:
            layer.weight *= 10 ** (exponent / 21)
    x = torch.randn(1, 40, dtype=torch.float64)
    assert model.float()(x.float()).abs().max() < 1e-38  # below float32's normal numbers
    model = model.double()
    values = jacobian_singular_values(model, x, 4)
    assert 10.0 ** (exponent - 15) < values[0] < 10.0 ** (exponent + 10)

    # The same Jacobian with each layer scaled back by a power of 2, and the exponents counted.
    z, product, shift = x[0], torch.eye(40, dtype=torch.float64), 0
    for layer in linear:
        z = layer.weight @ z
        slope = torch.where(z > 0, 1.0, 0.01).double()
        z, product = slope * z, slope[:, None] * (layer.weight @ product)
        e = math.frexp(product.abs().max().item())[1]
        product, shift = torch.ldexp(product, torch.tensor(-e)), shift + e
        z = z / z.abs().max()
    expected = torch.linalg.svdvals(product)[:4]
    scaled = torch.ldexp(values, torch.tensor(-shift // 2))
    scaled = torch.ldexp(scaled, torch.tensor(-shift - (-shift // 2)))  # in two steps: 2^1000 is near the end
    assert (scaled - expected).abs().max() < 1e-6 * expected[0]


def test_below_float64_it_says_so():
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(5, 5, bias=False) for _ in range(4)])
    with torch.no_grad():
        for layer in model:
            layer.weight *= 1e-37
    x = torch.randn(1, 5)
    deeper = nn.Sequential(*model, *copy.deepcopy(model))
    with pytest.raises(FloatingPointError, match="the output of '7' underflows float64"):
        jacobian_singular_values(deeper, x)
    biased = copy.deepcopy(deeper)
    for layer in biased:
        layer.bias = nn.Parameter(torch.ones(5))  # the activations are large, the Jacobian is not
    with pytest.raises(FloatingPointError, match="its Jacobian underflows float64"):
        jacobian_singular_values(biased, x)
    with torch.no_grad():
        model[0].weight[0, 0] = math.inf
    with pytest.raises(FloatingPointError, match="not finite"):
        jacobian_singular_values(model, x)


def test_no_path_is_exactly_zero():
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    dctps_ext.convert_(model, 0.0, offset="none")
    x = torch.randn(2, 6)
    assert jacobian_singular_values(model, x).tolist() == [0.0] * 12

    class Constant(nn.Module):
        def forward(self, x):
            return torch.ones(2, 3)

    values = jacobian_singular_values(Constant(), x)
    assert values.tolist() == [0.0] * 6 and values.dtype == torch.float64


def test_of_resnet50_dctps_does_not_depend_on_density_and_sparse_epl_vanishes():
    """Figure 4 of the paper, one image, ten classes."""
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    spectra = []
    for density in (0.01, 0.0001):
        torch.manual_seed(0)
        net = resnet50().eval()
        dctps_ext.convert_(net, density)
        spectra.append(jacobian_singular_values(net, x))
    assert spectra[0][-1] > 1  # in eval mode batch norm is the identity here, and nothing shrinks
    torch.testing.assert_close(spectra[0], spectra[1], atol=1e-10 * spectra[0][0].item(), rtol=0)

    torch.manual_seed(0)
    sparse = resnet50().eval()
    dctps_ext.convert_(sparse, 0.0001, "epl", offset="none")
    assert jacobian_singular_values(sparse, x).tolist() == [0.0] * 10


def test_the_model_and_the_random_state_stay():
    model = small_network().train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    jacobian_singular_values(model, X, 3)
    assert all(
        torch.equal(old, new) for old, new in zip(before.values(), model.state_dict().values(), strict=True)
    )
    assert model.training and torch.equal(torch.get_rng_state(), state)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    "x, arguments, error, message",
    [
        (X, (0,), ValueError, r"k: expected an integer in \[1, 36\], got 0"),
        (X, (37,), ValueError, "k: expected an integer"),
        (X, (1.5,), TypeError, "k: expected an integer, got float"),
        (X, (1, -1), ValueError, "seed: expected an integer"),
        (X.long(), (), TypeError, "x: expected a floating point tensor, got a torch.int64 tensor"),
        ([1.0], (), TypeError, "x: expected a floating point tensor, got list"),
    ],
)
def test_bad_input_is_named(x, arguments, error, message):
    with pytest.raises(error, match=message):
        jacobian_singular_values(small_network(), x, *arguments)


@pytest.mark.parametrize(
    "of", [lambda m: jacobian_singular_values(m, X), parameter_counts, lambda m: costs(m, X)]
)
def test_what_is_no_model_is_named(of):
    with pytest.raises(TypeError, match="model: expected a torch.nn.Module, got str"):
        of("net")


@pytest.mark.parametrize("x, got", [([1.0], "list"), (X[:0], r"the shape \(0, 2, 8, 8\)")])
def test_costs_names_a_bad_input(x, got):
    with pytest.raises(TypeError, match=f"x: expected a tensor of at least one sample, got {got}"):
        costs(small_network(), x)


# ---- parameters


@pytest.mark.parametrize(
    "build, weights, others, layers",
    [
        (resnet50, 23467712, 53130, 54),
        (vgg19, 20024000, 11018, 17),
        (mobilenet_v2, 2261824, 35098, 58),
        (fixup_resnet110, 1719856, 282, 110),
        (resnet18, 11164352, 9610, 21),
        (lenet5, 61510, 0, 5),
    ],
)
def test_parameter_counts_are_table_2s_before_and_the_allocation_after(build, weights, others, layers):
    net = build()
    counts = parameter_counts(net)
    assert (counts.weights, counts.others, len(counts.layers)) == (weights, others, layers)
    assert counts.nnz == weights and counts.alphas == 0 and counts.density == 1
    expected = dctps_ext.allocate(net, 0.001, "erk")
    dctps_ext.convert_(net, 0.001, "erk")
    counts = parameter_counts(net)
    assert {layer.name: layer.nnz for layer in counts.layers} == expected
    assert (counts.weights, counts.others, counts.alphas) == (weights, others, layers)
    assert counts.nnz == round(0.001 * weights)
    trainable = sum(p.numel() for p in net.parameters())
    assert trainable == counts.nnz + counts.alphas + counts.others


def test_parameter_counts_of_fixed_alpha_frozen_bias_and_its_table():
    model = nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.Linear(4, 2, bias=False))
    dctps_ext.convert_(model, 0.5, alpha_trainable=False, filter_fn=lambda name, _: name == "0")
    model[0].bias.requires_grad_(False)
    counts = parameter_counts(model)
    assert (counts.alphas, counts.others) == (0, 8)
    assert [(x.type, x.nnz) for x in counts.layers] == [("DCTpSLinear", 12), ("Linear", 8)]
    lines = str(counts).splitlines()
    assert lines[2].split() == ["0", "DCTpSLinear", "4", "x", "6", "12", "50.000%"]
    assert lines[-1] == "alphas: 0; biases, norm parameters and others: 8"
    with pytest.raises(ValueError, match="model: expected at least one Linear, Conv2d or DCTpS layer"):
        parameter_counts(nn.ReLU())


# ---- costs


def test_costs_of_lenet5_by_hand():
    net = lenet5()
    x = torch.randn(3, 3, 32, 32)
    dense = costs(net, x)
    assert [layer.applications for layer in dense.layers] == [28 * 28, 10 * 10, 1, 1, 1]
    assert dense.flops() == 2 * (784 * 450 + 100 * 2400 + 48000 + 9840 + 820)
    assert dense.storage() == 61510
    assert dense.bytes == {"values": 4 * 61510, "index": 0, "alpha": 0, "bias": 0}
    dctps_ext.convert_(net, 0.01)
    report = costs(net, x)
    fft = {q: 2 * q * math.log2(q) - q + 2 for q in (75, 150, 400, 120, 82)}
    assert [layer.flops() for layer in report.layers] == [
        round(784 * (246 + 6 + fft[75])),
        round(100 * (246 + 16 + fft[150])),
        round(246 + 120 + fft[400]),
        round(246 + 82 + fft[120]),
        round(246 + 10 + fft[82]),
    ]
    assert (
        report.storage() == 5 * 124 and report.storage("sparse") == 615 and report.storage("dense") == 61510
    )
    assert report.flops("dense") == dense.flops() and report.flops("sparse") == 246 * (784 + 100 + 3)
    assert report.flops() == sum(layer.flops("dctps") for layer in report.layers)
    # A power of 2, by the count of split-radix: 8 numbers, 42 operations.
    plain = nn.Sequential(dctps_ext.DCTpSLinear(8, 8, nnz=3))
    assert costs(plain, torch.randn(5, 8)).flops() == 6 + 8 + 42


def test_costs_bytes_are_those_of_the_conversions_report():
    net = fixup_resnet110()
    converted = dctps_ext.convert_(net, 0.01)
    report = costs(net, torch.randn(1, 3, 32, 32))
    assert sum(report.bytes.values()) == converted.bytes_after
    for layer, other in zip(report.layers, converted.layers, strict=True):
        assert sum(layer.bytes.values()) == other.bytes_after
        assert layer.bytes["values"] == 4 * layer.nnz and layer.bytes["alpha"] == 4
        assert (layer.name, layer.rows, layer.columns, layer.nnz) == (
            other.name,
            other.rows,
            other.columns,
            other.nnz,
        )


def test_costs_of_groups_leading_dimensions_shared_layers_and_plain_sparse():
    shared = nn.Linear(6, 6, bias=False)
    model = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Flatten(2), shared, shared).train()
    dctps_ext.convert_(model, 0.5, filter_fn=lambda name, _: name == "0")
    dctps_ext.convert_(model, 0.5, offset="none")
    report = costs(model, torch.randn(2, 4, 4, 5))  # to 2 x 3 pixels; then 8 rows, twice
    conv, linear = report.layers
    assert (conv.kind, conv.groups, conv.applications, conv.nnz) == ("dctps", 2, 6, 72)
    assert conv.flops() == round(6 * (144 + 8 + 2 * (36 * math.log2(18) - 16)))
    assert (linear.kind, linear.applications, linear.nnz) == ("sparse", 16, 18)
    assert linear.flops() == 16 * 36 and linear.storage() == 18 and linear.flops("dense") == 16 * 72
    assert linear.bytes == {"values": 72, "index": 4 * (7 + 7 + 54), "alpha": 0, "bias": 0}
    assert conv.bytes["bias"] == 32
    assert all(module.training and not module._forward_hooks for module in model.modules())
    with pytest.raises(ValueError, match="kind: expected one of 'dense', 'sparse', 'dctps', got 'fast'"):
        conv.flops("fast")


def test_costs_table():
    net = lenet5()
    dctps_ext.convert_(net, 0.01)
    lines = str(costs(net, torch.randn(1, 3, 32, 32))).splitlines()
    assert lines[2].split()[:8] == ["conv1", "dctps", "6", "x", "75", "784", "450", "124"]
    assert lines[-1].split() == [
        "total",
        "61,510",
        "620",
        "1.303",
        "0.218",
        "1.111",
        "2,460",
        "11,664",
        "20",
        "0",
    ]
    assert len({len(line) for line in lines}) == 1


def test_costs_leave_the_model_as_it_was_also_on_an_error():
    model = small_network().train()
    before = copy.deepcopy(model.state_dict())
    costs(model, X)
    with pytest.raises(RuntimeError):
        costs(model, X[..., :3])
    assert all(
        torch.equal(old, new) for old, new in zip(before.values(), model.state_dict().values(), strict=True)
    )
    assert all(module.training and not module._forward_hooks for module in model.modules())
