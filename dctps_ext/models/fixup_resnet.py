"""Fixup-ResNet-110: a residual network without normalisation, as in the paper's experiments."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_BLOCKS = 18  # in each of three stages: 1 + 3 * 18 * 2 + 1 = 110 layers


class _FixupBlock(nn.Module):
    """relu(scale * conv2(relu(conv1(x + b1a) + b1b) + b2a) + b2b + shortcut(x)); biases, scale are scalars.

    The shortcut is the identity, or, where the stride is 2, every other pixel of x + b1a with as many
    channels of zeros behind it.
    """

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.bias1a = nn.Parameter(torch.zeros(1))
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.bias1b = nn.Parameter(torch.zeros(1))
        self.bias2a = nn.Parameter(torch.zeros(1))
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.scale = nn.Parameter(torch.ones(1))
        self.bias2b = nn.Parameter(torch.zeros(1))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        shifted = x + self.bias1a
        y = self.relu(self.conv1(shifted) + self.bias1b)
        y = self.conv2(y + self.bias2a) * self.scale + self.bias2b
        if self.stride != 1:
            x = shifted[..., :: self.stride, :: self.stride]
            x = F.pad(x, (0, 0, 0, 0, 0, y.shape[1] - x.shape[1]))
        return self.relu(y + x)


class FixupResNet110(nn.Module):
    """Fixup-ResNet-110 of Zhang, Dauphin & Ma, ICLR 2019: three stages of 18 blocks, widths 16, 32 and 64.

    No batch norm; instead scalar biases and multipliers, and an initialisation: 0 for the classifier and the
    last convolution of each block, N(0, 2 / (9 m L)) for the first one, with m output channels and L = 54
    blocks, torch's for the stem. Source: Price & Tanner, ICML 2021, and their code
    (github.com/IlanPrice/DCTpS), which has it from github.com/hongyi-zhang/Fixup.

    For ten classes 1,719,856 weights, 282 biases and multipliers (the paper's Table 2).

    Each layer has the attribute `dctps_alpha`, the alpha with which `convert_` starts it: 0 where Fixup's
    weights are 0, elsewhere the factor that gives the rows of D, whose norm is 1 here, the root mean square
    norm of the rows of Fixup's weights, std * sqrt(n): sqrt(2 C / (m L)) for a first convolution with C input
    channels, sqrt(1/3) for the stem. (The authors' code takes the square root of that factor, and alpha = 1
    for the stem, so that the norms do not agree there.)

    Shape: input (N, 3, H, W), 32x32 for CIFAR, or 64x64; output (N, num_classes), logits.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.conv1.dctps_alpha = math.sqrt(1 / 3)  # torch's U(-1/sqrt(n), 1/sqrt(n)) has the variance 1/(3n)
        self.bias1 = nn.Parameter(torch.zeros(1))
        channels = 16
        self.blocks = nn.Sequential()
        for width in (16, 32, 64):
            for _ in range(_BLOCKS):
                self.blocks.append(_FixupBlock(channels, width, 1 if channels == width else 2))
                channels = width
        self.bias2 = nn.Parameter(torch.zeros(1))
        self.fc = nn.Linear(channels, num_classes)
        self.relu = nn.ReLU()

        for block in self.blocks:
            m, c = block.conv1.weight.shape[:2]
            std = math.sqrt(2 / (9 * m * len(self.blocks)))
            nn.init.normal_(block.conv1.weight, std=std)
            block.conv1.dctps_alpha = std * math.sqrt(9 * c)
            nn.init.zeros_(block.conv2.weight)
            block.conv2.dctps_alpha = 0.0
        nn.init.zeros_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)
        self.fc.dctps_alpha = 0.0

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv1(x) + self.bias1)
        return self.fc(self.blocks(x).mean((2, 3)) + self.bias2)


def fixup_resnet110(num_classes: int = 10) -> FixupResNet110:
    """A `FixupResNet110`."""
    return FixupResNet110(num_classes)
