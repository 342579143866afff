"""Which rules have a central flow, found out by probing them with random vectors."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ...errors import UnsupportedRule
from ..compile import single_use
from ._response import (
    Coupling,
    Response,
    Rule,
    State,
    Structure,
    Vector,
    flat_state,
    relative_size,
    relax,
)

_TOLERANCE = 1e-8
"""Relative defect of an operator, probed in float64, that is taken for rounding."""
_NOTHING = 1e-6
"""Share of the largest response below which there is none."""
_AFTER = (*range(8), 10)
"""Steps from where a rule is probed on: a schedule may start at zero, statistics fill up, and some
rules only move every few steps."""
_SAMPLE = 16
"""Weights, at most, whose recursion is followed from curvature to curvature."""
_CURVATURES = 400
"""Curvatures up to the threshold at which it is."""
_OUTSIDE = 1e-6
"""How far outside of the unit circle a root has left it."""
ONLY_SOMETIMES = (
    "the optimizer only moves in some steps, or differently in different ones (as with gradients "
    "that are accumulated, optax.MultiSteps or apply_every); give it the mean gradient instead"
)
_NO_GRADIENT = (
    "the gradient is zero where the processes start, so that the optimizer's averages of it are, "
    "and its response is not defined; start elsewhere"
)


class Parts(NamedTuple):
    """The parts of a state that its leaves belong to, by name, and where their entries belong.

    `group` is the number of every leaf's part; `places` the first of the flat weights that a leaf's
    entries belong to, one each, None for a leaf that is not shaped like the weights.
    """

    names: tuple[str, ...]
    group: tuple[int, ...]
    places: tuple[int | None, ...]


class _Probe(NamedTuple):
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


@single_use
def _probe(rule: Rule, coupling: Coupling | None, parts: Parts, point: tuple, key: Any) -> _Probe:
    """What is revealed at the state of `point` and some steps later, one row each."""
    s, w, g = point

    def later(s: State, steps: Array) -> tuple[State, _Probe]:
        def step(i: Array, s: State) -> State:
            noise = jr.normal(jr.fold_in(key, i), w.shape, w.dtype)
            # Gradients of the size of the one here, entry by entry: what is dead stays dead.
            return rule.update(g * (1 + noise / 2), s, w)[1]

        s = jax.lax.fori_loop(0, steps, step, s)
        response = Response(rule, Structure(), coupling)
        return s, _probe_at(response, parts, s, w, g, key)

    return jax.lax.scan(later, s, jnp.diff(jnp.array(_AFTER), prepend=0))[1]


def _probe_at(
    response: Response, parts: Parts, s: State, w: Vector, g: Vector, key: PRNGKeyArray
) -> _Probe:
    zero, one, none = jnp.zeros_like(w), jnp.ones_like(w), jax.tree.map(jnp.zeros_like, s)
    q, r = jr.normal(key, (2, *w.shape), w.dtype)
    defect, links = _dependences(response, parts, s, w, g, jr.fold_in(key, 1))
    J = response.slopes(s, w)
    flat_J = jnp.concatenate([jnp.ones(1, w.dtype), flat_state(J, w)])

    respond = response.nyquist(s, w)
    k_one, k_q, k_r = (respond(v, zero) for v in (one, q, r))
    m_one, m_q, mk_q, mk_r = (respond(zero, v) for v in (one, q, k_q, k_r))
    tiny = jnp.finfo(w.dtype).tiny

    def asymmetry(image_q: Vector, image_r: Vector) -> Array:
        size = jnp.linalg.norm(image_q) * jnp.linalg.norm(r)
        return jnp.abs(jnp.vdot(image_q, r) - jnp.vdot(image_r, q)) / jnp.maximum(size, tiny)

    def answers(w: Vector) -> tuple[Vector, Vector]:
        respond = response.nyquist(s, w)
        return respond(q, zero), respond(zero, q)

    motion = jax.jvp(answers, (w,), (r,))[1]
    tangent = response.linearise(s, w)
    momentum = tangent(q, none, zero)[1]
    if response.coupling is not None:
        momentum = response.coupling.only(momentum, odd=True)
    still = (zero, response.pre(s, zero, w), w)
    raw = jax.jvp(response.rule.update, still, (q, none, zero))[1][0]
    quadratic = flat_state(response.quadratic(s, g, w, q, q), w) != 0
    return _Probe(
        recursion_defect=defect,
        links=links,
        slopes=jnp.stack([jnp.min(flat_J), jnp.max(flat_J)]),
        undefined=jnp.any(jnp.isnan(raw) & (g != 0)),
        nonlinearity=response.nonlinearity(s, w, g),
        step_size=jnp.linalg.norm(response.step(s, g, w)),
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
    """How far parts are from evolving entry by entry by themselves; `_Probe.links`."""
    number = len(parts.names)
    noise = jax.tree.map(lambda x: jr.normal(key, x.shape, x.dtype), s)
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
    """`_Probe.recursion`, not a number for parts that are not shaped like the weights."""
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


def examine(
    rule: Rule, s: State, w: Vector, g: Vector, key: PRNGKeyArray, *, tol: float | None = None
) -> Response:
    """Probe a rule with random vectors and return its response.

    `s` is a relaxed post-update state and `g` a gradient at `w`. The rule is probed there and at
    states some steps later, in float64 whatever the precision of `w`. `tol` is the relative defect
    up to which an operator counts as symmetric or diagonal. Runs once, on the host. A rule outside
    the theory has its reason in `structure.refusal`: its state's recursion is not stable, or mixes
    what oscillates with what averages, its step is not linear in an oscillating gradient, does not
    respond to one at all, or not symmetrically, or it does not turn unstable with period two.
    """
    tol = tol or _TOLERANCE
    point = jax.tree.map(lambda x: x.astype(jnp.float64), (s, w, g))
    parts = find_parts(rule, s, w)
    rows = jax.device_get(_probe(rule, None, parts, point, key))
    coupling, refusal = None, ""
    probe = _worst(rows)
    links = np.max(np.nan_to_num(rows.links), axis=0) > tol
    linked = np.any(links & ~np.eye(len(links), dtype=bool))
    # What depends on both, as a variance around the momentum, is linear in either alone.
    answers = probe.response_size > 0 and probe.momentum_size > 0
    if linked or (answers and not probe.nonlinearity <= tol**0.5):
        coupling, refusal = _find_coupling(rule, parts, links, point, key)
        if coupling is not None:
            rows = jax.device_get(_probe(rule, coupling, parts, point, key))
            probe = _worst(rows)
    structure = _structure(probe, w.size, tol)
    refusal = _intermittent(rows.step_size) or refusal or _refusal(probe, tol)
    if not np.any(g) and not probe.response_size > 0:
        refusal = _NO_GRADIENT
    if not refusal and structure.gain in ("scalar", "diagonal"):
        refusal = _other_period(rows.recursion, coupling, parts)
    return Response(rule, structure._replace(refusal=refusal), coupling)


def derive(
    rule: Rule, s: State, w: Vector, g: Vector, key: PRNGKeyArray, *, tol: float | None = None
) -> Response:
    """The response of a rule that has a central flow; see `examine`.

    Raises `UnsupportedRule` with the reason for one that has none.
    """
    response = examine(rule, s, w, g, key, tol=tol)
    if response.structure.refusal:
        raise UnsupportedRule(response.structure.refusal)
    return response


def _answering(size: Any) -> Bool[np.ndarray, " rows"]:
    """Rows with a response: where a schedule has come to nothing only rounding is left of it."""
    return ~(size < _NOTHING * np.max(size, initial=0, where=np.isfinite(size)))


def _worst(rows: _Probe) -> _Probe:
    """The largest of every number over the rows with a response; all slopes count."""
    answers = _answering(rows.response_size)
    probe = jax.tree.map(lambda x: x[answers].max(axis=0), rows)
    return probe._replace(slopes=(rows.slopes[:, 0].min(), rows.slopes[:, 1].max()))


def _structure(probe: _Probe, d: int, tol: float) -> Structure:
    defined = probe.response_size > 0 and probe.asymmetry <= tol
    undecayed = probe.decay_size == 0
    diagonal_decay = "diagonal" if probe.decay_defect <= tol else "general"
    gain = "diagonal" if probe.gain_defect <= tol else "general"
    if d > 1 and gain == "diagonal" and undecayed and probe.gain_spread <= tol:
        gain = "scalar"
    return Structure(
        gain=gain if defined else "none",
        decay="none" if undecayed else diagonal_decay,
        follows_weights=bool(probe.gain_motion != 0),  # also where it is not a number
        momentum=bool(probe.momentum_size > 0),
        averages=bool(probe.averages),
        sums=bool(probe.sums),
    )


def _refusal(probe: _Probe, tol: float) -> str:
    """Why the rule has no central flow; empty if it has one."""
    low, high = probe.slopes
    if not probe.recursion_defect <= tol:
        return (
            "an entry of the optimizer's state depends on other entries of the old state, of other "
            "weights; only what evolves weight by weight (averages, momenta, sums) is supported"
        )
    if not (low >= -tol and high <= 1 + tol):
        return (
            f"the optimizer's state multiplies itself by {low:.3g} to {high:.3g} a step; "
            "an average or a counter has a factor between 0 and 1"
        )
    if not probe.undefined and not probe.response_size > 0:
        return (
            "zero response: the step does not change with a small oscillation of the gradient (as "
            "in sign descent or Lion), so there is no stability threshold"
        )
    if probe.undefined or not probe.nonlinearity <= tol**0.5:
        return (
            "nonlinear response: at fixed statistics, twice the gradient is not twice the step, or "
            "a statistic is not quadratic in the gradient (as with normalised or orthogonalised "
            f"steps, or clipping that is active); relative defect {probe.nonlinearity:.1e}"
        )
    if not probe.asymmetry <= tol:
        return (
            "asymmetric response: the answer of the step to an oscillating gradient is not a "
            "symmetric operator, so no preconditioner describes it; relative defect "
            f"{probe.asymmetry:.1e}"
        )
    if probe.uphill > tol:
        return "the step moves uphill: it has the gradient's sign; scale it by a negative number"
    return ""


def _intermittent(size: Any) -> str:
    """Why a rule that only moves in some steps has no flow; empty if it moves in all of them.

    It may begin later, or end.
    """
    moves = np.flatnonzero(_answering(size) & (size > 0))
    if np.all(np.diff(moves) == 1):
        return ""
    return ONLY_SOMETIMES


def _find_coupling(
    rule: Rule, parts: Parts, links: Bool[np.ndarray, "p p"], point: tuple, key: PRNGKeyArray
) -> tuple[Coupling | None, str]:
    """How parts depend on each other, or why no flow can follow them."""
    depth = _longest_chain(links & ~np.eye(len(links), dtype=bool))
    if depth is None:
        names = ", ".join(parts.names)
        return None, f"parts of the optimizer's state depend on each other in a circle ({names})"
    _, w, g = point
    plus, minus = jax.device_get(_histories(rule, w, g, key))
    odd = []
    for number, name in enumerate(parts.names):
        a, b = (
            np.concatenate(
                [np.ravel(x) for x, n in zip(tree, parts.group, strict=True) if n == number]
            )
            for tree in (plus, minus)
        )
        size, apart, against = (np.sqrt(np.nansum(np.square(x))) for x in (a, a - b, a + b))
        if apart > _TOLERANCE * size and against > _TOLERANCE * size:
            return None, (
                f"{name} in the optimizer's state neither changes sign with the gradients, as a "
                "momentum does, nor is blind to it, as an average of squares: it mixes what "
                "oscillates with what averages"
            )
        odd.append(bool(apart > _TOLERANCE * size))
    return Coupling(parts.group, tuple(odd[n] for n in parts.group), depth), ""


@single_use
def _histories(rule: Rule, w: Vector, g: Vector, key: PRNGKeyArray) -> tuple[list, list]:
    """The state's leaves after some steps from the start, and after their mirror image."""

    def history(sign: float) -> list[Array]:
        s = relax(rule.init(sign * w), w)
        for i in range(3):
            noise = jr.normal(jr.fold_in(key, i), w.shape, w.dtype)
            s = rule.update(sign * g * (1 + noise), s, sign * w)[1]
        return jax.tree.leaves(s)

    return history(1.0), history(-1.0)


