"""Networks of the paper's experiments in plain torch; `dctps_ext.convert_` makes them DCTpS networks."""

from .fixup_resnet import fixup_resnet110
from .lenet5 import lenet5
from .mobilenet_v2 import mobilenet_v2
from .resnet import resnet18, resnet50
from .vgg import vgg19

__all__ = ["fixup_resnet110", "lenet5", "mobilenet_v2", "resnet18", "resnet50", "vgg19"]
