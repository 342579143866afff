"""Losses, each a function of outputs and integer labels."""

from ._base import AbstractLoss, counted
from ._registry import LOSSES
from .cross_entropy import CrossEntropy
from .mse import MSE

__all__ = ["LOSSES", "MSE", "AbstractLoss", "CrossEntropy", "counted"]
