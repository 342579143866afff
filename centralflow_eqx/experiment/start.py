"""From a loss and an optimizer to the two values of a simulation, with its programs compiled."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ..engine.compile import program
from ..engine.curvature import Eigenpairs, Loss, unsolved, widen
from ..engine.response import Response, Rule, State, Vector, examine, relax, traced_numbers
from ..engine.settings import Settings
from ..engine.state_rate import STATE_RATES
from ..errors import OptionError, UnsupportedRule
from ..optimizers import AbstractOptimizer
from ..placement import Placement, placement_of
from ..precision import engage
from ..processes import (
    PROCESSES,
    STOP,
    AbstractObserver,
    AbstractProcess,
    Minibatch,
    Minibatches,
    Setting,
    Sight,
    has_raw_spectrum,
    is_judged,
)
from ..processes.minibatch_probes import Ensemble
from ..processes.probes import AbstractProbe
from ..task import identity
from . import advance as programs
from .advance import side_by_side
from .arguments import (
    as_minibatches,
    check_count,
    check_problem,
    check_processes,
    check_rule,
    check_settings,
)
from .equilibrium import no_averages
from .kept import Kept, fit
from .memory import free_memory, needed, remedies, warning
from .state import Evaluate, Experiment, Notify, RunState

T = TypeVar("T")

_ROOM, _SPARE = 8, 2
"""Eigenpairs that there is room for at first, and beyond those that are tracked: growth compiles
anew, room costs little."""
_DIVERGED, _SMALL_LOSS = 1e4, 1e-3
"""A process has diverged at so many times its first loss; one that starts at a minimum may leave
it for losses of this size without having."""
_ALL = 2**30
"""Columns to multiply by the Hessian at a time where devices then have to add up only once."""
_MOST_ROWS, _ROW_BYTES = 64, 256 * 2**20
"""Rows of an advance, and bytes that their views may take."""


@program
def warm_up(loss: Loss, rule: Rule, w: Vector, steps: Array | int) -> tuple[Vector, State]:
    """Weights and the optimizer's own state after `steps` discrete steps from `w`."""

    def step(_: Array, now: tuple[Vector, State]) -> tuple[Vector, State]:
        w, s = now
        delta, s = rule.update(jax.grad(loss)(w), s, w)
        return w + delta, s

    return jax.lax.fori_loop(0, steps, step, (w, rule.init(w)))


@program
def after_update(
    loss: Loss, rule: Rule, s: State, w: Vector
) -> tuple[Float[Array, ""], Vector, State]:
    """Loss and gradient at `w`, and the relaxed state after an update with it."""
    value, grad = jax.value_and_grad(loss)(w)
    return value, grad, relax(rule.update(grad, s, w)[1], w)


def respond(
    loss: Loss,
    optimizer: AbstractOptimizer,
    unravel: Callable[[Vector], PyTree],
    w: Vector,
    warm_start: int,
    key: PRNGKeyArray,
) -> tuple[Response, Vector, State, Float[Array, ""]]:
    """The optimizer's response where processes start, weights, its own state and loss there."""
    check_rule(Rule(optimizer, unravel), w)
    rule = traced_numbers(Rule(optimizer, unravel), w)
    w, s = warm_up(loss, rule, w, jnp.asarray(warm_start))
    lost = int(jnp.sum(~jnp.isfinite(w)))
    if lost:
        message = f"after {warm_start} steps {lost} of {w.size} weights are not finite any more"
        raise OptionError("warm_start", f"{message}; take fewer, or a smaller learning rate")
    value, grad, post = after_update(loss, rule, s, w)
    return examine(rule, post, w, grad, key), w, s, value


def start(
    loss: Loss,
    optimizer: AbstractOptimizer | optax.GradientTransformation,
    w: PyTree[Float[ArrayLike, "..."]],
    *,
    processes: Sequence[str],
    warm_start: int = 0,
    unravel: Callable[[Vector], PyTree] = identity,
    settings: Settings = Settings(),  # noqa: B008
    record_every: int = 1,
    evaluate: Evaluate | None = None,
    probes: Sequence[AbstractProbe] = (),
    raw_spectra: bool = True,
    minibatch: Minibatch | Minibatches | None = None,
    diverged_above: float | None = None,
    seed: int = 0,
    kept: Kept | None = None,
    notify: Notify = lambda _: None,
) -> tuple[Experiment, RunState]:
    """What `simulate` advances; its arguments, and what it raises.

    With `kept`, the arrays of a state that an earlier call led to, the state is that one. Raises
    `Misfit` if it is of another experiment.
    """
    engage()
    check_processes(processes)
    check_count("record_every", record_every, 1)
    check_count("warm_start", warm_start, 0)
    loss, optimizer, w, unravel = check_problem(loss, optimizer, w, unravel)
    check_settings(settings, w.size)
    placement = placement_of(w)
    rule_key, survey_key, key = jr.split(jr.key(seed), 3)
    notify("deriving the optimizer's response")
    response, w, s, value = respond(loss, optimizer, unravel, w, warm_start, rule_key)
    setting = _setting(loss, response, settings, w, as_minibatches(minibatch), placement)
    members = _members(setting, processes)
    room = min(w.size, max(_ROOM, 1 << (settings.initial + _SPARE - 1).bit_length()))
    experiment = Experiment(
        setting,
        members,
        tuple(processes),
        w,
        _probes(setting, probes),
        evaluate,
        jnp.asarray(record_every, jnp.int32),
        _loss_limit(value, diverged_above),
        _count_rows(w, room, len(members)),
    )
    raw_spectra = raw_spectra and has_raw_spectrum(setting)
    origin = _Origin(s, room, raw_spectra, survey_key, key)
    experiment, origin = setting.lay((experiment, origin), w)
    # A tree's copy has dictionaries sorted, and random keys go to the members in their order.
    experiment = replace(experiment, members={name: experiment.members[name] for name in members})
    if kept is None:
        return experiment, _begin(experiment, origin, notify)
    state = setting.lay(fit(_shapes(experiment, origin), kept), w)
    return experiment, _go_on(experiment, state, notify)


