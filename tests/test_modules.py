"""DCTpSLinear and DCTpSConv2d: torch.nn's behaviour, the dense twin, state, devices, error messages."""

import copy
import io
import pickle

import pytest
import safetensors.torch
import torch
import torch.nn.utils.prune
from torch import nn

import dctps_ext
from dctps_ext import DCTpSConv2d, DCTpSLinear, Support, reference

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}


def linear(**keywords):
    return DCTpSLinear(12, 7, **{"nnz": 20, "seed": 3, **keywords})


def conv(**keywords):
    return DCTpSConv2d(4, 6, (3, 2), **{"nnz": 20, "seed": 3, "groups": 2, **keywords})


BOTH = pytest.mark.parametrize("make", [linear, conv])


def explicit(make, count=20):
    """An explicit support of the shape that `make` needs."""
    m, n = make().support.shape
    return Support.from_mask(Support.random(m, n, count, seed=99).mask())


def randomize(layer, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer


def sample(layer, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shape = (5, 12) if isinstance(layer, DCTpSLinear) else (2, 4, 7, 8)
    return torch.randn(shape, generator=generator).to(layer.values.dtype)


def close(a, b, dtype=torch.float32):
    assert a.dtype == b.dtype and a.shape == b.shape
    if b.numel():
        a, b = a.detach().double(), b.detach().double()
        assert float((a - b).abs().max()) <= TOLERANCE[dtype] * max(1.0, float(b.abs().max()))


# ---- the dense twin, forward, backward


@BOTH
def test_tensors_that_torch_moved_elsewhere(make):
    """The forward pass finds its tensors also where parametrize and prune moved one."""

    class Doubled(nn.Module):
        def forward(self, alpha):
            return 2 * alpha

    layer = randomize(make())
    x, before = sample(layer), layer(sample(layer))
    doubled = copy.deepcopy(layer)
    nn.utils.parametrize.register_parametrization(doubled, "alpha", Doubled())
    with torch.no_grad():
        layer.alpha *= 2
    close(doubled(x), layer(x))
    assert not torch.equal(layer(x), before)

    nn.utils.prune.random_unstructured(layer, "values", amount=5)
    with torch.no_grad():
        expected = copy.deepcopy(layer.to_dense())(x)
    close(layer(x), expected)
    layer(x).sum().backward()
    assert layer.values_orig.grad.count_nonzero() == layer.nnz - 5


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("keywords", [{}, {"bias": False}, {"offset": "none"}, {"alpha_trainable": False}])
@BOTH
def test_output_and_gradients_are_the_dense_twins(make, keywords, dtype):
    layer = randomize(make(dtype=dtype, **keywords))
    dense = layer.to_dense().double()
    x = sample(layer).requires_grad_()
    dense_x = x.detach().double().requires_grad_()
    y, dense_y = layer(x), dense(dense_x)
    close(y, dense_y.to(dtype), dtype)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    y.backward(dy)
    dense_y.backward(dy.double())
    close(x.grad, dense_x.grad.to(dtype), dtype)
    # The chain rule through weight = alpha D + S gives what the layer's parameters get.
    weight_gradients = torch.autograd.grad(
        layer.weight.double(),
        [p for p in (layer.values, layer.alpha) if p is not None and p.requires_grad],
        dense.weight.grad,
    )
    close(layer.values.grad, weight_gradients[0], dtype)
    if isinstance(layer.alpha, nn.Parameter):
        close(layer.alpha.grad, weight_gradients[1], dtype)
    if layer.bias is not None:
        close(layer.bias.grad, dense.bias.grad.to(dtype), dtype)


@pytest.mark.parametrize("shape", [(12,), (0, 12), (2, 3, 4, 12), (3, 0, 12)])
def test_linear_takes_any_leading_dimensions(shape):
    layer = randomize(linear())
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    close(layer(x), layer.to_dense()(x))


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 3},
        {"kernel_size": (3, 2), "padding": "same"},
        {"kernel_size": (2, 4), "padding": "same", "dilation": (1, 2), "groups": 4},
        {"kernel_size": (2, 3), "padding": "valid", "stride": (2, 1)},
        {"kernel_size": (3, 2), "stride": 2, "padding": (2, 1), "dilation": (2, 1), "groups": 2},
        {"kernel_size": 1, "stride": (1, 3)},
    ],
)
def test_conv2d_has_torchs_geometry(settings, padding_mode):
    layer = randomize(DCTpSConv2d(4, 8, **settings, padding_mode=padding_mode, density=0.3))
    dense = nn.Conv2d(4, 8, **settings, padding_mode=padding_mode)
    assert dense.weight.shape == layer.weight.shape
    with torch.no_grad():
        dense.weight.copy_(layer.weight)
        dense.bias.copy_(layer.bias)
    for name in (
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "groups",
        "padding_mode",
        "in_channels",
        "out_channels",
    ):
        assert getattr(layer, name) == getattr(dense, name)
        assert getattr(layer.to_dense(), name) == getattr(dense, name)
    x = sample(conv())
    close(layer(x), dense(x))
    close(layer(x[0]), dense(x[0]))  # unbatched
    close(layer(x[:0]), dense(x[:0]))
    x = x.to(memory_format=torch.channels_last)
    close(layer(x), dense(x))


