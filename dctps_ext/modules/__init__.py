"""The layers: drop-in counterparts of torch.nn.Linear and torch.nn.Conv2d whose weight is alpha*D + S."""

from .conv import DCTpSConv2d
from .linear import DCTpSLinear

__all__ = ["DCTpSConv2d", "DCTpSLinear"]
