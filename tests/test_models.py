"""The paper's networks: their counts, what they compute, their conversion, a step of training."""

import io
import math
import pickle

import pytest
import torch
from torch import nn

import dctps_ext
from dctps_ext.models import fixup_resnet110, lenet5, mobilenet_v2, resnet18, resnet50, vgg19


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)  # batches of 2: more threads mostly wait for each other


def test_lenet5_is_the_papers():
    net = lenet5()
    shapes = [tuple(parameter.shape) for parameter in net.parameters()]
    assert shapes == [(6, 3, 5, 5), (16, 6, 5, 5), (120, 16, 5, 5), (82, 120), (10, 82)]  # and no bias
    assert sum(parameter.numel() for parameter in net.parameters()) == 61510
    assert [name for name, _ in net.named_parameters()] == [
        f"{layer}.weight" for layer in ("conv1", "conv2", "conv3", "fc1", "fc2")
    ]
    kinds = {type(module) for module in net.modules()}
    assert nn.AvgPool2d in kinds and nn.MaxPool2d not in kinds


def test_lenet5_computes_what_its_description_says():
    torch.manual_seed(0)
    net = lenet5(num_classes=7, in_channels=1).double()
    x = torch.randn(3, 1, 32, 32, dtype=torch.float64)
    y = x
    for weight, pooled in ((net.conv1.weight, True), (net.conv2.weight, True), (net.conv3.weight, False)):
        y = nn.functional.conv2d(y, weight).clamp(min=0)
        y = nn.functional.avg_pool2d(y, 2) if pooled else y
    assert y.shape == (3, 120, 1, 1)
    y = (y[:, :, 0, 0] @ net.fc1.weight.T).clamp(min=0) @ net.fc2.weight.T
    torch.testing.assert_close(net(x), y)
    torch.testing.assert_close(net(x[0]), y[0])  # one image without a batch dimension
    # Over 64x64 pixels the third convolution has 9x9 outputs, one for each window of 32x32 at a stride of 4.
    large = torch.randn(2, 1, 64, 64, dtype=torch.float64)
    windows = large.unfold(2, 32, 4).unfold(3, 32, 4).flatten(2, 3)
    features = []
    net.fc1.register_forward_pre_hook(lambda _, arguments: features.append(arguments[0]))
    logits = net(large)
    for i in range(windows.shape[2]):
        net(windows[:, :, i])
    assert logits.shape == (2, 7) and len(features) == 1 + 9 * 9
    torch.testing.assert_close(features[0], torch.stack(features[1:]).mean(0))


@pytest.mark.parametrize("offset", ["dct", "none"])
def test_lenet5_converts_and_trains(offset):
    torch.manual_seed(0)
    net = lenet5(in_channels=1)
    report = dctps_ext.convert_(net, density=0.05, offset=offset)
    assert report.nnz == round(0.05 * report.weights) and report.weights == 61510 - 2 * 6 * 25
    x, target = torch.randn(8, 1, 32, 32), torch.randint(10, (8,))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    before = [parameter.detach().clone() for parameter in net.parameters()]
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(not torch.equal(old, new) for old, new in zip(before, net.parameters(), strict=True))
    # Without the DCT hardly any signal comes through five layers at this density: the paper's point.
    assert losses[-1] < (0.9 if offset == "dct" else 1.0) * losses[0]


# ---- the networks of Table 2

# Price & Tanner, ICML 2021, Table 2, ten classes: prunable weights, biases and norm parameters, layers.
TABLE_2 = {
    resnet50: (23467712, 53130, 54),
    vgg19: (20024000, 11018, 17),
    mobilenet_v2: (2261824, 35098, 58),
    fixup_resnet110: (1719856, 282, 110),
    resnet18: (11164352, 9610, 21),
}
NETWORKS = pytest.mark.parametrize("build", TABLE_2, ids=lambda build: build.__name__)


def layers_of(net, *types):
    return {name: layer for name, layer in net.named_modules() if isinstance(layer, types)}


def images(size=32, count=2, dtype=torch.float32):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0)).to(dtype)


