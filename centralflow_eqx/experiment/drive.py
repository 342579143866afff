"""The host's part of a simulation: how far to advance, room for spectra, rows."""

import time
from collections.abc import Iterator
from typing import NamedTuple

import equinox as eqx
import jax
import numpy as np

from ..engine.curvature import widen
from ..errors import NumericalStop
from ..hosts import first_says
from ..processes import STOP, capacity
from ..record.numerics import doubts
from ..record.row import Halt, Row, Weights
from .advance import NOTHING, advance, thoroughly
from .equilibrium import EquilibriumWatch
from .state import Experiment, Flags, Notify, Records, RunState, Track

_CHUNK_SECONDS = 0.4
"""What an advance is sized to take, so that progress moves at least once a second."""


class _Pace:
    """How many steps to take at a time: one at first, then as many as fit the time."""

    def __init__(self, most: int):
        self._most, self._steps, self._since = most, 1, time.monotonic()

    def __call__(self, left: int) -> int:
        return max(1, min(self._steps, self._most, left))

    def took(self, steps: int) -> None:
        """`steps` were taken since the last call."""
        now = time.monotonic()
        fitting = int(_CHUNK_SECONDS * steps / max(now - self._since, 1e-9))
        self._steps, self._since = max(1, min(fitting, 4 * self._steps)), now


class Chunk(NamedTuple):
    """The rows of an advance, and the simulation after it, before step `step`."""

    rows: list[Row]
    state: RunState
    step: int


def drive(
    experiment: Experiment, state: RunState, steps: int, notify: Notify = lambda _: None
) -> Iterator[Row]:
    """Advance until step `steps`, or until every process has stopped; yields the rows.

    Raises `NumericalStop` if the last process to stop did so for a numerical reason.
    """
    for chunk in chunks(experiment, state, steps, notify):
        yield from chunk.rows


def chunks(
    experiment: Experiment,
    state: RunState,
    steps: int,
    notify: Notify = lambda _: None,
    pause_every: int = 0,
) -> Iterator[Chunk]:
    """`drive`, with the simulation after every advance: another call goes on from any of them.

    The host waits for the device once in an advance. Where an advance raised a flag, it is repeated
    up to the step in question, which is then taken with more room or the thorough solver: results
    do not depend on how many steps are taken at a time. Every `pause_every` steps an advance ends.
    """
    pace, done, limit = _Pace(experiment.longest), int(state.step), None
    stubborn: tuple[str, ...] = ()
    running = {name for name in experiment.recorded if _runs(experiment, state, name)}
    watch = EquilibriumWatch(int(experiment.every), experiment.counterpart, state.averages)
    step_tol = float(experiment.setting.settings.step_tol)
    while done < steps and running:
        pause = pause_every - done % pause_every if pause_every else steps
        n = 1 if stubborn else limit or first_says(pace(min(steps - done, pause)))
        now = _thorough(experiment, stubborn) if stubborn else experiment
        new, records, flags = advance(now, state, n)
        # Weights stay on the device until someone asks for them.
        seen, flags = jax.device_get((_without_weights(records), flags))
        trouble = _first_trouble(flags)
        if trouble is None:
            state, done, limit, stubborn = new, done + n, None, ()
            pace.took(n)
            halted = _halts(seen)
            rows = list(_rows(records, seen, halted, experiment.counterpart))
            for row in rows:
                watch(row.series)
                _judge(row, step_tol)
            state = eqx.tree_at(lambda s: s.averages, state, dict(watch.averages))
            yield Chunk(rows, state, done)
            running -= set(halted)
            _raise_if_lost(running, halted, seen)
        elif trouble > 0:
            limit = trouble
        else:
            state = _grow(experiment, state, flags, notify)
            stubborn = tuple(name for name, at in flags.unsolved.items() if at == 0)
            if stubborn:
                notify(f"compiling the path-following solver for {', '.join(stubborn)}")


def _runs(experiment: Experiment, state: RunState, name: str) -> bool:
    """Whether what the series `name` is seen of has not stopped."""
    return bool(state.stops[experiment.source(name)] == STOP.running)


