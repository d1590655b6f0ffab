"""Pruning before and during training: the methods that the paper compares DCTpS networks with."""

from .cost import Cost, measure
from .prune import METHODS, STEPS, prune, sparsify_
from .rigl import RigL
from .selection import PruningBreakdown

__all__ = ["METHODS", "STEPS", "Cost", "PruningBreakdown", "RigL", "measure", "prune", "sparsify_"]