@BOTH
def test_weight_is_alpha_d_plus_s_and_differentiable(make):
    layer = randomize(make(dtype=torch.float64))
    matrix = reference.dense_weight(layer.values, layer.support, layer.alpha)
    weight = layer.weight
    assert weight.is_contiguous()
    assert torch.equal(layer._to_matrix(weight), matrix)
    if isinstance(layer, DCTpSConv2d):
        assert weight.shape == (6, 2, 3, 2)
        assert weight[5, 1, 2, 0] == matrix[5, (2 * 2 + 0) * 2 + 1]
    weight.sum().backward()
    assert torch.equal(layer.values.grad, torch.ones(20, dtype=torch.float64))
    torch.testing.assert_close(layer.alpha.grad, reference.dct_matrix(*layer.support.shape).sum())


@BOTH
def test_weight_cannot_be_set(make):
    layer = make()
    for value in (torch.zeros(7, 12), nn.Parameter(torch.zeros(7, 12)), None):
        with pytest.raises(AttributeError, match="weight of DCTpS.* is read-only.*values.*alpha.*to_dense"):
            layer.weight = value
    assert "weight" not in dict(layer.named_parameters())


@BOTH
def test_to_dense_keeps_mode_dtype_and_requires_grad_and_copies(make):
    layer = randomize(make(dtype=torch.float64)).eval()
    layer.values.requires_grad_(False)
    dense = layer.to_dense()
    assert type(dense) in (nn.Linear, nn.Conv2d)
    assert not dense.training and dense.weight.dtype == torch.float64
    assert not dense.weight.requires_grad and dense.bias.requires_grad and dense.weight.is_leaf
    assert torch.equal(dense.weight, layer.weight) and torch.equal(dense.bias, layer.bias)
    with torch.no_grad():
        dense.bias.zero_()
    assert layer.bias.abs().sum() > 0
    assert make(bias=False).to_dense().bias is None
    assert make(device="meta").to_dense().weight.is_meta


# ---- construction and initialisation


@BOTH
def test_parameters_buffers_and_properties(make):
    layer = make()
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == {
        "values": (20,),
        "alpha": (),
        "bias": (layer.support.shape[0],),
    }
    assert [(name, buffer.dtype) for name, buffer in layer.named_buffers()] == [
        ("support_index", torch.int32)
    ]
    assert layer.support_index is layer.support.index
    m, n = layer.support.shape
    assert layer.nnz == 20 and layer.density == 20 / (m * n)
    assert layer.support == Support.random(m, n, 20, seed=3) and layer.support.seed == 3
    assert make(bias=False).bias is None
    fixed = make(alpha_trainable=False, alpha=0.25)
    assert not isinstance(fixed.alpha, nn.Parameter) and fixed.alpha == 0.25
    assert "alpha" in dict(fixed.named_buffers()) and "alpha" in fixed.state_dict()
    plain = make(offset="none")
    assert plain.alpha is None and "alpha" not in plain.state_dict()


