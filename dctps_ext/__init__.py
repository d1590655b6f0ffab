"""DCT-plus-sparse layers for PyTorch: W = alpha * DCT + S, with S sparse on a fixed random support.

Source: Price & Tanner, "Dense for the Price of Sparse: Improved Performance of Sparsely Initialized Networks
via a Subspace Offset", ICML 2021.
"""

# First: refuses, in words, an extension that was built for another torch.
from ._load import _C  # noqa: F401

# isort: split
from . import analysis, models, pruning, reference, subspace
from .allocation import allocate
from .convert import ConversionReport, LayerReport, convert_, to_dense
from .modules import DCTpSConv2d, DCTpSLinear
from .ops import dct, dctps_conv2d, dctps_linear, idct, sparse_linear
from .support import Support

__version__ = "0.1.0"

__all__ = [
    "ConversionReport",
    "DCTpSConv2d",
    "DCTpSLinear",
    "LayerReport",
    "Support",
    "allocate",
    "analysis",
    "convert_",
    "dct",
    "dctps_conv2d",
    "dctps_linear",
    "idct",
    "models",
    "pruning",
    "reference",
    "sparse_linear",
    "subspace",
    "to_dense",
]
