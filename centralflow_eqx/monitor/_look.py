"""The edge of stability at one place, for a given price."""

from dataclasses import replace
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..engine.compile import program
from ..engine.complementarity import RESULTS
from ..engine.curvature import Eigenpairs, LocalModel, leading
from ..engine.oscillation import Oscillation, Point, count_critical, modes, oscillate
from ..engine.response import State, Vector
from ..processes import Moment, Setting, critical_room, diagnose, view_of
from ._budget import FOURTH, PRODUCT, THIRD, directions_within, pairs_of, products_within
from ._place import Place, as_it_is, gradients_of, middle, ravel, widen_floats

_NOT_ALONE = 1e-6
"""Share of the largest variance below which a direction does not oscillate."""


class Extent(NamedTuple):
    """How far a look got, and what it cost in gradients.

    Of `wanted` critical directions the `resolved` leading ones may oscillate, and quartic terms are
    known of the `judged` leading ones of these. `crowded` says that more directions want to be
    followed than there is room for.
    """

    wanted: Int[Array, ""]
    resolved: Int[Array, ""]
    judged: Int[Array, ""]
    crowded: Bool[Array, ""]
    cost: Int[Array, ""]


class Reading(NamedTuple):
    """What is seen at a place.

    `series` are those of a row of a central flow, `locked` the directions that the oscillation
    keeps where they are. `sharpness` is the curvature u^T H u / u^T u in the leading direction u,
    `threshold` that at which the optimizer turns unstable along it, `decay` how much of an
    oscillation along it the decay of weights takes back in a step. `measured` are the optimizer's
    squared displacements along the modes of the oscillation, `penalty_share` is the share of the
    step that is its penalty.
    """

    series: dict[str, Array]
    locked: Bool[Array, " k"]
    sharpness: Float[Array, ""]
    threshold: Float[Array, ""]
    decay: Float[Array, ""]
    measured: Float[Array, " k"]
    penalty_share: Float[Array, ""]
    result: RESULTS
    extent: Extent


@program
def look(
    setting: Setting,
    params: PyTree,
    s: State,
    pairs: Eigenpairs,
    budget: Int[Array, ""],
    at_midpoint: bool,
) -> tuple[Eigenpairs, Place, Reading]:
    """What is seen at weights and the optimizer's own state `s` before its step there.

    `pairs` are those of the last look, `budget` what it may cost in gradients.
    """
    dtype = pairs.Y.dtype
    w, s = ravel(params, dtype), widen_floats(s, dtype)
    response, gradients = setting.response, gradients_of(setting.response, at_midpoint)
    if at_midpoint:
        place = middle(setting.loss, response, w, s)
        model = setting.local_model(place.w)
    else:
        model = setting.local_model(w)
        place = as_it_is(response, w, model.grad, s)
    pairs = _eigenpairs(setting, model, place, pairs, budget - gradients)
    left = budget - gradients - PRODUCT * pairs.products
    wanted, room = count_critical(pairs, setting.settings.critical_above), critical_room(pairs)
    resolved = jnp.minimum(wanted, directions_within(left, room))
    left = left - THIRD * pairs_of(resolved)
    judged = jnp.clip(left // FOURTH, 0, resolved)
    cost = budget - left + FOURTH * judged
    extent = Extent(wanted, resolved, judged, setting.tracker.overflows(pairs), cost)
    found = _oscillation(setting, model, place, pairs, resolved, held=at_midpoint)
    moment = Moment(place.w, place.post, model.loss, model.grad, pairs, found)
    return pairs, place, _reading(setting, moment, place.swing, extent)


def _eigenpairs(
    setting: Setting, model: LocalModel, place: Place, pairs: Eigenpairs, left: Int[Array, ""]
) -> Eigenpairs:
    """Eigenpairs that leave enough for as many critical directions as there were last."""
    above = setting.settings.critical_above
    ration = products_within(left, count_critical(pairs, above))
    return replace(setting.tracker, max_products=ration).solve(
        model,
        setting.response.gain(place.post, place.w),
        pairs,
        explore=True,
        exact_above=above,
        ahead=0.0,  # looks are far apart: where eigenvectors will be is not seen from the last two
    )


def _oscillation(
    setting: Setting,
    model: LocalModel,
    place: Place,
    pairs: Eigenpairs,
    resolved: Int[Array, ""],
    held: bool,
) -> Oscillation:
    """The oscillation of the leading `resolved` directions."""
    first = leading(pairs, critical_room(pairs))
    first = eqx.tree_at(lambda p: p.active, first, jnp.minimum(first.active, resolved))
    point = Point(
        place.w, place.post, model.grad, setting.response.gain(place.post, place.w), first
    )
    slack = jnp.full_like(first.theta, jnp.inf)
    return oscillate(
        setting.loss,
        setting.response,
        setting.rate,
        point,
        setting.settings,
        slack,
        fallback=False,
        held=held,
    )


def _reading(setting: Setting, moment: Moment, swing: Vector, extent: Extent) -> Reading:
    pairs, found = moment.pairs, moment.oscillation
    view = view_of(setting, moment)
    view = eqx.tree_at(lambda v: v.oscillation.critical, view, extent.judged)
    series = view.series | diagnose(setting, view)
    number = jnp.arange(pairs.theta.size)
    unjudged = (number >= extent.judged) & (number < extent.wanted)
    series["trust_quartic"] = jnp.where(unjudged, jnp.nan, series["trust_quartic"])
    series["sdcp_residual"] = found.solution.residual
    assert view.oscillation is not None
    X = view.oscillation.X
    variances = jnp.diagonal(X)
    u = pairs.U[:, 0]
    size = jnp.vdot(u, u)
    moved = modes(pairs.Y, pairs.U, pairs.theta, X).projectors.T @ swing
    return Reading(
        series,
        variances > _NOT_ALONE * jnp.max(variances),
        pairs.theta[0] / size,
        2 / size,
        _decay(setting, moment),
        moved**2,
        _share(setting, moment),
        found.solution.result,
        extent,
    )


def _decay(setting: Setting, moment: Moment) -> Float[Array, ""]:
    """y^T M u for the leading direction u = K y, M the response to the weights themselves."""
    response, pairs = setting.response, moment.pairs
    if response.structure.decay == "none":
        return jnp.zeros_like(moment.loss)
    answer = response.nyquist(moment.post, moment.w)(jnp.zeros_like(moment.w), pairs.U[:, 0])
    return jnp.vdot(pairs.Y[:, 0], answer)


def _share(setting: Setting, moment: Moment) -> Float[Array, ""]:
    """The share of the penalty in a step: its size, over those of penalty and gradient together."""
    response = setting.response
    by_penalty, by_gradient = (
        jnp.linalg.norm(response.mean_gain(moment.post, moment.w, g))
        for g in (moment.oscillation.penalty, moment.grad)
    )
    both = by_penalty + by_gradient
    return jnp.where(both > 0, by_penalty / jnp.where(both > 0, both, 1), 0)