def _probes(setting: Setting, wanted: Sequence[AbstractProbe]) -> tuple[AbstractProbe, ...]:
    """The probes that are asked for, and that of an ensemble where there is one."""
    probes = (*wanted, *([Ensemble(seeds=setting.seeds)] if setting.seeds > 1 else []))
    for why in filter(None, (probe.refusal(setting) for probe in probes)):
        raise UnsupportedRule(why)
    return probes


def _setting(
    loss: Loss,
    response: Response,
    settings: Settings,
    w: Vector,
    batches: Minibatches,
    placement: Placement | None,
) -> Setting:
    """What processes share, with what the rule and the devices have to say of the settings."""
    rate = STATE_RATES[settings.state_rate]
    if response.structure.maxima:  # long steps do not see that it begins to be exceeded
        settings = replace(settings, max_step=min(settings.longest, 1.0))
    if placement is not None and placement.count > 1 and not settings.hvp_chunk:
        # Where vectors are split, a product needs the whole of its own.
        settings = replace(settings, hvp_chunk=_ALL if placement.parts == 1 else 1)
    if batches.noise is not None:  # whose margins steps of second order do not know how to keep
        settings = replace(settings, method="euler")
    return Setting(
        loss,
        response,
        rate,
        settings.resolved(w.dtype, rate.restoration),
        batches.loss,
        batches.noise,
        batches.seeds,
        placement,
    )


def _loss_limit(first: Float[Array, ""], times: float | None) -> Float[Array, ""]:
    """The training loss of a process that has diverged; a first loss of 0 has no multiples."""
    usual = _DIVERGED * jnp.maximum(first, _SMALL_LOSS)
    return usual if times is None else jnp.where(first > 0, times * first, jnp.inf)


class _Origin(NamedTuple):
    """What first states are made of: the optimizer's own, room for eigenpairs, random keys."""

    s: State
    room: int
    raw_spectra: bool
    survey_key: PRNGKeyArray
    key: PRNGKeyArray

    def pairs(self, w: Vector) -> Eigenpairs:
        """To start the first spectrum from."""
        return unsolved(w.size, self.room, w.dtype, self.survey_key)

    def keys(self, names: Sequence[str]) -> dict[str, PRNGKeyArray]:
        """One for each process."""
        return dict(zip(names, jr.split(self.key, len(names)), strict=True))


