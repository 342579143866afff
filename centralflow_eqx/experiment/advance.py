"""Advance a simulation by some steps, without the host."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..engine.compile import program
from ..engine.curvature import Eigenpairs, apply_columns
from ..engine.loop import Outcome, bounded_scan
from ..engine.oscillation import Modes, modes
from ..engine.response import Vector
from ..engine.symmetric import decompose
from ..processes import (
    PROCESSES,
    STOP,
    AbstractObserver,
    AbstractProcess,
    Observation,
    Setting,
    Sight,
    View,
    diagnose,
    failed,
    is_judged,
    look,
)
from ..processes.probes import AbstractProbe
from .state import Evaluate, Experiment, Flags, Records, Rows, RunState, Track

NOTHING = -1
_WORK = "gradients", "hvps"
_POOLS = {threads: ThreadPoolExecutor(threads, "advance") for threads in (1, 8)}


class _Moved(NamedTuple):
    """A process after some steps: state, views and their steps, and how far it came."""

    state: Any
    views: Rows
    step: Int[Array, " rows"]
    count: Int[Array, ""]
    stop: STOP
    stop_step: Int[Array, ""]
    overflow: Int[Array, ""]
    unsolved: Int[Array, ""]


class _Progress(NamedTuple):
    state: Any
    stop: STOP
    stop_step: Array
    overflow: Array
    unsolved: Array


def thoroughly(process: AbstractProcess) -> AbstractProcess | None:
    """The process with a slower solver that finds what the quick one does not, if it has one."""
    if getattr(process, "thorough", True):
        return None
    return eqx.tree_at(lambda p: p.thorough, process, True)


@program
def move(
    process: AbstractProcess,
    state: Any,
    stop: STOP,
    first: Int[Array, ""],
    n: Int[Array, ""],
    every: Int[Array, ""],
    loss_limit: Float[Array, ""],
    rows: int,
) -> _Moved:
    """Take `n` steps from step `first` on, or as many as can be taken."""
    may_retry = thoroughly(process) is not None
    nothing = jnp.full((), NOTHING, jnp.int32)

    def step(now: _Progress, i: Array) -> tuple[_Progress, Outcome]:
        new, view, verdict = process.move(now.state)
        new, view = process.setting.laid((new, view), view.w)
        sums = _state_sums(process.setting, view)
        view = eqx.tree_at(lambda v: v.series, view, view.series | sums)
        retry = (verdict.stop == STOP.unsolved) & may_retry & ~verdict.overflow
        undone = verdict.overflow | retry
        lost = (view.series["train_loss"] >= loss_limit) & (verdict.stop == STOP.running)
        stop = STOP.where(undone, STOP.running, STOP.where(lost, STOP.diverged, verdict.stop))
        stopped = stop != STOP.running
        now = _Progress(
            jax.tree.map(lambda a, b: jnp.where(undone, a, b), now.state, new),
            stop,
            jnp.where(stopped, first + i, now.stop_step),
            jnp.where(verdict.overflow, i, now.overflow),
            jnp.where(retry, i, now.unsolved),
        )
        observed = ((first + i) % every == 0) | stopped
        keep = ~undone & observed & ~failed(stop)
        return now, Outcome((view, first + i), keep, undone | stopped)

    start = _Progress(state, stop, nothing, nothing, nothing)
    length = jnp.where(stop == STOP.running, n, 0)
    now, (views, steps), count = bounded_scan(step, start, length, rows)
    return _Moved(
        now.state,
        views,
        steps,
        count,
        now.stop,
        now.stop_step,
        now.overflow,
        now.unsolved,
    )


def _state_sums(setting: Setting, view: View) -> dict[str, Array]:
    parts = setting.response.rule.parts(view.post, view.w)
    return {
        f"state/{name}_sum": sum((jnp.sum(x) for x in jax.tree.leaves(part)), jnp.zeros(()))
        for name, part in parts.items()
    }


@program
def watch(
    setting: Setting, pairs: Eigenpairs, sights: Rows, count: Int[Array, ""]
) -> tuple[Eigenpairs, dict[str, Rows], Int[Array, ""]]:
    """The spectra at the first `count` sights, and the row that lacked room for its own."""
    rows = len(sights.raw)

    def step(now: tuple, i: Array) -> tuple[tuple, Outcome]:
        pairs, crowded = now
        sight = _row(sights, i)
        found, series, overflow = look(setting, pairs, sight)
        found = setting.laid(found, sight.w)
        crowded = jnp.where(overflow, i, crowded)
        return (found, crowded), Outcome(series, jnp.ones((), bool), overflow)

    start = (pairs, jnp.full((), NOTHING, jnp.int32))
    (pairs, crowded), series, _ = bounded_scan(step, start, count, rows)
    return pairs, series, crowded


@program
def judge(setting: Setting, views: Rows, count: Int[Array, ""]) -> dict[str, Rows]:
    """How far a flow can be trusted, row by row."""
    return _each(lambda view: diagnose(setting, view), views, count)


@program
def evaluate(function: Evaluate, weights: Float[Array, "rows d"], count: Int[Array, ""]) -> dict:
    """What `function` says of weights, row by row."""
    return _each(function, weights, count)


@program
def measure(
    probe: AbstractProbe,
    setting: Setting,
    carry: Any,
    seen: Rows,
    due: Bool[Array, " rows"],
    count: Int[Array, ""],
) -> tuple[Any, dict[str, Rows], Int[Array, ""]]:
    """What a probe measures of the rows that are due, and the row that lacked room."""

    def one(seen: Rows, carry: Any) -> tuple:
        observation = _observation(setting, *seen)
        series, carry, overflow = probe.measure(setting, observation, carry)
        return series, carry, overflow

    def step(now: tuple, i: Array) -> tuple[tuple, Outcome]:
        carry, crowded = now
        here = _row(seen, i)
        shapes = jax.eval_shape(one, here, carry)
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        series, new, overflow = jax.lax.cond(
            due[i], one, lambda seen, carry: (nothing[0], carry, nothing[2]), here, carry
        )
        crowded = jnp.where(overflow, i, crowded)
        return (new, crowded), Outcome(series, jnp.ones((), bool), overflow)

    start = (carry, jnp.full((), NOTHING, jnp.int32))
    (carry, crowded), series, _ = bounded_scan(step, start, count, len(due))
    return carry, series, crowded


@program
def compare(
    start: Vector,
    names: tuple[str, ...],
    weights: dict[str, Array],
    views: dict[str, Rows],
    optimizers: Float[Array, "rows d"] | Float[Array, "rows s d"] | None,
) -> tuple[dict[str, Array], dict[str, dict[str, Array]]]:
    """Distances between series and from the start, and the optimizer's share in predicted modes.

    `names` are those of `weights`, in the order in which they are compared; `optimizers` the
    weights of what the modes are predicted for, of several of which the mean counts.
    """
    apart = {
        f"distance/{a}-{b}": jnp.linalg.norm(weights[a] - weights[b], axis=1)
        for a, b in itertools.combinations(names, 2)
    }
    own = {
        name: {"distance_moved": jnp.linalg.norm(w - start, axis=1)} for name, w in weights.items()
    }
    if optimizers is not None:
        for name, view in views.items():
            if optimizers.ndim == 2:
                own[name]["empirical_variances"] = _projected(view, optimizers - weights[name])
                continue
            displaced = jnp.moveaxis(optimizers, 1, 0) - weights[name]
            squares = jax.lax.map(lambda x, view=view: _projected(view, x), displaced)
            own[name]["empirical_variances"] = jnp.mean(squares, 0)
    return apart, own


def _projected(view: Rows, displacements: Float[Array, "n d"]) -> Float[Array, "n m"]:
    """Squared coordinates of every row's displacement along the modes of its oscillation."""
    assert view.oscillation is not None
    swing = view.oscillation
    rotations = decompose(swing.X)[1][:, :, ::-1].astype(swing.Y.dtype)
    return jax.vmap(lambda V, Y, x: V.T @ (Y.T @ x))(rotations, swing.Y, displacements) ** 2