def _longest_chain(links: Bool[np.ndarray, "p p"]) -> int | None:
    """How many parts the longest chain of dependences has; None if there is a circle."""
    length = np.ones(len(links), int)
    for _ in range(len(links)):
        longer = 1 + np.max(np.where(links, length, 0), axis=1, initial=0)
        if np.array_equal(longer, length):
            return int(length.max())
        length = longer
    return None


def _other_period(
    recursion: Float[np.ndarray, "rows n to of"], coupling: Coupling | None, parts: Parts
) -> str:
    """Where the rule turns unstable before an oscillation of period two does; empty if it does not.

    A weight with curvature h and its momenta follow z+ = A(h) z. Period two is a root at -1; it has
    to be the first to leave the unit circle as h grows.
    """
    driven = np.nan_to_num(np.abs(recursion[..., 1:, 0])).max(axis=(0, 1)) > 0
    if coupling is not None:
        driven = np.array([_is_odd(coupling, part) for part in range(len(parts.names))], bool)
    kept = np.flatnonzero(driven)
    rows = recursion[-1]
    if not kept.size or not np.isfinite(rows[:, 1 + kept]).all():
        return ""
    z = np.r_[0, 1 + kept]
    fixed = rows[:, z][:, :, np.r_[rows.shape[2] - 1, 1 + kept]]
    fixed[:, 0, 0] += 1
    by_curvature = np.zeros_like(fixed)
    by_curvature[:, :, 0] = rows[:, z, 0]
    worst = ""
    for A, B in _distinct(fixed, by_curvature):
        found = _first_exit(A, B)
        if found is not None:
            share, frequency = found
            worst = (
                "it turns unstable before an oscillation of period two does: at an effective "
                f"eigenvalue of {2 * share:.4g} instead of 2 an oscillation of frequency "
                f"{frequency:.3g} pi begins to grow"
            )
    return worst


