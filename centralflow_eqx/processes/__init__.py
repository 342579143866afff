"""Processes: the optimizer and the flows that describe it, each advancing step by step."""

from ._base import STOP, AbstractProcess, Minibatch, Observation, Setting, Spectra
from ._registry import PROCESSES
from ._spectra import start_spectra, survey, widen_spectra
from .ablated import Ablated
from .central import Central
from .discrete import Discrete
from .discrete_minibatch import DiscreteMinibatch
from .midpoint import Midpoint
from .stable import Stable
from .stationary import Stationary

__all__ = [
    "PROCESSES",
    "STOP",
    "Ablated",
    "AbstractProcess",
    "Central",
    "Discrete",
    "DiscreteMinibatch",
    "Midpoint",
    "Minibatch",
    "Observation",
    "Setting",
    "Spectra",
    "Stable",
    "Stationary",
    "start_spectra",
    "survey",
    "widen_spectra",
]