def advance(
    experiment: Experiment, state: RunState, n: Int[Array, ""] | int
) -> tuple[RunState, Records, Flags]:
    """The simulation `n` steps later, what was recorded on the way, and what went wrong.

    Nothing waits for the host: the programs of processes and observers are only dispatched. An
    advance by n and one by m are an advance by n + m, bit for bit, as long as no flag is raised:
    then the new state is to be thrown away, and the one before advanced by fewer steps. So the
    arrays of that are not donated to the programs, although they would save a copy of the state.
    At most `experiment.longest` steps at a time.
    """
    n = jnp.asarray(n, jnp.int32)
    # Programs that one thread starts run one after another, those of several side by side.
    pool = side_by_side(experiment)
    done = pool.map(lambda name: _follow(experiment, name, state, n), experiment.members)
    moved, seen, spectra, crowded = {}, {}, dict(state.spectra), {}
    for name, (own_move, tracks, pairs, crowds) in zip(experiment.members, done, strict=True):
        moved[name] = own_move
        seen |= tracks
        spectra |= pairs
        crowded |= crowds
    seen = {name: seen[name] for name in experiment.recorded}
    probes = dict(state.probes)
    apart, own = compare(
        experiment.start,
        experiment.recorded,
        {name: track.weights for name, track in seen.items()},
        {name: track.views for name, track in seen.items() if track.views.oscillation is not None},
        _optimizers(seen.get(experiment.counterpart)),
    )
    for name, track in seen.items():
        track.series |= own[name]
        _measure_all(experiment, name, track, state, probes, crowded)
    new = RunState(
        state.step + n,
        {name: m.state for name, m in moved.items()},
        {name: m.stop for name, m in moved.items()},
        spectra,
        probes,
        state.averages,
    )
    flags = Flags(
        {name: m.overflow for name, m in moved.items()},
        crowded,
        {name: m.unsolved for name, m in moved.items()},
    )
    return new, Records({name: track.record() for name, track in seen.items()}, apart), flags