def test_density_defaults_to_one_percent_and_is_rounded():
    assert DCTpSLinear(100, 50).nnz == 50
    assert DCTpSLinear(100, 50, density=0.5).nnz == 2500
    assert DCTpSLinear(3, 5, density=0.25).nnz == 4
    assert DCTpSConv2d(4, 6, 3, groups=2, density=0.5).nnz == 54
    for density, nnz in ((0, 0), (1, 15)):
        layer = randomize(DCTpSLinear(3, 5, density=density))
        assert layer.nnz == nnz
        x = torch.ones(2, 3)
        close(layer(x), layer.to_dense()(x))


@BOTH
def test_a_support_can_be_given(make):
    for support in (explicit(make), Support.random(*make().support.shape, 11, seed=5, per_row=True)):
        layer = randomize(make(nnz=None, support=support))
        assert layer.support == support and layer.nnz == support.nnz
        assert (layer.support.seed, layer.support.per_row) == (support.seed, support.per_row)
        x = sample(layer)
        close(layer(x), layer.to_dense()(x))


@BOTH
def test_initialisation_is_the_papers_with_torchs_bias(make):
    torch.manual_seed(0)
    layer = make(alpha=0.5)
    n = layer.support.shape[1]
    assert torch.equal(layer.values, torch.zeros(20)) and layer.alpha == 0.5
    assert 0 < layer.bias.abs().max() <= n**-0.5
    close(layer.weight, 0.5 * make(alpha=1.0).weight)
    randomize(layer)
    torch.manual_seed(0)
    layer.reset_parameters()
    torch.manual_seed(0)
    fresh = make(alpha=0.5)
    for a, b in zip(layer.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(a, b)
    torch.manual_seed(0)
    plain = make(offset="none", nnz=40)
    assert 0.8 * n**-0.5 < plain.values.abs().max() <= n**-0.5 and plain.values.unique().numel() > 30


def test_nothing_but_the_bias_is_drawn():
    torch.manual_seed(0)
    bias = DCTpSLinear(12, 7).bias
    torch.manual_seed(0)
    assert torch.equal(bias, nn.init.uniform_(torch.empty(7), -(12**-0.5), 12**-0.5))


def test_extra_repr():
    assert repr(linear()) == (
        "DCTpSLinear(in_features=12, out_features=7, bias=True, nnz=20, density=23.810%, offset='dct', "
        "seed=3)"
    )
    assert repr(
        DCTpSConv2d(4, 8, 3, padding=1, dilation=2, groups=2, bias=False, padding_mode="reflect")
    ) == (
        "DCTpSConv2d(4, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(2, 2), groups=2, "
        "bias=False, padding_mode=reflect, nnz=1, density=0.694%, offset='dct', seed=0)"
    )
    assert "seed" not in repr(linear(nnz=None, support=explicit(linear), offset="none"))


def test_positional_arguments_are_torchs():
    layer = DCTpSConv2d(4, 8, 3, 2, 1, 2, 2, False, "circular")
    dense = nn.Conv2d(4, 8, 3, 2, 1, 2, 2, False, "circular")
    assert (layer.stride, layer.padding, layer.dilation, layer.groups, layer.bias, layer.padding_mode) == (
        dense.stride,
        dense.padding,
        dense.dilation,
        dense.groups,
        dense.bias,
        dense.padding_mode,
    )
    assert DCTpSLinear(3, 4, False).bias is None


SUPPORT = Support.random(7, 12, 5)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: DCTpSLinear(12, 7, density=0.1, nnz=3), ValueError, "at most one .* got density and nnz"),
        (
            lambda: DCTpSLinear(12, 7, support=SUPPORT, nnz=5),
            ValueError,
            "at most one .* got nnz and support",
        ),
        (
            lambda: DCTpSLinear(12, 7, density=1.1),
            ValueError,
            r"density: expected a number in \[0, 1\] .*, got 1.1",
        ),
        (lambda: DCTpSLinear(12, 7, nnz=85), ValueError, r"nnz: expected an integer in \[0, 84\], got 85"),
        (lambda: DCTpSLinear(12, 7, nnz=1.5), TypeError, "nnz: expected an integer, got float"),
        (
            lambda: DCTpSLinear(7, 12, support=SUPPORT),
            ValueError,
            r"support: expected shape \(12, 7\), got \(7, 12\)",
        ),
        (
            lambda: DCTpSLinear(12, 7, support="x"),
            TypeError,
            "support: expected a dctps_ext.Support, got str",
        ),
        (lambda: DCTpSLinear(0, 7), ValueError, "in_features: expected .* got 0"),
        (lambda: DCTpSLinear(12, -7), ValueError, "out_features: expected .* got -7"),
        (lambda: DCTpSLinear(12, 7, offset="fft"), ValueError, "offset: expected 'dct' or 'none', got 'fft'"),
        (lambda: DCTpSLinear(12, 7, seed=-1), ValueError, "seed: expected .* got -1"),
        (lambda: DCTpSLinear(12, 7, alpha="big"), TypeError, "alpha: expected a number, got str"),
        (
            lambda: DCTpSLinear(12, 7, dtype=torch.int32),
            TypeError,
            "dtype: expected one of .* got torch.int32",
        ),
        (
            lambda: DCTpSLinear(12, 7, dtype=torch.complex64),
            TypeError,
            "dtype: expected one of .* got torch.complex64",
        ),
        (lambda: DCTpSConv2d(4, 6, 3, groups=0), ValueError, "groups: expected .* got 0"),
        (
            lambda: DCTpSConv2d(4, 6, 3, groups=3),
            ValueError,
            "in_channels: expected a multiple of groups = 3, got 4",
        ),
        (
            lambda: DCTpSConv2d(4, 6, 3, groups=4),
            ValueError,
            "out_channels: expected a multiple of groups = 4, got 6",
        ),
        (lambda: DCTpSConv2d(4, 6, 0), ValueError, "kernel_size: expected .* got 0"),
        (
            lambda: DCTpSConv2d(4, 6, (1, 2, 3)),
            ValueError,
            r"kernel_size: expected an int or a pair, got \(1, 2, 3\)",
        ),
        (lambda: DCTpSConv2d(4, 6, 3, stride=0), ValueError, "stride: expected .* got 0"),
        (lambda: DCTpSConv2d(4, 6, 3, dilation=0), ValueError, "dilation: expected .* got 0"),
        (lambda: DCTpSConv2d(4, 6, 3, padding=-1), ValueError, "padding: expected .* got -1"),
        (
            lambda: DCTpSConv2d(4, 6, 3, padding="full"),
            ValueError,
            "padding: expected .* 'same' or 'valid', got 'full'",
        ),
        (
            lambda: DCTpSConv2d(4, 6, 3, 2, padding="same"),
            ValueError,
            r"padding: 'same' needs stride 1, got .*\(2, 2\)",
        ),
        (
            lambda: DCTpSConv2d(4, 6, 3, padding_mode="x"),
            ValueError,
            "padding_mode: expected one of 'zeros', .* got 'x'",
        ),
    ],
)
def test_construction_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


