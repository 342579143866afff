"""Run an optimizer and its flows in lockstep from one initial point."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ..engine.curvature import EigenTracker, Loss
from ..engine.response import Rule, State, Vector, examine, relax, traced_numbers
from ..engine.state_rate import STATE_RATES
from ..errors import NumericalStop, UnsupportedRule
from ..optimizers import AbstractOptimizer
from ..processes import (
    PROCESSES,
    STOP,
    AbstractProcess,
    Minibatch,
    Observation,
    Setting,
    Spectra,
    start_spectra,
    survey,
    widen_spectra,
)
from ..processes.probes import AbstractProbe
from ..record.row import Row


class FlowOptions(NamedTuple):
    """How flows are integrated; see `Setting`.

    `state_rate` is "exponential" or "backward"; `restoration` None is that of the state rate.
    """

    substeps: int = 4
    critical_above: float = 1.95
    state_rate: str = "exponential"
    restoration: float | None = None
    max_sharpness: float = 100.0
    hvp_chunk: int = 0


DEFAULT_FLOW = FlowOptions()


def identity(w: Vector) -> Vector:
    """Parameters that are the flat weights themselves."""
    return w


def simulate(
    loss: Loss,
    optimizer: AbstractOptimizer,
    w: Vector,
    *,
    processes: Sequence[str] = ("discrete", "midpoint", "stable", "central"),
    steps: int,
    warm_start: int = 0,
    unravel: Callable[[Vector], PyTree] = identity,
    tracker: EigenTracker | None = None,
    flow: FlowOptions = DEFAULT_FLOW,
    record_every: int = 1,
    evaluate: Callable[[Vector], dict[str, Array]] | None = None,
    probes: Sequence[AbstractProbe] = (),
    minibatch: Minibatch | None = None,
    seed: int = 0,
) -> Iterator[Row]:
    """Yield a row for every `record_every`-th optimizer step, before the step is taken.

    A process that stops in between adds a row for the step at which it stopped.

    `loss` maps flat weights `[d]` to a scalar and must be three times differentiable; pass an
    `eqx.Module` to keep its data out of the compiled code. `unravel` gives the parameters that
    the optimizer sees. `warm_start` discrete steps come first and are not recorded. `probes`
    measure more of the processes, `minibatch` is the loss that `discrete_minibatch` descends.

    Raises `ValueError` if more eigenvalues are to be tracked than there are weights,
    `UnsupportedRule` for optimizers outside the theory, `NumericalStop` when a process turns
    non-finite or loses its constraint; rows yielded before are valid.
    """
    tracker = tracker or EigenTracker()
    if tracker.initial > w.size:
        raise ValueError(f"cannot track {tracker.initial} eigenvalues of {w.size} weights")
    rule_key, survey_key, key = jr.split(jr.key(seed), 3)
    rule = traced_numbers(Rule(optimizer, unravel), w)
    w, s = warm_up(loss, rule, w, warm_start)
    setting = _settle(loss, rule, w, s, tracker, flow, minibatch, rule_key)
    members = _members(setting, processes)
    for why in filter(None, (probe.refusal(setting) for probe in probes)):
        raise UnsupportedRule(why)
    spectra = _first_spectra(setting, w, s, survey_key)
    return _lockstep(members, w, s, spectra, steps, record_every, evaluate, probes, key)


@eqx.filter_jit
def warm_up(loss: Loss, rule: Rule, w: Vector, steps: int) -> tuple[Vector, State]:
    """Weights and the optimizer's own state after `steps` discrete steps from `w`."""

    def step(_: int, now: tuple[Vector, State]) -> tuple[Vector, State]:
        w, s = now
        delta, s = rule.update(jax.grad(loss)(w), s, w)
        return w + delta, s

    return jax.lax.fori_loop(0, steps, step, (w, rule.init(w)))


@eqx.filter_jit
def gradient(loss: Loss, w: Vector) -> Vector:
    """The gradient of the loss at `w`."""
    return jax.grad(loss)(w)


def _settle(
    loss: Loss,
    rule: Rule,
    w: Vector,
    s: State,
    tracker: EigenTracker,
    flow: FlowOptions,
    minibatch: Minibatch | None,
    key: PRNGKeyArray,
) -> Setting:
    """Derive the optimizer's response where the processes start."""
    grad = gradient(loss, w)
    post = relax(rule.update(grad, s, w)[1], w)
    response = examine(rule, post, w, grad, key)
    if response.structure.gain == "none":  # the Hessian's own eigenvalues have no threshold
        tracker = replace(tracker, track_above=float("inf"))
    rate = STATE_RATES[flow.state_rate]
    return Setting(
        loss,
        response,
        rate,
        tracker,
        flow.substeps,
        flow.critical_above,
        rate.restoration if flow.restoration is None else flow.restoration,
        flow.max_sharpness,
        flow.hvp_chunk,
        minibatch,
    )


def _members(setting: Setting, names: Sequence[str]) -> dict[str, AbstractProcess]:
    """The processes by name; raises `UnsupportedRule` if the setting does not allow one."""
    members = {name: PROCESSES[name](setting) for name in names}
    refusals = {name: member.refusal() for name, member in members.items()}
    refused = {name: why for name, why in refusals.items() if why}
    if refused:
        others = [name for name in names if name not in refused] or ["discrete"]
        raise UnsupportedRule(
            f"no process {' or '.join(refused)} here: {'; '.join(dict.fromkeys(refused.values()))};"
            f" others run (processes: [{', '.join(others)}]), and "
            "docs/write_an_optimizer.md says what a flow needs"
        )
    return members


