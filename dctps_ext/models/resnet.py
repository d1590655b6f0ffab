"""ResNet-18 and ResNet-50 with the stem for small images, as in the paper's experiments."""

from torch import Tensor, nn

from ._init import kaiming_


class _Block(nn.Module):
    """relu(branch(x) + shortcut(x)): the branch a chain of convolutions with batch norm, ReLU in between.

    The shortcut is the identity, or where shapes differ a 1x1 convolution with batch norm.

    Args:
        kernels: for each convolution (kernel size, output channels, stride).
    """

    def __init__(self, channels: int, kernels: list[tuple[int, int, int]]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width, total_stride = channels, 1
        for size, out, stride in kernels:
            conv = nn.Conv2d(width, out, size, stride, padding=size // 2, bias=False)
            layers += [conv, nn.BatchNorm2d(out), nn.ReLU()]
            width, total_stride = out, total_stride * stride
        self.branch = nn.Sequential(*layers[:-1])
        self.shortcut = nn.Sequential()
        if total_stride != 1 or channels != width:
            self.shortcut.append(nn.Conv2d(channels, width, 1, total_stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(width))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.branch(x) + self.shortcut(x))


class ResNet(nn.Module):
    """ResNet of He et al., CVPR 2016, with a 3x3 stem of stride 1 and no pooling after it.

    Four stages of widths 64, 128, 256 and 512, the first of stride 1, the others of stride 2; the mean over
    the pixels; one linear layer with bias. Every convolution is without bias and has batch norm. Source:
    Price & Tanner, ICML 2021, and their code (github.com/IlanPrice/DCTpS), which has it from
    github.com/naver/force.

    For ten classes and the paper's Table 2: `resnet18` has 11,164,352 weights, 9,610 biases and norm
    parameters; `resnet50` has 23,467,712 and 53,130.

    Shape: input (N, 3, H, W), 32x32 for CIFAR and 64x64 for Tiny ImageNet, with the same stem, as in that
    code; output (N, num_classes), logits.

    Args:
        bottleneck: blocks of 1x1, 3x3, 1x1 convolutions, the last four times as wide, with the stride in the
            3x3 one; else of two 3x3, with the stride in the first.
        blocks: how many of them in each stage.
    """

    def __init__(self, bottleneck: bool, blocks: tuple[int, int, int, int], num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        channels = 64
        self.stages = nn.Sequential()
        for i, count in enumerate(blocks):
            width, stage = 64 * 2**i, nn.Sequential()
            for j in range(count):
                stride = 2 if i > 0 and j == 0 else 1
                if bottleneck:
                    kernels = [(1, width, 1), (3, width, stride), (1, 4 * width, 1)]
                else:
                    kernels = [(3, width, stride), (3, width, 1)]
                stage.append(_Block(channels, kernels))
                channels = kernels[-1][1]
            self.stages.append(stage)
        self.fc = nn.Linear(channels, num_classes)
        kaiming_(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.stages(self.stem(x)).mean((2, 3)))


def resnet18(num_classes: int = 10) -> ResNet:
    """A `ResNet` with two blocks of two 3x3 convolutions in each stage."""
    return ResNet(False, (2, 2, 2, 2), num_classes)


def resnet50(num_classes: int = 10) -> ResNet:
    """A `ResNet` with 3, 4, 6 and 3 bottleneck blocks."""
    return ResNet(True, (3, 4, 6, 3), num_classes)
