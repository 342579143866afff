"""The semidefinite complementarity problem (SDCP) that determines the oscillation covariance.

Given alpha in Sym(k) and a monotone linear map beta on Sym(k), find X with

    X >= 0,   Z = alpha + beta[X] >= 0,   <X, Z> = 0.

In a central flow (arXiv 2410.24206) X is the covariance of the oscillation in the critical
directions and Z the stability margin they are left with after a step.

Method. The *normal map* turns the problem into equations for one unrestricted A in Sym(k): X = A_+
and Z = A_- = A_+ - A are positive semidefinite with <X, Z> = 0 whatever A is, so that only
Z = alpha + beta[X] remains to be solved. A damped semismooth Newton method started at A = -alpha
needs a few iterations inside a flow, but is not globally convergent. Where it fails, an
interior-point method follows the *regularised central path*

    Z = alpha + beta[X] + eps X,   X Z = eps I,   eps from 10 to 0,

in natural units, |alpha| = |beta| = 1. For monotone beta each of its points exists and is unique,
without any assumption of strict feasibility or nondegeneracy; the first is nearly
X = I, Z = 10 I; and X stays bounded exactly when the SDCP has a solution. When it has none, X/|X|
tends to a direction that proves it, unless arbitrarily small changes of alpha would make the SDCP
solvable: then a large X meets the tolerance. Steps are Nesterov-Todd predictor-corrector steps
(Todd, Toh, Tutuncu, "On the Nesterov-Todd direction in semidefinite programming", SIAM J. Optim. 8,
1998).
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
from jaxtyping import Array, Bool, Float, Int

_EPSILON = float(np.finfo(np.float64).eps)
_NEWTON_STEPS = 20
_NEWTON_MARGIN = 1e-3  # Newton converges quadratically, so that aiming below `tol` is cheap
_PATH_START, _PATH_END = 10.0, 1e-24  # eps
_PATH_STEPS = 200
_FASTEST = 1e-2  # the least ratio of successive eps
_BACK_OFF = 0.95  # the share of the step to the boundary of the cone that is taken
_UNSOLVABLE_TRACE = 1e8  # "no solution" means none of trace below this, in natural units
_CLEARLY_NEGATIVE = 1e-7


def pairs(k: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the lower triangle of a k x k matrix, row by row.

    The first n(n+1)/2 pairs are those of the leading n x n block, so that padding k appends.
    """
    return np.tril_indices(k)


def svec(A: Float[Array, "*b k k"]) -> Float[Array, "*b p"]:
    """Coordinates of symmetric matrices in which <A, B> = tr(A B) is the dot product.

    The p = k(k+1)/2 entries follow `pairs`; off-diagonal ones are multiplied by sqrt(2).
    """
    rows, cols = pairs(A.shape[-1])
    return A[..., rows, cols] * np.where(rows == cols, 1.0, np.sqrt(2.0))


def smat(v: Float[Array, "*b p"], k: int) -> Float[Array, "*b k k"]:
    """The symmetric k x k matrices with coordinates v: the inverse of `svec`."""
    rows, cols = pairs(k)
    position = np.zeros((k, k), dtype=int)
    position[rows, cols] = position[cols, rows] = np.arange(rows.size)
    return v[..., position] * np.where(np.eye(k, dtype=bool), 1.0, np.sqrt(0.5))


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


@jax.custom_jvp
def split(A: Float[Array, "k k"]) -> tuple[Float[Array, "k k"], Float[Array, "k k"]]:
    """The positive and the negative part: A = X - Z with X, Z >= 0 and X Z = 0.

    Where A is singular, and X only semismooth, the derivative is an element of the generalised
    derivative, the one that treats zero eigenvalues as half positive.
    """
    return _split_spectrum(*jnp.linalg.eigh(A))


@split.defjvp
def _split_jvp(primals, tangents):
    # Daleckii-Krein: in the eigenbasis the derivative of a spectral function multiplies entry
    # (i, j) by the divided difference [f(a) - f(b)]/(a - b). Differentiating eigh would divide by
    # zero at a = b; this form, equal for f = max(., 0), has neither the pole nor cancellation.
    (A,), (dA,) = primals, tangents
    eigenvalues, Q = jnp.linalg.eigh(A)
    total = jnp.abs(eigenvalues)[:, None] + jnp.abs(eigenvalues)[None, :]
    slope = (eigenvalues[:, None] + eigenvalues[None, :]) / jnp.where(total > 0, total, 1.0)
    dX = Q @ (0.5 * (1 + slope) * (Q.T @ dA @ Q)) @ Q.T
    return _split_spectrum(eigenvalues, Q), (dX, dX - dA)


