"""A path that leads to the solution of every complementarity problem that has one.

An interior-point method follows the *regularised central path*

    Z = alpha + beta[X] + eps X,   X Z = eps I,   eps from 10 to 0,

in natural units, |alpha| = |beta| = 1. For monotone beta each of its points exists and is unique,
without any assumption of strict feasibility or nondegeneracy; the first is nearly X = I,
Z = 10 I; and X stays bounded exactly when the problem has a solution. When it has none, X/|X| tends
to a direction that proves it, unless arbitrarily small changes of alpha would make the problem
solvable: then a large X may meet the tolerance. Steps are Nesterov-Todd predictor-corrector steps
(Todd, Toh, Tutuncu, "On the Nesterov-Todd direction in semidefinite programming", SIAM J. Optim. 8,
1998).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .symmetric import decompose, smat, svec

_EPSILON = float(np.finfo(np.float64).eps)
_PATH_START, _PATH_END = 10.0, 1e-24  # eps
_PATH_STEPS = 200
_FASTEST = 1e-2  # the least ratio of successive eps
_BACK_OFF = 0.95  # the share of the step to the boundary of the cone that is taken
_LARGEST_TRACE = 1e8  # of a solution, in natural units: none below it is no solution
_NEAR = 1.5  # how many times as far along the path counts as there
_CLEARLY_NEGATIVE = 1e-7


class Problem(eqx.Module):
    """An SDCP in natural units (|alpha| = |beta| = 1) and svec coordinates."""

    alpha: Float[Array, " p"]
    beta: Float[Array, "p p"]
    k: int = eqx.field(static=True)


class Attempt(eqx.Module):
    """An X >= 0, how far it is from a solution, and whether it proves that there is none.

    Of an X too large to be a solution (`excessive`) a small residual means nothing: it is relative
    to beta[X], beside which alpha may have vanished.
    """

    x: Float[Array, " p"]
    residual: Float[Array, ""]
    unsolvable: Bool[Array, ""]
    excessive: Bool[Array, ""]

    def solves(self, tol: float) -> Bool[Array, ""]:
        """Whether this is a solution."""
        return (self.residual <= tol) & ~self.unsolvable & ~self.excessive


def judge(problem: Problem, x: Float[Array, " p"]) -> Attempt:
    image = problem.beta @ x
    z = problem.alpha + image
    size_x = jnp.linalg.norm(x)
    size_z = jnp.linalg.norm(problem.alpha) + jnp.linalg.norm(image)
    y = x / jnp.where(size_x > 0, size_x, 1.0)
    spectra, _ = decompose(smat(jnp.stack([x, z, problem.beta.T @ y]), problem.k))

    violations = jnp.stack([-spectra[0, 0], -spectra[1, 0], jnp.abs(x @ z)])
    scales = jnp.stack([size_x, size_z, size_x * size_z])
    residual = jnp.max(violations / jnp.where(scales > 0, scales, 1.0), initial=0.0)

    # For Y >= 0 every solution X has 0 <= <Y, Z> <= <alpha, Y> + lambda_max(beta^T[Y]) tr X,
    # which bounds tr X from below where <alpha, Y> < 0.
    fall, rise = -problem.alpha @ y, spectra[2, -1]
    unsolvable = (fall > _CLEARLY_NEGATIVE) & (fall > _LARGEST_TRACE * rise)
    return Attempt(x, residual, unsolvable, jnp.sum(spectra[0]) > _LARGEST_TRACE)


class _Frame(eqx.Module):
    """The Nesterov-Todd scaling: X = G diag(scale) G^T and Z = H diag(scale) H^T, H = G^{-T}.

    `E` is the congruence V -> G V G^T in svec coordinates.
    """

    G: Float[Array, "k k"]
    H: Float[Array, "k k"]
    scale: Float[Array, " k"]
    E: Float[Array, "p p"]


class _PathPoint(eqx.Module):
    """X = R R^T and Z = S S^T near the point eps of the path; factors keep both positive."""

    R: Float[Array, "k k"]
    S: Float[Array, "k k"]
    eps: Float[Array, ""]


class _Direction(eqx.Module):
    """A step in scaled coordinates, the longest multiple of it inside the cone, its target."""

    dX: Float[Array, "k k"]
    dZ: Float[Array, "k k"]
    longest: Float[Array, ""]
    eps: Float[Array, ""]


def _begin(problem: Problem) -> _PathPoint:
    """The first point of the path, nearly."""
    eye = jnp.eye(problem.k)
    return _PathPoint(eye, np.sqrt(_PATH_START) * eye, jnp.asarray(_PATH_START))


def _frame(point: _PathPoint) -> _Frame:
    U, scale, Vt = jnp.linalg.svd(point.S.T @ point.R)
    G, H = point.R @ Vt.T / jnp.sqrt(scale), point.S @ U / jnp.sqrt(scale)
    k = scale.size
    E = svec(G @ smat(jnp.eye(k * (k + 1) // 2), k) @ G.T).T
    return _Frame(G, H, scale, E)


def _direct(
    problem: Problem,
    point: _PathPoint,
    frame: _Frame,
    last: _Direction,
    least: Float[Array, ""] | float,
) -> _Direction:
    """One Newton step towards the point of the path that `last` shows to be within reach, but not
    beyond `least`.

    `last` also supplies the second-order term of Mehrotra's corrector.
    """
    k, scale = problem.k, frame.scale
    eps = jnp.maximum(point.eps * jnp.clip((1 - last.longest) ** 2, _FASTEST, 1.0), least)
    x, z = svec(point.R @ point.R.T), svec(point.S @ point.S.T)
    excess = z - problem.alpha - problem.beta @ x - eps * x
    product = jnp.diag(eps - scale**2) - 0.5 * (last.dX @ last.dZ + last.dZ @ last.dX)
    target = svec(2 * product / (scale[:, None] + scale[None, :]))
    scaled = frame.E.T @ (problem.beta @ frame.E + eps * frame.E)
    system = lx.MatrixLinearOperator(jnp.eye(target.size) + scaled)
    dx = lx.linear_solve(system, target + frame.E.T @ excess, lx.LU(), throw=False).value
    step = smat(jnp.stack([dx, target - dx]), k)
    root = jnp.sqrt(scale)
    lowest = jnp.min(decompose(step / (root[:, None] * root[None, :]))[0])
    longest = jnp.minimum(1 / jnp.maximum(-lowest, _EPSILON), 1 / _BACK_OFF)
    return _Direction(step[0], step[1], longest, eps)


def _follow(
    problem: Problem, point: _PathPoint, least: Float[Array, ""] | float = 0.0
) -> _PathPoint:
    """One predictor-corrector step along the path, at most to its point `least`."""
    frame = _frame(point)
    zero, one = jnp.zeros_like(point.R), jnp.ones_like(point.eps)
    direction = jax.lax.fori_loop(
        0,
        2,
        lambda _, last: _direct(problem, point, frame, last, least),
        _Direction(zero, zero, one, point.eps),
    )
    length = _BACK_OFF * direction.longest
    middle = jnp.diag(frame.scale)
    R, S = (jnp.linalg.cholesky(middle + length * d) for d in (direction.dX, direction.dZ))
    eps = point.eps + length * (direction.eps - point.eps)
    return _PathPoint(frame.G @ R, frame.H @ S, eps)


def point_on_path(
    problem: Problem, eps: Float[Array, ""]
) -> tuple[Float[Array, " p"], Float[Array, " p"], Int[Array, ""]]:
    """X and Z near the point `eps` of the path, both positive definite, and the steps it took."""

    def unfinished(carry):
        point, steps = carry
        return (point.eps > _NEAR * eps) & (steps < _PATH_STEPS)

    def advance(carry):
        point, steps = carry
        return _follow(problem, point, eps), steps + 1

    point, steps = jax.lax.while_loop(unfinished, advance, (_begin(problem), jnp.asarray(0)))
    return svec(point.R @ point.R.T), svec(point.S @ point.S.T), steps


def follow_path(
    problem: Problem, attempt: Attempt, iterations: Int[Array, ""], tol: float
) -> tuple[Attempt, Int[Array, ""]]:
    """The best of `attempt` and what is found along the path; iterations are added up."""

    def unfinished(carry):
        point, attempt, _, steps = carry
        open_ = ~attempt.solves(tol) & ~attempt.unsolvable
        return open_ & (point.eps > _PATH_END) & (steps < _PATH_STEPS)

    def advance(carry):
        point, best, iterations, steps = carry
        point = _follow(problem, point)
        new = judge(problem, svec(point.R @ point.R.T))
        better = new.unsolvable | new.solves(tol) | (new.residual < best.residual)
        better |= jnp.isnan(best.residual)
        best = jax.tree.map(lambda a, b: jnp.where(better, a, b), new, best)
        return point, best, iterations + 1, steps + 1

    carry = (_begin(problem), attempt, iterations, jnp.asarray(0))
    _, attempt, iterations, _ = jax.lax.while_loop(unfinished, advance, carry)
    return attempt, iterations