def _first_trouble(flags: Flags) -> int | None:
    """Steps before the first flag, None without any."""
    raised = [int(at) for kind in flags for at in kind.values() if at != NOTHING]
    return min(raised, default=None)


def _thorough(experiment: Experiment, names: tuple[str, ...]) -> Experiment:
    members = {
        name: (thoroughly(process) or process) if name in names else process
        for name, process in experiment.members.items()
    }
    return eqx.tree_at(lambda e: e.members, experiment, members)


def _grow(experiment: Experiment, state: RunState, flags: Flags, notify: Notify) -> RunState:
    """Twice the room for the spectra that need it here."""
    processes, spectra, probes = (
        dict(state.processes),
        dict(state.spectra),
        dict(state.probes),
    )
    for name in (name for name, at in flags.overflow.items() if at == 0):
        process = experiment.members[name]
        room = 2 * capacity(process, processes[name])
        processes[name] = process.widened(processes[name], room)
        notify(f"compiling {name} with room for {room} eigenvalues")
    for name in (name for name, at in flags.crowded.items() if at == 0):
        if name in spectra:
            room = 2 * spectra[name].theta.size
            spectra[name] = widen(spectra[name], room)
            notify(f"compiling the spectrum of {name} with room for {room} eigenvalues")
        else:
            probe = experiment.probes[int(name.rpartition("/")[2])]
            probes[name] = probe.widen(probes[name])
    grown = eqx.tree_at(
        lambda s: (s.processes, s.spectra, s.probes), state, (processes, spectra, probes)
    )
    return experiment.setting.lay(grown, experiment.start)


def _without_weights(records: Records) -> Records:
    tracks = {name: track._replace(weights=None) for name, track in records.tracks.items()}
    return records._replace(tracks=tracks)


def _halts(records: Records) -> dict[str, tuple[int, Halt]]:
    """The series that ended in these records: at which step, and why."""
    return {
        name: (int(track.stop_step), Halt(STOP[track.stop], bool(track.failed)))
        for name, track in records.tracks.items()
        if track.stop_step != NOTHING
    }


def _judge(row: Row, step_tol: float) -> None:
    """Add what is numerically doubtful to the series of a row."""
    for found in row.series.values():
        found["numerics"] = np.asarray(doubts(found, step_tol), np.int32)


def _rows(
    records: Records, seen: Records, halts: dict[str, tuple[int, Halt]], counterpart: str
) -> Iterator[Row]:
    """The rows of an advance, in order; flows are compared with the series `counterpart`."""
    places: dict[int, dict[str, int]] = {}
    for name, track in seen.tracks.items():
        for row in range(int(track.count)):
            places.setdefault(int(track.step[row]), {})[name] = row
    for step, _ in halts.values():
        places.setdefault(step, {})
    weights = {name: track.weights for name, track in records.tracks.items()}
    for step, at in sorted(places.items()):
        series = {name: _series(seen.tracks[name], row) for name, row in at.items()}
        for name, found in series.items():
            if at[name] != at.get(counterpart):
                found.pop("empirical_variances", None)
        yield Row(
            step,
            series,
            _comparisons(seen, at),
            Weights(weights, at),
            {name: halt for name, (when, halt) in halts.items() if when == step},
        )


def _series(track: Track, row: int) -> dict[str, np.ndarray]:
    found = {name: np.asarray(values[row]) for name, values in track.series.items()}
    for due, measured in track.measured:
        if due[row]:
            found |= {name: np.asarray(values[row]) for name, values in measured.items()}
    return found


def _comparisons(records: Records, at: dict[str, int]) -> dict[str, float]:
    found = {}
    for name, values in records.comparisons.items():
        a, b = name.removeprefix("distance/").split("-")
        if a in at and at[a] == at.get(b):
            found[name] = float(values[at[a]])
    return found


def _raise_if_lost(
    running: set[str], halted: dict[str, tuple[int, Halt]], records: Records
) -> None:
    """Raise where the last process to stop did so for a numerical reason."""
    if running or not halted:
        return
    name, (step, halt) = max(halted.items(), key=lambda item: item[1][0])
    if halt.numerical:
        raise NumericalStop(name, step, halt.reason)
