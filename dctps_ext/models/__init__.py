"""Networks of the paper's experiments in plain torch; `dctps_ext.convert_` makes them DCTpS networks."""

from .fixup_resnet import FixupResNet110, fixup_resnet110
from .lenet5 import LeNet5, lenet5
from .mobilenet_v2 import MobileNetV2, mobilenet_v2
from .resnet import ResNet, resnet18, resnet50
from .vgg import VGG19, vgg19

__all__ = [
    "FixupResNet110",
    "LeNet5",
    "MobileNetV2",
    "ResNet",
    "VGG19",
    "fixup_resnet110",
    "lenet5",
    "mobilenet_v2",
    "resnet18",
    "resnet50",
    "vgg19",
]