def _split_spectrum(eigenvalues, Q):
    positive, negative = jnp.maximum(eigenvalues, 0), jnp.maximum(-eigenvalues, 0)
    return (Q * positive) @ Q.T, (Q * negative) @ Q.T


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


class _Problem(eqx.Module):
    """An SDCP in natural units (|alpha| = |beta| = 1) and svec coordinates."""

    alpha: Float[Array, " p"]
    beta: Float[Array, "p p"]
    k: int = eqx.field(static=True)


class _Attempt(eqx.Module):
    """An X >= 0, how far it is from a solution, and whether it proves that there is none."""

    x: Float[Array, " p"]
    residual: Float[Array, ""]
    unsolvable: Bool[Array, ""]


def _judge(problem: _Problem, x: Float[Array, " p"]) -> _Attempt:
    image = problem.beta @ x
    z = problem.alpha + image
    size_x = jnp.linalg.norm(x)
    size_z = jnp.linalg.norm(problem.alpha) + jnp.linalg.norm(image)
    y = x / jnp.where(size_x > 0, size_x, 1.0)
    spectra = jnp.linalg.eigvalsh(smat(jnp.stack([x, z, problem.beta.T @ y]), problem.k))

    violations = jnp.stack([-spectra[0, 0], -spectra[1, 0], jnp.abs(x @ z)])
    scales = jnp.stack([size_x, size_z, size_x * size_z])
    residual = jnp.max(violations / jnp.where(scales > 0, scales, 1.0), initial=0.0)

    # For Y >= 0 every solution X has 0 <= <Y, Z> <= <alpha, Y> + lambda_max(beta^T[Y]) tr X,
    # which bounds tr X from below where <alpha, Y> < 0.
    fall, rise = -problem.alpha @ y, spectra[2, -1]
    unsolvable = (fall > _CLEARLY_NEGATIVE) & (fall > _UNSOLVABLE_TRACE * rise)
    return _Attempt(x, residual, unsolvable)


def _normal_map(a, problem):
    X, Z = split(smat(a, problem.k))
    x = svec(X)
    return svec(Z) - problem.alpha - problem.beta @ x, x


def _newton(problem: _Problem, tol: float) -> tuple[_Attempt, Int[Array, ""]]:
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
    return _judge(problem, solution.aux), iterations


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


