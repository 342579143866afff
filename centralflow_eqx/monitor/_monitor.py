"""The edge of stability of a training loop of one's own."""

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jax.experimental import io_callback
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ..engine.curvature import Loss, unsolved
from ..engine.response import Rule, State, Vector, derive, traced_numbers
from ..engine.settings import Settings
from ..engine.state_rate import STATE_RATES
from ..errors import UnsupportedRule
from ..experiment.arguments import OfTree, check_count, check_problem, check_rule, check_settings
from ..experiment.start import after_update
from ..optimizers import AbstractOptimizer
from ..precision import engaged_for_now, engaged_here
from ..processes import Setting, flow_refusal
from ..task import identity
from ._advice import Advice, edge_factor, forecast
from ._arguments import check_outside, check_params, check_state, is_traced, shapes
from ._budget import FEWEST, PRODUCT
from ._look import look
from ._measurement import Measurement, measurement
from ._place import InPrecision, OnBatch, Place, gradients_of, widen_floats, widest

At = Literal["midpoint", "weights"]
_UNLIMITED = 2**30


class _Kept(NamedTuple):
    """What a call of `record` left."""

    step: int | None
    params: PyTree
    opt_state: State
    batch: tuple[Any, ...]


class _Seen(NamedTuple):
    """What the last measurement saw."""

    setting: Setting
    place: Place
    effective_sharpness: float
    decay: float