@NETWORKS
def test_table_2(build):
    net = build()
    layers = layers_of(net, nn.Linear, nn.Conv2d)
    weights = sum(layer.weight.numel() for layer in layers.values())
    others = sum(parameter.numel() for parameter in net.parameters()) - weights
    assert (weights, others, len(layers)) == TABLE_2[build]
    # Only the classifier has a bias; it is the last layer, and convert_ takes all layers.
    assert [name for name, layer in layers.items() if layer.bias is not None] == ["fc"] == list(layers)[-1:]
    assert all(type(layer) in (nn.Linear, nn.Conv2d) for layer in layers.values())
    assert net.fc.out_features == 10 and build(num_classes=200).fc.out_features == 200


@NETWORKS
@pytest.mark.parametrize("size", [32, 64])
def test_pixels_go_through_with_the_papers_strides(build, size):
    net = build(num_classes=7).eval()
    shapes = []
    for layer in layers_of(net, nn.Conv2d).values():
        layer.register_forward_hook(lambda module, _, y: shapes.append(y.shape[-1]))
    with torch.no_grad():
        assert net(images(size)).shape == (2, 7)
    down = 4 if build is fixup_resnet110 else 16 if build is vgg19 else 8
    assert shapes[0] == size and shapes[-1] == size // down
    assert set(shapes) == {size // 2**i for i in range(int(math.log2(down)) + 1)}


@NETWORKS
def test_initial_weights(build):
    torch.manual_seed(0)
    net = build()
    for name, layer in layers_of(net, nn.Linear, nn.Conv2d).items():
        m, n = dctps_ext.allocation.matrix_shape(layer)
        if build is not fixup_resnet110:
            variance = 2 / n  # He et al. 2015, fan_in
        elif name == "conv1":
            variance = 1 / (3 * n)  # torch's
        else:
            variance = 2 / (9 * m * 54) if name.endswith("conv1") else 0.0
        # The variance of a sample of mn normal numbers has the relative standard deviation sqrt(2/(mn)).
        error = abs(layer.weight.square().mean().item() - variance)
        assert error <= 5 * variance * math.sqrt(2 / (m * n)), name
    if build is fixup_resnet110:
        assert net.fc.bias.eq(0).all()
        assert {p.item() for p in net.parameters() if p.numel() == 1} == {0.0, 1.0}


def test_fixups_blocks_compute_their_formula():
    torch.manual_seed(0)
    net = fixup_resnet110().double()
    for i in (0, 18):  # the same width; half the pixels and twice the width
        block = net.blocks[i]
        for parameter in block.parameters():
            nn.init.normal_(parameter, std=0.3)
        x = torch.randn(2, 16, 6, 6, dtype=torch.float64)
        stride = 1 if i == 0 else 2
        y = nn.functional.conv2d(x + block.bias1a, block.conv1.weight, stride=stride, padding=1)
        y = nn.functional.conv2d((y + block.bias1b).relu() + block.bias2a, block.conv2.weight, padding=1)
        shortcut = x
        if stride == 2:
            shortcut = torch.zeros(2, 32, 3, 3, dtype=torch.float64)
            shortcut[:, :16] = (x + block.bias1a)[..., ::2, ::2]
        torch.testing.assert_close(block(x), (block.scale * y + block.bias2b + shortcut).relu())


def test_residual_blocks_compute_their_formula():
    torch.manual_seed(0)
    x = torch.randn(2, 64, 6, 6, dtype=torch.float64)
    for net in (resnet18(), resnet50()):
        block = net.stages[0][0].double().eval()  # resnet50's has a projection: 64 to 256 channels
        projected = block.shortcut(x) if len(block.shortcut) else x
        assert (projected is x) == (net.fc.in_features == 512)
        torch.testing.assert_close(block(x), (block.branch(x) + projected).relu())
        assert isinstance(block.branch[-1], nn.BatchNorm2d)  # the ReLU comes after the sum
    blocks = mobilenet_v2().double().eval().blocks
    has_shortcut = [block.shortcut is not None for block in blocks]
    assert has_shortcut.count(False) == 3  # the three blocks of stride 2
    projections = [len(block.shortcut) for block in blocks if block.shortcut is not None]
    assert projections.count(2) == 4 and projections.count(0) == 10
    x = torch.randn(2, 32, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(blocks[0](x), blocks[0].branch(x) + blocks[0].shortcut(x))


# ---- their conversion


class TensorFinder(pickle.Pickler):
    """Meets everything that a network holds, whether it is registered or not; sums the bytes of storages."""

    def __init__(self, net):
        super().__init__(io.BytesIO())
        self.storages = {}
        self.dump(net)

    def persistent_id(self, thing):
        if isinstance(thing, torch.Tensor):
            storage = thing.untyped_storage()
            self.storages[storage.data_ptr()] = storage.nbytes()
            return "tensor"

    @property
    def bytes(self):
        return sum(self.storages.values())


@NETWORKS
@pytest.mark.parametrize("density", [0.05, 0.01, 0.001, 0.0001])
def test_converted_networks_hold_the_budget_only_and_train(build, density):
    torch.manual_seed(0)
    net = build()
    weights, others, count = TABLE_2[build]
    bias_and_norm = {
        name: parameter
        for name, parameter in net.named_parameters()
        if "weight" not in name or parameter.dim() == 1
    }
    report = dctps_ext.convert_(net, density)
    assert (report.weights, len(report.layers), report.skipped) == (weights, count, ())
    assert report.nnz == round(density * weights)

    layers = layers_of(net, dctps_ext.DCTpSLinear, dctps_ext.DCTpSConv2d)
    parameters = dict(net.named_parameters())
    own = {f"{name}.{what}" for name in layers for what in ("values", "alpha")}
    assert parameters.keys() == own | bias_and_norm.keys()
    assert all(parameters[name] is old for name, old in bias_and_norm.items())
    assert sum(parameter.numel() for parameter in parameters.values()) == report.nnz + count + others
    # The index, the running statistics, and nothing else: least of all an m x n matrix.
    index = sum(3 * layer.nnz + layer.rows + layer.columns + 2 for layer in report.layers)
    statistics = sum(2 * 4 * norm.num_features + 8 for norm in layers_of(net, nn.BatchNorm2d).values())
    assert TensorFinder(net).bytes == 4 * (report.nnz + count + others + index) + statistics

    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    x, target = images(), torch.tensor([3, 5])
    # Fixup starts from zeros: the gradient reaches the classifier in the first step, the last convolutions of
    # the blocks in the second, everything in the third.
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0] and all(map(math.isfinite, losses))
    assert all(
        parameter.isfinite().all() and parameter.grad.isfinite().all() for parameter in net.parameters()
    )
    for name, layer in layers.items():
        # A few values may meet only ReLUs that are off for both images.
        assert layer.nnz < 16 or layer.values.grad.any(), name
        # Batch norm undoes any scale, so that alpha has the gradient 0 there while S = 0.
        assert build is not fixup_resnet110 or layer.alpha.grad != 0, name


def test_fixups_alpha_gives_the_rows_of_d_the_norm_of_its_weights():
    torch.manual_seed(0)
    net = fixup_resnet110()
    norms = {name: layer.weight.flatten(1).norm(dim=1) for name, layer in layers_of(net, nn.Conv2d).items()}
    logits = net.double()(images(dtype=torch.float64))
    dctps_ext.convert_(net, 0.001)
    assert torch.equal(net.fc.weight, torch.zeros(10, 64)) and net.fc.alpha == 0
    for name, layer in layers_of(net, dctps_ext.DCTpSConv2d).items():
        rows = layer.weight.flatten(1).norm(dim=1)
        if name.endswith("conv2"):
            assert layer.alpha == 0 and norms[name].eq(0).all()
        else:  # the mean of m norms, each with the relative standard deviation 1/sqrt(2n) for normal weights
            assert rows.max() - rows.min() < 1e-6 * rows.max()
            m, n = layer.support.shape
            assert abs(norms[name].square().mean().sqrt() / rows[0] - 1) < 5 / math.sqrt(2 * m * n), name
    # So the network starts as Fixup does, at the logits 0 and with every block the identity.
    x = images(dtype=torch.float64)
    assert net(x).eq(0).all() and logits.eq(0).all()
    stem = net.relu(net.conv1(x) + net.bias1)
    assert torch.equal(net.blocks[:18](stem), stem)


def test_dctps_alpha_gives_way_to_the_keyword():
    net = fixup_resnet110()
    dctps_ext.convert_(net, 0.001, alpha=0.5)
    assert all(layer.alpha == 0.5 for layer in layers_of(net, dctps_ext.DCTpSConv2d).values())
    plain = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    plain[0].dctps_alpha = 0.25
    dctps_ext.convert_(plain, 0.5)
    assert [layer.alpha.item() for layer in plain] == [0.25, 1.0]
    plain[0].reset_parameters()
    assert plain[0].alpha == 0.25
