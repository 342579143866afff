"""A simulation as two values: what determines it, and what evolves."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
from jaxtyping import Array, Bool, Float, Int

from ..engine.curvature import Eigenpairs
from ..engine.response import Vector
from ..processes import PROCESSES, STOP, AbstractObserver, AbstractProcess, Setting
from ..processes.probes import AbstractProbe
from .equilibrium import Averages

Evaluate = Callable[[Vector], dict[str, Array]]
Notify = Callable[[str], None]
"""Told, in words, what takes long."""
Rows = Any
"""A pytree of arrays with a leading axis of rows."""


class Experiment(eqx.Module):
    """What determines a simulation.

    `members` move, `recorded` are the names of those that are recorded and of what is seen in
    their views. `start` are the weights that distances are taken from, `every` the steps between
    rows, `rows` how many of them an advance has room for. A process whose training loss reaches
    `loss_limit` has diverged.
    """

    setting: Setting
    members: dict[str, AbstractProcess]
    recorded: tuple[str, ...] = eqx.field(static=True)
    start: Vector
    probes: tuple[AbstractProbe, ...]
    evaluate: Evaluate | None
    every: Int[Array, ""]
    loss_limit: Float[Array, ""]
    rows: int = eqx.field(static=True)

    @property
    def counterpart(self) -> str:
        """The series of the optimizer that flows predict."""
        return "discrete" if self.setting.noise is None else "discrete_minibatch"

    @property
    def longest(self) -> int:
        """Steps that an advance may take: all their rows have room, and one where it stops."""
        return (self.rows - 1) * int(self.every)

    def source(self, name: str) -> str:
        """The member in whose views the series `name` is seen."""
        component = PROCESSES[name]
        return component.source if issubclass(component, AbstractObserver) else name


class RunState(eqx.Module):
    """What evolves in a simulation, one pytree of arrays.

    The next `step`, the states of processes and why those that ended did, the eigenpairs that
    observers track ("discrete", "central/raw"), what probes keep ("central/0"), and the averages
    over rows ("central/variances") that the host keeps.
    """

    step: Int[Array, ""]
    processes: dict[str, Any]
    stops: dict[str, STOP]
    spectra: dict[str, Eigenpairs]
    probes: dict[str, Any]
    averages: Averages


class Flags(NamedTuple):
    """What an advance could not do by itself, by the name of what it happened to.

    Numbers of steps that were done before there was too little room for a spectrum (`overflow`, of
    processes; `crowded`, of the observers' spectra and probes), or a complementarity problem that
    Newton's method does not solve (`unsolved`); -1 where nothing happened.
    """

    overflow: dict[str, Int[Array, ""]]
    crowded: dict[str, Int[Array, ""]]
    unsolved: dict[str, Int[Array, ""]]


class Track(NamedTuple):
    """The rows of one recorded series: `count` of them are valid.

    `measured` has series of some of the rows, for those alone that are marked. `stop` is why the
    process ended in this advance, at `stop_step`, and `failed` whether that was
    for a numerical reason.
    """

    step: Int[Array, " rows"]
    count: Int[Array, ""]
    series: dict[str, Rows]
    weights: Float[Array, "rows d"]
    measured: list[tuple[Bool[Array, " rows"], dict[str, Rows]]]
    stop: STOP
    stop_step: Int[Array, ""]
    failed: Bool[Array, ""]


class Records(NamedTuple):
    """What an advance recorded, by series; `comparisons` has distances by row."""

    tracks: dict[str, Track]
    comparisons: dict[str, Float[Array, " rows"]]
