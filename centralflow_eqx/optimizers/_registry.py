"""The optimizers a spec can name."""

from ..registry import Registry
from ._base import AbstractOptimizer

OPTIMIZERS: Registry[AbstractOptimizer] = Registry("optimizer")