class Monitor:
    """Measures the edge of stability of a training loop, without being part of it.

        monitor = cf.Monitor(loss_fn, optax.adam(1e-3), params, budget=30)
        for step in range(1000):
            params, opt_state = train_step(params, opt_state)
            if step % 50 == 0:
                print(monitor.measure(params, opt_state, step=step))

    `loss_fn(params, *batch)` is the training loss of all examples, or of a large fixed batch of
    them, without what a step draws at random. `params` is any pytree with arrays of floating-point
    numbers; `optimizer` a transformation of Optax or an optimizer of the package. Of the loop it
    wants the weights and the optimizer's state before a step, as they are; it changes neither them
    nor JAX's precision.

    - `budget`: gradients that a measurement may cost; a Hessian-vector product counts as 2, a third
      or a fourth derivative as 5. Where it is too short a measurement says what is missing, and
      the next goes on from the eigenvectors that were found. None is as many as it takes.
    - `at`: "midpoint" measures between the next iterates, where an oscillation cancels, which takes
      one gradient each, and asks for the oscillation that holds critical eigenvalues where they
      are; "weights" at the weights as they are, as a row of a central flow: for weights that do not
      oscillate.
    - `tol`: relative residual that the leading eigenpairs are to reach. Eigenvalues are right to
      about its square, variances to about as much as itself.
    - `directions`: eigenvectors that there is room for; half of them may oscillate.
    - `unravel`: for flat weights [d], the parameters as the optimizer has them.
    - `settings`: as a run has them, and the flows of `advise`; the time step of the complementarity
      problem is that of a substep of Euler's method.

    Weights and state of half precision are measured in float32: the loss has no derivatives of
    higher order in less. Raises `UnsupportedRule` for an optimizer outside the theory, and
    `ValueError` for arguments that do not fit together.
    """

    def __init__(
        self,
        loss_fn: Callable[..., Float[Array, ""]],
        optimizer: AbstractOptimizer | optax.GradientTransformation,
        params: PyTree,
        *batch: Any,
        budget: int | None = None,
        at: At = "midpoint",
        tol: float = 1e-2,
        directions: int = 8,
        unravel: Callable[[Vector], PyTree] = identity,
        settings: Settings = Settings(),  # noqa: B008
        seed: int = 0,
    ):
        if at not in ("midpoint", "weights"):
            raise ValueError(f"at must be 'midpoint' or 'weights', got {at!r}")
        check_count("directions", directions, 1)
        if not tol > 0:
            raise ValueError(f"tol must be a number > 0, got {tol!r}")
        self._loss, self._batch, self._at_midpoint = loss_fn, batch, at == "midpoint"
        self._settings, self._flow_settings = replace(settings, tol=tol), settings
        self._waiting = deque[_Kept]()
        self._last: _Seen | None = None
        rule_key, pairs_key = jr.split(jr.key(seed))
        with engaged_here():
            self._dtype = widest(params)
            w = self._prepare(optimizer, params, unravel, rule_key)
            self._pairs = unsolved(w.size, directions, w.dtype, pairs_key)
            self._state = eqx.filter_eval_shape(self._setting.response.rule.init, w)
        self._params = shapes(eqx.filter(params, eqx.is_inexact_array))
        if budget is not None:
            least = gradients_of(self._setting.response, self._at_midpoint) + FEWEST * PRODUCT
            check_count("budget", budget, least)
        self._budget = _UNLIMITED if budget is None else budget

    def _prepare(
        self,
        optimizer: Any,
        params: PyTree,
        unravel: Callable[[Vector], PyTree],
        key: PRNGKeyArray,
    ) -> Vector:
        """Derive the optimizer's response at the weights, which are returned."""
        floats, rest = eqx.partition(params, eqx.is_inexact_array)
        wide = eqx.combine(widen_floats(floats, self._dtype), rest)
        problem = check_problem(OnBatch(self._loss, self._batch), optimizer, wide, unravel)
        check_settings(self._settings, problem.w.size)
        self._layout = problem.loss.layout if isinstance(problem.loss, OfTree) else None
        check_rule(Rule(problem.optimizer, problem.unravel), problem.w)
        rule = traced_numbers(Rule(problem.optimizer, problem.unravel), problem.w)
        loss = self._flat(params, self._batch)
        _, grad, post = after_update(loss, rule, rule.init(problem.w), problem.w)
        response = derive(rule, post, problem.w, grad, key)
        rate = STATE_RATES[self._settings.state_rate]
        resolved = self._settings.resolved(problem.w.dtype, rate.restoration)
        self._setting = Setting(loss, response, rate, resolved)
        if why := flow_refusal(self._setting):
            raise UnsupportedRule(why)
        return problem.w

    def _flat(self, params: PyTree, batch: tuple[Any, ...]) -> Loss:
        """The loss of flat weights; of `params` only what are no weights is used."""
        loss = OnBatch(self._loss, batch)
        if self._layout is None:
            return InPrecision(loss)
        rest = eqx.partition(params, eqx.is_inexact_array)[1]
        return InPrecision(OfTree(loss, self._layout, rest))

    def measure(
        self, params: PyTree, opt_state: State, *batch: Any, step: int | None = None
    ) -> Measurement:
        """What there is at the weights and the optimizer's state before its next step.

        `batch` is what else the loss takes, if other than what the monitor was made with; `step` is
        handed on. Raises `ValueError` for weights or a state of another kind, and `RuntimeError`
        inside of compiled functions and host callbacks, where `record` belongs.
        """
        check_outside((params, opt_state, batch))
        check_params(params, self._params)
        check_state(opt_state, self._state)
        setting = replace(self._setting, loss=self._flat(params, batch or self._batch))
        with engaged_here():
            pairs, place, reading = look(
                setting,
                eqx.filter(params, eqx.is_inexact_array),
                opt_state,
                self._pairs,
                jnp.asarray(self._budget, jnp.int32),
                self._at_midpoint,
            )
            reading = jax.device_get(reading)
        if np.isfinite(reading.series["train_loss"]) and np.all(np.isfinite(reading.sharpness)):
            theta = float(reading.series["eigenvalues"][0])
            self._pairs = pairs
            self._last = _Seen(setting, place, theta, float(reading.decay))
        return measurement(reading, step, self._settings)

    def record(
        self, params: PyTree, opt_state: State, *batch: Any, step: int | Array | None = None
    ) -> None:
        """Keep a copy of what `measure` takes, for `collect`; nothing is computed.

        May be called anywhere, also in functions that are compiled (under `jit`, in `scan`), where
        computing would be no good. Copies stay on the host until they are collected.
        """
        arrays, rest = eqx.partition((step, params, opt_state, batch), eqx.is_array)

        def keep(arrays: PyTree) -> None:
            copies = jax.tree.map(lambda x: np.array(x, copy=True), arrays)
            self._waiting.append(_Kept(*eqx.combine(copies, rest)))

        if is_traced(arrays):
            io_callback(keep, None, arrays, ordered=True)
        else:
            keep(arrays)

    def collect(self) -> list[Measurement]:
        """Measure what was recorded since the last time, in order."""
        jax.effects_barrier()
        found = []
        while self._waiting:
            step, params, opt_state, batch = self._waiting.popleft()
            step = None if step is None else int(step)
            found.append(self.measure(params, opt_state, *batch, step=step))
        return found

    def advise(
        self,
        factor: float | None = None,
        *,
        steps: int = 50,
        learning_rate: float | None = None,
    ) -> Advice:
        """What the last measurement says of other learning rates.

        The learning rate is what all of a step is multiplied by; `learning_rate` is the present
        one, if a number is wanted. With a `factor` the central flow is followed for `steps`
        optimizer steps from where the last measurement was, with the learning rate as it is and
        with `factor` times it. That takes as long as a run, and lets the whole process compute in
        float64 meanwhile: it is not for other threads that train. Where the decay of weights
        differs from weight to weight the edge is right to first order around the present rate.
        """
        if self._last is None:
            raise RuntimeError("nothing was measured yet: call measure first, with finite weights")
        check_count("steps", steps, 1)
        setting, place, theta, decay = self._last
        edge = edge_factor(theta, decay)
        found = Advice(edge, None if learning_rate is None else edge * learning_rate)
        if factor is None:
            return found
        if not 0 < factor < float("inf"):
            raise ValueError(f"factor must be a finite number > 0, got {factor!r}")
        with engaged_for_now():
            flows = [forecast(setting, place, self._flow_settings, c, steps) for c in (1.0, factor)]
        return replace(found, present=flows[0], changed=flows[1])
