"""The edge of stability around a place, and how it changes from one place to the next.

Eigenvectors and third derivatives cost most of a flow's step, but change smoothly along it. What
they will be halfway through the next step is extrapolated from the last two places, so that a step
is accurate to second order although it looks at one place only. Of many directions not all third
derivatives are looked at either (`Renewal`).
"""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .symmetric import pairs, smat, svec

_KNOWN = 0.999
"""The share of a direction, squared, that has to lie in the span of those before."""


class Geometry(eqx.Module):
    """What the margin U^T (2P - H) U of the leading k directions depends on.

    `Y` = P U are K-orthonormal columns, `theta` the effective eigenvalues, `third` the third
    derivatives D3[u_a, u_b] of the loss by pairs, as coordinates, and `slope` how they change in an
    optimizer step, zero where that is not known. Only the first `critical` directions count; of the
    others both are zero.
    """

    Y: Float[Array, "d k"]
    theta: Float[Array, " k"]
    third: Float[Array, "p d"]
    slope: Float[Array, "p d"]
    critical: Int[Array, ""]

    @property
    def mask(self) -> Float[Array, " k"]:
        """One for directions that count, zero for others."""
        return (jnp.arange(self.theta.size) < self.critical).astype(self.theta.dtype)

    def after(self, h: Float[Array, ""]) -> Float[Array, "p d"]:
        """Third derivatives that are expected `h` optimizer steps later."""
        return self.third + h * self.slope


def match(before: Geometry, U: Float[Array, "d k"], now: Float[Array, " k"]) -> Float[Array, "k k"]:
    """R with `before.Y` R close to the Y of now, for directions that counted before and do `now`.

    A partial isometry (Procrustes): eigenvectors of close eigenvalues turn arbitrarily from solve
    to solve, which is no change of geometry. Directions without a counterpart have zeros.
    """
    overlap = before.mask[:, None] * (before.Y.T @ U) * now
    left, size, right = jnp.linalg.svd(overlap)
    return (left * (size > 0.5)) @ right


def turn(coordinates: Float[Array, "p d"], R: Float[Array, "k k"]) -> Float[Array, "p d"]:
    """Coordinates, along the first axis, of R^T A R for those of symmetric matrices A."""
    A = smat(jnp.moveaxis(coordinates, 0, -1), len(R))
    return jnp.moveaxis(svec(R.T @ A @ R), -1, 0)


def extrapolate(
    before: Geometry,
    now: Geometry,
    R: Float[Array, "k k"],
    h: Float[Array, ""],
    ahead: Float[Array, ""],
) -> Geometry:
    """The geometry `ahead` optimizer steps beyond `now`, which is `h` after `before`.

    Of directions that are new no slope is known: they are taken as they are.
    """
    known = R.T @ R
    return Geometry(
        now.Y + ahead / h * (now.Y @ known - before.Y @ R),
        now.theta,
        now.after(ahead),
        now.slope,
        now.critical,
    )


class Renewal(NamedTuple):
    """Which third derivatives are computed anew, of pairs of `axes` of the critical directions.

    Of pairs that are not `due` they are what was `expected`; of those that are, their slopes have
    not been corrected `since` so many optimizer steps, or not ever (infinite). `turn` is whose turn
    it is the next time.
    """

    axes: Float[Array, "k k"]
    due: Bool[Array, " p"]
    expected: Float[Array, "p d"]
    since: Float[Array, " p"]
    turn: Int[Array, ""]


def plan_renewal(
    before: Geometry,
    R: Float[Array, "k k"],
    X: Float[Array, "k k"],
    critical: Int[Array, ""],
    h: Float[Array, ""],
    turns: Int[Array, ""],
    every: Bool[Array, ""],
) -> Renewal:
    """Which third derivatives a step computes, `h` optimizer steps after `before`.

    Those of a principal axis of the oscillation `X` with itself always: its penalty consists of
    them. Those of an axis that is new with all others, and `every` one on request. Of the rest as
    many as there are axes, in turn, and in between they are extrapolated. So their number grows
    as that of directions, not of pairs; of three directions it is all.
    """
    axes = principal_axes(X, critical)
    new = jnp.sum((R @ axes) ** 2, 0) < _KNOWN
    rows, columns = pairs(len(R))
    own, new = rows == columns, new[rows] | new[columns]
    others = jnp.maximum(critical * (critical - 1) // 2, 1)
    share = jnp.where(every, others, jnp.minimum(jnp.maximum(critical, 1), others))
    place = (np.cumsum(~own) - 1 - turns) % others
    wanted = own | new | (place < share)
    rounds = jnp.where(own, 1, others / share).astype(h.dtype)
    return Renewal(
        axes,
        wanted & (rows < critical),
        turn(before.after(h), R @ axes),
        jnp.where(new, jnp.inf, h * rounds),
        (turns + share) % others,
    )


def renew(
    before: Geometry, R: Float[Array, "k k"], plan: Renewal, fresh: Float[Array, "p d"]
) -> tuple[Float[Array, "p d"], Float[Array, "p d"]]:
    """Third derivatives of the directions, and their slopes, from `fresh` ones of the `axes`."""
    third = jnp.where(plan.due[:, None], fresh, plan.expected)
    slope = turn(before.slope, R @ plan.axes) + (third - plan.expected) / plan.since[:, None]
    return turn(third, plan.axes.T), turn(slope, plan.axes.T)


def principal_axes(X: Float[Array, "k k"], critical: Int[Array, ""]) -> Float[Array, "k k"]:
    """The principal axes of a covariance, those of the critical directions first."""
    counts = jnp.arange(len(X)) < critical
    size = jnp.max(jnp.abs(X))
    inside = jnp.where(counts[:, None] & counts, X, 0) / jnp.where(size > 0, size, 1)
    # Axes of equal variances are not to be those of rounding.
    order = -jnp.arange(len(X))
    apart = jnp.where(counts, 1e-6 * order, order - 1).astype(X.dtype)
    return jnp.linalg.eigh(inside + jnp.diag(apart))[1][:, ::-1]
