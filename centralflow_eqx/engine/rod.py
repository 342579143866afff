"""Oscillations that grow and decay by themselves: rods around a moving centre.

At the edge of stability consecutive iterates lie at the ends z + zeta, z - zeta of a rod, in the
space of weights and optimizer state (Regis & Chewi, arXiv 2602.01480, 2605.06821). With Delta(z)
the optimizer's change of z in a step, and Delta+, Delta- those at the ends, it is an identity of
its iterates that in a step

    the centre z            changes by  D = (Delta+ + Delta-) / 2,
    zeta zeta^T             by          (Delta+ Delta+^T + Delta- Delta-^T) / 4 - 2 zeta zeta^T,
    zeta, its sign aside,   by          2 (alpha - zeta),  alpha = (Delta- - Delta+) / 4.

A model reads them as velocities, of whatever rule declares the `update` that is evaluated there:
momenta alternate with the weights, averages take that of both ends. Of the second line only what
alternates is kept, 2 (alpha alpha^T - zeta zeta^T): the rest is D D^T / 2, half a step of drift,
which would be taken for an oscillation and grow as one.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .curvature import Eigenpairs, Loss, local_model
from .response import Response, State, Vector

_LEAST, _MOST = 2, 64
"""Substeps of an optimizer step."""
_TELLING = 0.1
"""Share of a rod's size that has to be in its weights for them to tell its direction."""
_ALTERNATING = tuple(x / 16 for x in (1, -4, 6, -4, 1))
"""((1 - shift)/2)^4 of a series: leaves what alternates as it is, and next to nothing of a path."""


class Phase(NamedTuple):
    """Weights and the optimizer's own state before its step there, or a change of both."""

    w: Vector
    s: State


class Rods(eqx.Module):
    """How far from a centre the ends of k rods are, one row for each.

    The ends are displaced by e^`log_size` times `shape`, of unit size in weights and momenta
    together (`RodModel.inertia`): momenta turn against weights where they ring rather than
    alternate.
    """

    shape: Phase
    log_size: Float[Array, " k"]

    @property
    def share(self) -> Float[Array, " k"]:
        """How much of the shape's size is in the weights."""
        return jnp.linalg.norm(self.shape.w, axis=1)

    @property
    def direction(self) -> Float[Array, "k d"]:
        """Unit vectors of weights."""
        return self.shape.w / jnp.maximum(self.share, jnp.finfo(self.share.dtype).tiny)[:, None]

    @property
    def length(self) -> Float[Array, " k"]:
        """Half the distance of the ends, in units of the weights."""
        return jnp.exp(self.log_size) * self.share


class RodModel(eqx.Module):
    """What moves a centre with its rods.

    With `secant` the swing alpha of a rod is the difference of its ends, and zeta follows the
    second of the identities above, a rod flow. Otherwise alpha is that of the linear response at
    the centre and zeta follows the third, as in the edge flow of Marion (arXiv 2606.18080).
    `inertia` is what squares of the leaves of the state count beside those of weights: 0 but for
    momenta, whose amplitude is to be of the size of the weights'.
    """

    loss: Loss
    response: Response
    inertia: State
    hvp_chunk: int = eqx.field(static=True)
    secant: bool = eqx.field(static=True)

    @property
    def gradients(self) -> int:
        """Gradients that a look at one rod takes, beyond the two at its ends."""
        return 0 if self.secant else 1


class Look(NamedTuple):
    """What is seen from a centre with its rods; `loss`, `grad`, `grad_norm_sq` are averages.

    `drift` is D, the average change in a step; the rows of `swing` are alpha of each rod and those
    of `bent` the gradient's response H w to its weights, for the shape's size.
    """

    loss: Float[Array, ""]
    grad: Vector
    grad_norm_sq: Float[Array, ""]
    drift: Phase
    swing: Phase
    bent: Float[Array, "k d"]


class Growth(NamedTuple):
    """Rates of change of rods; `factor` is alpha along a rod in units of it, 1 in equilibrium."""

    factor: Float[Array, " k"]
    shape: Phase
    log_size: Float[Array, " k"]


class _End(NamedTuple):
    loss: Float[Array, ""]
    grad: Vector
    grad_norm_sq: Float[Array, ""]
    change: Phase


def weigh(response: Response, start: Phase, pairs: Eigenpairs, grad: Vector) -> State:
    """`RodModel.inertia` where the leading eigenvector oscillates at `start`."""
    post = response.advance(start.s, grad, start.w)
    swung = response.swinging(post, start.w)(pairs.theta[0] * pairs.Y[:, 0], pairs.U[:, 0])
    squares = sum((jnp.vdot(x, x) for x in jax.tree.leaves(swung)), jnp.zeros_like(pairs.theta[0]))
    inertia = jnp.vdot(pairs.U[:, 0], pairs.U[:, 0]) / jnp.where(squares > 0, squares, 1)
    return jax.tree.map(lambda odd: jnp.where(odd, inertia, 0), response.momenta(post, start.w))


