"""The central flow of gradient descent, put together from off-the-shelf parts.

What a careful user would write without this package (arXiv 2410.24206, explicit Euler): LOBPCG of
`jax.experimental.sparse.linalg` for the leading Hessian eigenvectors, cvxpy with Clarabel for the
oscillation's covariance, everything else in a few jitted functions that compile once.
"""

from collections.abc import Callable
from typing import NamedTuple

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse.linalg import lobpcg_standard
from jaxtyping import Array, Float

Vector = Float[Array, " d"]


class Cost(NamedTuple):
    """Evaluations of one step; Hessian-vector products count columns."""

    gradients: int = 0
    hvps: int = 0
    third_derivatives: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(a + b for a, b in zip(self, other, strict=True)))


def lobpcg_products(k: int, iterations: int) -> int:
    """Columns that `lobpcg_standard` multiplies by its operator.

    It applies it to the k start vectors and, in every iteration, to the joint basis of iterates,
    directions and residuals (3k columns) and again to the new iterates for their residuals (k).
    """
    return k * (1 + 4 * iterations)


def lobpcg_tolerance(residual: float, d: int) -> float:
    """The `tol` with which `lobpcg_standard` asks for |H u - lambda u| < residual * lambda.

    Its own criterion is |H u - lambda u| < tol * 10 d (lambda + |H u|).
    """
    return residual / (20 * d)


