"""Networks: LeNet-5 of the paper, its shapes, its weight count, its conversion."""

import pytest
import torch
from torch import nn

import dctps_ext
from dctps_ext.models import lenet5


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
