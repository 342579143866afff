"""The oscillation that noise drives and stability damps: a smoothed complementarity problem.

Along critical directions an optimizer that sees noisy gradients moves by c+ = -(I - Z) c + n, with
Z the stability margin and n the noise. Its covariance X is stationary where

    Z X + X Z - Z X Z = N + K[X],   Z = alpha + beta[X],   X > 0,   Z > 0,

N being the covariance of n without an oscillation, and K[X] what an oscillation of covariance X
adds to it. This replaces <X, Z> = 0 of `complementarity`, whose solution is the limit of vanishing
noise: N is what the parameter of the central path is in an interior-point method. So the path leads
near to the solution, and Newton's method from there.

A margin of 1 damps a deviation in one step. Where Z has larger eigenvalues, of directions that do
not alternate any more, they count as 1 in the first equation: it would damp less again beyond, and
have no solution from 2 on, which a step's extrapolation may reach.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Float

from .central_path import Problem, point_on_path
from .complementarity import (
    RESULTS,
    ComplementarySolution,
    DampedNewton,
    norm_or_one,
    solve_complementarity,
)
from .symmetric import decompose, smat, split, svec

_NEWTON_STEPS = 60
_LEAST_SHARE = 1e-6  # of |X| |Z|, that the noise has at least where residuals are measured
_NO_NOISE = 1e-15  # beside margins and variances of size one
_SAFE = 0.01  # a margin that keeps variances of the noise's own size
_LEAST_NOISE = 1e-9


class Noise(NamedTuple):
    """The covariance `N` of the noise, and in `svec` coordinates what an oscillation adds to it."""

    N: Float[Array, "k k"]
    K: Float[Array, "p p"]


class _Equation(NamedTuple):
    """The problem in units of its own: of `z` for Z and alpha, and of `x` for X."""

    problem: Problem
    n: Float[Array, " p"]
    K: Float[Array, "p p"]
    z: Float[Array, ""]
    x: Float[Array, ""]


def solve_balance(
    alpha: Float[Array, "k k"],
    beta: Float[Array, "p p"],
    noise: Noise,
    *,
    tol: float = 1e-10,
    fallback: bool = True,
) -> ComplementarySolution:
    """Find X > 0 with Z = alpha + beta[X] > 0 and Z X + X Z - Z X Z = N + K[X], for Z <= 1.

    `alpha`, `beta` and `fallback` are those of `solve_complementarity`, which has the answer where
    there is no noise. The residual is that of the equation and of Z, relative to their largest
    terms; a solution has one of at most `tol`. There is none where the curvature's noise exceeds
    what any margin damps, 2 Z - Z^2 <= 1: then the result is `stalled`. Computes in float64.
    """
    alpha, beta = jnp.asarray(alpha, jnp.float64), jnp.asarray(beta, jnp.float64)
    noise = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), noise)
    equation = _in_own_units(alpha, beta, noise)
    return jax.lax.cond(
        jnp.linalg.norm(equation.n) > _NO_NOISE,
        lambda: _solve(equation, tol),
        lambda: solve_complementarity(alpha, beta, tol=tol, fallback=fallback),
    )


def _in_own_units(alpha: Float[Array, "k k"], beta: Float[Array, "p p"], noise: Noise) -> _Equation:
    size = jnp.trace(noise.N)
    scale = norm_or_one(beta)
    z = norm_or_one(alpha) + jnp.sqrt(size * scale)
    # With margin to spare and hardly any feedback, variances are small beside |alpha| / |beta|.
    safe = (decompose(alpha[None])[0][0, 0] > _SAFE * z) & (size > 0)
    least = _LEAST_NOISE * z**2 / jnp.where(safe, size, 1)
    scale = jnp.where(safe, jnp.maximum(scale, least), scale)
    problem = Problem(svec(alpha) / z, beta / scale, len(alpha))
    return _Equation(problem, svec(noise.N) * scale / z**2, noise.K / z, z, z / scale)


def _solve(equation: _Equation, tol: float) -> ComplementarySolution:
    problem, k = equation.problem, equation.problem.k
    p = problem.alpha.size
    level = jnp.trace(smat(equation.n, k)) / (2 * k)
    x, z, steps = point_on_path(problem, level)
    solution = optx.root_find(
        _defect,
        DampedNewton(rtol=0.0, atol=1e-3 * tol),
        jnp.concatenate([x, z]),
        args=equation,
        has_aux=True,
        max_steps=_NEWTON_STEPS,
        throw=False,
    )
    x, residual = solution.value[:p], solution.aux
    found = residual <= tol
    return ComplementarySolution(
        X=smat(x * equation.x, k),
        Z=smat((problem.alpha + problem.beta @ x) * equation.z, k),
        residual=residual,
        iterations=steps + jnp.maximum(solution.stats["num_steps"] - 1, 0),
        result=RESULTS.where(found, RESULTS.solved, RESULTS.stalled),
    )


def at_most_one(Z: Float[Array, "k k"]) -> Float[Array, "k k"]:
    """The symmetric matrix with eigenvalues above 1 replaced by 1."""
    return Z - split(Z - jnp.eye(len(Z)))[0]


def _defect(y: Float[Array, " q"], equation: _Equation) -> tuple[Float[Array, " q"], Array]:
    """By how much X and Z, the halves of `y`, miss the equations, NaN unless both are positive;
    and the residual."""
    problem, k = equation.problem, equation.problem.k
    x, z = jnp.split(y, 2)
    X, Z = smat(x, k), smat(z, k)
    driven = equation.n + equation.K @ x
    damping = at_most_one(equation.z * Z) / equation.z
    damped = svec(damping @ X + X @ damping - equation.z * (damping @ X @ damping))
    image = problem.beta @ x
    misses = damped - driven, z - problem.alpha - image
    sizes = (
        jnp.linalg.norm(equation.n) + _LEAST_SHARE * jnp.linalg.norm(x) * jnp.linalg.norm(z),
        jnp.linalg.norm(problem.alpha) + jnp.linalg.norm(image),
    )
    misses = [miss / jax.lax.stop_gradient(size) for miss, size in zip(misses, sizes, strict=True)]
    residual = jnp.max(jnp.stack([jnp.linalg.norm(miss) for miss in misses]))
    spectra = decompose(jax.lax.stop_gradient(jnp.stack([X, Z])))[0]
    inside = jnp.all(spectra[:, 0] > 0)
    return jnp.where(inside, jnp.concatenate(misses), jnp.nan), residual