@BOTH
def test_wrong_input_is_an_error(make):
    layer = make()
    x = sample(layer)
    with pytest.raises((ValueError, RuntimeError)):
        layer(x[..., :5, :-1] if isinstance(layer, DCTpSLinear) else x[:, :3])
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        layer(x.double())


# ---- state


@BOTH
def test_a_random_support_is_saved_as_its_seed(make):
    state = make().state_dict()
    assert set(state) == {"values", "alpha", "bias", "weight_shape", "support_seed"}
    assert state["support_seed"].dtype == torch.int64 and state["support_seed"].tolist() == [3, 20, 0]
    assert tuple(state["weight_shape"]) == make().weight.shape


@BOTH
def test_an_explicit_support_is_saved_as_its_indices(make):
    support = explicit(make)
    state = make(nnz=None, support=support).state_dict()
    assert set(state) == {"values", "alpha", "bias", "weight_shape", "support_crow", "support_col"}
    assert state["support_crow"].dtype == state["support_col"].dtype == torch.int32
    assert torch.equal(state["support_crow"], support.crow) and torch.equal(state["support_col"], support.col)


def kinds(make):
    """Layers with a random, a random per-row and an explicit support."""
    m, n = make().support.shape
    return [
        make(seed=7),
        make(nnz=None, support=Support.random(m, n, 20, seed=7, per_row=True)),
        make(nnz=None, support=explicit(make)),
    ]


