"""What another learning rate would do, by the central flow."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int, PyTree

from ..engine.compile import single_use
from ..engine.response import State
from ..engine.settings import Settings
from ..errors import NumericalStop
from ..experiment.simulate import simulate
from ..optimizers import AbstractOptimizer
from ..processes import Setting
from ..record.row import Row
from ._place import Place


class Forecast(NamedTuple):
    """The central flow with the learning rate times `factor`, row by row.

    `averaged_loss` is what the oscillating optimizer's loss is on average, `oscillating` how many
    directions oscillate, `untrusted` whether a row is in doubt. `stopped` says why there are fewer
    rows than were asked for, empty if there are not.
    """

    factor: float
    step: Int[np.ndarray, " n"]
    loss: Float[np.ndarray, " n"]
    averaged_loss: Float[np.ndarray, " n"]
    effective_sharpness: Float[np.ndarray, " n"]
    oscillating: Int[np.ndarray, " n"]
    untrusted: Int[np.ndarray, " n"]
    stopped: str


@dataclass(frozen=True)
class Advice:
    """Where the edge is in terms of the learning rate, and what a change of it leads to.

    - `edge_factor`: times the present learning rate, the network is at the edge now.
    - `learning_rate`: that product, where the present one was told.
    - `present`, `changed`: forecasts with the learning rate as it is and as it might be, where that
      was asked for.
    """

    edge_factor: float
    learning_rate: float | None
    present: Forecast | None = None
    changed: Forecast | None = None

    def __str__(self) -> str:
        return "\n".join(_lines(self))


class Continued(AbstractOptimizer):
    """An optimizer in the midst of its work, its steps multiplied by `factor`."""

    optimizer: AbstractOptimizer
    state: State
    factor: float

    def init(self, params: PyTree) -> State:
        return self.state

    def update(self, grad: PyTree, state: State, params: PyTree) -> tuple[PyTree, State]:
        step, state = self.optimizer.update(grad, state, params)
        return jax.tree.map(lambda x: self.factor * x, step), state


def edge_factor(effective_sharpness: float, decay: float) -> float:
    """The factor of all steps with which the leading direction is at the edge.

    A factor c makes of the response 2 delta = (K H + M) delta of an oscillation c times that, and
    (K H + M) u = (theta (1 - m/2) + m) u for a decay M u = m u.
    """
    answer = effective_sharpness * (1 - decay / 2) + decay
    return 2 / answer if answer > 0 else math.inf


def forecast(
    setting: Setting, place: Place, settings: Settings, factor: float, steps: int
) -> Forecast:
    """The central flow from a place on, in `steps` optimizer steps."""
    rule = setting.response.rule
    flow = simulate(
        setting.loss,
        Continued(rule.optimizer, _own_state(setting, place), float(factor)),
        place.w,
        processes=["central"],
        steps=steps,
        unravel=rule.unravel,
        settings=settings,
        raw_spectra=False,
    )
    rows: list[Row] = []
    with contextlib.suppress(NumericalStop):  # the row that it is in says so
        for row in flow:
            rows.append(row)
    seen = [row for row in rows if "central" in row.series]

    def series(name: str) -> Any:
        return np.array([np.ravel(row.series["central"][name])[0] for row in seen])

    return Forecast(
        factor,
        np.array([row.step for row in seen]),
        series("train_loss"),
        series("predicted_loss"),
        series("eigenvalues"),
        np.array([np.count_nonzero(row.series["central"]["sigma_eigenvalues"]) for row in seen]),
        series("untrusted"),
        "".join(halt.reason for row in rows for halt in row.stops.values()),
    )


@single_use
def _own_state(setting: Setting, place: Place) -> State:
    """The optimizer's state before the step at a place."""
    grad = jax.grad(setting.loss)(place.w)
    return setting.response.pre(place.post, grad, place.w)


def _lines(advice: Advice) -> Iterator[str]:
    told = advice.learning_rate
    words = "" if told is None else f", {told:.4g}"
    yield f"at the edge now with {advice.edge_factor:.4g} times the learning rate{words}"
    for flow in filter(None, (advice.present, advice.changed)):
        yield f"in {len(flow.step)} steps with {flow.factor:g} times the learning rate:"
        if len(flow.step):
            first, last = flow.averaged_loss[0], flow.averaged_loss[-1]
            yield f"  averaged loss {first:.5g} to {last:.5g}, {flow.oscillating[-1]} oscillating"
            yield f"  effective sharpness {flow.effective_sharpness[-1]:.4g} in the end"
        doubtful = int(np.sum(flow.untrusted))
        if doubtful:
            yield f"  {doubtful} of these steps are in doubt"
        if flow.stopped:
            yield f"  stopped: {flow.stopped}"
