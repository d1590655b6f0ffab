"""MobileNetV2 with the strides for small images, as in the paper's experiments."""

from torch import Tensor, nn

from ._init import kaiming_

# expansion, output channels, blocks, stride of the first of them
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def _conv(channels: int, out: int, kernel_size: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(channels, out, kernel_size, stride, padding=kernel_size // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(out)]


class _InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, 1x1 projection without ReLU; with stride 1, plus a shortcut.

    The shortcut is the identity, or where the number of channels changes a 1x1 convolution with batch norm.
    """

    def __init__(self, channels: int, out: int, expansion: int, stride: int) -> None:
        super().__init__()
        width = expansion * channels
        self.branch = nn.Sequential(
            *_conv(channels, width),
            nn.ReLU(),
            *_conv(width, width, 3, stride, groups=width),
            nn.ReLU(),
            *_conv(width, out),
        )
        self.shortcut = None
        if stride == 1:
            self.shortcut = nn.Sequential(*(_conv(channels, out) if channels != out else []))

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        return y if self.shortcut is None else y + self.shortcut(x)


class MobileNetV2(nn.Module):
    """MobileNetV2 of Sandler et al., CVPR 2018, downsampling three times: by 8 in all.

    Against the original, the stem and the second stage have stride 1, a stage whose width changes at stride 1
    has a convolution in its shortcut, activations are ReLU and not ReLU6, there is no dropout, and the first
    block keeps its (1x1) expansion. Source: Price & Tanner, ICML 2021, and their code
    (github.com/IlanPrice/DCTpS), which has it from github.com/kuangliu/pytorch-cifar.

    For ten classes 2,261,824 weights, 35,098 biases and norm parameters (the paper's Table 2).

    Shape: input (N, 3, H, W), 32x32 for CIFAR. That code pools 4x4 pixels at the end, which is the mean at
    32x32; the mean over all pixels here takes 64x64 too. Output (N, num_classes), logits.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv(3, 32, 3), nn.ReLU())
        channels = 32
        self.blocks = nn.Sequential()
        for expansion, out, count, stride in _STAGES:
            for i in range(count):
                self.blocks.append(_InvertedResidual(channels, out, expansion, stride if i == 0 else 1))
                channels = out
        self.head = nn.Sequential(*_conv(channels, 1280), nn.ReLU())
        self.fc = nn.Linear(1280, num_classes)
        kaiming_(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.head(self.blocks(self.stem(x))).mean((2, 3)))


def mobilenet_v2(num_classes: int = 10) -> MobileNetV2:
    """A `MobileNetV2`."""
    return MobileNetV2(num_classes)
