"""Solutions as functions of the problem, by the implicit function theorem.

No solver is differentiated. Where x solves F(x, p) = 0, its derivative is -F_x^{-1} F_p, and that
is the derivative of

    x - F_x^{-1} F(x, p)

too if x and F_x are held fixed: one step of Newton's method from the solution, which leaves it
where it is up to what the solver was off by, squared. Forward and reverse mode both work; only the
first derivative is right.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy.sparse.linalg as jsl
import lineax as lx
from jaxtyping import Array, Bool, Float

from .complementarity import ComplementarySolution
from .curvature import Eigenpairs, Loss, local_model
from .response import Response, State, Vector
from .symmetric import smat, split, svec

T = TypeVar("T")

_MOST_ITERATIONS = 1000
"""Of conjugate gradients; they need some twenty, as critical eigenvalues stand apart."""


def held(tree: T) -> T:
    """The same, as constants of any derivative."""
    return jax.tree.map(lambda x: jax.lax.stop_gradient(x) if eqx.is_array(x) else x, tree)


def covariance(
    alpha: Float[Array, "k k"], beta: Float[Array, "p p"], solution: ComplementarySolution
) -> Float[Array, "k k"]:
    """The X of a `solution` as a function of `alpha` and `beta`.

    Of the normal map: with X and Z the parts of A = X - Z, A solves Z - alpha - beta[X] = 0. On the
    active set, where X is positive, this is beta^{-1} of minus alpha; where Z is, X stays zero. At
    a problem of which neither is, X has a kink, and the derivative is between those of both sides.
    """
    k = len(alpha)
    a = svec(jax.lax.stop_gradient(solution.X - solution.Z))

    def gap(a: Float[Array, " p"], alpha: Array, beta: Array) -> Float[Array, " p"]:
        X, Z = split(smat(a, k))
        return svec(Z) - svec(alpha) - beta @ svec(X)

    slope = jax.jacfwd(gap)(a, held(alpha), held(beta))
    # of what has no solution it is NaN, where Lineax would end the program
    step = jnp.linalg.solve(slope, gap(a, alpha, beta))
    return split(smat(a - step, k))[0]


class Eigenspace(NamedTuple):
    """The space of critical directions as a function of where it is.

    `U` and `Y` = P U are a basis with U^T P U = I, `HU` its images, `T` = U^T H U. They have the
    values that eigenvectors have, for which T is diagonal. But they do not turn within the space as
    the place changes, so that there is a derivative where eigenvalues are equal, as locked ones
    are.
    """

    U: Float[Array, "d k"]
    Y: Float[Array, "d k"]
    HU: Float[Array, "d k"]
    T: Float[Array, "k k"]


def eigenspace(
    loss: Loss,
    response: Response,
    post: State,
    w: Vector,
    pairs: Eigenpairs,
    kept: Bool[Array, " k"],
) -> Eigenspace:
    """The space of the eigenvectors `kept` of `pairs`, the leading ones, at `w` and `post`.

    From H K Y = Y diag(theta), of which each column is differentiated:

        (theta P - H) V = dH U + H dK Y   up to multiples of Y,   dU = dK Y + V,   U^T P V = 0

    and normalised. On the vectors V that are P-orthogonal to the leading eigenvectors theta P - H
    is positive definite, with the eigenvalues theta - theta_i beside P: conjugate gradients with
    the preconditioner K solve for all columns at once. The gain K must be diagonal.
    """
    k = pairs.theta.size
    U, Y, theta = held((pairs.U, pairs.Y, pairs.theta))
    fixed, here = local_model(loss, held(w)), local_model(loss, w)
    K0 = lx.diagonal(held(response).gain(*held((post, w))))
    P0 = jnp.where(K0 != 0, 1 / jnp.where(K0 != 0, K0, 1), 0)
    KY = lx.diagonal(response.gain(post, w))[:, None] * Y

    force = jnp.where(kept, here.hvps(KY) - theta * Y, 0)
    force = force - jnp.where(kept, Y, 0) @ (U.T @ force)
    V = _conjugate_gradients(fixed.hvps, K0, P0, jnp.where(kept, theta, 0), force)
    V = V - jnp.where(kept, U, 0) @ (Y.T @ V)  # as it is but for the forces of reverse mode
    # (Y^T K Y)^{-1/2}, which is that of a matrix close to the identity
    identity = jnp.eye(k, dtype=Y.dtype)
    scale = (3 * identity - jnp.where(kept[:, None] & kept, Y.T @ KY, identity)) / 2
    U, Y = (KY + V) @ scale, (Y + P0[:, None] * V) @ scale
    HU = here.hvps(U)
    T = U.T @ HU
    return Eigenspace(U, Y, HU, (T + T.T) / 2)


def _conjugate_gradients(
    hvps: Callable[[Float[Array, "d k"]], Float[Array, "d k"]],
    K: Vector,
    P: Vector,
    theta: Float[Array, " k"],
    force: Float[Array, "d k"],
) -> Float[Array, "d k"]:
    """V with (theta P - H) V = `force`, column by column."""
    tol = float(jnp.finfo(force.dtype).eps) ** 0.5 / 10
    return jsl.cg(
        lambda V: theta * (P[:, None] * V) - hvps(V),
        force,
        tol=tol,
        maxiter=_MOST_ITERATIONS,
        M=lambda R: K[:, None] * R,
    )[0]
