"""The training problem: what is to be minimised, as one function of flat weights."""

from ._fit import check_function, check_loss, check_network, count_parameters
from ._layout import Layout, flatten
from ._make import build_network, make_task, network_shapes, wrong_length
from ._task import (
    REACHED,
    Counted,
    Evaluation,
    ExampleLosses,
    Examples,
    Forward,
    FunctionTask,
    Memory,
    Minibatch,
    Task,
    identity,
)

AnyTask = Task | FunctionTask

__all__ = [
    "REACHED",
    "AnyTask",
    "Counted",
    "Evaluation",
    "ExampleLosses",
    "Examples",
    "Forward",
    "FunctionTask",
    "Layout",
    "Memory",
    "Minibatch",
    "Task",
    "build_network",
    "check_function",
    "check_loss",
    "check_network",
    "count_parameters",
    "flatten",
    "identity",
    "make_task",
    "network_shapes",
    "wrong_length",
]
