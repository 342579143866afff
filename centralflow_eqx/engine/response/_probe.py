"""What random vectors reveal of a rule: its parts, and how they answer."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray

from ..compile import single_use
from ._response import Coupling, Response, Rule, State, Structure, Vector, flat_state, relative_size

_AFTER = (*range(8), 10)
"""Steps from where a rule is probed on: a schedule may start at zero, statistics fill up, and some
rules only move every few steps."""
_COUNTS = 16
"""Counts at which steps are compared while all else stays."""
_SAMPLE = 16
"""Weights, at most, whose recursion is followed from curvature to curvature."""


class Parts(NamedTuple):
    """The parts of a state that its leaves belong to, by name, and where their entries belong.

    `group` is the number of every leaf's part; `places` the first of the flat weights that a leaf's
    entries belong to, one each, None for a leaf that is not shaped like the weights.
    """

    names: tuple[str, ...]
    group: tuple[int, ...]
    places: tuple[int | None, ...]


class Probe(NamedTuple):
    """What random vectors reveal of a rule.

    Defects are relative, `slopes` are the least and greatest of the state; `undefined` says that
    a weight with a gradient has no derivative of the step at gradient zero. `links[i, j]` is how
    much part i depends on the old part j. `recursion` has, for some weights, the derivatives of the
    step and of every part by the gradient, by every part, and by the weight.
    """

    recursion_defect: Array
    links: Float[Array, "parts parts"]
    slopes: Array
    undefined: Array
    nonlinearity: Array
    step_size: Array
    response_size: Array
    uphill: Array
    asymmetry: Array
    gain_spread: Array
    gain_defect: Array
    gain_motion: Array
    decay_size: Array
    decay_defect: Array
    momentum_size: Array
    averages: Array
    sums: Array
    recursion: Float[Array, "n to of"]


def find_parts(rule: Rule, s: State, w: Vector) -> Parts:
    """Leaves of the state belong to one part if they stand for different weights.

    Their paths are those of the parameters they are shaped like, after the name of the part.
    """
    params = jax.tree_util.tree_leaves_with_path(jax.eval_shape(rule.unravel, w))
    starts = np.cumsum([0, *(leaf.size for _, leaf in params)])
    names: list[str] = []
    group, places = [], []
    for path, leaf in jax.tree_util.tree_leaves_with_path(s):
        place, prefix = None, path
        for (tail, param), start in zip(params, starts[:-1], strict=True):
            if path[len(path) - len(tail) :] == tail and leaf.shape == param.shape:
                place, prefix = int(start), path[: len(path) - len(tail)]
        name = jax.tree_util.keystr(prefix, simple=True, separator=".") or "state"
        if place is None:
            place = 0 if leaf.shape == w.shape else None
            name = jax.tree_util.keystr(path, simple=True, separator=".")
        if name not in names:
            names.append(name)
        group.append(names.index(name))
        places.append(place)
    return Parts(tuple(names), tuple(group), tuple(places))


def probe_rule(
    rule: Rule, coupling: Coupling | None, parts: Parts, point: tuple, key: PRNGKeyArray
) -> tuple[Probe, Float[np.ndarray, " counts"]]:
    """What is revealed at the state of `point`, (s, w, g), and some steps later, one row each.

    And how far steps reach along a random vector from count to count, while all else stays; nothing
    if the rule does not count.
    """
    return jax.device_get(_probe(rule, coupling, parts, point, key))


@single_use
def _probe(
    rule: Rule, coupling: Coupling | None, parts: Parts, point: tuple, key: Any
) -> tuple[Probe, Float[Array, " counts"]]:
    s, w, g = point

    def later(s: State, steps: Array) -> tuple[State, Probe]:
        def step(i: Array, s: State) -> State:
            noise = jr.normal(jr.fold_in(key, i), w.shape, w.dtype)
            # Gradients of the size of the one here, entry by entry: what is dead stays dead.
            return rule.update(g * (1 + noise / 2), s, w)[1]

        s = jax.lax.fori_loop(0, steps, step, s)
        response = Response(rule, Structure(), coupling)
        return s, _probe_at(response, parts, s, w, g, key)

    rows = jax.lax.scan(later, s, jnp.diff(jnp.array(_AFTER), prepend=0))[1]
    return rows, _reach_by_count(rule, s, w, g, key)


def _reach_by_count(
    rule: Rule, s: State, w: Vector, g: Vector, key: PRNGKeyArray
) -> Float[Array, " counts"]:
    q, structure = jr.normal(key, w.shape, w.dtype), jax.tree.structure(s)
    own = jax.tree.leaves(eqx.filter_eval_shape(rule.init, w))
    counts = [jnp.issubdtype(x.dtype, jnp.integer) for x in own]
    if not any(counts):
        return jnp.zeros(0, w.dtype)

    def later(s: State, _: None) -> tuple[State, Array]:
        step, new = rule.update(g, s, w)
        leaves = zip(jax.tree.leaves(new), jax.tree.leaves(s), counts, strict=True)
        kept = [n if counter else x for n, x, counter in leaves]
        return jax.tree.unflatten(structure, kept), jnp.vdot(q, step)

    return jax.lax.scan(later, s, None, _COUNTS)[1]


def _probe_at(
    response: Response, parts: Parts, s: State, w: Vector, g: Vector, key: PRNGKeyArray
) -> Probe:
    zero, one, none = jnp.zeros_like(w), jnp.ones_like(w), jax.tree.map(jnp.zeros_like, s)
    q, r = jr.normal(key, (2, *w.shape), w.dtype)
    defect, links = _dependences(response, parts, s, w, g, jr.fold_in(key, 1))
    J = response.slopes(s, w)
    flat_J = jnp.concatenate([jnp.ones(1, w.dtype), flat_state(J, w)])

    respond = response.nyquist(s, w)
    k_one, k_q, k_r = jax.lax.map(lambda v: respond(v, zero), jnp.stack([one, q, r]))
    M = jax.lax.map(lambda v: respond(zero, v), jnp.stack([one, q, k_q, k_r]))
    m_one, m_q, mk_q, mk_r = M
    tiny = jnp.finfo(w.dtype).tiny

    def asymmetry(image_q: Vector, image_r: Vector) -> Array:
        size = jnp.linalg.norm(image_q) * jnp.linalg.norm(r)
        return jnp.abs(jnp.vdot(image_q, r) - jnp.vdot(image_r, q)) / jnp.maximum(size, tiny)

    def answers(w: Vector) -> tuple[Vector, Vector]:
        respond = response.nyquist(s, w)
        return respond(q, zero), respond(zero, q)

    motion = jax.jvp(answers, (w,), (r,))[1]
    tangent = response.linearise(s, w, J)
    momentum = tangent(q, none, zero)[1]
    if response.coupling is not None:
        momentum = response.coupling.only(momentum, odd=True)
    still = (zero, response.pre(s, zero, w, J), w)
    raw = jax.jvp(response.rule.update, still, (q, none, zero))[1][0]
    quadratic = flat_state(response.quadratic(s, g, w, q, q), w) != 0
    return Probe(
        recursion_defect=defect,
        links=links,
        slopes=jnp.stack([jnp.min(flat_J), jnp.max(flat_J)]),
        undefined=jnp.any(jnp.isnan(raw) & (g != 0)),
        nonlinearity=response.nonlinearity(s, w, g),
        # of some gradient, where there is none
        step_size=jnp.linalg.norm(response.step(s, jnp.where(g == 0, q, g), w)),
        response_size=jnp.linalg.norm(k_q),
        uphill=-jnp.vdot(q, k_q) / jnp.maximum(jnp.linalg.norm(q) * jnp.linalg.norm(k_q), tiny),
        # P = K^{-1} (I - M/2) is symmetric where both K and M K are.
        asymmetry=jnp.maximum(asymmetry(k_q, k_r), asymmetry(mk_q, mk_r)),
        gain_spread=jnp.ptp(k_one) / jnp.maximum(jnp.max(jnp.abs(k_one)), tiny),
        gain_defect=relative_size(k_q - k_one * q, k_q),
        gain_motion=jnp.linalg.norm(flat_state(motion, w)),
        decay_size=jnp.linalg.norm(m_q),
        decay_defect=relative_size(m_q - m_one * q, m_q),
        momentum_size=jnp.linalg.norm(flat_state(momentum, w)),
        averages=jnp.any(quadratic & (flat_J[1:] < 1)),
        sums=jnp.any(quadratic & (flat_J[1:] == 1)),
        recursion=_recursion(tangent, parts, s, w),
    )


def _dependences(
    response: Response, parts: Parts, s: State, w: Vector, g: Vector, key: PRNGKeyArray
) -> tuple[Array, Float[Array, "parts parts"]]:
    """How far parts are from evolving entry by entry by themselves; `Probe.links`."""
    number = len(parts.names)
    zeros, restore = ravel_pytree(s)
    noise = restore(jr.normal(key, zeros.shape, zeros.dtype))
    one = jax.tree.map(jnp.ones_like, s)

    def along(tangent: State) -> State:
        return jax.jvp(lambda s: response.advance(s, g, w), (s,), (tangent,))[1]

    def sizes(tree: State) -> Float[Array, " parts"]:
        squares = [jnp.nansum(x**2) for x in jax.tree.leaves(tree)]
        zero = jnp.zeros((), w.dtype)
        return jnp.sqrt(jnp.stack([_sum(squares, parts, i, zero) for i in range(number)]))

    def part(tree: State, chosen: Array) -> State:
        leaves, structure = jax.tree.flatten(tree)
        kept = [jnp.where(chosen == n, x, 0) for x, n in zip(leaves, parts.group, strict=True)]
        return jax.tree.unflatten(structure, kept)

    def column(chosen: Array) -> tuple[Array, Array]:
        answer, slopes = along(part(noise, chosen)), along(part(one, chosen))
        expected = jax.tree.map(jnp.multiply, slopes, part(noise, chosen))
        off = jax.tree.map(jnp.subtract, part(answer, chosen), part(expected, chosen))
        size = jnp.max(sizes(part(noise, chosen)))
        return jnp.max(sizes(off)) / size, sizes(answer) / size

    if not number:
        return jnp.zeros((), w.dtype), jnp.zeros((0, 0), w.dtype)
    defects, columns = jax.lax.map(column, jnp.arange(number))
    return jnp.max(defects), columns.T


def _sum(values: list[Array], parts: Parts, chosen: int, zero: Array) -> Array:
    return sum((v for v, n in zip(values, parts.group, strict=True) if n == chosen), zero)


def _recursion(tangent: Callable, parts: Parts, s: State, w: Vector) -> Float[Array, "n to of"]:
    """`Probe.recursion`, not a number for parts that are not shaped like the weights."""
    number = len(parts.names)
    chosen = jnp.asarray(np.linspace(0, w.size - 1, min(_SAMPLE, w.size)).round().astype(int))
    leaves, structure = jax.tree.flatten(s)

    def spread(tree: State, part: int) -> Vector:
        """A part's entries at the weights they belong to."""
        found = jnp.zeros_like(w)
        for x, n, place in zip(jax.tree.leaves(tree), parts.group, parts.places, strict=True):
            if n == part:
                ravelled = jnp.ravel(x)
                wrong = jnp.full_like(w, jnp.nan)
                found = wrong if place is None else found.at[place : place + x.size].set(ravelled)
        return found[chosen]

    def answer(i: Array) -> Array:
        one = jnp.ones_like(w)
        ds = [
            jnp.where(i == n + 1, jnp.ones_like(x), 0)
            for x, n in zip(leaves, parts.group, strict=True)
        ]
        ds = jax.tree.unflatten(structure, ds)
        step, new = tangent(jnp.where(i == 0, one, 0), ds, jnp.where(i == number + 1, one, 0))
        return jnp.stack([step[chosen], *(spread(new, part) for part in range(number))], axis=1)

    return jnp.moveaxis(jax.lax.map(answer, jnp.arange(number + 2)), 0, 2)
