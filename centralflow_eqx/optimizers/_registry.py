"""The optimizers a spec can name."""

from ..registry import Registry
from ._base import AbstractOptimizer
from ._options import OptimizerOptions

OPTIMIZERS: Registry[AbstractOptimizer] = Registry(
    "optimizer", AbstractOptimizer, options_base=OptimizerOptions
)