def roundtrip_torch(state, tmp_path):
    torch.save(state, tmp_path / "state.pt")
    return torch.load(tmp_path / "state.pt", weights_only=True)


def roundtrip_safetensors(state, tmp_path):
    safetensors.torch.save_file(state, tmp_path / "state.safetensors")
    return safetensors.torch.load_file(tmp_path / "state.safetensors")


@pytest.mark.parametrize("roundtrip", [lambda state, path: state, roundtrip_torch, roundtrip_safetensors])
@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("source", range(3))
@pytest.mark.parametrize("target", range(3))
@BOTH
def test_any_kind_of_support_loads_into_any_other(make, source, target, assign, roundtrip, tmp_path):
    source = randomize(kinds(make)[source])
    target = nn.Sequential(randomize(kinds(make)[target], seed=5))
    state = roundtrip(nn.Sequential(source).state_dict(), tmp_path)
    result = target.load_state_dict(state, assign=assign)
    assert not result.missing_keys and not result.unexpected_keys
    target = target[0]
    assert target.support == source.support and torch.equal(target.support.index, source.support.index)
    assert (target.support.seed, target.support.per_row) == (source.support.seed, source.support.per_row)
    assert target.support_index is target.support.index
    x = sample(source)
    assert torch.equal(target(x), source(x))
    assert list(target.state_dict()) == list(source.state_dict())


@BOTH
def test_alpha_loads_between_parameter_and_buffer(make):
    trained, fixed = randomize(make()), make(alpha_trainable=False)
    fixed.load_state_dict(trained.state_dict())
    assert fixed.alpha == trained.alpha and not isinstance(fixed.alpha, nn.Parameter)


def snapshot(layer):
    return copy.deepcopy(layer.state_dict()), layer.support


def same_as(layer, before):
    state, support = before
    assert layer.support == support and layer.support_index is layer.support.index
    assert list(layer.state_dict()) == list(state)
    return [name for name, value in layer.state_dict().items() if not torch.equal(value, state[name])]


@BOTH
def test_another_nnz_is_a_size_mismatch_and_leaves_values_and_support(make):
    layer = make()
    before = snapshot(layer)
    for other in (make(nnz=21, seed=8), make(nnz=None, support=explicit(make, 21))):
        message = r"size mismatch for values: .* torch.Size\(\[21\]\) from checkpoint.* torch.Size\(\[20\]\)"
        with pytest.raises(RuntimeError, match=message):
            layer.load_state_dict(randomize(other).state_dict())
        assert set(same_as(layer, before)) <= {"alpha", "bias"}  # as torch, which loads what fits


