"""Processes: the optimizer and the flows that describe it, each advancing step by step."""

from ._base import STOP, AbstractProcess, Observation, Setting
from ._registry import PROCESSES
from .central import Central
from .discrete import Discrete
from .midpoint import Midpoint
from .stable import Stable

__all__ = [
    "PROCESSES",
    "STOP",
    "AbstractProcess",
    "Central",
    "Discrete",
    "Midpoint",
    "Observation",
    "Setting",
    "Stable",
]