def begin(model: RodModel, start: Phase, pairs: Eigenpairs, number: int) -> tuple[Phase, Rods]:
    """Centre and rods of iterates that begin at `start`.

    What oscillates is what is left of the first iterates after repeated differences, and no less
    than the rounding of weights, along the directions of `pairs` with eigenvalues above 1: in
    others nothing alternates. Each rod has one of them, the last one all others: what alternates
    in several directions is one rod.
    """
    path = jax.lax.scan(
        lambda z, _: (_moved(z, _visit(model, z).change), z.w), start, None, len(_ALTERNATING)
    )[1]
    wound = pairs.Y.T @ (jnp.asarray(_ALTERNATING, start.w.dtype) @ path)
    least = _rounding(pairs.Y.T, start.w)
    columns = jnp.arange(wound.size)
    alternates = pairs.mask & (pairs.theta > 1)
    wound = jnp.where(alternates & (jnp.abs(wound) > least), wound, least)
    wound = jnp.where(alternates | (columns < number), wound, 0)
    own = jnp.minimum(columns, number - 1) == jnp.arange(number)[:, None]
    u, q = (own * wound @ x.T for x in (pairs.U, pairs.theta * pairs.Y))
    after = _moved(start, _visit(model, start).change)
    swinging = model.response.swinging(after.s, start.w)
    shape = Phase(u, jax.lax.map(lambda row: swinging(*row), (q, u)))
    centre = jax.tree.map(lambda x, z: x - jnp.sum(z, 0), start, shape)
    return centre, _tidied(model, Rods(shape, jnp.zeros(number, u.dtype)), start.w)


def look(model: RodModel, centre: Phase, rods: Rods) -> Look:
    """Evaluate the optimizer at the ends of all rods.

    The average over several is that at the centre and what each rod adds to it. Ends are no closer
    than differences of gradients can be told from rounding.
    """
    k = len(rods.log_size)
    size = jnp.linalg.norm(centre.w)
    least = jnp.finfo(size.dtype).eps ** 0.5 * jnp.where(size > 0, size, 1)
    length = jnp.maximum(jnp.exp(rods.log_size), least)
    reach = _times(length, rods.shape)
    points = jax.tree.map(
        lambda x, r: jnp.concatenate([x + r, x - r, *([x[None]] if k > 1 else [])]), centre, reach
    )
    ends = jax.lax.map(lambda point: _visit(model, point), points)

    def average(x: Float[Array, "..."]) -> Float[Array, "..."]:
        middles = (x[:k] + x[k : 2 * k]) / 2
        return middles[0] if k == 1 else x[2 * k] + jnp.sum(middles - x[2 * k], 0)

    def difference(x: Float[Array, "..."]) -> Float[Array, "..."]:
        return x[:k] - x[k : 2 * k]

    seen = jax.tree.map(average, ends)
    if model.secant:
        change = jax.tree.map(difference, ends.change)
        swing = _times(-1 / (4 * length), change)
        bent = difference(ends.grad) / (2 * length[:, None])
    else:
        post = jax.tree.map(jnp.add, centre.s, seen.change.s)
        swing, bent = _linear_swing(model, post, centre.w, rods)
    return Look(seen.loss, seen.grad, seen.grad_norm_sq, seen.change, swing, bent)


def growth(model: RodModel, rods: Rods, seen: Look) -> Growth:
    """How rods grow and turn.

    With zeta = e^l z, z of unit size and c the factor, the second identity has dl/dt = c^2 - 1 (of
    gradient descent on a quadratic of sharpness S, c is lr S/2), the third dl/dt = 2 (c - 1). Both
    turn z as the third does, dz/dt = 2 (alpha - c z), which prefers what grows faster wherever z
    points.
    """
    z = rods.shape
    c = _product(model, z, seen.swing) / _product(model, z, z)
    turn = jax.tree.map(lambda a, z: 2 * (a - _along(c, z) * z), seen.swing, z)
    rate = c**2 - 1 if model.secant else 2 * (c - 1)
    return Growth(c, turn, rate)


def substep(
    model: RodModel, centre: Phase, rods: Rods, h: Float[Array, ""]
) -> tuple[Phase, Rods, Look, Float[Array, ""]]:
    """Centre and rods a time `h` later, what was seen before, and the largest factor.

    The midpoint rule. What changes by D in a step has the velocity D - D' D/2 + ..., D(z - D/2) to
    second order: a rod flow's centre is evaluated so much further back, so that at h = 1 it makes
    the optimizer's own steps. The edge flow takes D itself.
    """
    first = look(model, centre, rods)
    ahead = (h - 1) / 2 if model.secant else h / 2
    middle = _grown(rods, growth(model, rods, first), h / 2)
    seen = look(model, _moved(centre, first.drift, ahead), middle)
    change = growth(model, middle, seen)
    centre = _moved(centre, seen.drift, h)
    rods = _tidied(model, _orthogonal(_grown(rods, change, h), seen.bent), centre.w)
    return centre, rods, first, jnp.max(change.factor)


