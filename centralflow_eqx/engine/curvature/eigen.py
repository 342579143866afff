"""Tracking the largest eigenpairs of the effective Hessian while the weights move.

The effective Hessian of an optimizer is the pencil H u = theta P u, critical at theta = 2. Only
products with H and with K = P^{-1} are used: with u = K y the pencil reads K H K y = theta K y,
self-adjoint in the inner product of K. The solver is a block Davidson method without preconditioner
(Davidson, 1975; Saad, "Numerical Methods for Large Eigenvalue Problems", chapter 8) in that inner
product: a basis that starts with the eigenvectors of the last solve, extrapolated, and grows by the
residuals of those columns that have not converged. Converged columns cost nothing more. A search
that comes to nothing from there, as after numbers that were not finite, starts once more at random.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt32

from .products import LocalModel, apply_rows


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


def leading(pairs: Eigenpairs, n: int) -> Eigenpairs:
    """The first `n` columns alone."""
    cut = lambda x: x[..., :n]  # noqa: E731
    return eqx.tree_at(
        lambda p: (p.Y, p.U, p.theta, p.residuals, p.previous, p.fresh, p.active),
        pairs,
        (
            *map(cut, (pairs.Y, pairs.U, pairs.theta, pairs.residuals, pairs.previous)),
            cut(pairs.fresh),
            jnp.minimum(pairs.active, n),
        ),
    )


def unsolved(d: int, capacity: int, dtype: DTypeLike, key: PRNGKeyArray) -> Eigenpairs:
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
    """K-orthonormal rows V, their images K V and H K V, and T = V K H K V^T, `size` of them.

    Rows beyond `size` are zero. Vectors are rows here, which are contiguous in memory.
    """

    V: Float[Array, "n d"]
    KV: Float[Array, "n d"]
    HKV: Float[Array, "n d"]
    T: Float[Array, "n n"]
    size: Int[Array, ""]


class _Search(NamedTuple):
    """A basis, its leading Ritz pairs (columns of C), and the rows it is to be expanded by.

    The rows of `expansion` are of unit length or zero; at most `count` of them are not.
    """

    basis: _Basis
    C: Float[Array, "n m"]
    theta: Float[Array, " m"]
    residuals: Float[Array, " m"]
    expansion: Float[Array, "e d"]
    count: Int[Array, ""]
    iteration: Int[Array, ""]
    products: Int[Array, ""]


class _Found(NamedTuple):
    """The leading Ritz pairs of a search, `size` of them, and what all attempts took."""

    Y: Float[Array, "d m"]
    U: Float[Array, "d m"]
    theta: Float[Array, " m"]
    residuals: Float[Array, " m"]
    size: Int[Array, ""]
    products: Int[Array, ""]
    tries: Int[Array, ""]


class EigenTracker(eqx.Module):
    """Settings of the eigensolver.

    - `track_above`: eigenvalues above it are tracked, with one guard direction below it; `initial`
      is the least number of tracked directions.
    - `tol`: bound on |H u - theta P u|_K / theta for the directions that a solve is told to make
      `exact`. The other tracked directions are only watched; their eigenvalues, accurate to the
      square of the residual, need `sqrt(tol)` or 1e-3, whichever is less, but no less than 3 `tol`.
    - `max_iterations`: expansions of the basis in a solve.
    - `max_products`: Hessian-vector products in a solve; None for as many as it takes.
    - `exploration`: size of the random perturbation of the last guard on request, so that an
      eigenvector orthogonal to all the others cannot stay unseen. It is found by the first solve
      that explores or by one of the next few, the later the less its eigenvalue exceeds the guard.

    Residuals of eigenvalues below 1e-3, which do not matter beside a critical 2, are relative to
    1e-3, or without a threshold (`track_above` infinite) to 5e-4 of the largest if that is less.
    """

    track_above: float | Float[Array, ""] = 1.5
    initial: int | Int[Array, ""] = 1
    tol: float | Float[Array, ""] = 1e-6
    max_iterations: int = 240
    exploration: float = 1e-3
    max_products: Int[Array, ""] | None = None

    def solve(
        self,
        model: LocalModel,
        gain: lx.AbstractLinearOperator,
        pairs: Eigenpairs,
        *,
        explore: bool | Bool[Array, ""] = False,
        exact_above: float | Float[Array, ""] = float("inf"),
        oscillating: bool | Bool[Array, ""] = False,
        ahead: float | Float[Array, ""] = 1.0,
    ) -> Eigenpairs:
        """Eigenpairs at the point of `model`, warm-started from `pairs`.

        Eigenvectors of eigenvalues above `exact_above` are converged to `tol`. The start is an
        extrapolation of the last two solves, `ahead` times as far beyond the last as that is from
        the one before, or, where the point oscillates with period two, the solve before the last.
        As many columns are worked on as were active, and on `explore` one more that reveals what
        rises. A problem of few dimensions is solved to rounding.
        """
        key, draw = jr.split(jr.wrap_key_data(pairs.key))
        worked = self._worked(pairs, explore)
        # A column that has never been seen is drawn at random, but only when it is needed.
        random = explore | (worked > jnp.sum(~pairs.fresh))
        start = self._start(gain, pairs, worked, draw, random, oscillating, ahead)
        # What started at random needs no other start, and what is rationed has none.
        again = ~jnp.all(pairs.fresh) & (self.max_products is None)
        most = jnp.where(again, 2, 1)

        def search(start: Float[Array, "d m"]) -> _Found:
            return _ritz(self._search(model, gain, start, worked, explore, exact_above))

        def anew() -> Float[Array, "d m"]:
            return _random_rows(gain, start.T, jr.fold_in(draw, 1)).T

        def stalled(found: _Found) -> Bool[Array, ""]:
            return ~self._converged(found.theta, found.residuals, exact_above)

        found = _attempt(search, start, anew, stalled, most)
        return Eigenpairs(
            Y=found.Y,
            U=found.U,
            theta=found.theta,
            residuals=found.residuals,
            previous=jnp.where(pairs.fresh, found.Y, pairs.Y),
            fresh=jnp.arange(found.theta.size) >= found.size,
            active=jnp.clip(self._active(found.theta), 1, jnp.maximum(found.size, 1)),
            converged=self._converged(found.theta, found.residuals, exact_above),
            products=found.products,
            key=jr.key_data(key),
        )

    def _rationed(self, now: _Search) -> Float[Array, "e d"]:
        """The rows that a basis is to be expanded by, as many as there may be products."""
        if self.max_products is None:
            return now.expansion
        left = self.max_products - now.products
        return jnp.where(jnp.arange(len(now.expansion))[:, None] < left, now.expansion, 0)

    def overflows(self, pairs: Eigenpairs) -> Bool[Array, ""]:
        """Whether every column is in use although there are more dimensions to look at."""
        d, m = pairs.Y.shape
        return (m < d) & (pairs.theta[-1] > self.track_above)

    def _worked(self, pairs: Eigenpairs, explore: bool | Bool[Array, ""]) -> Int[Array, ""]:
        """How many columns a solve starts with: all of them where nothing is known yet."""
        m = pairs.theta.size
        unguarded = pairs.theta[jnp.maximum(pairs.active, 1) - 1] > self.track_above
        worked = pairs.active + (explore | unguarded)
        unknown = (pairs.active == 0) | jnp.all(pairs.fresh)
        worked = jnp.where(unknown, m, jnp.minimum(worked, m)).astype(jnp.int32)
        if self.max_products is None:
            return worked
        # Some products are for residuals, without which nothing converges.
        most = self.max_products // 2
        return jnp.minimum(worked, jnp.maximum(most, 1))

    def _active(self, theta: Float[Array, " m"]) -> Int[Array, ""]:
        wanted = jnp.maximum(self.initial, jnp.sum(theta > self.track_above) + 1)
        return jnp.minimum(wanted, theta.size).astype(jnp.int32)

    def _least(self, theta: Float[Array, " m"]) -> Float[Array, ""]:
        """The size of eigenvalue from which on residuals are relative to it.

        Smaller ones are so far below the critical 2 that they do not matter. Where there is no
        threshold, neither is there a size that matters, but that of the largest eigenvalue.
        """
        largest = jnp.max(jnp.abs(theta))
        unscaled = jnp.isinf(self.track_above) & (largest > 0)
        return jnp.where(unscaled, jnp.minimum(_LEAST, _LEAST / 2 * largest), _LEAST)

    def _unfinished(
        self,
        theta: Float[Array, " m"],
        residuals: Float[Array, " m"],
        exact_above: float | Float[Array, ""],
    ) -> Bool[Array, " m"]:
        """Active columns whose residual is larger than it may be."""
        tol = jnp.asarray(self.tol)
        watched = jnp.maximum(3 * tol, jnp.minimum(jnp.sqrt(tol), _WATCHED))
        allowed = jnp.where(theta > exact_above, tol, watched)
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
        ahead: float | Float[Array, ""],
    ) -> Float[Array, "d m"]:
        """Forecast eigenvectors; random columns where `fresh`, random noise to explore."""
        m = pairs.theta.size
        kept = (jnp.arange(m) < worked) & ~pairs.fresh
        identity = jnp.eye(m, dtype=pairs.Y.dtype)
        # The earlier basis is first rotated onto the present one (Procrustes), because bases of
        # close eigenvalues turn arbitrarily between solves.
        overlap = jnp.where(kept[:, None] & kept, pairs.previous.T @ pairs.U, identity)
        left, _, right = jnp.linalg.svd(overlap, full_matrices=False)
        forecast = pairs.Y + ahead * (pairs.Y - pairs.previous @ (left @ right))
        # Y is normalised by the gain: where that has jumped, the two may cancel.
        lost = jnp.linalg.norm(forecast, axis=0) < _CANCELLED * jnp.linalg.norm(pairs.Y, axis=0)
        forecast = jnp.where(lost, pairs.Y, forecast)
        start = jnp.where(oscillating, pairs.previous, forecast)

        def perturbed(start: Float[Array, "d m"]) -> Float[Array, "d m"]:
            noise = _random_rows(gain, start.T, key).T
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
        room = d if d <= 2 * m + _SEARCH_ROWS else max(2 * m, m + _SEARCH_ROWS)
        queue = _queue(gain, start, worked)
        columns, width = jnp.arange(m), queue.shape[1]

        def unfinished(now: _Search) -> Bool[Array, ""]:
            left = True if self.max_products is None else now.products < self.max_products
            return (now.count > 0) & (now.iteration <= self.max_iterations) & left

        def expand(now: _Search) -> _Search:
            basis, accepted = _expand(gain, model, now.basis, self._rationed(now))
            C, theta = _rayleigh_ritz(basis, m)
            defect, size, residuals = _residuals(gain, basis, C, theta, self._least(theta))
            needed = self._unfinished(theta, residuals, exact_above)
            if room == d:
                needed |= (columns < worked) & (residuals > _EXACT * jnp.finfo(theta.dtype).eps)
            last_of_queue = (now.iteration + 1) * width >= worked
            needed |= explore & (now.iteration * width < worked) & (columns == worked - 1)
            # Nothing is left to expand by where the basis has stopped growing or is not finite.
            needed &= (accepted > 0) & (columns < basis.size) & (size > 0) & jnp.isfinite(size)
            first = jnp.argsort(jnp.where(needed, -residuals, jnp.inf))[:width]
            scale = jnp.where(needed, 1 / jnp.where(needed, size, 1), 0)[first]
            count = jnp.minimum(jnp.sum(needed), width).astype(jnp.int32)
            iteration = now.iteration + 1
            queued = queue[jnp.minimum(iteration, len(queue) - 1)]
            return _Search(
                basis,
                C,
                theta,
                residuals,
                jnp.where(last_of_queue, scale[:, None] * defect[first], queued),
                jnp.where(last_of_queue, count, width),
                iteration,
                now.products + accepted,
            )

        def fill(now: _Search) -> _Search:
            """Expand until all is found, or until the basis is full."""
            # A full basis is cut back to its Ritz vectors, which carry on what it had found.
            full = (now.basis.size + now.count > room) & (room < d)
            basis = jax.lax.cond(full, _compress, lambda basis, *_: basis, *now[:3])
            before = now.iteration

            def fits(now: _Search) -> Bool[Array, ""]:
                crowded = (now.basis.size + now.count > room) & (room < d)
                return unfinished(now) & (~crowded | (now.iteration == before))

            return jax.lax.while_loop(fits, expand, now._replace(basis=basis))

        return jax.lax.while_loop(unfinished, fill, _unsearched(queue[0], m, room))


_SEARCH_ROWS = 8
"""Rows of a basis beside those that are looked for, at least."""
_FEWEST_AT_ONCE = 4
"""Rows by which a basis is expanded at once, at least: half of those looked for if these are more.
After the first few expansions only one or two columns are left that need it."""
_WATCHED = 1e-3
"""Residual that gives an eigenvalue to 1e-6, its square."""
_LEAST = 1e-3
"""Eigenvalues smaller than this do not matter beside a critical 2."""
_EXACT = 100
"""Residuals of small problems, of which a basis holds all dimensions, in units of rounding."""
_DEPENDENT = 1e3
"""Length, in units of rounding, that a unit vector must keep when it is made orthogonal."""
_CANCELLED = 0.5
"""Share of its length below which a forecast is worth less than the vector itself."""


def _attempt(
    search: Callable[[Float[Array, "d m"]], _Found],
    start: Float[Array, "d m"],
    anew: Callable[[], Float[Array, "d m"]],
    stalled: Callable[[_Found], Bool[Array, ""]],
    most: Int[Array, ""],
) -> _Found:
    """What a search from `start` finds or, where that has stalled, one that starts anew."""

    def attempt(before: _Found) -> _Found:
        first = before.tries == 0
        new = search(jax.lax.cond(first, lambda: start, anew))
        better = first | ~stalled(new)
        kept = jax.tree.map(lambda a, b: jnp.where(better, a, b), new, before)
        return kept._replace(products=before.products + new.products, tries=before.tries + 1)

    none, zero = jnp.zeros((), jnp.int32), jnp.zeros(start.shape[1], start.dtype)
    nothing = _Found(jnp.zeros_like(start), jnp.zeros_like(start), zero, zero, none, none, none)
    return jax.lax.while_loop(
        lambda found: (found.tries == 0) | ((found.tries < most) & stalled(found)),
        attempt,
        nothing,
    )


def _ritz(found: _Search) -> _Found:
    basis, C = found.basis, found.C
    once = jnp.ones((), jnp.int32)
    return _Found(
        (C.T @ basis.V).T,
        (C.T @ basis.KV).T,
        found.theta,
        found.residuals,
        basis.size,
        found.products,
        once,
    )


def _queue(
    gain: lx.AbstractLinearOperator, start: Float[Array, "d m"], worked: Int[Array, ""]
) -> Float[Array, "q e d"]:
    """The first `worked` columns of `start` as unit rows, as many at a time as expand a basis."""
    d, m = start.shape
    width = min(m, max(_FEWEST_AT_ONCE, m // 2))
    rows = _unit_rows(gain, jnp.where(jnp.arange(m)[:, None] < worked, start.T, 0))
    return jnp.pad(rows, ((0, -m % width), (0, 0))).reshape(-1, width, d)


def _unsearched(expansion: Float[Array, "e d"], m: int, room: int) -> _Search:
    """An empty basis, about to be expanded."""
    (width, d), dtype = expansion.shape, expansion.dtype
    n = room + width  # an expansion is written as a whole, however many of its rows are kept
    empty = jnp.zeros((n, d), dtype)
    none = jnp.zeros((), jnp.int32)
    basis = _Basis(empty, empty, empty, jnp.zeros((n, n), dtype), none)
    zero, far = jnp.zeros(m, dtype), jnp.full(m, jnp.inf, dtype)
    count = jnp.asarray(width, jnp.int32)
    return _Search(basis, jnp.zeros((n, m), dtype), zero, far, expansion, count, none, none)


def _expand(
    gain: lx.AbstractLinearOperator,
    model: LocalModel,
    basis: _Basis,
    expansion: Float[Array, "e d"],
) -> tuple[_Basis, Int[Array, ""]]:
    """The basis with the rows of `expansion` too, and how many of them were independent."""
    V, KV, kept = _independent(gain, basis, expansion)
    HKV = _products(model, KV, kept)
    put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=basis.size, axis=0)
    images = put(basis.KV, KV)
    border = HKV @ images.T
    T = jax.lax.dynamic_update_slice_in_dim(put(basis.T, border), border.T, basis.size, axis=1)
    return _Basis(put(basis.V, V), images, put(basis.HKV, HKV), T, basis.size + kept), kept


def _products(
    model: LocalModel, V: Float[Array, "e d"], count: Int[Array, ""]
) -> Float[Array, "e d"]:
    """H times the first `count` rows of V, zero for the others, so many at a time as suits."""
    width, d = V.shape
    chunk = min(width, model.chunk or (1 if jax.default_backend() == "cpu" else width))
    padded = jnp.concatenate([V, jnp.zeros((-width % chunk, d), V.dtype)])

    def multiply(i: Array, out: Float[Array, "n d"]) -> Float[Array, "n d"]:
        rows = jax.lax.dynamic_slice_in_dim(padded, i * chunk, chunk)
        product = jax.vmap(model.product)(rows)
        return jax.lax.dynamic_update_slice_in_dim(out, product, i * chunk, 0)

    number = (count + chunk - 1) // chunk
    return jax.lax.fori_loop(0, number, multiply, jnp.zeros_like(padded))[:width]


class _New(NamedTuple):
    """Rows that are made independent; `left` is how much of a kept row was left at least."""

    V: Float[Array, "e d"]
    KV: Float[Array, "e d"]
    kept: Int[Array, ""]
    left: Float[Array, ""]
    passes: Int[Array, ""]


def _independent(
    gain: lx.AbstractLinearOperator, basis: _Basis, V: Float[Array, "e d"]
) -> tuple[Float[Array, "e d"], Float[Array, "e d"], Int[Array, ""]]:
    """What is new in the rows of V: K-orthonormal, their images under K, and their number.

    Rows are of unit length or zero. Those that the basis or other rows contain are left out; zero
    rows fill their place.
    """
    zero = jnp.zeros((), jnp.int32)
    start = _New(V, jnp.zeros_like(V), zero, jnp.zeros((), V.dtype), zero)
    # What was nearly dependent is orthogonal only to as many digits as were left of it; twice is
    # enough.
    new = jax.lax.while_loop(
        lambda new: (new.left < 1e-2) & (new.passes < 2),
        lambda new: _orthonormalise(gain, basis, new),
        start,
    )
    return new.V, new.KV, new.kept


def _orthonormalise(gain: lx.AbstractLinearOperator, basis: _Basis, new: _New) -> _New:
    """One pass."""
    V, eps = new.V, jnp.finfo(new.V.dtype).eps
    V = V - (V @ basis.KV.T) @ basis.V
    KV = apply_rows(gain, V)
    gram = _symmetric(V @ KV.T)
    size = jnp.sqrt(jnp.maximum(jnp.diagonal(gram), 0))
    # What a second pass takes away again was rounding, however much of it the gain makes.
    inside = size <= jnp.where(new.passes == 0, _DEPENDENT * eps, eps**0.5)
    unit = jnp.where(inside, 0, 1 / jnp.where(inside, 1, size))
    overlap, rotation = jnp.linalg.eigh(unit[:, None] * gram * unit)
    keep = overlap > eps**0.5  # what is nearly parallel to others comes back later
    rank = jnp.arange(len(V))[::-1]
    keep &= rank < V.shape[1] - basis.size  # there are no more vectors than dimensions
    scaled = unit[:, None] * rotation * jnp.where(keep, jnp.where(keep, overlap, 1) ** -0.5, 0)
    scaled = scaled[:, ::-1].T  # those that are kept come first
    left = jnp.minimum(
        jnp.min(jnp.where(inside, 1, size)), jnp.min(jnp.where(keep, overlap, 1)) ** 0.5
    )
    kept = jnp.sum(keep).astype(jnp.int32)
    return _New(scaled @ V, scaled @ KV, kept, left, new.passes + 1)


def _compress(basis: _Basis, C: Float[Array, "n m"], theta: Float[Array, " m"]) -> _Basis:
    """The basis of the Ritz vectors alone."""
    n, m = C.shape
    size = jnp.minimum(basis.size, m)
    kept = jnp.arange(m) < size

    def combined(rows: Float[Array, "n d"]) -> Float[Array, "n d"]:
        return jnp.zeros_like(rows).at[:m].set(C.T @ rows)

    T = jnp.zeros((n, n), theta.dtype).at[:m, :m].set(jnp.diag(jnp.where(kept, theta, 0)))
    return _Basis(combined(basis.V), combined(basis.KV), combined(basis.HKV), T, size)


def _rayleigh_ritz(basis: _Basis, m: int) -> tuple[Float[Array, "n m"], Float[Array, " m"]]:
    """Coefficients of the `m` leading Ritz vectors and their values, zero where there are fewer."""
    n = len(basis.T)
    used = jnp.arange(n) < basis.size
    T = jnp.where(used[:, None] & used, basis.T, 0)
    size = jnp.sum(jnp.abs(T))
    # Below all eigenvalues, but of their size: `eigh` is accurate relative to what is largest.
    lowest = jnp.where(size > 0, 2 * (size + jnp.minimum(size, 1)), 1)
    theta, rotation = jnp.linalg.eigh(T - jnp.diag(jnp.where(used, 0, lowest)))
    found = jnp.arange(m) < basis.size
    return rotation[:, : -m - 1 : -1] * found, jnp.where(found, theta[: -m - 1 : -1], 0)


def _random_rows(
    gain: lx.AbstractLinearOperator, like: Float[Array, "m d"], key: PRNGKeyArray
) -> Float[Array, "m d"]:
    """Random rows of unit length in the range of K: where K vanishes, nothing moves."""
    return _unit_rows(gain, apply_rows(gain, jr.uniform(key, like.shape, like.dtype, -1, 1)))


def _unit_rows(gain: lx.AbstractLinearOperator, V: Float[Array, "m d"]) -> Float[Array, "m d"]:
    norm = _lengths(gain, V)
    return V / jnp.where(norm > 0, norm, 1)[:, None]


def _lengths(gain: lx.AbstractLinearOperator, V: Float[Array, "m d"]) -> Float[Array, " m"]:
    return jnp.sqrt(jnp.maximum(jnp.sum(V * apply_rows(gain, V), 1), 0))


def _residuals(
    gain: lx.AbstractLinearOperator,
    basis: _Basis,
    C: Float[Array, "n m"],
    theta: Float[Array, " m"],
    least: Float[Array, ""],
) -> tuple[Float[Array, "m d"], Float[Array, " m"], Float[Array, " m"]]:
    """What Ritz vectors lack to be eigenvectors, its length, and the relative residual."""
    defect = C.T @ basis.HKV - (theta * C).T @ basis.V
    size = _lengths(gain, defect)
    return defect, size, size / jnp.maximum(jnp.abs(theta), least)


def _symmetric(A: Float[Array, "n n"]) -> Float[Array, "n n"]:
    return (A + A.T) / 2
