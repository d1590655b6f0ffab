"""VGG-19 for small images: batch norm and one linear classifier, as in the paper's experiments."""

from torch import Tensor, nn

from ._init import kaiming_

_STAGES = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))  # width, convolutions


class VGG19(nn.Module):
    """VGG-19 of Simonyan & Zisserman, ICLR 2015: 16 convolutions 3x3, here with batch norm, and ReLU.

    No convolution has a bias. Of five stages each but the last ends in a 2x2 max-pool; the last is averaged
    over its pixels, and one linear layer, with bias, classifies. Source: Price & Tanner, ICML 2021, and their
    code (github.com/IlanPrice/DCTpS), which has it from github.com/naver/force.

    For ten classes 20,024,000 weights, 11,018 biases and norm parameters (the paper's Table 2).

    Shape: input (N, 3, H, W), H and W at least 16, 32 for CIFAR and 64 for Tiny ImageNet; output (N,
    num_classes), logits.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for i, (width, count) in enumerate(_STAGES):
            if i > 0:
                layers.append(nn.MaxPool2d(2))
            for _ in range(count):
                layers += [
                    nn.Conv2d(channels, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                ]
                channels = width
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(channels, num_classes)
        kaiming_(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3)))


def vgg19(num_classes: int = 10) -> VGG19:
    """A `VGG19`."""
    return VGG19(num_classes)