@BOTH
def test_bad_supports_in_a_state_dict_are_named_and_change_nothing(make):
    layer = make()
    other = randomize(make(nnz=None, support=explicit(make)))
    before = snapshot(layer)

    def broken(**entries):
        state = {**other.state_dict(), **entries}
        return {name: value for name, value in state.items() if value is not None}

    no_indices = {"support_crow": None, "support_col": None}
    col = other.support.col.clone()
    col[0] = -1
    crow = other.support.crow
    cases = [
        ({"support_col": col}, r"support_crow: col: expected indices in .* got -1"),
        ({"support_crow": crow.flip(0)}, "support_crow: crow: expected to go from 0"),
        ({"support_crow": crow[:-1]}, "support_crow: crow: expected m . 1 = .* elements"),
        ({**no_indices, "support_seed": torch.zeros(3)}, "support_seed: expected a 1-D int64 tensor"),
        ({**no_indices, "support_seed": [1, 20, 0]}, "support_seed: expected a 1-D int64 tensor"),
        ({**no_indices, "support_seed": torch.tensor([1, 20])}, "support_seed: expected 3 elements"),
        ({**no_indices, "support_seed": torch.tensor([-1, 20, 0])}, "seed: expected an integer"),
        (
            {**no_indices, "support_seed": torch.tensor([1, 19, 0])},
            "size mismatch: nnz is 19 in the checkpoint, 20",
        ),
        (
            {"weight_shape": torch.tensor([7, 13])},
            r"size mismatch for weight_shape: .* \(7, 13\) in the checkpoint",
        ),
    ]
    for entries, message in cases:
        with pytest.raises(RuntimeError, match=message):
            layer.load_state_dict(broken(**entries))
        assert set(same_as(layer, before)) <= {"alpha", "bias"}
        with torch.no_grad():
            layer.load_state_dict(before[0])


def test_equal_numbers_of_values_do_not_hide_another_shape():
    for source, target in (
        (DCTpSLinear(12, 7, False, nnz=20), DCTpSLinear(7, 12, False, nnz=20)),
        (DCTpSConv2d(4, 6, (2, 3), nnz=20), DCTpSConv2d(4, 6, (3, 2), nnz=20)),
    ):
        with pytest.raises(RuntimeError, match="size mismatch for weight_shape"):
            target.load_state_dict(source.state_dict())


@BOTH
def test_strict_loading_reports_keys_with_their_prefix(make):
    net = nn.Sequential(make())
    state = net.state_dict()
    del state["0.support_seed"]
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "0.support_seed"'):
        net.load_state_dict(state)
    assert net.load_state_dict(state, strict=False).missing_keys == ["0.support_seed"]

    explicit_state = nn.Sequential(make(nnz=None, support=explicit(make))).state_dict()
    del explicit_state["0.support_col"]
    before = snapshot(net[0])
    assert net.load_state_dict(explicit_state, strict=False).missing_keys == ["0.support_col"]
    assert net[0].support == before[1]

    state = {
        **net.state_dict(),
        "0.support_crow": torch.zeros(8, dtype=torch.int32),
        "0.nonsense": torch.zeros(1),
    }
    with pytest.raises(
        RuntimeError, match=r'Unexpected key\(s\) in state_dict: "0.nonsense", "0.support_crow"'
    ):
        net.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r'Missing key\(s\).*"0.values"'):
        net.load_state_dict({})
    dense_state = nn.Sequential(make().to_dense()).state_dict()
    with pytest.raises(RuntimeError, match='(?s)Missing.*"0.values".*Unexpected.*"0.weight"'):
        nn.Sequential(make()).load_state_dict({k: v for k, v in dense_state.items() if "weight" in k})


# ---- copies, dtypes, devices


@BOTH
def test_copies_and_pickles_are_whole_and_independent(make):
    for layer in map(randomize, kinds(make)):
        x = sample(layer)
        buffer = io.BytesIO()
        torch.save(layer, buffer)
        buffer.seek(0)
        for twin in (
            copy.deepcopy(layer),
            pickle.loads(pickle.dumps(layer)),
            torch.load(buffer, weights_only=False),
        ):
            assert torch.equal(twin(x), layer(x))
            assert twin.support == layer.support and twin.support_index is twin.support.index
            assert twin.support_index.data_ptr() != layer.support_index.data_ptr()
            assert twin.support.seed == layer.support.seed


