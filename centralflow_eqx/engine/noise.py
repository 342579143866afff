"""What mini-batches add to a gradient, as an oscillating optimizer sees it.

The gradient of a mini-batch of B of n examples is off by a noise of covariance f C, f = 1/B - 1/n,
where C is the covariance of the examples' gradients (over n - 1); and so is its curvature, with a
covariance of curvatures. Mini-batches drawn anew at every step are independent of each other. Those
of an epoch, m = n // B of them, are not: as no example comes twice, those j steps apart have
covariance -(1 - j/m) C/n on average. A direction whose deviation turns into -r times itself in a
step adds up a step's noise and that of j steps before with weights that differ by (-r)^j, so that f
becomes

    f - (2/n) sum_j (1 - j/m) (-r)^j   for the gradients' noise,
    f - (4/n) sum_j (1 - j/m) r^(2j)   for the curvatures', which multiplies what oscillates.

At the edge, r = 1, the first is 1/B and the second is negative: epochs drive the oscillation more
than independent mini-batches do, and what curvature adds to it within an epoch it takes away again.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .balance import Noise, at_most_one, solve_balance
from .complementarity import ComplementarySolution
from .response import Response, State, Vector
from .symmetric import pairs as pair_indices
from .symmetric import smat, svec

ExampleLosses = Callable[[Vector, Int[Array, " b"]], Float[Array, " b"]]
"""The losses of chosen examples, whose mean over all examples is the training loss."""

_AT_ONCE = 32
"""Gradients of examples that are held at a time, unless there is a number."""


class BatchNoise(eqx.Module):
    """Noise of the gradients of `size` of `number` examples, whose losses are `examples`.

    Covariances are those of the examples `rows`, all or a sample of them; `epochs` says whether an
    epoch has every example once, or every mini-batch is drawn from all. `chunk` examples are looked
    at at a time, 0 is what suits.
    """

    examples: ExampleLosses
    rows: Int[Array, " s"]
    number: int = eqx.field(static=True)
    size: int = eqx.field(static=True)
    epochs: bool = eqx.field(static=True)
    chunk: int = eqx.field(static=True, default=0)

    @property
    def share(self) -> float:
        """f, of the covariance of the examples' gradients that a mini-batch's gradient has."""
        return 1 / self.size - 1 / self.number

    def additive(self, r: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """What f is to a direction whose deviation turns into -r times itself."""
        return self.share - 2 * self._correlated(-r)

    def multiplicative(self, r: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """What f is to the noise of curvature, in a covariance that turns into r times itself."""
        return self.share - 4 * self._correlated(r)

    def _correlated(self, r: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """The sum over j of (1 - j/m) r^j / n."""
        per_epoch = self.number // self.size
        if not self.epochs or per_epoch == 1:
            return jnp.zeros_like(r)
        j = np.arange(1, per_epoch)
        powers = jnp.cumprod(jnp.broadcast_to(r[..., None], (*r.shape, len(j))), axis=-1)
        return powers @ jnp.asarray((1 - j / per_epoch) / self.number, r.dtype)

    def along(
        self, w: Vector, U: Float[Array, "d m"], theta: Float[Array, " m"], critical: Int[Array, ""]
    ) -> Noise:
        """The noise along the first `critical` columns of `U`, zero along the others.

        Their deviations turn into 1 - `theta` times themselves in a step.
        """
        r = jnp.clip(theta - 1, -1, 1).astype(jnp.float64)
        slopes, bends = self._derivatives(w, U, critical)
        gradients = self.additive(r)
        N = _covariance(slopes) * (gradients[:, None] + gradients) / 2
        m = len(r)
        A = smat(jnp.moveaxis(bends, 0, -1), m)
        basis = smat(jnp.eye(m * (m + 1) // 2), m)
        K = jax.lax.map(lambda E: jnp.einsum("nab,bc,ncd->ad", A, E, A), basis) / (len(A) - 1)
        return Noise(N, svec(K * self.multiplicative(r[:, None] * r)).T)

    def _derivatives(
        self, w: Vector, U: Float[Array, "d m"], critical: Int[Array, ""]
    ) -> tuple[Float[Array, "m s"], Float[Array, "p s"]]:
        """u_i . g of every example, and u_i H u_j as coordinates, about their means."""
        m, s = U.shape[1], len(self.rows)
        rows, columns = (jnp.asarray(i) for i in pair_indices(m))

        def slope(i: Array, x: Vector) -> Float[Array, " s"]:
            return jax.jvp(self._losses, (x,), (U[:, i],))[1]

        def bend(p: Array) -> Float[Array, " s"]:
            return jax.jvp(lambda x: slope(rows[p], x), (w,), (U[:, columns[p]],))[1]

        def filled(number: Array, one: Callable, room: int) -> Float[Array, "room s"]:
            none = jnp.zeros((room, s), jnp.float64)
            return jax.lax.fori_loop(0, number, lambda i, a: a.at[i].set(one(i)), none)

        slopes = filled(critical, lambda i: slope(i, w).astype(jnp.float64), m)
        bends = filled(
            critical * (critical + 1) // 2, lambda p: bend(p).astype(jnp.float64), len(rows)
        )
        weights = jnp.where(rows == columns, 1, 2**0.5)[:, None]
        slopes, bends = (a - a.mean(axis=1, keepdims=True) for a in (slopes, weights * bends))
        return slopes, bends

    def _losses(self, w: Vector) -> Float[Array, " s"]:
        if 0 < self.chunk < len(self.rows):
            one = lambda row: self.examples(w, row[None])[0]  # noqa: E731
            return jax.lax.map(one, self.rows, batch_size=self.chunk)
        return self.examples(w, self.rows)

    def excess(self, response: Response, post: State, grad: Vector, w: Vector) -> State:
        """What the noise adds to the average of the state's update, per step."""
        none = jax.tree.map(jnp.zeros_like, post)
        if not response.structure.statistics or self.size == self.number:
            return none

        def of(row: Array) -> State:
            noise = jax.grad(lambda x: self.examples(x, row[None])[0])(w) - grad
            return response.quadratic(post, grad, w, noise, noise)

        s, chunk = len(self.rows), min(self.chunk or _AT_ONCE, len(self.rows))
        padded = jnp.resize(self.rows, (-(-s // chunk) * chunk,))
        counts = (jnp.arange(len(padded)) < s).astype(w.dtype)

        def add(total: State, some: tuple[Array, Array]) -> tuple[State, None]:
            rows, counts = some
            found = jax.vmap(of)(rows)
            sums = jax.tree.map(lambda x: jnp.tensordot(counts.astype(x.dtype), x, 1), found)
            return jax.tree.map(jnp.add, total, sums), None

        chunks = padded.reshape(-1, chunk), counts.reshape(-1, chunk)
        total, _ = jax.lax.scan(add, none, chunks)
        # About the known mean, so that a sample loses no degree of freedom.
        scale = self.share * self.number / (self.number - 1) / s
        return jax.tree.map(lambda x: scale * x, total)


def _covariance(deviations: Float[Array, "m s"]) -> Float[Array, "m m"]:
    return deviations @ deviations.T / (deviations.shape[1] - 1)


def balanced(
    noise: Noise,
    alpha: Float[Array, "m m"],
    beta: Float[Array, "p p"],
    critical: Int[Array, ""],
    *,
    fallback: bool,
) -> ComplementarySolution:
    """`solve_balance` for the first `critical` directions; the others do not oscillate."""
    kept = jnp.arange(len(alpha)) < critical
    # Solved as the others are, uncoupled from them, with margins and noise of their size.
    size = jnp.trace(noise.N) / jnp.maximum(critical, 1)
    margin = jnp.max(jnp.abs(alpha)) + jnp.sqrt(size * jnp.linalg.norm(beta))
    alpha = jnp.where(kept[:, None] & kept, alpha, 0) + jnp.diag(jnp.where(kept, 0, margin))
    N = noise.N + jnp.diag(jnp.where(kept, 0, size))
    solution = solve_balance(alpha, beta, Noise(N, noise.K), fallback=fallback)
    X = jnp.where(kept[:, None] & kept, solution.X, 0)
    return eqx.tree_at(lambda s: s.X, solution, X)


def told(noise: Noise, solution: ComplementarySolution) -> dict[str, Array]:
    """What is recorded of a balance; NaN where nothing oscillates.

    `sharpness_gap` = <Z, X> / tr X is how far below 2 the effective eigenvalue is, on average over
    the oscillation; `gradient_noise` = tr N and `curvature_noise` = tr K[X] / tr X are where it
    comes from. `excess_kurtosis` is that of the direction in which it is largest, relative to a
    Gaussian's 3: noise that multiplies a deviation c by -(r + a), a of variance k, has

        E c^4 / (3 (E c^2)^2) - 1 = (4 r^2 k + 2 k^2) / (1 - r^4 - 6 r^2 k - 3 k^2),

    infinite where the denominator is not positive.
    """
    X, Z = solution.X, at_most_one(solution.Z)
    added, size = smat(noise.K @ svec(X), len(X)), jnp.trace(X)
    per_variance = jnp.where(size > 0, 1 / jnp.where(size > 0, size, 1), jnp.nan)
    variances = jnp.diagonal(X)
    there = variances > 0
    k = jnp.maximum(jnp.where(there, jnp.diagonal(added) / jnp.where(there, variances, 1), 0), 0)
    r2 = jnp.where(there, 1 - jnp.diagonal(Z), 0) ** 2
    fourth = 1 - r2**2 - 6 * r2 * k - 3 * k**2
    excess = (4 * r2 * k + 2 * k**2) / jnp.where(fourth > 0, fourth, 1)
    excess = jnp.max(jnp.where(fourth > 0, excess, jnp.inf))
    return {
        "sharpness_gap": jnp.sum(X * Z) * per_variance,
        "gradient_noise": jnp.trace(noise.N),
        "curvature_noise": jnp.trace(added) * per_variance,
        "excess_kurtosis": jnp.where(size > 0, excess, jnp.nan),
    }


def told_of_nothing(solution: ComplementarySolution) -> dict[str, Array]:
    """`told` where nothing may oscillate."""
    x = svec(solution.X)
    return told(Noise(jnp.zeros_like(solution.X), jnp.zeros((x.size, x.size))), solution)
