"""The edge of stability around a place, and how it changes from one place to the next.

Eigenvectors and third derivatives cost most of a flow's step, but change smoothly along it. What
they will be halfway through the next step is extrapolated from the last two places, so that a step
is accurate to second order although it looks at one place only.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .symmetric import smat, svec


class Geometry(eqx.Module):
    """What the margin U^T (2P - H) U of the leading k directions depends on.

    `Y` = P U are K-orthonormal columns, `theta` the effective eigenvalues, `third` the third
    derivatives D3[u_a, u_b] of the loss by pairs, as coordinates. Only the first `critical`
    directions count; of the others `third` is zero.
    """

    Y: Float[Array, "d k"]
    theta: Float[Array, " k"]
    third: Float[Array, "p d"]
    critical: Int[Array, ""]

    @property
    def mask(self) -> Float[Array, " k"]:
        """One for directions that count, zero for others."""
        return (jnp.arange(self.theta.size) < self.critical).astype(self.theta.dtype)


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
    before: Geometry, now: Geometry, R: Float[Array, "k k"], ahead: Float[Array, ""]
) -> Geometry:
    """The geometry `ahead` times the way from `before` to `now` beyond it.

    Of directions that are new no slope is known: they are taken as they are.
    """
    known = R.T @ R
    return Geometry(
        now.Y + ahead * (now.Y @ known - before.Y @ R),
        now.theta,
        now.third + ahead * (turn(now.third, known) - turn(before.third, R)),
        now.critical,
    )