@BOTH
def test_dtype_conversions_leave_the_index_alone(make):
    layer = randomize(make())
    index = layer.support_index.clone()
    for convert in (
        lambda x: x.double(),
        lambda x: x.half(),
        lambda x: x.to(torch.bfloat16),
        lambda x: x.type(torch.float64),
    ):
        layer = convert(layer)
        assert layer.values.dtype == layer.alpha.dtype == layer.bias.dtype == layer.weight.dtype
        assert layer.support_index.dtype == torch.int32 and torch.equal(layer.support_index, index)
    assert layer.values.dtype == torch.float64
    x = sample(layer)
    close(layer(x), layer.to_dense()(x), torch.float64)


@BOTH
def test_meta_device_to_empty_and_reset(make):
    with torch.device("meta"):
        layer = nn.Sequential(make(offset="dct"))
    assert all(tensor.is_meta for tensor in [*layer.parameters(), *layer.buffers()])
    layer.to_empty(device="cpu")
    layer = layer[0]
    layer.reset_parameters()
    assert (
        torch.equal(layer.support_index, make().support_index) and layer.support_index is layer.support.index
    )
    x = sample(layer)
    close(layer(x), layer.to_dense()(x))
    # to_empty() of a layer that is on a real device must not leave arbitrary indices either.
    layer.to_empty(device="cpu")
    assert torch.equal(layer.support_index, make().support_index)


@BOTH
def test_a_meta_layer_loads_with_assign(make):
    for source in map(randomize, kinds(make)):
        layer = make(device="meta")
        layer.load_state_dict(source.state_dict(), assign=True)
        assert not layer.support_index.is_meta and layer.support == source.support
        x = sample(source)
        assert torch.equal(layer(x), source(x))


@BOTH
def test_an_explicit_support_lost_on_the_meta_device_is_an_error_until_loaded(make):
    source = randomize(make(nnz=None, support=explicit(make)))
    layer = copy.deepcopy(source).to("meta").to_empty(device="cpu")
    with pytest.raises(RuntimeError, match="explicit support was lost on the meta device; load a state dict"):
        layer.reset_parameters()
    layer.load_state_dict(source.state_dict())
    assert layer.support == source.support
    layer.reset_parameters()


@BOTH
def test_a_moved_buffer_is_what_the_support_uses(make):
    # Wrappers (DataParallel, FSDP) put their own tensors into _buffers.
    layer = make()
    seed = layer.support.seed
    layer._buffers["support_index"] = layer.support_index.clone()
    assert layer.support.index is layer.support_index and layer.support.seed == seed


@BOTH
def test_optimizers_hooks_and_functional_call_work(make):
    layer = randomize(make())
    x = sample(layer)
    y = torch.func.functional_call(layer, dict(layer.named_parameters()), (x,))
    assert torch.equal(y, layer(x))
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    before = layer(x).detach()
    layer(x).square().sum().backward()
    optimizer.step()
    assert layer(x).square().sum() < before.square().sum()


@BOTH
def test_layers_compile_export_and_autocast(make):
    layer = randomize(make())
    x = sample(layer)
    y = layer(x)
    assert torch.equal(torch.compile(layer, backend="aot_eager", fullgraph=True)(x), y)
    assert torch.equal(torch.export.export(layer, (x,)).module()(x), y)
    with torch.autocast("cpu", torch.bfloat16):
        low = layer(x)
    close(low, layer.to(torch.bfloat16)(x.to(torch.bfloat16)), torch.bfloat16)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@BOTH
def test_everything_travels_to_a_gpu_and_back(make):
    for layer in kinds(make):
        index = layer.support_index.clone()
        layer.cuda()
        assert all(tensor.is_cuda for tensor in [*layer.parameters(), *layer.buffers()])
        assert layer.state_dict().get("support_seed", torch.zeros(1)).device.type == "cpu"
        layer.load_state_dict(layer.state_dict())
        assert layer.support.index.is_cuda
        assert torch.equal(layer.cpu().support_index, index)


def test_the_package_exports_the_layers():
    assert dctps_ext.DCTpSLinear is DCTpSLinear and dctps_ext.DCTpSConv2d is DCTpSConv2d
