"""Tracking the largest eigenpairs of the effective Hessian while the weights move.

The effective Hessian of an optimizer is the pencil H u = theta P u, critical at theta = 2. Only
products with H and with K = P^{-1} are used: with u = K y the pencil reads K H K y = theta K y,
self-adjoint in the inner product of K. The solver is LOBPCG (Knyazev, 2001) in that inner product,
started from the eigenvectors of the last solve, extrapolated.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ..response import apply_columns
from .products import LocalModel


class Eigenpairs(eqx.Module):
    """The leading eigenpairs, in descending order, and what it took to find them.

    U has P-orthonormal columns (U^T P U = I), Y = P U. The first `active` columns are converged
    to the tolerances of `EigenTracker`; the others are guards that speed convergence up and reveal
    directions on the rise. `previous` is Y of the solve before, `fresh` marks columns to be drawn
    at random, `products` counts Hessian-vector products of the last solve.
    """

    Y: Float[Array, "d m"]
    U: Float[Array, "d m"]
    theta: Float[Array, " m"]
    residuals: Float[Array, " m"]
    previous: Float[Array, "d m"]
    fresh: Bool[Array, " m"]
    active: Int[Array, ""]
    converged: Bool[Array, ""]
    products: Int[Array, ""]
    key: PRNGKeyArray

    @property
    def mask(self) -> Bool[Array, " m"]:
        """Which columns are active."""
        return jnp.arange(self.theta.size) < self.active


def unsolved(d: int, capacity: int, dtype: jnp.dtype, key: PRNGKeyArray) -> Eigenpairs:
    """Eigenpairs to start a first solve from; never more columns than dimensions."""
    m = min(capacity, d)
    zeros = jnp.zeros((d, m), dtype)
    return Eigenpairs(
        Y=zeros,
        U=zeros,
        theta=jnp.zeros(m, dtype),
        residuals=jnp.full(m, jnp.inf, dtype),
        previous=zeros,
        fresh=jnp.ones(m, bool),
        active=jnp.zeros((), jnp.int32),
        converged=jnp.zeros((), bool),
        products=jnp.zeros((), jnp.int32),
        key=key,
    )


def widen(pairs: Eigenpairs, capacity: int) -> Eigenpairs:
    """The same eigenpairs with room for `capacity` columns; the new ones start at random."""
    d, m = pairs.Y.shape
    new = unsolved(d, capacity, pairs.Y.dtype, pairs.key)
    keep = lambda old, wide: wide.at[..., :m].set(old)  # noqa: E731
    return eqx.tree_at(
        lambda p: (p.Y, p.U, p.theta, p.residuals, p.previous, p.fresh),
        new,
        (
            keep(pairs.Y, new.Y),
            keep(pairs.U, new.U),
            keep(pairs.theta, new.theta),
            keep(pairs.residuals, new.residuals),
            keep(pairs.previous, new.previous),
            keep(pairs.fresh, new.fresh),
        ),
    )


class _Block(NamedTuple):
    """Vectors with their images: S, K S and H K S."""

    S: Float[Array, "d n"]
    KS: Float[Array, "d n"]
    HKS: Float[Array, "d n"]

    def combine(self, C: Float[Array, "n m"]) -> "_Block":
        return _Block(*(part @ C for part in self))

    def minus(self, other: "_Block") -> "_Block":
        return _Block(*(a - b for a, b in zip(self, other, strict=True)))

    def beside(self, *others: "_Block") -> "_Block":
        return _Block(*(jnp.concatenate(parts, 1) for parts in zip(self, *others, strict=True)))


class _Iterate(NamedTuple):
    ritz: _Block
    conjugate: _Block
    theta: Float[Array, " m"]
    defect: Float[Array, "d m"]
    residuals: Float[Array, " m"]
    iteration: Int[Array, ""]


class EigenTracker(eqx.Module):
    """Settings of the eigensolver.

    - `track_above`: eigenvalues above it are tracked, with one guard direction below it; `initial`
      is the least number of tracked directions.
    - `tol`: bound on |H u - theta P u|_K / theta for the directions that a solve is told to make
      `exact`. The other tracked directions are only watched; their eigenvalues, accurate to the
      square of the residual, need `sqrt(tol)`.
    - `restart_every`: iterations after which a stalled solve is restarted with fresh random
      directions beside the current ones, up to `max_iterations`.
    - `exploration`: size of the random perturbation of the last guard on request, so that an
      eigenvector orthogonal to all the others cannot stay unseen.
    """

    track_above: float = 1.5
    initial: int | Int[Array, ""] = 1
    tol: float = 1e-6
    max_iterations: int = 240
    restart_every: int = 60
    exploration: float = 1e-3

    def solve(
        self,
        model: LocalModel,
        gain: lx.AbstractLinearOperator,
        pairs: Eigenpairs,
        *,
        explore: bool | Bool[Array, ""] = False,
        exact_above: float = float("inf"),
        oscillating: bool = False,
    ) -> Eigenpairs:
        """Eigenpairs at the point of `model`, warm-started from `pairs`.

        Eigenvectors of eigenvalues above `exact_above` are converged to `tol`. The start is an
        extrapolation of the last two solves or, where the point oscillates with period two, the
        solve before the last. Up to five times as many dimensions as columns are solved densely:
        a search space has three times as many, and nearly fills them.
        """
        d, m = pairs.Y.shape
        key, draw, again = jr.split(pairs.key, 3)
        if d <= 5 * m:
            solved, products = _dense(model, gain, m), jnp.asarray(d, jnp.int32)
        else:
            start = self._start(gain, pairs, draw, explore, oscillating)
            solved, products = self._iterate(model, gain, start, exact_above, again)
        ritz, theta, residuals = solved.ritz, solved.theta, solved.residuals
        return Eigenpairs(
            Y=ritz.S,
            U=ritz.KS,
            theta=theta,
            residuals=residuals,
            previous=jnp.where(pairs.fresh, ritz.S, pairs.Y),
            fresh=jnp.zeros_like(pairs.fresh),
            active=self._active(theta),
            converged=self._converged(theta, residuals, exact_above),
            products=products,
            key=key,
        )

    def overflows(self, pairs: Eigenpairs) -> Bool[Array, ""]:
        """Whether every column is in use although there are more dimensions to look at."""
        d, m = pairs.Y.shape
        return (m < d) & (pairs.theta[-1] > self.track_above)

    def _active(self, theta: Float[Array, " m"]) -> Int[Array, ""]:
        wanted = jnp.maximum(self.initial, jnp.sum(theta > self.track_above) + 1)
        return jnp.minimum(wanted, theta.size).astype(jnp.int32)

    def _converged(
        self, theta: Float[Array, " m"], residuals: Float[Array, " m"], exact_above: float
    ) -> Bool[Array, ""]:
        needed = jnp.where(theta > exact_above, self.tol, self.tol**0.5)
        watched = jnp.arange(theta.size) < self._active(theta)
        return jnp.all(~watched | (residuals <= needed))

    def _start(
        self,
        gain: lx.AbstractLinearOperator,
        pairs: Eigenpairs,
        key: PRNGKeyArray,
        explore: bool | Bool[Array, ""],
        oscillating: bool,
    ) -> Float[Array, "d m"]:
        """Forecast eigenvectors; random columns where `fresh`, random noise to explore."""
        noise = _random_columns(gain, pairs.Y, key)
        if oscillating:
            start = pairs.previous
        else:
            # The earlier basis is first rotated onto the present one (Procrustes), because bases
            # of close eigenvalues turn arbitrarily between solves.
            left, _, right = jnp.linalg.svd(pairs.previous.T @ pairs.U, full_matrices=False)
            start = 2 * pairs.Y - pairs.previous @ (left @ right)
        last = jnp.arange(pairs.theta.size) == pairs.theta.size - 1
        start = start + jnp.where(explore & last, self.exploration, 0) * noise
        return jnp.where(pairs.fresh, noise, start)

    def _iterate(
        self,
        model: LocalModel,
        gain: lx.AbstractLinearOperator,
        start: Float[Array, "d m"],
        exact_above: float,
        key: PRNGKeyArray,
    ) -> tuple[_Iterate, Int[Array, ""]]:
        m = start.shape[1]

        def product(S: Float[Array, "d m"]) -> _Block:
            KS = apply_columns(gain, S)
            return _Block(S, KS, model.hvps(KS))

        def finish(ritz: _Block, conjugate: _Block, theta: Array, iteration: Array) -> _Iterate:
            defect, residuals = _residuals(gain, ritz, theta)
            return _Iterate(ritz, conjugate, theta, defect, residuals, iteration)

        def body(now: _Iterate) -> _Iterate:
            restart = (now.iteration + 1) % self.restart_every == 0
            noise = _random_columns(gain, start, jr.fold_in(key, now.iteration))
            expansion = jnp.where(restart, noise, now.defect)
            expansion = _unit_columns(gain, _orthogonalise(now.ritz, expansion))
            space = now.ritz.beside(product(expansion), now.conjugate)
            C, theta = _rayleigh_ritz(space, m)
            ritz = space.combine(C)
            step = space.combine(C.at[:m].set(0))
            overlap = ritz.KS.T @ step.S
            return finish(ritz, step.minus(ritz.combine(overlap)), theta, now.iteration + 1)

        def unfinished(now: _Iterate) -> Bool[Array, ""]:
            done = (now.iteration > 0) & self._converged(now.theta, now.residuals, exact_above)
            return ~done & (now.iteration < self.max_iterations)

        block = product(start)
        C, theta = _rayleigh_ritz(block, m)
        nothing = _Block(*(jnp.zeros_like(start),) * 3)
        first = finish(block.combine(C), nothing, theta, jnp.zeros((), jnp.int32))
        last = jax.lax.while_loop(unfinished, body, first)
        return last, m * (last.iteration + 1)


def _random_columns(
    gain: lx.AbstractLinearOperator, like: Float[Array, "d m"], key: PRNGKeyArray
) -> Float[Array, "d m"]:
    """Random columns of unit length in the range of K: where K vanishes, nothing moves."""
    return _unit_columns(gain, apply_columns(gain, jr.uniform(key, like.shape, like.dtype, -1, 1)))


def _unit_columns(gain: lx.AbstractLinearOperator, V: Float[Array, "d m"]) -> Float[Array, "d m"]:
    norm = jnp.sqrt(jnp.maximum(jnp.sum(V * apply_columns(gain, V), 0), 0))
    return V / jnp.where(norm > 0, norm, 1)


def _orthogonalise(ritz: _Block, V: Float[Array, "d m"]) -> Float[Array, "d m"]:
    for _ in range(2):  # twice is enough
        V = V - ritz.S @ (ritz.KS.T @ V)
    return V


def _residuals(
    gain: lx.AbstractLinearOperator, ritz: _Block, theta: Float[Array, " m"]
) -> tuple[Float[Array, "d m"], Float[Array, " m"]]:
    defect = ritz.HKS - ritz.S * theta
    norm = jnp.sqrt(jnp.maximum(jnp.sum(defect * apply_columns(gain, defect), 0), 0))
    # Relative to theta, but for eigenvalues so far below the critical 2 that they do not matter.
    return defect, norm / jnp.maximum(jnp.abs(theta), 1e-3)


def _rayleigh_ritz(space: _Block, m: int) -> tuple[Float[Array, "n m"], Float[Array, " m"]]:
    """Coefficients of the `m` leading Ritz vectors in `space`, K-orthonormal, and their values.

    Near-dependent combinations, known from the eigenvalues of the scaled Gram matrix, are dropped.
    """
    gram = space.S.T @ space.KS
    size = jnp.sqrt(jnp.maximum(jnp.diagonal(gram), 0))
    unit = jnp.where(size > 0, 1 / jnp.where(size > 0, size, 1), 0)
    overlap, basis = jnp.linalg.eigh(_symmetric(unit[:, None] * gram * unit))
    keep = overlap > 100 * gram.shape[0] * jnp.finfo(gram.dtype).eps
    basis = unit[:, None] * basis * jnp.where(keep, overlap, 1) ** -0.5 * keep
    projected = _symmetric(basis.T @ (space.KS.T @ space.HKS) @ basis)
    lowest = jnp.sum(jnp.abs(projected)) + 1
    theta, rotation = jnp.linalg.eigh(projected - jnp.diag(jnp.where(keep, 0, 2 * lowest)))
    return (basis @ rotation)[:, : -m - 1 : -1], theta[: -m - 1 : -1]


def _symmetric(A: Float[Array, "n n"]) -> Float[Array, "n n"]:
    return (A + A.T) / 2


def _dense(model: LocalModel, gain: lx.AbstractLinearOperator, m: int) -> _Iterate:
    identity = jnp.eye(model.grad.size, dtype=model.grad.dtype)
    H, K = _symmetric(model.hvps(identity)), _symmetric(apply_columns(gain, identity))
    k, basis = jnp.linalg.eigh(K)
    positive = k > k[-1] * k.size * jnp.finfo(K.dtype).eps
    root = jnp.where(positive, jnp.sqrt(jnp.where(positive, k, 1)), 0)
    half = (basis * root) @ basis.T
    # Directions without gain are no eigenvectors of the pencil: they come last.
    effective = _symmetric(half @ H @ half)
    below = 2 * jnp.sum(jnp.abs(effective)) + 1
    idle = (basis * ~positive) @ basis.T
    theta, Z = jnp.linalg.eigh(effective - below * idle)
    theta, Z = theta[: -m - 1 : -1], Z[:, : -m - 1 : -1]
    Y = (basis * jnp.where(positive, 1 / jnp.where(positive, root, 1), 0)) @ (basis.T @ Z)
    U = half @ Z
    ritz = _Block(Y, U, H @ U)
    defect, residuals = _residuals(gain, ritz, theta)
    return _Iterate(ritz, ritz, theta, defect, residuals, jnp.zeros((), jnp.int32))