def _optimizers(seen: "_Seen | None") -> Array | None:
    """The weights of an optimizer, or of all that are seen together."""
    if seen is None:
        return None
    return seen.weights if seen.views.members is None else seen.views.members[0]


def side_by_side(experiment: Experiment) -> ThreadPoolExecutor:
    """Threads for what members do independently of each other: compile, and start programs.

    Programs of several devices wait for each other's parts, so that each device has to have them
    in the same order: one thread starts them.
    """
    several = len(experiment.start.sharding.device_set) > 1
    return _POOLS[1 if several else 8]


def _follow(
    experiment: Experiment, name: str, state: RunState, n: Int[Array, ""]
) -> tuple[_Moved, dict[str, "_Seen"], dict[str, Eigenpairs], dict[str, Array]]:
    """A member and those who observe it: what is seen, and the observers' eigenpairs."""
    moved = move(
        experiment.members[name],
        state.processes[name],
        state.stops[name],
        state.step,
        n,
        experiment.every,
        experiment.loss_limit,
        experiment.rows,
    )
    spectra, crowded, seen = {}, {}, {}
    for series in experiment.recorded:
        if experiment.source(series) == name:
            seen[series] = _Seen(series, moved)
            _look_on(experiment, series, seen[series], state, spectra, crowded)
    return moved, seen, spectra, crowded


class _Seen:
    """What is seen of a recorded series in an advance; filled in by its observers."""

    def __init__(self, name: str, moved: _Moved):
        self.moved = moved
        component: Any = PROCESSES[name]
        self.views: Rows = self.moved.views
        self.weights = self.views.w
        self.tracks = "eigenvalues" in self.views.series
        self.judged = is_judged(self.views)
        moves = not issubclass(component, AbstractObserver)
        self.oscillates = moves and component.oscillates
        if not moves:
            observer: Any = component
            self.weights = observer().place(self.views)
        self.series: dict[str, Rows] = dict(self.views.series)
        self.measured: list[tuple[Array, dict[str, Rows]]] = []

    def record(self) -> Track:
        moved = self.moved
        return Track(
            moved.step,
            moved.count,
            self.series,
            self.weights,
            self.measured,
            moved.stop,
            moved.stop_step,
            failed(moved.stop) | (moved.stop == STOP.diverged),
        )

    def sights(self, every: Array, raw: bool) -> Rows:
        rows = len(self.moved.step)
        # Between looks an even number of steps apart, an alternating point has come back.
        alternates = jnp.asarray(self.oscillates) & (every % 2 == 1)
        wanted = jnp.zeros(rows, jnp.int32)
        if raw:
            wanted = jnp.sum(~jnp.isnan(self.series["eigenvalues"]), 1).astype(jnp.int32)
        return Sight(
            self.weights,
            self.views.post,
            wanted,
            jnp.full(rows, raw),
            jnp.broadcast_to(alternates, (rows,)),
        )


