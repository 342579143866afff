"""Losses, each a function of outputs and what they should be: integer labels or real targets."""

from ._base import AbstractLoss, Labels, Targets, counted
from ._registry import LOSSES
from .cross_entropy import CrossEntropy
from .mse import MSE

__all__ = ["LOSSES", "MSE", "AbstractLoss", "CrossEntropy", "Labels", "Targets", "counted"]
