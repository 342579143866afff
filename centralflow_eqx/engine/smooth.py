"""Smooth flows over an optimizer step, adaptively. Apart because Diffrax takes long to import."""

from collections.abc import Callable
from typing import Any

import diffrax as dfx
import jax
from jaxtyping import Array, Bool, Float, Int, PyTree


class _FirstStep(dfx.AbstractStepSizeController):
    """Another controller, told the first step: Diffrax has the host check a `dt0` it is given."""

    controller: dfx.AbstractStepSizeController
    first: Float[Array, ""]

    def wrap(self, direction: Any) -> "_FirstStep":
        return _FirstStep(self.controller.wrap(direction), self.first)

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        """The first step, and the controller's own state."""
        del dt0
        return self.controller.init(terms, t0, t1, y0, self.first, args, func, error_order)

    def adapt_step_size(self, *args: Any, **kwargs: Any):
        """As the controller does."""
        return self.controller.adapt_step_size(*args, **kwargs)


def flow_for_a_step(
    velocity: Callable[[PyTree], PyTree],
    y: PyTree,
    first: Float[Array, ""],
    tol: float,
    max_steps: int,
) -> tuple[PyTree, Int[Array, ""], Bool[Array, ""]]:
    """Where the flow with this `velocity` has led from `y` after one unit of time, by Tsit5.

    Also how many steps that took, and whether `max_steps` were not enough. `first` is the length of
    the first step, `tol` the error of a step relative to `y`.
    """
    zero, one = first.dtype.type(0), first.dtype.type(1)  # of higher precision they would promote y
    solution = dfx.diffeqsolve(
        dfx.ODETerm(lambda t, y, args: velocity(y)),
        dfx.Tsit5(),
        t0=zero,
        t1=one,
        dt0=None,
        y0=y,
        stepsize_controller=_FirstStep(dfx.PIDController(rtol=tol, atol=1e-2 * tol), first),
        max_steps=max_steps,
        adjoint=dfx.DirectAdjoint(),
        throw=False,
    )
    failed = solution.result != dfx.RESULTS.successful
    return jax.tree.map(lambda x: x[0], solution.ys), solution.stats["num_steps"], failed
