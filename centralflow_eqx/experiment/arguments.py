"""What Python callers may hand to a simulation, and how it is refused."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from ..engine.curvature import Loss
from ..engine.response import ONLY_SOMETIMES, Rule, Vector, relax
from ..engine.settings import METHODS, STEP_LENGTHS, Settings
from ..engine.state_rate import STATE_RATES
from ..errors import OptionError, did_you_mean, running
from ..optimizers import AbstractOptimizer, Optax
from ..placement import to_host
from ..processes import PROCESSES, Minibatch, Minibatches
from ..task import AnyTask, Layout, check_function, flatten, identity

_SIZES = ("float32", "float64")


class OfTree(eqx.Module):
    """A loss of a pytree as one of flat weights."""

    loss: Callable[[PyTree], Float[Array, ""]]
    layout: Layout
    rest: PyTree

    def __call__(self, w: Vector) -> Float[Array, ""]:
        return self.loss(eqx.combine(self.layout(w), self.rest))


class Problem(NamedTuple):
    """What is to be minimised, by what, from where."""

    loss: Loss
    optimizer: AbstractOptimizer
    w: Vector
    unravel: Callable[[Vector], PyTree]


def check_problem(
    loss: Any, optimizer: Any, w: Any, unravel: Callable[[Vector], PyTree]
) -> Problem:
    """The problem in flat weights; raises `ValueError` with argument, value and remedy."""
    if isinstance(optimizer, optax.GradientTransformation):
        optimizer = Optax(optimizer)
    if not isinstance(optimizer, AbstractOptimizer):
        wanted = "an optimizer such as centralflow_eqx.optimizers.GD(0.1), or a transformation of"
        raise ValueError(f"optimizer must be {wanted} Optax, got {_shown(optimizer)}")
    flat = _as_vector(w)
    if flat is None:
        if unravel is not identity:
            raise ValueError("unravel is for flat weights, but w is a pytree: leave it out")
        try:
            flat, unravel, rest = flatten(w)
        except ValueError:
            wanted = "an array [d], or a pytree with arrays, of floating-point numbers"
            raise ValueError(f"w must be {wanted}, got {_shown(w)}") from None
        loss = OfTree(loss, unravel, rest)
    if str(flat.dtype) not in _SIZES:
        raise ValueError(f"w must be of {' or '.join(_SIZES)}, got {flat.dtype}: convert it")
    bad = int(np.sum(~np.isfinite(to_host(jnp.asarray(flat)))))
    if bad:
        raise ValueError(f"w must be finite, {bad} of its {flat.size} entries are not")
    w = jnp.asarray(flat)
    if not isinstance(loss, AnyTask):  # checked already
        try:
            check_function(loss, w)
        except OptionError as error:
            raise ValueError(f"loss: {error.message}") from None
    return Problem(loss, optimizer, w, unravel)


def _as_vector(w: Any) -> Any:
    """`w` as an array [d], or None if it is a pytree."""
    if isinstance(w, list | tuple) and all(isinstance(x, int | float) for x in w):
        w = np.asarray(w, float)
    return w if isinstance(w, np.ndarray | jax.Array) and w.ndim == 1 else None


def check_rule(rule: Rule, w: Vector) -> None:
    """Raise `OptionError` for the option `type` unless the optimizer runs on weights such as `w`.

    Only shapes are looked at.
    """

    def update(relaxed: bool) -> Any:
        s = rule.init(w)
        return rule.update(w, relax(s, w) if relaxed else s, w)[1]

    with running("the optimizer's init"):
        state = jax.tree.leaves(eqx.filter_eval_shape(lambda: rule.init(w)))
    for leaf in state:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise OptionError("type", "the optimizer draws random numbers, a flow has none")
        if jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype.itemsize < 4:
            message = f"the optimizer keeps part of its state in {leaf.dtype}, whose rounding hides"
            raise OptionError("type", f"{message} how it evolves; keep it in float32")
    try:
        with running("the optimizer's update"):
            eqx.filter_eval_shape(lambda: update(relaxed=False))
    except OptionError as error:
        if "missing" not in error.message and "must be provided" not in error.message:
            raise
        needs = "the optimizer's update needs more than gradient, state and weights"
        message = f"{needs} (as line searches and Polyak's step do), which a flow does not have"
        raise OptionError("type", f"{message}: {error.message.partition(': ')[2]}") from None
    try:
        eqx.filter_eval_shape(lambda: update(relaxed=True))
    except Exception:  # it counts, and cannot between whole numbers
        raise OptionError("type", ONLY_SOMETIMES) from None


def check_processes(processes: Any) -> None:
    """Raise `ValueError` unless these are names of processes, each given once."""
    if isinstance(processes, str) or not isinstance(processes, Sequence) or not processes:
        raise ValueError(f"processes must be a list such as ['central'], got {_shown(processes)}")
    for i, name in enumerate(processes):
        if name not in PROCESSES.names():
            near = did_you_mean(name, PROCESSES.names())
            names = ", ".join(PROCESSES.names())
            raise ValueError(f"processes must be among {names}, got {_shown(name)}{near}")
        if name in processes[:i]:
            raise ValueError(f"processes has {name!r} twice: keep one of them")


def check_settings(settings: Settings, d: int) -> None:
    """Raise `ValueError` for numbers that no simulation of `d` weights can have."""
    if settings.state_rate not in STATE_RATES:
        known = ", ".join(map(repr, STATE_RATES))
        raise ValueError(f"state_rate must be one of {known}, got {settings.state_rate!r}")
    if settings.method not in METHODS:
        known = ", ".join(map(repr, METHODS))
        raise ValueError(f"settings.method must be one of {known}, got {settings.method!r}")
    if settings.max_step is not None and settings.max_step not in STEP_LENGTHS:
        got = repr(settings.max_step)
        raise ValueError(f"settings.max_step must be a power of two from 1/8 to 16, got {got}")
    check_count("settings.substeps", settings.substeps, 1)
    check_count("settings.initial", settings.initial, 1)
    check_count("settings.rods", settings.rods, 1)
    check_count("settings.hvp_chunk", settings.hvp_chunk, 0)
    if settings.initial > d:
        wanted = f"settings.initial must be <= {d}, the number of weights"
        raise ValueError(f"{wanted}, got {settings.initial}")
    for name in ("tol", "step_tol", "track_above", "max_sharpness", "restoration"):
        value = getattr(settings, name)
        if value is not None and not value > 0:
            raise ValueError(f"settings.{name} must be a number > 0, got {value!r}")


def as_minibatches(minibatch: Minibatch | Minibatches | None) -> Minibatches:
    """A mini-batch loss as what is known of its optimizers; raises `ValueError` for no number."""
    found = minibatch if isinstance(minibatch, Minibatches) else Minibatches(minibatch)
    check_count("minibatch.seeds", found.seeds, 1)
    return found


def check_count(name: str, value: Any, least: int) -> None:
    """Raise `ValueError` unless `value` is a whole number >= `least`."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < least:
        raise ValueError(f"{name} must be a whole number >= {least}, got {_shown(value)}")


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."