def count_substeps(model: RodModel, sharpness: Float[Array, ""]) -> Int[Array, ""]:
    """Substeps that keep a centre stable where the largest effective eigenvalue is `sharpness`.

    A substep multiplies what is left along it by 1 - h x - h (1 - h) x^2/2 in a rod flow, which is
    above -1 up to x = 2.47, 3, 3.5, 5, 7.5 for 2, 3, 4, 8, 16 substeps, and in the edge flow by
    1 - h x + (h x)^2/2, which is below 1 up to x = 2/h.
    """
    wanted = (sharpness / 1.75) ** 2 if model.secant else sharpness / 1.8
    wanted = jnp.clip(jnp.nan_to_num(jnp.ceil(wanted)), _LEAST, _MOST)
    return wanted.astype(jnp.int32)


def _visit(model: RodModel, at: Phase) -> _End:
    """The optimizer's step from a place."""
    loss, grad = jax.value_and_grad(model.loss)(at.w)
    step, new = model.response.rule.update(grad, at.s, at.w)
    return _End(
        loss, grad, jnp.vdot(grad, grad), Phase(step, jax.tree.map(jnp.subtract, new, at.s))
    )


def _linear_swing(
    model: RodModel, post: State, w: Vector, rods: Rods
) -> tuple[Phase, Float[Array, "k d"]]:
    """Alpha of infinitesimal rods at `w` and the post-update state there, and H u.

    The response is the one that effective eigenvalues are of: statistics stay as they are.
    """
    bent = local_model(model.loss, w, model.hvp_chunk).hvps(rods.shape.w.T).T
    tangent = model.response.linearise(post, w)

    def swing(row: tuple[Vector, Phase]) -> Phase:
        q, (u, momenta) = row
        step, new = tangent(q, momenta, u)
        change = jax.tree.map(
            lambda i, m, n: jnp.where(i > 0, n - m, 0), model.inertia, momenta, new
        )
        return _times(jnp.full((), -0.5, w.dtype), Phase(step, change))

    return jax.lax.map(swing, (bent, rods.shape)), bent


def _product(model: RodModel, a: Phase, b: Phase) -> Float[Array, " k"]:
    """Row by row, momenta with their inertia."""
    squares = jax.tree.map(
        lambda m, x, y: m * jnp.sum(x * y, range(1, x.ndim)), model.inertia, a.s, b.s
    )
    return sum(jax.tree.leaves(squares), jnp.sum(a.w * b.w, 1))


def _moved(at: Phase, by: Phase, times: float | Float[Array, ""] = 1.0) -> Phase:
    return jax.tree.map(lambda x, dx: x + times * dx, at, by)


def _along(scale: Float[Array, "*k"], rows: Float[Array, "..."]) -> Float[Array, "..."]:
    """One number for each row, with the dimensions of `rows`."""
    return scale.reshape(*scale.shape, *[1] * (rows.ndim - scale.ndim))


def _times(scale: Float[Array, "*k"], rows: Phase) -> Phase:
    return jax.tree.map(lambda x: _along(scale, x) * x, rows)


def _grown(rods: Rods, change: Growth, h: Float[Array, ""]) -> Rods:
    return Rods(_moved(rods.shape, change.shape, h), rods.log_size + h * change.log_size)


def _tidied(model: RodModel, rods: Rods, w: Vector) -> Rods:
    """Rods of unit size, no shorter than the rounding of weights."""
    tiny = jnp.finfo(w.dtype).tiny
    size = jnp.sqrt(jnp.maximum(_product(model, rods.shape, rods.shape), tiny))
    log_size = jnp.maximum(rods.log_size + jnp.log(size), jnp.log(_rounding(rods.direction, w)))
    return Rods(_times(1 / size, rods.shape), log_size)


def _rounding(rows: Float[Array, "k d"], w: Vector) -> Float[Array, " k"]:
    """What the rounding of weights makes of products with rows."""
    eps, tiny = jnp.finfo(w.dtype).eps, jnp.finfo(w.dtype).tiny
    return jnp.maximum(eps * jnp.linalg.norm(rows * w, axis=1), tiny**0.5)


def _orthogonal(rods: Rods, bent: Float[Array, "k d"]) -> Rods:
    """Each rod without those before it, in the metric of the Hessian.

    One that does not curve upwards, or hardly moves, is no direction to be left out.
    """
    kept: list[Phase] = []
    for i in range(len(bent)):
        row = jax.tree.map(lambda x, i=i: x[i], rods.shape)
        for other, q in zip(kept, bent, strict=False):
            curvature = q @ other.w
            telling = (curvature > 0) & (jnp.linalg.norm(other.w) > _TELLING)
            share = jnp.where(telling, q @ row.w / jnp.where(telling, curvature, 1), 0)
            row = _moved(row, other, -share)
        kept.append(row)
    return Rods(jax.tree.map(lambda *x: jnp.stack(x), *kept), rods.log_size)