def _is_odd(coupling: Coupling, part: int) -> bool:
    return any(o for o, n in zip(coupling.odd, coupling.group, strict=True) if n == part)


def _distinct(*arrays: Float[np.ndarray, "n k k"]) -> Iterator[tuple[np.ndarray, ...]]:
    """The matrices of every weight, those of equal weights once."""
    seen = set()
    for matrices in zip(*arrays, strict=True):
        known = tuple(np.round(np.concatenate([m.ravel() for m in matrices]), 12))
        if known not in seen:
            seen.add(known)
            yield matrices


def _first_exit(
    A: Float[np.ndarray, "k k"], B: Float[np.ndarray, "k k"]
) -> tuple[float, float] | None:
    """Where, as a share of the period-two threshold, a root of A + h B leaves the unit circle.

    With its frequency in units of pi; None if the root at -1 is the first.
    """
    identity = np.eye(len(A))
    if not np.any(B[:, 0]):
        return None
    # det(A + h B + 1) is linear in h, as B has a single column
    at_zero, at_one = (np.linalg.det(M + identity) for M in (A, A + B))
    threshold = at_zero / (at_zero - at_one) if at_zero != at_one else np.inf
    if not 0 < threshold < np.inf:
        return None

    def radius(share: float) -> float:
        return float(np.abs(np.linalg.eigvals(A + share * threshold * B)).max())

    shares = np.linspace(0, 1, _CURVATURES + 1)[1:-1]
    outside = [share for share in shares if radius(share) > 1 + _OUTSIDE]
    if not outside:
        return None
    low, high = outside[0] - shares[0], outside[0]
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if radius(middle) > 1 else (middle, high)
    roots = np.linalg.eigvals(A + high * threshold * B)
    root = roots[np.argmax(np.abs(roots))]
    return float(high), float(abs(np.angle(root)) / np.pi)
