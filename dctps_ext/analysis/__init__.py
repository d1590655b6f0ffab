"""Analysis of networks: Jacobian spectrum at initialisation, parameters of each layer, storage and FLOPs."""

from .costs import CostReport, LayerCost, ParameterCounts, costs, parameter_counts
from .jacobian import jacobian_singular_values

__all__ = [
    "CostReport",
    "LayerCost",
    "ParameterCounts",
    "costs",
    "jacobian_singular_values",
    "parameter_counts",
]
