"""Derivatives of a loss along directions, never as matrices."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Bool, Float, Int

from ...task import Counted, Task

Loss = Callable[[Float[Array, " d"]], Float[Array, ""]]


class LocalModel(NamedTuple):
    """Loss, gradient and Hessian at a point; `hvps` multiplies columns by the Hessian.

    `chunk` columns are multiplied at a time, all of them where it is 0.
    """

    loss: Float[Array, ""]
    grad: Float[Array, " d"]
    product: Callable[[Float[Array, " d"]], Float[Array, " d"]]
    chunk: int

    def hvps(self, V: Float[Array, "d m"]) -> Float[Array, "d m"]:
        """H V, column by column."""
        if 0 < self.chunk < V.shape[1]:
            return jax.lax.map(self.product, V.T, batch_size=self.chunk).T
        return jax.vmap(self.product, in_axes=1, out_axes=1)(V)


def local_model(loss: Loss, w: Float[Array, " d"], chunk: int = 0) -> LocalModel:
    """Linearise the gradient at `w` once; every product after that costs its linear part only."""
    (value, grad), tangent = jax.linearize(jax.value_and_grad(loss), w)
    return LocalModel(value, grad, lambda v: tangent(v)[1], chunk)


def apply_columns(
    operator: lx.AbstractLinearOperator, V: Float[Array, "d m"]
) -> Float[Array, "d m"]:
    """The operator applied to every column."""
    return apply_rows(operator, V.T).T


def apply_rows(operator: lx.AbstractLinearOperator, V: Float[Array, "m d"]) -> Float[Array, "m d"]:
    """The operator applied to every row."""
    if isinstance(operator, lx.DiagonalLinearOperator):
        return lx.diagonal(operator) * V
    return jax.vmap(operator.mv)(V)


def third_derivative(
    loss: Loss, w: Float[Array, " d"], u: Float[Array, " d"], v: Float[Array, " d"]
) -> Float[Array, " d"]:
    """The third derivative contracted with two vectors: d^2/(da db) grad L(w + a u + b v)."""
    loss = _for_third_derivatives(loss)

    def along(x: Float[Array, " d"], direction: Float[Array, " d"]) -> Float[Array, " d"]:
        return jax.jvp(jax.grad(loss), (x,), (direction,))[1]

    return jax.jvp(lambda x: along(x, u), (w,), (v,))[1]


def third_derivatives(
    loss: Loss,
    w: Float[Array, " d"],
    U: Float[Array, "d m"],
    active: Int[Array, ""],
    due: Bool[Array, " p"] | None = None,
) -> Float[Array, "p d"]:
    """Third derivatives for all pairs of the first `active` columns of `U`.

    Rows are pairs (0,0), (1,0), (1,1), (2,0), ... so those of the leading columns come first; the
    loops stop after them and leave the other rows zero. Pairs with the same first column share
    what depends on it alone. Rows of pairs that are not `due` are zero, too. Of a task whose
    examples devices share each of them adds up its own for all pairs, and what they have found is
    added up once.
    """
    loss = _for_third_derivatives(loss)
    shares = loss.shares() if isinstance(loss, Task) else None
    if shares is None:
        return _all_pairs(loss, w, U, active, due)

    def of_share(share: Counted) -> Float[Array, "p d"]:
        return _all_pairs(lambda w: loss.of_share(w, share), w, U, active, due)

    return jnp.sum(jax.vmap(of_share)(shares), 0)


def _for_third_derivatives(loss: Loss) -> Loss:
    return loss.for_third_derivatives() if isinstance(loss, Task) else loss


def _all_pairs(
    loss: Loss,
    w: Float[Array, " d"],
    U: Float[Array, "d m"],
    active: Int[Array, ""],
    due: Bool[Array, " p"] | None,
) -> Float[Array, "p d"]:
    d, m = U.shape

    def fill_rows(i: Array, out: Float[Array, "p d"]) -> Float[Array, "p d"]:
        def product(x: Float[Array, " d"]) -> Float[Array, " d"]:
            return jax.jvp(jax.grad(loss), (x,), (U[:, i],))[1]

        _, tangent = jax.linearize(product, w)

        def fill(j: Array, out: Float[Array, "p d"]) -> Float[Array, "p d"]:
            pair = i * (i + 1) // 2 + j
            if due is None:
                return out.at[pair].set(tangent(U[:, j]))
            row = jax.lax.cond(due[pair], tangent, jnp.zeros_like, U[:, j])
            return out.at[pair].set(row)

        return jax.lax.fori_loop(0, i + 1, fill, out)

    return jax.lax.fori_loop(0, active, fill_rows, jnp.zeros((m * (m + 1) // 2, d), w.dtype))


def fourth_derivatives(
    loss: Loss, w: Float[Array, " d"], U: Float[Array, "d m"], active: Int[Array, ""]
) -> Float[Array, " m"]:
    """d^4/da^4 L(w + a u) for the first `active` columns u of `U`, zero for the others."""

    def fourth(u: Float[Array, " d"]) -> Float[Array, ""]:
        def derivative(f: Callable) -> Callable:
            return lambda a: jax.jvp(f, (a,), (jnp.ones_like(a),))[1]

        line = lambda a: loss(w + a * u)  # noqa: E731
        for _ in range(4):
            line = derivative(line)
        return line(jnp.zeros((), w.dtype))

    out = jnp.zeros(U.shape[1], w.dtype)
    return jax.lax.fori_loop(0, active, lambda i, o: o.at[i].set(fourth(U[:, i])), out)
