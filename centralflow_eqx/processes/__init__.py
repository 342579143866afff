"""Processes: the optimizer and the flows that describe it, each moving step by step."""

from ._base import (
    STOP,
    AbstractObserver,
    AbstractProcess,
    Minibatch,
    Minibatches,
    Observation,
    Setting,
    Swing,
    Verdict,
    View,
    capacity,
    failed,
    flow_refusal,
)
from ._differentiable import End, run_differentiably
from ._first_order import Moment, critical_room, view_of
from ._registry import PROCESSES
from ._spectra import Sight, has_raw_spectrum, look
from ._trust import DOUBTFUL, diagnose, is_judged
from .ablated import Ablated
from .central import Central
from .discrete import Discrete
from .discrete_minibatch import DiscreteMinibatch
from .edge import Edge
from .midpoint import Midpoint
from .rod import Rod
from .stable import Stable
from .stationary import Stationary

__all__ = [
    "DOUBTFUL",
    "PROCESSES",
    "STOP",
    "Ablated",
    "AbstractObserver",
    "AbstractProcess",
    "Central",
    "Discrete",
    "DiscreteMinibatch",
    "Edge",
    "End",
    "Midpoint",
    "Minibatch",
    "Minibatches",
    "Moment",
    "Observation",
    "Rod",
    "Setting",
    "Sight",
    "Stable",
    "Stationary",
    "Swing",
    "Verdict",
    "View",
    "capacity",
    "critical_room",
    "diagnose",
    "failed",
    "flow_refusal",
    "has_raw_spectrum",
    "is_judged",
    "look",
    "run_differentiably",
    "view_of",
]
