"""Run an optimizer and its flows in lockstep from one initial point."""

from collections.abc import Callable, Iterator, Sequence

import optax
from jax.typing import ArrayLike
from jaxtyping import Float, PyTree

from ..engine.curvature import Loss
from ..engine.response import Vector
from ..engine.settings import Settings
from ..optimizers import AbstractOptimizer
from ..processes import Minibatch, Minibatches
from ..processes.probes import AbstractProbe
from ..record.row import Row
from .arguments import check_count
from .drive import drive
from .start import identity, start
from .state import Evaluate, Notify


def simulate(
    loss: Loss,
    optimizer: AbstractOptimizer | optax.GradientTransformation,
    w: PyTree[Float[ArrayLike, "..."]],
    *,
    processes: Sequence[str] = ("discrete", "midpoint", "stable", "central"),
    steps: int,
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
    notify: Notify = lambda _: None,
) -> Iterator[Row]:
    """Yield a row for every `record_every`-th optimizer step, before the step is taken.

    A process that stops in between adds a row for the step at which it stopped.

    `loss` maps flat weights `[d]` to a scalar and must be three times differentiable; pass an
    `eqx.Module` to keep its data out of the compiled code. `w` decides the precision: give a NumPy
    array of float64, or one of JAX's. It may be a pytree with arrays, which `loss` and the
    optimizer then get; rows have it flat. `unravel` gives the parameters that the optimizer sees of
    flat weights. `optimizer` may be one of Optax's transformations.
    `warm_start` discrete steps come first and are not recorded. `probes` measure more of the
    processes, `raw_spectra` are the Hessian's own eigenvalues beside the effective ones where a
    preconditioner tells them apart, `minibatch` is the loss that `discrete_minibatch` descends.
    `diverged_above` is how many times its first training loss a process has when it has diverged
    and ends (None: 10,000 times, or 10 for one that starts at less than 1e-3).
    `notify` is told, in words, what takes long.

    Raises `ValueError` for arguments that it cannot work with, `UnsupportedRule` for optimizers
    outside the theory. A process that turns non-finite or loses
    its constraint stops, which its last row tells; the others go on. `NumericalStop` is raised
    after the last row if that ended the last process.
    """
    check_count("steps", steps, 1)
    experiment, state = start(
        loss,
        optimizer,
        w,
        processes=processes,
        warm_start=warm_start,
        unravel=unravel,
        settings=settings,
        record_every=record_every,
        evaluate=evaluate,
        probes=probes,
        raw_spectra=raw_spectra,
        minibatch=minibatch,
        diverged_above=diverged_above,
        seed=seed,
        notify=notify,
    )
    return drive(experiment, state, steps, notify)