def _look_on(
    experiment: Experiment,
    name: str,
    seen: _Seen,
    state: RunState,
    spectra: dict[str, Eigenpairs],
    crowded: dict[str, Array],
) -> None:
    """Add the series of spectra, of trust and of accuracies."""
    setting, count = experiment.setting, seen.moved.count
    if not seen.tracks:
        sights = seen.sights(experiment.every, raw=False)
        spectra[name], found, row = watch(setting, state.spectra[name], sights, count)
        crowded[name] = _steps_before(row, seen, state)
        # Work adds up, whoever did it.
        work = {k: seen.series[k] + found[k] for k in _WORK if k in seen.series}
        seen.series |= found | work
    if seen.judged:
        seen.series |= judge(setting, seen.views, count)
    if (key := f"{name}/raw") in state.spectra:
        sights = seen.sights(experiment.every, raw=True)
        spectra[key], found, row = watch(setting, state.spectra[key], sights, count)
        crowded[key] = _steps_before(row, seen, state)
        seen.series |= {
            "raw_eigenvalues": found["eigenvalues"],
            "raw_eigen_residuals": found["eigen_residuals"],
            "hvps": seen.series["hvps"] + found["hvps"],
            "gradients": seen.series["gradients"] + found["gradients"],
        }
    if experiment.evaluate is not None:
        seen.series |= evaluate(experiment.evaluate, seen.weights, count)


def _measure_all(
    experiment: Experiment,
    name: str,
    seen: _Seen,
    state: RunState,
    probes: dict[str, Any],
    crowded: dict[str, Array],
) -> None:
    """Add what probes measure."""
    views = seen.views
    place = eqx.tree_at(lambda v: v.w, views, seen.weights)
    for i, probe in enumerate(experiment.probes):
        key = f"{name}/{i}"
        if key not in state.probes:
            continue
        due = seen.moved.step % (experiment.every * probe.every) == 0
        probes[key], found, row = measure(
            probe,
            experiment.setting,
            state.probes[key],
            (place, {k: v for k, v in seen.series.items() if k == "raw_eigenvalues"}),
            due,
            seen.moved.count,
        )
        crowded[key] = _steps_before(row, seen, state)
        seen.measured.append((due, found))


def _steps_before(row: Array, seen: _Seen, state: RunState) -> Array:
    """Steps that were done before that of a row; nothing where there is no such row."""
    done = seen.moved.step[jnp.maximum(row, 0)] - state.step
    return jnp.where(row == NOTHING, NOTHING, done)


def _observation(setting: Setting, view: View, more: dict[str, Array]) -> Observation:
    series = view.series | more
    swing = view.oscillation
    found: Modes | None = None
    if swing is not None:
        gain = setting.response.gain(view.post, view.w)
        found = modes(swing.Y, apply_columns(gain, swing.Y), swing.theta, swing.X)
    return Observation(view.w, view.post, series, found, view.members)


def _row(rows: Rows, i: Array) -> Any:
    return jax.tree.map(lambda x: x[i], rows)


def _each(function: Any, rows: Rows, count: Int[Array, ""]) -> Any:
    """`function` of the first `count` rows."""
    room = len(jax.tree.leaves(rows)[0])

    def step(now: None, i: Array) -> tuple[None, Outcome]:
        keep = jnp.ones((), bool)
        return None, Outcome(function(_row(rows, i)), keep, ~keep)

    return bounded_scan(step, None, count, room)[1]