def _frame(point: _PathPoint) -> _Frame:
    U, scale, Vt = jnp.linalg.svd(point.S.T @ point.R)
    G, H = point.R @ Vt.T / jnp.sqrt(scale), point.S @ U / jnp.sqrt(scale)
    k = scale.size
    E = svec(G @ smat(jnp.eye(k * (k + 1) // 2), k) @ G.T).T
    return _Frame(G, H, scale, E)


def _direct(problem: _Problem, point: _PathPoint, frame: _Frame, last: _Direction) -> _Direction:
    """One Newton step towards the point of the path that `last` shows to be within reach.

    `last` also supplies the second-order term of Mehrotra's corrector.
    """
    k, scale = problem.k, frame.scale
    eps = point.eps * jnp.clip((1 - last.longest) ** 2, _FASTEST, 1.0)
    x, z = svec(point.R @ point.R.T), svec(point.S @ point.S.T)
    excess = z - problem.alpha - problem.beta @ x - eps * x
    product = jnp.diag(eps - scale**2) - 0.5 * (last.dX @ last.dZ + last.dZ @ last.dX)
    target = svec(2 * product / (scale[:, None] + scale[None, :]))
    scaled = frame.E.T @ (problem.beta @ frame.E + eps * frame.E)
    system = lx.MatrixLinearOperator(jnp.eye(target.size) + scaled)
    dx = lx.linear_solve(system, target + frame.E.T @ excess, lx.LU(), throw=False).value
    step = smat(jnp.stack([dx, target - dx]), k)
    root = jnp.sqrt(scale)
    lowest = jnp.min(jnp.linalg.eigvalsh(step / (root[:, None] * root[None, :])))
    longest = jnp.minimum(1 / jnp.maximum(-lowest, _EPSILON), 1 / _BACK_OFF)
    return _Direction(step[0], step[1], longest, eps)


def _follow(problem: _Problem, point: _PathPoint) -> _PathPoint:
    """One predictor-corrector step along the path."""
    frame = _frame(point)
    zero, one = jnp.zeros_like(point.R), jnp.ones_like(point.eps)
    direction = jax.lax.fori_loop(
        0,
        2,
        lambda _, last: _direct(problem, point, frame, last),
        _Direction(zero, zero, one, point.eps),
    )
    length = _BACK_OFF * direction.longest
    middle = jnp.diag(frame.scale)
    factors = jnp.linalg.cholesky(
        jnp.stack([middle + length * direction.dX, middle + length * direction.dZ])
    )
    eps = point.eps + length * (direction.eps - point.eps)
    return _PathPoint(frame.G @ factors[0], frame.H @ factors[1], eps)


def _solve(problem: _Problem, tol: float) -> tuple[_Attempt, Int[Array, ""]]:
    def unfinished(carry):
        point, attempt, _, steps = carry
        open_ = ~(attempt.residual <= tol) & ~attempt.unsolvable
        return open_ & (point.eps > _PATH_END) & (steps < _PATH_STEPS)

    def advance(carry):
        point, best, iterations, steps = carry
        point = _follow(problem, point)
        new = _judge(problem, svec(point.R @ point.R.T))
        better = new.unsolvable | (new.residual < best.residual) | jnp.isnan(best.residual)
        best = jax.tree.map(lambda a, b: jnp.where(better, a, b), new, best)
        return point, best, iterations + 1, steps + 1

    eye = jnp.eye(problem.k)
    start = _PathPoint(eye, np.sqrt(_PATH_START) * eye, jnp.asarray(_PATH_START))
    carry = (start, *_newton(problem, tol), jnp.asarray(0))
    _, attempt, iterations, _ = jax.lax.while_loop(unfinished, advance, carry)
    return attempt, iterations


def _unit(array: Array) -> Float[Array, ""]:
    size = jnp.linalg.norm(array)
    return jnp.where(size > 0, size, 1.0)


def solve_complementarity(
    alpha: Float[Array, "k k"], beta: Float[Array, "p p"], *, tol: float = 1e-10
) -> ComplementarySolution:
    """Find X >= 0 with Z = alpha + beta[X] >= 0 and <X, Z> = 0.

    - `alpha`: symmetric; its lower triangle is read.
    - `beta`: a linear map on Sym(k) in `svec` coordinates, p = k(k+1)/2. Convergence is assured
      when it is monotone, <X, beta[X]> >= 0; it may be singular and need not be symmetric.
    - `tol`: the residual allowed in a solution.

    Computes in float64 on the device of its arguments; works under `jit` and `vmap`, where
    outcomes are told by `result` alone. It is not meant to be differentiated.

    The residual is the largest of the three violations, Frobenius norms setting the scales:

        -lambda_min(X) / |X|,   -lambda_min(Z) / s,   |<X, Z>| / (|X| s),   s = |alpha| + |beta[X]|

    It does not change when alpha or beta is multiplied by a positive number. `no_solution` is
    reported with a proof: a Y >= 0 with <alpha, Y> < 0 and beta^T[Y] so nearly <= 0 that a
    solution would need tr X > 1e8 |alpha|/|beta|; X is then a multiple of Y. What is neither is
    `stalled`, with the X of least residual found.

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
    unit_alpha, unit_beta = _unit(alpha), _unit(beta)
    attempt, iterations = _solve(_Problem(svec(alpha) / unit_alpha, beta / unit_beta, k), tol)
    x = attempt.x * (unit_alpha / unit_beta)
    result = RESULTS.where(attempt.unsolvable, RESULTS.no_solution, RESULTS.stalled)
    result = RESULTS.where(attempt.residual <= tol, RESULTS.solved, result)
    return ComplementarySolution(
        X=smat(x, k),
        Z=alpha + smat(beta @ x, k),
        residual=attempt.residual,
        iterations=iterations,
        result=result,
    )
