"""Central flows of deep-learning optimizers, derived from their update rules.

    import centralflow_eqx as cf

    task = cf.make_task(cf.data.Digits(n=100), cf.models.MLP((8, 8)), cf.losses.MSE())
    rows = cf.simulate(task, cf.optimizers.GD(0.4), task.initial_weights, steps=100)
    run = cf.collect(rows)

Importing the package computes nothing and sets nothing. What computes first (`make_task`,
`simulate`, `start`) lets JAX use float64 in this process, which the complementarity problem needs;
see `centralflow_eqx.precision`.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import data, losses, models, optimizers, processes
    from .engine.settings import Settings
    from .errors import InputError, NumericalStop, UnsupportedRule
    from .experiment.advance import advance
    from .experiment.drive import drive
    from .experiment.sensitivity import DifferentiableFlow, differentiable_flow
    from .experiment.simulate import simulate
    from .experiment.start import start
    from .experiment.state import Experiment, RunState
    from .monitor import Measurement, Monitor
    from .optimizers import AbstractOptimizer
    from .processes import probes
    from .record.arrays import collect, open_run
    from .record.row import Row
    from .report import smooth
    from .report.live import live_plot
    from .spec import load_spec
    from .task import Task, make_task

_PLACES = {
    "AbstractOptimizer": "optimizers",
    "DifferentiableFlow": "experiment.sensitivity",
    "Experiment": "experiment.state",
    "InputError": "errors",
    "Measurement": "monitor",
    "Monitor": "monitor",
    "NumericalStop": "errors",
    "Row": "record.row",
    "RunState": "experiment.state",
    "Settings": "engine.settings",
    "Task": "task",
    "UnsupportedRule": "errors",
    "advance": "experiment.advance",
    "collect": "record.arrays",
    "differentiable_flow": "experiment.sensitivity",
    "drive": "experiment.drive",
    "live_plot": "report.live",
    "load_spec": "spec",
    "make_task": "task",
    "open_run": "record.arrays",
    "simulate": "experiment.simulate",
    "smooth": "report",
    "start": "experiment.start",
}
_MODULES = {
    "data": "data",
    "losses": "losses",
    "models": "models",
    "optimizers": "optimizers",
    "probes": "processes.probes",
    "processes": "processes",
}

__all__ = [
    "AbstractOptimizer",
    "DifferentiableFlow",
    "Experiment",
    "InputError",
    "Measurement",
    "Monitor",
    "NumericalStop",
    "Row",
    "RunState",
    "Settings",
    "Task",
    "UnsupportedRule",
    "__version__",
    "advance",
    "collect",
    "data",
    "differentiable_flow",
    "drive",
    "live_plot",
    "load_spec",
    "losses",
    "make_task",
    "models",
    "open_run",
    "optimizers",
    "probes",
    "processes",
    "simulate",
    "smooth",
    "start",
]


def __getattr__(name: str) -> Any:
    """What is asked for is imported then: a command that needs little starts at once."""
    if name in _MODULES:
        found = importlib.import_module(f".{_MODULES[name]}", __name__)
    elif name in _PLACES:
        found = getattr(importlib.import_module(f".{_PLACES[name]}", __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
