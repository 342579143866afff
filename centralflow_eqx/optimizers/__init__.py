"""Optimizers, each declared by its discrete update rule."""

from ._base import AbstractOptimizer
from ._decay import DecoupledDecay
from ._registry import OPTIMIZERS
from ._schedule import LearningRate, Schedule, as_schedule
from .adagrad import AdaGrad
from .adam import Adam
from .adamw import AdamW
from .gd import GD
from .heavy_ball import HeavyBall
from .nadam import NAdam
from .nesterov import Nesterov
from .optax_rule import Optax
from .rmsprop import RMSProp
from .scalar_rmsprop import ScalarRMSProp
from .shampoo import Shampoo

__all__ = [
    "GD",
    "OPTIMIZERS",
    "AbstractOptimizer",
    "AdaGrad",
    "Adam",
    "AdamW",
    "DecoupledDecay",
    "HeavyBall",
    "LearningRate",
    "NAdam",
    "Nesterov",
    "Optax",
    "RMSProp",
    "ScalarRMSProp",
    "Schedule",
    "Shampoo",
    "as_schedule",
]
