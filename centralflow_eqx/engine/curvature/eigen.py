"""Tracking the largest eigenpairs of the effective Hessian while the weights move.

The effective Hessian of an optimizer is the pencil H u = theta P u, critical at theta = 2. Only
products with H and with K = P^{-1} are used: with u = K y the pencil reads K H K y = theta K y,
self-adjoint in the inner product of K. The solver is a block Davidson method without preconditioner
(Davidson, 1975; Saad, "Numerical Methods for Large Eigenvalue Problems", chapter 8) in that inner
product: a basis that starts with the eigenvectors of the last solve, extrapolated, and grows by the
residuals of those columns that have not converged. Converged columns cost nothing more.
"""

import functools
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt32

from .products import LocalModel, apply_columns


class Eigenpairs(eqx.Module):
    """The leading eigenpairs, in descending order, and what it took to find them.

    U has P-orthonormal columns (U^T P U = I), Y = P U. The first `active` columns are converged
    to the tolerances of `EigenTracker`; what follows are guesses of the next eigenvectors.
    `previous` is Y of the solve before, `fresh` marks columns that are empty, `products` counts
    Hessian-vector products of the last solve. `key` is the data of a random key, which can be
    stored.
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
    key: UInt32[Array, " words"]

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
        key=jr.key_data(key),
    )


def widen(pairs: Eigenpairs, capacity: int) -> Eigenpairs:
    """The same eigenpairs with room for `capacity` columns; the new ones start at random."""
    d, m = pairs.Y.shape
    new = unsolved(d, capacity, pairs.Y.dtype, jr.wrap_key_data(pairs.key))
    keep = lambda old, wide: wide.at[..., :m].set(old)  # noqa: E731
    return eqx.tree_at(
        lambda p: (p.Y, p.U, p.theta, p.residuals, p.previous, p.fresh, p.active),
        new,
        (
            keep(pairs.Y, new.Y),
            keep(pairs.U, new.U),
            keep(pairs.theta, new.theta),
            keep(pairs.residuals, new.residuals),
            keep(pairs.previous, new.previous),
            keep(pairs.fresh, new.fresh),
            pairs.active,
        ),
    )


class _Basis(NamedTuple):
    """K-orthonormal vectors V, their images K V and H K V, and T = V^T K H K V, `size` of them.

    Columns beyond `size` are zero.
    """

    V: Float[Array, "d n"]
    KV: Float[Array, "d n"]
    HKV: Float[Array, "d n"]
    T: Float[Array, "n n"]
    size: Int[Array, ""]


class _Search(NamedTuple):
    """A basis, its leading Ritz pairs, and the first `count` columns it is to be expanded by."""

    basis: _Basis
    C: Float[Array, "n m"]
    Y: Float[Array, "d m"]
    theta: Float[Array, " m"]
    residuals: Float[Array, " m"]
    expansion: Float[Array, "d m"]
    count: Int[Array, ""]
    iteration: Int[Array, ""]
    products: Int[Array, ""]


class EigenTracker(eqx.Module):
    """Settings of the eigensolver.

    - `track_above`: eigenvalues above it are tracked, with one guard direction below it; `initial`
      is the least number of tracked directions.
    - `tol`: bound on |H u - theta P u|_K / theta for the directions that a solve is told to make
      `exact`. The other tracked directions are only watched; their eigenvalues, accurate to the
      square of the residual, need `sqrt(tol)`.
    - `max_iterations`: expansions of the basis in a solve.
    - `exploration`: size of the random perturbation of the last guard on request, so that an
      eigenvector orthogonal to all the others cannot stay unseen.
    """

    track_above: float | Float[Array, ""] = 1.5
    initial: int | Int[Array, ""] = 1
    tol: float | Float[Array, ""] = 1e-6
    max_iterations: int = 240
    exploration: float = 1e-3

    def solve(
        self,
        model: LocalModel,
        gain: lx.AbstractLinearOperator,
        pairs: Eigenpairs,
        *,
        explore: bool | Bool[Array, ""] = False,
        exact_above: float | Float[Array, ""] = float("inf"),
        oscillating: bool | Bool[Array, ""] = False,
    ) -> Eigenpairs:
        """Eigenpairs at the point of `model`, warm-started from `pairs`.

        Eigenvectors of eigenvalues above `exact_above` are converged to `tol`. The start is an
        extrapolation of the last two solves or, where the point oscillates with period two, the
        solve before the last. As many columns are worked on as were active, and on `explore` one
        more that reveals what rises. A problem of few dimensions is solved to rounding.
        """
        key, draw = jr.split(jr.wrap_key_data(pairs.key))
        worked = self._worked(pairs, explore)
        # A column that has never been seen is drawn at random, but only when it is needed.
        random = explore | (worked > jnp.sum(~pairs.fresh))
        start = self._start(gain, pairs, worked, draw, random, oscillating)
        found = self._search(model, gain, start, worked, explore, exact_above)
        basis, theta = found.basis, found.theta
        return Eigenpairs(
            Y=found.Y,
            U=basis.KV @ found.C,
            theta=theta,
            residuals=found.residuals,
            previous=jnp.where(pairs.fresh, found.Y, pairs.Y),
            fresh=jnp.arange(theta.size) >= basis.size,
            active=jnp.clip(self._active(theta), 1, jnp.maximum(basis.size, 1)),
            converged=self._converged(theta, found.residuals, exact_above),
            products=found.products,
            key=jr.key_data(key),
        )

    def overflows(self, pairs: Eigenpairs) -> Bool[Array, ""]:
        """Whether every column is in use although there are more dimensions to look at."""
        d, m = pairs.Y.shape
        return (m < d) & (pairs.theta[-1] > self.track_above)

    def _worked(self, pairs: Eigenpairs, explore: bool | Bool[Array, ""]) -> Int[Array, ""]:
        """How many columns a solve starts with: all of them where nothing is known yet."""
        m = pairs.theta.size
        unguarded = pairs.theta[jnp.maximum(pairs.active, 1) - 1] > self.track_above
        worked = pairs.active + (explore | unguarded)
        return jnp.where(pairs.active == 0, m, jnp.minimum(worked, m)).astype(jnp.int32)

    def _active(self, theta: Float[Array, " m"]) -> Int[Array, ""]:
        wanted = jnp.maximum(self.initial, jnp.sum(theta > self.track_above) + 1)
        return jnp.minimum(wanted, theta.size).astype(jnp.int32)

    def _unfinished(
        self,
        theta: Float[Array, " m"],
        residuals: Float[Array, " m"],
        exact_above: float | Float[Array, ""],
    ) -> Bool[Array, " m"]:
        """Active columns whose residual is larger than it may be."""
        allowed = jnp.where(theta > exact_above, self.tol, self.tol**0.5)
        return (jnp.arange(theta.size) < self._active(theta)) & ~(residuals <= allowed)

    def _converged(
        self,
        theta: Float[Array, " m"],
        residuals: Float[Array, " m"],
        exact_above: float | Float[Array, ""],
    ) -> Bool[Array, ""]:
        return ~jnp.any(self._unfinished(theta, residuals, exact_above))

    def _start(
        self,
        gain: lx.AbstractLinearOperator,
        pairs: Eigenpairs,
        worked: Int[Array, ""],
        key: PRNGKeyArray,
        random: bool | Bool[Array, ""],
        oscillating: bool | Bool[Array, ""],
    ) -> Float[Array, "d m"]:
        """Forecast eigenvectors; random columns where `fresh`, random noise to explore."""
        m = pairs.theta.size
        kept = (jnp.arange(m) < worked) & ~pairs.fresh
        identity = jnp.eye(m, dtype=pairs.Y.dtype)
        # The earlier basis is first rotated onto the present one (Procrustes), because bases of
        # close eigenvalues turn arbitrarily between solves.
        overlap = jnp.where(kept[:, None] & kept, pairs.previous.T @ pairs.U, identity)
        left, _, right = jnp.linalg.svd(overlap, full_matrices=False)
        forecast = 2 * pairs.Y - pairs.previous @ (left @ right)
        start = jnp.where(oscillating, pairs.previous, forecast)

        def perturbed(start: Float[Array, "d m"]) -> Float[Array, "d m"]:
            noise = _random_columns(gain, start, key)
            last = jnp.arange(m) == worked - 1
            start = start + jnp.where(last, self.exploration, 0) * noise
            return jnp.where(pairs.fresh, noise, start)

        return jax.lax.cond(random, perturbed, lambda start: start, start)

    def _search(
        self,
        model: LocalModel,
        gain: lx.AbstractLinearOperator,
        start: Float[Array, "d m"],
        worked: Int[Array, ""],
        explore: bool | Bool[Array, ""],
        exact_above: float | Float[Array, ""],
    ) -> _Search:
        d, m = start.shape
        room = min(d, 2 * m + _SEARCH_COLUMNS)
        columns = jnp.arange(m)

        def body(now: _Search) -> _Search:
            # A full basis is cut back to its Ritz vectors, which carry on what it had found.
            full = now.basis.size + now.count > room
            basis = jax.lax.cond(full & (room < d), _compress, lambda b, *_: b, *now[:4])
            basis, accepted = _expand(gain, model, basis, now.expansion, now.count)
            C, theta = _rayleigh_ritz(basis, m)
            Y, HKY = basis.V @ C, basis.HKV @ C
            defect, residuals = _residuals(gain, Y, HKY, theta)
            needed = self._unfinished(theta, residuals, exact_above)
            if room == d:
                needed |= (columns < worked) & (residuals > _EXACT * jnp.finfo(Y.dtype).eps)
            needed |= explore & (now.iteration == 0) & (columns == worked - 1)
            # Nothing is left to expand by where the basis has stopped growing or is not finite.
            needed &= (accepted > 0) & (columns < basis.size) & jnp.isfinite(residuals)
            order = jnp.argsort(~needed, stable=True)
            return _Search(
                basis,
                C,
                Y,
                theta,
                residuals,
                defect[:, order],
                jnp.sum(needed).astype(jnp.int32),
                now.iteration + 1,
                now.products + accepted,
            )

        def unfinished(now: _Search) -> Bool[Array, ""]:
            return (now.count > 0) & (now.iteration <= self.max_iterations)

        return jax.lax.while_loop(unfinished, body, _unsearched(start, worked, room))


_SEARCH_COLUMNS = 8
"""Columns of a basis beside twice those that are looked for."""
_EXACT = 100
"""Residuals of small problems, of which a basis holds all dimensions, in units of rounding."""
_DEPENDENT = 1e3
"""Length, in units of rounding, that a unit vector must keep when it is made orthogonal."""


def _unsearched(start: Float[Array, "d m"], worked: Int[Array, ""], room: int) -> _Search:
    """An empty basis, to be expanded by `worked` columns of `start`."""
    (d, m), dtype = start.shape, start.dtype
    n = room + m  # an expansion is written as a whole, however many of its columns are kept
    empty = jnp.zeros((d, n), dtype)
    none = jnp.zeros((), jnp.int32)
    basis = _Basis(empty, empty, empty, jnp.zeros((n, n), dtype), none)
    zero, far = jnp.zeros(m, dtype), jnp.full(m, jnp.inf, dtype)
    C, Y = jnp.zeros((n, m), dtype), jnp.zeros((d, m), dtype)
    return _Search(basis, C, Y, zero, far, start, worked, none, none)


def _expand(
    gain: lx.AbstractLinearOperator,
    model: LocalModel,
    basis: _Basis,
    expansion: Float[Array, "d m"],
    count: Int[Array, ""],
) -> tuple[_Basis, Int[Array, ""]]:
    """The basis with the first `count` columns of `expansion`, and how many were independent."""
    wanted = jnp.where(jnp.arange(expansion.shape[1]) < count, expansion, 0)
    V, KV, kept = _independent(gain, basis, wanted)
    HKV = _products(model, KV, kept)
    put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=basis.size)
    border = put(basis.KV.T @ HKV, _symmetric(KV.T @ HKV), axis=0)
    T = put(put(basis.T, border, axis=1), border.T, axis=0)
    grown = _Basis(
        put(basis.V, V, axis=1),
        put(basis.KV, KV, axis=1),
        put(basis.HKV, HKV, axis=1),
        T,
        basis.size + kept,
    )
    return grown, kept


def _products(
    model: LocalModel, V: Float[Array, "d m"], count: Int[Array, ""]
) -> Float[Array, "d m"]:
    """H V of the first `count` columns, zero for the others, so many at a time as suits."""
    d, m = V.shape
    chunk = min(m, model.chunk or (1 if jax.default_backend() == "cpu" else m))
    padded = jnp.concatenate([V, jnp.zeros((d, -m % chunk), V.dtype)], 1)

    def multiply(i: Array, out: Float[Array, "d n"]) -> Float[Array, "d n"]:
        columns = jax.lax.dynamic_slice_in_dim(padded, i * chunk, chunk, 1)
        product = jax.vmap(model.product, in_axes=1, out_axes=1)(columns)
        return jax.lax.dynamic_update_slice_in_dim(out, product, i * chunk, 1)

    number = (count + chunk - 1) // chunk
    return jax.lax.fori_loop(0, number, multiply, jnp.zeros_like(padded))[:, :m]


def _independent(
    gain: lx.AbstractLinearOperator, basis: _Basis, V: Float[Array, "d m"]
) -> tuple[Float[Array, "d m"], Float[Array, "d m"], Int[Array, ""]]:
    """What is new in the columns of V: K-orthonormal, their images under K, and their number.

    Columns that the basis or other columns contain are left out; zero columns fill their place.
    """
    zero = jnp.zeros((), jnp.int32)
    start = _New(_unit_columns(gain, V), jnp.zeros_like(V), zero, jnp.zeros((), V.dtype), zero)
    # What was nearly dependent is orthogonal only to as many digits as were left of it; twice is
    # enough.
    new = jax.lax.while_loop(
        lambda new: (new.left < 1e-2) & (new.passes < 2),
        lambda new: _orthonormalise(gain, basis, new),
        start,
    )
    return new.V, new.KV, new.kept


class _New(NamedTuple):
    V: Float[Array, "d m"]
    KV: Float[Array, "d m"]
    kept: Int[Array, ""]
    left: Float[Array, ""]
    passes: Int[Array, ""]


def _orthonormalise(gain: lx.AbstractLinearOperator, basis: _Basis, new: _New) -> _New:
    """One pass; `left` is how much was left at least of a unit vector that is kept."""
    V, eps = new.V, jnp.finfo(new.V.dtype).eps
    V = V - basis.V @ (basis.KV.T @ V)
    KV = apply_columns(gain, V)
    gram = _symmetric(V.T @ KV)
    size = jnp.sqrt(jnp.maximum(jnp.diagonal(gram), 0))
    inside = size <= _DEPENDENT * eps
    unit = jnp.where(inside, 0, 1 / jnp.where(inside, 1, size))
    overlap, rotation = jnp.linalg.eigh(unit[:, None] * gram * unit)
    keep = overlap > eps**0.5  # what is nearly parallel to others comes back later
    scaled = unit[:, None] * rotation * jnp.where(keep, jnp.where(keep, overlap, 1) ** -0.5, 0)
    scaled = scaled[:, ::-1]  # those that are kept come first
    left = jnp.minimum(
        jnp.min(jnp.where(inside, 1, size)), jnp.min(jnp.where(keep, overlap, 1)) ** 0.5
    )
    kept = jnp.sum(keep).astype(jnp.int32)
    return _New(V @ scaled, KV @ scaled, kept, left, new.passes + 1)


def _compress(
    basis: _Basis, C: Float[Array, "n m"], Y: Float[Array, "d m"], theta: Float[Array, " m"]
) -> _Basis:
    """The basis of the Ritz vectors alone."""
    (d, n), m = basis.V.shape, theta.size
    size = jnp.minimum(basis.size, m)
    kept = jnp.arange(m) < size

    def wide(columns: Float[Array, "d m"]) -> Float[Array, "d n"]:
        return jnp.concatenate([columns, jnp.zeros((d, n - m), columns.dtype)], 1)

    T = jnp.zeros((n, n), theta.dtype).at[:m, :m].set(jnp.diag(jnp.where(kept, theta, 0)))
    return _Basis(wide(Y), wide(basis.KV @ C), wide(basis.HKV @ C), T, size)


def _rayleigh_ritz(basis: _Basis, m: int) -> tuple[Float[Array, "n m"], Float[Array, " m"]]:
    """Coefficients of the `m` leading Ritz vectors and their values, zero where there are fewer."""
    n = len(basis.T)
    used = jnp.arange(n) < basis.size
    T = jnp.where(used[:, None] & used, basis.T, 0)
    lowest = 2 * (jnp.sum(jnp.abs(T)) + 1)
    theta, rotation = jnp.linalg.eigh(T - jnp.diag(jnp.where(used, 0, lowest)))
    found = jnp.arange(m) < basis.size
    return rotation[:, : -m - 1 : -1] * found, jnp.where(found, theta[: -m - 1 : -1], 0)


def _random_columns(
    gain: lx.AbstractLinearOperator, like: Float[Array, "d m"], key: PRNGKeyArray
) -> Float[Array, "d m"]:
    """Random columns of unit length in the range of K: where K vanishes, nothing moves."""
    return _unit_columns(gain, apply_columns(gain, jr.uniform(key, like.shape, like.dtype, -1, 1)))


def _unit_columns(gain: lx.AbstractLinearOperator, V: Float[Array, "d m"]) -> Float[Array, "d m"]:
    norm = jnp.sqrt(jnp.maximum(jnp.sum(V * apply_columns(gain, V), 0), 0))
    return V / jnp.where(norm > 0, norm, 1)


def _residuals(
    gain: lx.AbstractLinearOperator,
    Y: Float[Array, "d m"],
    HKY: Float[Array, "d m"],
    theta: Float[Array, " m"],
) -> tuple[Float[Array, "d m"], Float[Array, " m"]]:
    defect = HKY - Y * theta
    norm = jnp.sqrt(jnp.maximum(jnp.sum(defect * apply_columns(gain, defect), 0), 0))
    # Relative to theta, but for eigenvalues so far below the critical 2 that they do not matter.
    return defect, norm / jnp.maximum(jnp.abs(theta), 1e-3)


def _symmetric(A: Float[Array, "n n"]) -> Float[Array, "n n"]:
    return (A + A.T) / 2