def _count_rows(w: Vector, room: int, members: int) -> int:
    """Rows whose views fit the memory that they may take."""
    row = w.size * w.dtype.itemsize * members * (room + 8)
    return int(min(_MOST_ROWS, max(2, _ROW_BYTES // row)))


def _members(setting: Setting, names: Sequence[str]) -> dict[str, AbstractProcess]:
    """The processes that move; raises `UnsupportedRule` if the setting does not allow one."""
    members, refused = {}, {}
    for name in names:
        component: Any = PROCESSES[name]
        source = component.source if issubclass(component, AbstractObserver) else name
        process: Any = PROCESSES[source]
        members[source] = process(setting)
        if why := members[source].refusal():
            refused[name] = why
    if refused:
        others = [name for name in names if name not in refused] or ["discrete"]
        raise UnsupportedRule(
            f"no process {' or '.join(refused)} here: {'; '.join(dict.fromkeys(refused.values()))};"
            f" others run (processes: [{', '.join(others)}]), and "
            "docs/write_an_optimizer.md says what a flow needs"
        )
    return members


def _begin(experiment: Experiment, origin: _Origin, notify: Notify) -> RunState:
    """The first state. Programs that need nothing of each other compile side by side."""
    w, s, names = experiment.start, origin.s, list(experiment.members)
    pairs, keys = experiment.setting.lay(origin.pairs(w), w), origin.keys(names)
    notify(f"compiling {', '.join(names)} and the eigensolver")
    pool = side_by_side(experiment)
    first = pool.submit(_survey, experiment, s, pairs)

    def ready(name: str) -> Any:
        process = experiment.members[name]
        # Processes that track eigenpairs are compiled for as many as the survey found.
        known = first.result() if process.surveys else pairs
        state = _first_state(process, w, s, known, keys[name])
        _compile(experiment, name, state)
        return state

    states = dict(zip(names, pool.map(ready, names), strict=True))
    pairs = first.result()
    return experiment.setting.lay(_compose(experiment, origin, states, pairs), w)


def _go_on(experiment: Experiment, state: RunState, notify: Notify) -> RunState:
    """A state that another process led to, when the programs that advance it are compiled."""
    names = list(experiment.members)
    notify(f"compiling {', '.join(names)} and the eigensolver")
    pool = side_by_side(experiment)
    list(pool.map(lambda name: _compile(experiment, name, state.processes[name]), names))
    return state


def _shapes(experiment: Experiment, origin: _Origin) -> RunState:
    """What a state of the experiment is made of, up to the room for eigenpairs."""

    def state() -> RunState:
        w, names = experiment.start, list(experiment.members)
        pairs, keys = origin.pairs(w), origin.keys(names)
        members = experiment.members
        states = {name: members[name].init(w, origin.s, pairs, keys[name]) for name in names}
        return _compose(experiment, origin, states, pairs)

    return eqx.filter_eval_shape(state)


def _compose(
    experiment: Experiment, origin: _Origin, states: dict[str, Any], pairs: Eigenpairs
) -> RunState:
    """The first state of all, from those of processes and the first spectrum."""
    w = experiment.start
    return RunState(
        jnp.zeros((), jnp.int32),
        states,
        dict.fromkeys(states, STOP.running),
        _first_spectra(experiment, states, pairs, origin),
        {
            f"{name}/{i}": probe.init(w, pairs.theta.size, jr.fold_in(origin.key, i))
            for name in experiment.recorded
            for i, probe in enumerate(experiment.probes)
            if probe.suits(name)
        },
        no_averages(experiment.recorded),
    )


def _survey(experiment: Experiment, s: State, pairs: Eigenpairs) -> Eigenpairs:
    """The spectrum where all processes start, with room to spare.

    Found once for all of them. Its products are no process's own and are not recorded.
    """
    setting, w = experiment.setting, experiment.start
    post = after_update(setting.loss, setting.response.rule, s, w)[-1]
    no = jnp.zeros((), bool)
    sights = Sight(w, post, jnp.zeros((), jnp.int32), no, no)
    sights = jax.tree.map(lambda x: jnp.broadcast_to(x, (experiment.rows, *x.shape)), sights)
    while True:
        found, _, crowded = programs.watch(setting, pairs, sights, jnp.asarray(1, jnp.int32))
        active, room = int(found.active), found.theta.size
        if int(crowded) == programs.NOTHING:
            break
        pairs = setting.lay(widen(found, 2 * room), w)
    while room < w.size and active + _SPARE > room:
        room *= 2
        found = widen(found, room)
    return setting.lay(found, w)


def _compile(experiment: Experiment, name: str, state: Any) -> None:
    """Compile the program of a process, by taking no step."""
    zero, process = jnp.zeros((), jnp.int32), experiment.members[name]
    given = process, state, STOP.running, zero, zero, experiment.every, experiment.loss_limit
    lowered: Any = programs.move
    _warn_of_memory(name, needed(lowered.lower(*given, experiment.rows).compile()), process.setting)
    moved = programs.move(*given, experiment.rows)
    if is_judged(moved.views):
        programs.judge(experiment.setting, moved.views, zero)


def _warn_of_memory(name: str, needed: int, setting: Setting) -> None:
    chunk = setting.settings.hvp_chunk or int(jax.default_backend() == "cpu")
    message = warning(name, needed, free_memory(), remedies(chunk, setting.placement))
    if message:
        warnings.warn(f"memory: {message}", stacklevel=1)


@program
def _first_state(
    process: AbstractProcess, w: Vector, s: State, pairs: Eigenpairs, key: PRNGKeyArray
) -> Any:
    return process.setting.laid(process.init(w, s, pairs, key), w)


def _first_spectra(
    experiment: Experiment,
    states: dict[str, Any],
    pairs: Eigenpairs,
    origin: _Origin,
) -> dict[str, Eigenpairs]:
    """What observers track, of processes that move without, and of the Hessian itself."""
    spectra = {}
    for name in experiment.recorded:
        source = experiment.source(name)
        if experiment.members[source].tracked(states[source]) is None:
            spectra[name] = pairs
        if origin.raw_spectra:
            w = experiment.start
            room = pairs.theta.size
            spectra[f"{name}/raw"] = unsolved(w.size, room, w.dtype, origin.survey_key)
    return spectra
