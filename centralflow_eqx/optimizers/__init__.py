"""Optimizers, each declared by its discrete update rule."""

from ._base import AbstractOptimizer
from ._registry import OPTIMIZERS
from ._schedule import LearningRate, Schedule, as_schedule
from .gd import GD
from .rmsprop import RMSProp
from .scalar_rmsprop import ScalarRMSProp

__all__ = [
    "GD",
    "OPTIMIZERS",
    "AbstractOptimizer",
    "LearningRate",
    "RMSProp",
    "ScalarRMSProp",
    "Schedule",
    "as_schedule",
]