def _first_spectra(setting: Setting, w: Vector, s: State, key: PRNGKeyArray) -> Spectra:
    """The spectra where all processes start, with room for what is to be tracked there.

    Found once for all of them, with 2, 4, 8, ... columns until they suffice; that compiles in a
    fraction of the time of a process. Its products are no process's own and are not recorded.
    """
    capacity = max(2, 1 << (int(setting.tracker.initial) - 1).bit_length())
    spectra = start_spectra(setting, w, capacity, key)
    while True:
        spectra = _survey(setting, w, s, spectra)
        if not setting.tracker.overflows(spectra.effective):
            return spectra
        capacity *= 2
        spectra = widen_spectra(spectra, capacity)


_survey = eqx.filter_jit(survey)


@eqx.filter_jit
def _step(process: AbstractProcess, state: Any, observed: Array) -> tuple[Any, Observation]:
    return process.step(state, observed)


def _advance(process: AbstractProcess, state: Any, observed: Array) -> tuple[Any, Observation]:
    """One step; taken again with twice the room where the tracked spectrum overflowed."""
    new, observation = _step(process, state, observed)
    while observation.overflow:
        state = process.widen(state, 2 * observation.series["eigenvalues"].size)
        new, observation = _step(process, state, observed)
    return new, observation


@eqx.filter_jit
def _probe(
    probe: AbstractProbe, setting: Setting, seen: Observation, carry: Any
) -> tuple[dict[str, Array], Any, Array]:
    return probe.measure(setting, seen, carry)


def _measure(
    probe: AbstractProbe, process: AbstractProcess, seen: Observation, carry: "_Carry"
) -> tuple[dict[str, Array], "_Carry"]:
    """What a probe sees; seen again with twice the room where that was too small."""
    while True:
        series, new, overflow = _probe(probe, process.setting, seen, carry.value)
        if not overflow:
            return series, carry._replace(value=new)
        capacity = 2 * carry.capacity
        carry = _Carry(probe.init(seen.weights, capacity, carry.key), capacity, carry.key)


class _Carry(NamedTuple):
    """What a probe keeps of a process, and how much room it has."""

    value: Any
    capacity: int
    key: PRNGKeyArray


def _lockstep(
    members: dict[str, AbstractProcess],
    w: Vector,
    s: State,
    spectra: Spectra,
    steps: int,
    record_every: int,
    evaluate: Callable[[Vector], dict[str, Array]] | None,
    probes: Sequence[AbstractProbe],
    key: PRNGKeyArray,
) -> Iterator[Row]:
    running, capacity = dict(members), spectra.effective.theta.size
    states = {
        name: eqx.filter_jit(process.init)(w, s, spectra, k)
        for (name, process), k in zip(members.items(), jr.split(key, len(members)), strict=True)
    }
    carries = {
        (name, i): _Carry(probe.init(w, capacity, jr.fold_in(key, i)), capacity, key)
        for name in members
        for i, probe in enumerate(probes)
        if probe.suits(name)
    }
    for step in range(steps):
        observed = jnp.asarray(step % record_every == 0)
        seen: dict[str, Observation] = {}
        for name, process in running.items():
            states[name], seen[name] = _advance(process, states[name], observed)
        stops = {name: _judge(name, step, observation) for name, observation in seen.items()}
        stops = {name: reason for name, reason in stops.items() if reason}
        measured: dict[str, dict[str, Array]] = {name: {} for name in seen}
        for (name, i), carry in carries.items():
            if name in seen and step % (record_every * probes[i].every) == 0:
                found, carries[name, i] = _measure(probes[i], members[name], seen[name], carry)
                measured[name] |= found
        if observed or stops:
            yield _row(step, seen, measured, stops, w, evaluate)
        running = {name: process for name, process in running.items() if name not in stops}


def _judge(name: str, step: int, observation: Observation) -> str:
    """Why the process stops after this step, or nothing; raises where its row is not valid."""
    finite = jnp.isfinite(observation.series["train_loss"]) & jnp.all(
        jnp.isfinite(observation.weights)
    )
    if not finite:
        raise NumericalStop(name, step, "loss or weights are not finite")
    if observation.stop == STOP.running:
        return ""
    reason = STOP[observation.stop]
    if observation.stop == STOP.sharpness or observation.stop == STOP.step_size:
        return reason
    raise NumericalStop(name, step, reason)


def _row(
    step: int,
    seen: dict[str, Observation],
    measured: dict[str, dict[str, Array]],
    stops: dict[str, str],
    start: Vector,
    evaluate: Callable[[Vector], dict[str, Array]] | None,
) -> Row:
    series = {name: seen[name].series | measured[name] for name in seen}
    weights = {name: observation.weights for name, observation in seen.items()}
    for name in seen:
        series[name]["distance_moved"] = jnp.linalg.norm(weights[name] - start)
        if evaluate is not None:
            series[name] |= eqx.filter_jit(evaluate)(weights[name])
    for name, observation in seen.items():
        if observation.oscillation is not None and "discrete" in seen:
            series[name]["empirical_variances"] = _projected_variances(
                observation.oscillation.projectors, weights["discrete"] - weights[name]
            )
    comparisons = {
        f"distance/{a}-{b}": jnp.linalg.norm(weights[a] - weights[b])
        for a, b in itertools.combinations(seen, 2)
    }
    series, comparisons = jax.device_get((series, comparisons))
    return Row(step, series, {k: float(v) for k, v in comparisons.items()}, weights, stops)


@jax.jit
def _projected_variances(vectors: Float[Array, "d m"], displacement: Vector) -> Float[Array, " m"]:
    return (vectors.T @ displacement) ** 2
