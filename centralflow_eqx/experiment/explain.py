"""What the engine derives from an optimizer's update rule, in words."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from ..engine.compile import single_use
from ..engine.curvature import EigenTracker, Loss, apply_columns, local_model, unsolved
from ..engine.response import Response, State, Vector
from ..spec import Spec
from .build import build_task
from .prepare import refusals
from .start import after_update, respond
from .state import Notify

PROPORTIONAL = 1e-6
"""Relative spread below which a ratio of operators counts as one number."""


class StatePart(NamedTuple):
    """How one part of the optimizer's state evolves in a step.

    `slopes` are the least and greatest factor that an entry multiplies itself by, `linear` and
    `quadratic` tell what an oscillating gradient adds, `drift` is the largest change of an entry
    when the gradient is zero, beyond that factor; `maximum` as in `Structure.maxima`.
    """

    name: str
    size: int
    slopes: tuple[float, float]
    linear: bool
    quadratic: bool
    drift: float
    maximum: bool

    @property
    def role(self) -> str:
        """What the part is: "momentum", "average", "sum", "maximum", "counter" or "constant"."""
        if self.maximum:
            return "maximum"
        if self.linear:
            return "momentum"
        if self.quadratic:
            return "average" if self.slopes[1] < 1 else "sum"
        return "counter" if self.drift else "constant"


class Operators(NamedTuple):
    """Answers of the rule at one point, probed with random vectors.

    `gain` and `mean` are the entries of K and D where diagonal, else Rayleigh quotients; `ratio`
    is D/K where that is one number, else None; `sharpness` the largest eigenvalue of K H.
    """

    gain: Float[np.ndarray, " n"]
    mean: Float[np.ndarray, " n"]
    ratio: float | None
    sharpness: float


def explain(spec: Spec, notify: Notify = lambda _: None) -> str:
    """What was derived for the spec's optimizer at the start of its run, as text of a few lines.

    `notify` is told what takes long. Raises `InputError` for impossible input.
    """
    notify("loading data and model")
    task = build_task(spec)
    notify("deriving the optimizer's response")
    keys = jr.split(jr.key(spec.seed), 3)
    optimizer, start = spec.optimizer.build(), task.initial_weights
    with refusals(spec):
        response, w, s, _ = respond(task, optimizer, task.unravel, start, spec.warm_start, keys[0])
    post = after_update(task, response.rule, s, w)[-1]
    notify("measuring what it does to an oscillation")
    parts = state_parts(response, post, w, keys[1])
    lines = [
        f"{spec.optimizer.type} on {w.size} weights, {w.dtype}, "
        f"after {spec.warm_start} steps of warm start",
        "",
        *_state_lines(parts),
        "",
    ]
    if response.structure.gain != "none":
        lines += list(_stability_lines(response, _operators(task, response, post, w, keys[2])))
    lines.append(_verdict(response))
    return "\n".join(lines)


def state_parts(response: Response, s: State, w: Vector, key: Array) -> list[StatePart]:
    """How the parts of the state evolve, in order; see `Rule.parts`."""
    columns = [response.rule.parts(x, w) for x in _evolution_of_entries(response, s, w, key)]
    maxima = response.rule.parts(response.structure.maxima_of(s), w)
    return [
        _part(name, [column[name] for column in columns], any(jax.tree.leaves(maxima[name])))
        for name in columns[0]
    ]


@single_use
def _evolution_of_entries(
    response: Response, s: State, w: Vector, key: Array
) -> tuple[State, State, State, State]:
    """Slopes, what an oscillating gradient adds linearly and quadratically, and the drift."""
    zero, none = jnp.zeros_like(w), jax.tree.map(jnp.zeros_like, s)
    q = jr.normal(key, w.shape, w.dtype)
    linear = response.linearise(s, w)(q, none, zero)[1]
    J = response.slopes(s, w)
    target = response.advance(s, zero, w)
    drift = jax.tree.map(lambda f, j, x: f - j * x, target, J, s)
    return J, linear, response.quadratic(s, zero, w, q, q), drift


def _part(name: str, measured: list[State], maximum: bool) -> StatePart:
    J, linear, quadratic, drift = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(part)]) for part in measured
    )
    return StatePart(
        name,
        J.size,
        (float(J.min(initial=1)), float(J.max(initial=0))),
        bool(np.any(linear != 0)),
        bool(np.any(quadratic != 0)),
        float(np.abs(drift).max(initial=0)),
        maximum,
    )


def _operators(loss: Loss, response: Response, s: State, w: Vector, key: Array) -> Operators:
    K, D, ratio, defect, theta = jax.device_get(_measure(loss, response, s, w, key))
    return Operators(K, D, float(ratio) if defect < PROPORTIONAL else None, float(theta))


@single_use
def _measure(loss: Loss, response: Response, s: State, w: Vector, key: Array) -> tuple[Array, ...]:
    """K and D as `Operators` has them, their ratio and how far it is from one, the sharpness."""
    draw, start = jr.split(key)
    gain = response.gain(s, w)
    diagonal = response.structure.gain != "general"
    Q = jnp.ones((w.size, 1), w.dtype) if diagonal else jr.normal(draw, (w.size, 8), w.dtype)
    K = apply_columns(gain, Q)
    D = -jax.vmap(lambda q: response.mean_gain(s, w, q), in_axes=1, out_axes=1)(Q)

    def shown(A: Array) -> Array:
        return A[:, 0] if diagonal else jnp.sum(Q * A, 0) / jnp.sum(Q * Q, 0)

    pairs = unsolved(w.size, 2, w.dtype, start)
    tracker = EigenTracker(track_above=float("inf"), tol=1e-4)
    top = tracker.solve(local_model(loss, w), gain, pairs)
    ratio = jnp.vdot(K, D) / jnp.vdot(K, K)
    defect = jnp.linalg.norm(D - ratio * K) / jnp.linalg.norm(D)
    return shown(K), shown(D), ratio, defect, top.theta[0]


def _state_lines(parts: list[StatePart]) -> Iterator[str]:
    rows = [
        ("state", "entries", "is", "in a step", "time constant", "when the gradient oscillates")
    ]
    for part in parts:
        low, high = part.slopes
        factor = f"{high:.6g}" if high - low < PROPORTIONAL else f"{low:.6g}..{high:.6g}"
        rows.append((part.name, str(part.size), part.role, *_evolution(part, factor)))
    if not parts:
        rows.append(("(none)", "0", "", "", "", ""))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _evolution(part: StatePart, factor: str) -> tuple[str, str, str]:
    """In a step, time constant, and under an oscillating gradient."""
    slope = part.slopes[1]
    lasting = "at once" if slope == 0 else f"{-1 / np.log(slope):.4g} steps" if slope < 1 else "-"
    match part.role:
        case "momentum":
            return f"{factor} old + linear in g", lasting, "oscillates with it"
        case "average" | "sum":
            averaged = "is averaged: g^2 gains the oscillation's variance"
            return f"{factor} old + quadratic in g", lasting, averaged
        case "counter":
            return f"+ {part.drift:g}", "-", "does not notice"
        case "maximum":
            return "old, or what exceeds it", "-", "does not notice until it is exceeded"
        case _:
            return f"{factor} old", lasting, "does not notice"


def _range(values: Float[np.ndarray, " n"]) -> str:
    low, middle, high = np.min(values), np.median(values), np.max(values)
    same = high - low <= PROPORTIONAL * abs(high)
    return f"{middle:.6g}" if same else f"{low:.3g} to {high:.3g}, median {middle:.3g}"


def _stability_lines(response: Response, found: Operators) -> Iterator[str]:
    kind = response.structure.gain
    yield "K  gain: the step's answer to a gradient that alternates in sign, -K g"
    yield f"   {kind}, {_range(found.gain)}"
    yield "D  mean gain: the step's answer to a gradient that stays, -D g"
    yield f"   {_range(found.mean)}"
    yield "oscillations grow where the largest eigenvalue of"
    yield "   K H exceeds 2 (the effective Hessian)"
    if found.ratio is not None:
        yield f"   D H exceeds {2 * found.ratio:.6g} (the Hessian preconditioned by the mean step)"
    if kind == "scalar":
        yield f"   H exceeds {2 / found.gain[0]:.6g}"
    state = "stable" if found.sharpness < 2 else "unstable"
    yield f"   here the largest eigenvalue of K H is {found.sharpness:.4g}: {state}"


def _verdict(response: Response) -> str:
    if response.structure.refusal:
        return f"central flow: none, {response.structure.refusal}"
    only = " (state_rate: exponential only, because of the momentum)"
    only = only if response.structure.momentum else ""
    switches = ", in steps of at most 1: its state has a maximum, which switches"
    return f"central flow: defined{only}{switches if response.structure.maxima else ''}"
