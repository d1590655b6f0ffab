"""Networks of the paper's experiments in plain torch; `dctps_ext.convert_` makes them DCTpS networks."""

from .lenet5 import lenet5

__all__ = ["lenet5"]