def pair_indices(k: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the lower triangle: pairs of the leading directions come first."""
    return np.tril_indices(k)


class ConicSolver:
    """min over X >= 0 of |F x|^2 / 2 + a.x, x the svec coordinates of X: one problem, reused.

    F with F^T F = beta and a are parameters (DPP), so that cvxpy canonicalises once.
    """

    def __init__(self, k: int):
        rows, columns = pair_indices(k)
        p = rows.size
        self._weights = np.where(rows == columns, 1.0, 2**0.5)
        select = np.zeros((p, k * k))
        select[np.arange(p), rows * k + columns] = self._weights
        self._X = cp.Variable((k, k), PSD=True)
        self._F, self._a = cp.Parameter((p, p)), cp.Parameter(p)
        x = select @ cp.vec(self._X, order="C")
        self._problem = cp.Problem(cp.Minimize(cp.sum_squares(self._F @ x) / 2 + self._a @ x))

    def solve(
        self, alpha: Float[np.ndarray, " p"], beta: Float[np.ndarray, "p p"]
    ) -> Float[np.ndarray, " p"]:
        """svec coordinates of X; raises `RuntimeError` if Clarabel does not solve the problem."""
        # In natural units, |alpha| = |beta| = 1, Clarabel's absolute tolerances are relative ones.
        a_size, b_size = np.linalg.norm(alpha), np.linalg.norm(beta)
        values, vectors = np.linalg.eigh(beta / b_size)
        self._F.value = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
        self._a.value = alpha / a_size
        self._problem.solve(solver=cp.CLARABEL)
        if self._problem.status != cp.OPTIMAL:
            raise RuntimeError(f"Clarabel: {self._problem.status}")
        rows, columns = pair_indices(len(self._X.value))
        return self._X.value[rows, columns] * self._weights * a_size / b_size


class Baseline:
    """Explicit Euler steps of the central flow of gradient descent, w' = -lr (g + penalty).

    - `tol` is passed to `lobpcg_standard`, which is started from the previous eigenvectors.
    - `critical_only` computes third derivatives for pairs of the critical directions only, which
      compiles once for each number of them; otherwise, as static shapes suggest, for all pairs of
      the k tracked ones. Only critical directions oscillate in either.
    """

    def __init__(
        self,
        loss: Callable[[Vector], Array],
        lr: float,
        k: int,
        *,
        substeps: int,
        critical_above: float,
        tol: float,
        critical_only: bool,
    ):
        self.lr, self.k, self.substeps = lr, k, substeps
        self._critical_above, self._critical_only = critical_above, critical_only
        self._conic = ConicSolver(k)
        self._grad = jax.jit(jax.grad(loss))
        self._track = jax.jit(lambda w, U: _track(loss, w, U, tol))
        self._third = jax.jit(lambda w, U: _third_derivatives(loss, w, U))
        self._move = jax.jit(lambda w, g, penalty: w - (lr / substeps) * (g + penalty))
        self._combine = jax.jit(lambda third, x: x @ third / 2)

    def init(self, w: Vector, key: Array) -> tuple[Vector, Float[Array, "d k"]]:
        """The state at `w`: the weights, and eigenvectors converged from a random start.

        Also compiles what later steps call for the first time in the middle of a run.
        """
        U = self._track(w, jax.random.normal(key, (w.size, self.k), w.dtype))[1]
        for m in range(1, self.k + 1) if self._critical_only else [self.k]:
            third = self._third(w, U[:, :m])
            self._move(w, w, self._combine(third, np.zeros(len(third))))
        return w, U

    def step(
        self, state: tuple[Vector, Float[Array, "d k"]]
    ) -> tuple[tuple[Vector, Float[Array, "d k"]], Cost]:
        """The state one optimizer step later, and what it took."""
        total = Cost()
        for _ in range(self.substeps):
            state, cost = self._substep(*state)
            total += cost
        return jax.block_until_ready(state), total

    def _substep(
        self, w: Vector, U: Float[Array, "d k"]
    ) -> tuple[tuple[Vector, Float[Array, "d k"]], Cost]:
        values, U, iterations = self._track(w, U)
        g = self._grad(w)
        theta = self.lr * np.asarray(values)
        critical = int(np.sum(theta > self._critical_above))
        cost = Cost(gradients=1, hvps=lobpcg_products(self.k, int(iterations)))
        if critical == 0:
            return (self._move(w, g, 0.0), U), cost
        third = self._third(w, U[:, :critical] if self._critical_only else U)
        x = self._oscillation(theta, np.asarray(third), np.asarray(g), critical)
        cost += Cost(third_derivatives=len(third))
        return (self._move(w, g, self._combine(third, x[: len(third)])), U), cost

    def _oscillation(
        self,
        theta: Float[np.ndarray, " k"],
        third: Float[np.ndarray, "p d"],
        g: Vector,
        critical: int,
    ) -> Float[np.ndarray, " q"]:
        """svec coordinates of X, Sigma = U X U^T: the margin 2 - theta stays PSD over a substep.

        The margin changes by (lr^2 / substeps) (D3.g + D3.D3^T X / 2), D3 the third derivatives.
        """
        rows, columns = pair_indices(self.k)
        n = critical * (critical + 1) // 2  # pairs of critical directions
        third, scale = third[:n], self.lr**2 / self.substeps
        diagonal = (rows == columns)[:n]
        alpha, beta = np.where(rows == columns, 1.0, 0.0), np.zeros((rows.size, rows.size))
        alpha[:n] = scale * (third @ g)
        alpha[:n][diagonal] += 2 - theta[:critical]
        beta[:n, :n] = scale / 2 * (third @ third.T)
        return self._conic.solve(alpha, beta)


def _track(
    loss: Callable[[Vector], Array], w: Vector, U: Float[Array, "d k"], tol: float
) -> tuple[Array, Array, Array]:
    """Leading eigenvalues and eigenvectors of the Hessian at `w`, and iterations.

    The operator is static to `lobpcg_standard`; inside one jitted function it is traced once.
    """
    product = jax.linearize(jax.grad(loss), w)[1]
    return lobpcg_standard(jax.vmap(product, in_axes=1, out_axes=1), U, tol=tol)


def _third_derivatives(
    loss: Callable[[Vector], Array], w: Vector, U: Float[Array, "d m"]
) -> Float[Array, "p d"]:
    """d^2/(da db) grad L(w + a u + b v) for all pairs of columns, in svec coordinates."""
    rows, columns = pair_indices(U.shape[1])

    def third(u: Vector, v: Vector) -> Vector:
        def along(x: Vector) -> Vector:
            return jax.jvp(jax.grad(loss), (x,), (u,))[1]

        return jax.jvp(along, (w,), (v,))[1]

    weights = jnp.where(rows == columns, 1, 2**0.5)
    return weights[:, None] * jax.vmap(third)(U.T[rows], U.T[columns])
