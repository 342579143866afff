"""The semidefinite complementarity problem (SDCP) that determines the oscillation covariance.

Given alpha in Sym(k) and a monotone linear map beta on Sym(k), find X with

    X >= 0,   Z = alpha + beta[X] >= 0,   <X, Z> = 0.

In a central flow (arXiv 2410.24206) X is the covariance of the oscillation in the critical
directions and Z the stability margin they are left with after a step.

Method. The *normal map* turns the problem into equations for one unrestricted A in Sym(k): X = A_+
and Z = A_- = A_+ - A are positive semidefinite with <X, Z> = 0 whatever A is, so that only
Z = alpha + beta[X] remains to be solved. A damped semismooth Newton method started at A = -alpha
needs a few iterations inside a flow, but is not globally convergent. Where it fails, the
interior-point method of `central_path` does not; it is compiled only where it is asked for.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
from jaxtyping import Array, Bool, Float, Int

from .central_path import Attempt, Problem, follow_path, judge
from .symmetric import smat, split, svec

_EPSILON = float(np.finfo(np.float64).eps)
_LEAST = float(np.finfo(np.float64).tiny) / _EPSILON  # the least size that has all its digits
_NEWTON_STEPS = 20
_NEWTON_MARGIN = 1e-3  # Newton converges quadratically, so that aiming below `tol` is cheap


class RESULTS(eqx.Enumeration):
    """How a complementarity problem ended."""

    solved = "solved"
    no_solution = "the complementarity problem has no solution"
    stalled = "the complementarity solver stopped before reaching its tolerance"


class ComplementarySolution(eqx.Module):
    """What `solve_complementarity` found.

    - `X` and `Z` = alpha + beta[X]; trust them only where `result` is `solved`.
    - `residual`: the relative violation described in `solve_complementarity`.
    - `iterations`: Newton iterations in all.
    - `result`: `RESULTS.solved`, `RESULTS.no_solution` or `RESULTS.stalled`.
    """

    X: Float[Array, "k k"]
    Z: Float[Array, "k k"]
    residual: Float[Array, ""]
    iterations: Int[Array, ""]
    result: RESULTS


class _NewtonState(eqx.Module):
    y: Float[Array, " n"]
    aux: Array
    value: Float[Array, ""]
    direction: Float[Array, " n"]
    length: Float[Array, ""]


class DampedNewton(optx.AbstractRootFinder):
    """Newton's method whose step is halved until the norm of the function decreases.

    Stops successfully once |f(y)| <= atol + rtol |y|, and with `nonlinear_divergence` once the
    step has been halved below `shortest`. Each Optimistix step linearises the function once, at
    one trial point. The auxiliary output of the function must be an array.
    """

    rtol: float
    atol: float
    norm: Callable = optx.two_norm
    shortest: float = 1e-4

    def init(self, fn, y, args, options, f_struct, aux_struct, tags):
        """Nothing is known yet: any trial point is better than an infinite value."""
        del fn, args, options, f_struct, tags
        aux = jnp.zeros(aux_struct.shape, aux_struct.dtype)
        one = jnp.ones((), y.dtype)
        return _NewtonState(y, aux, jnp.inf * one, jnp.zeros_like(y), one)

    def step(self, fn, y, args, options, state, tags):
        """Judge the trial point y and propose the next one."""
        del options
        f, jvp, aux = jax.linearize(lambda y: fn(y, args), y, has_aux=True)
        value = self.norm(f)
        jacobian = lx.FunctionLinearOperator(jvp, jax.eval_shape(lambda: y), tags)
        direction = lx.linear_solve(jacobian, -f, lx.LU(), throw=False).value
        accepted = _NewtonState(y, aux, value, direction, jnp.ones_like(value))
        shortened = eqx.tree_at(lambda s: s.length, state, state.length / 2)
        accept = value < (1 - 1e-4 * state.length) * state.value
        new = jax.tree.map(lambda a, b: jnp.where(accept, a, b), accepted, shortened)
        return new.y + new.length * new.direction, new, aux

    def terminate(self, fn, y, args, options, state, tags):
        """Converged, or out of step length."""
        del fn, y, args, options, tags
        converged = state.value <= self.atol + self.rtol * self.norm(state.y)
        failed = ~converged & (state.length < self.shortest)
        result = optx.RESULTS.where(
            failed, optx.RESULTS.nonlinear_divergence, optx.RESULTS.successful
        )
        return converged | failed, result

    def postprocess(self, fn, y, aux, args, options, state, tags, result):
        """Return the best point, not the last trial."""
        del fn, y, aux, args, options, tags, result
        return state.y, state.aux, {}


def _normal_map(a, problem):
    X, Z = split(smat(a, problem.k))
    x = svec(X)
    return svec(Z) - problem.alpha - problem.beta @ x, x


def _newton(problem: Problem, tol: float) -> tuple[Attempt, Int[Array, ""]]:
    solution = optx.root_find(
        _normal_map,
        DampedNewton(rtol=4 * _EPSILON, atol=_NEWTON_MARGIN * tol),
        -problem.alpha,
        args=problem,
        has_aux=True,
        max_steps=_NEWTON_STEPS,
        throw=False,
    )
    # The first step only evaluates the starting point.
    iterations = jnp.maximum(solution.stats["num_steps"] - 1, 0)
    return judge(problem, solution.aux), iterations


def norm_or_one(array: Array) -> Float[Array, ""]:
    """The norm, by way of a power of two: squares of large and small numbers leave float64."""
    largest = jnp.max(jnp.abs(array))
    ordinary = (largest > 0) & jnp.isfinite(largest)
    power = jnp.ldexp(1.0, jnp.frexp(jnp.where(ordinary, largest, 1.0))[1] - 1)
    return jnp.where(ordinary, jnp.linalg.norm(array / power) * power, 1.0)


def _held(*sizes: Array) -> Bool[Array, ""]:
    """Whether numbers of these sizes have all their digits in float64."""
    return jnp.all((jnp.stack(sizes) >= _LEAST) & jnp.isfinite(jnp.stack(sizes)))


def violation(
    alpha: Float[Array, "k k"], beta: Float[Array, "p p"], X: Float[Array, "k k"]
) -> Float[Array, ""]:
    """How far `X` is from solving a problem: the residual of `solve_complementarity`."""
    size, scale = norm_or_one(alpha), norm_or_one(beta)
    problem = Problem(svec(alpha) / size, beta / scale, alpha.shape[-1])
    return judge(problem, svec(X) * scale / size).residual


def solve_complementarity(
    alpha: Float[Array, "k k"],
    beta: Float[Array, "p p"],
    *,
    tol: float = 1e-10,
    fallback: bool = True,
) -> ComplementarySolution:
    """Find X >= 0 with Z = alpha + beta[X] >= 0 and <X, Z> = 0.

    - `alpha`: symmetric; its lower triangle is read.
    - `beta`: a linear map on Sym(k) in `svec` coordinates, p = k(k+1)/2. Convergence is assured
      when it is monotone, <X, beta[X]> >= 0; it may be singular and need not be symmetric.
    - `tol`: the residual allowed in a solution.
    - `fallback`: follow the central path where Newton's method fails; without it such a problem is
      `stalled`.

    Computes in float64 on the device of its arguments; works under `jit` and `vmap`, where
    outcomes are told by `result` alone. `implicit.covariance` differentiates what it finds.

    The residual is the largest of the three violations, Frobenius norms setting the scales:

        -lambda_min(X) / |X|,   -lambda_min(Z) / s,   |<X, Z>| / (|X| s),   s = |alpha| + |beta[X]|

    It does not change when alpha or beta is multiplied by a positive number. A solution has
    tr X <= 1e8 |alpha|/|beta|. `no_solution` is reported with a proof: a Y >= 0 with <alpha, Y> < 0
    and beta^T[Y] so nearly <= 0 that a solution would need a larger trace; X is then a multiple of
    Y. What is neither is `stalled`, with the X of least residual found; so is what float64 cannot
    hold (numbers below its normal range are zero, as everywhere in XLA).

    Raises ValueError for shapes that do not fit.
    """
    alpha, beta = jnp.asarray(alpha, jnp.float64), jnp.asarray(beta, jnp.float64)
    k = alpha.shape[-1] if alpha.ndim else 0
    p = k * (k + 1) // 2
    if k < 1 or alpha.shape != (k, k) or beta.shape != (p, p):
        raise ValueError(
            "solve_complementarity needs alpha of shape (k, k), k >= 1, and beta of shape (p, p), "
            f"p = k(k+1)/2; got {alpha.shape} and {beta.shape}"
        )
    unit_alpha, unit_beta = norm_or_one(alpha), norm_or_one(beta)
    problem = Problem(svec(alpha) / unit_alpha, beta / unit_beta, k)
    attempt, iterations = _newton(problem, tol)
    if fallback:
        attempt, iterations = follow_path(problem, attempt, iterations, tol)
    x = attempt.x * (unit_alpha / unit_beta)
    Z = alpha + smat(beta @ x, k)
    size_x = norm_or_one(attempt.x) * (unit_alpha / unit_beta)
    size_x = jnp.where(jnp.any(attempt.x != 0), size_x, 1.0)
    held = _held(unit_alpha, unit_beta, size_x) & jnp.all(jnp.isfinite(Z))
    result = RESULTS.where(attempt.unsolvable, RESULTS.no_solution, RESULTS.stalled)
    result = RESULTS.where(attempt.solves(tol), RESULTS.solved, result)
    return ComplementarySolution(
        X=smat(x, k),
        Z=Z,
        residual=attempt.residual,
        iterations=iterations,
        result=RESULTS.where(held, result, RESULTS.stalled),
    )
