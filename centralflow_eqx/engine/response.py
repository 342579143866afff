"""How an optimizer answers to an oscillating gradient, derived from its update rule.

An update rule is w+ = w + G(s, g, w), s+ = F(s, g, w). Near the edge of stability the gradient
oscillates with period two around a slowly moving mean. This module differentiates `update` to get
what a central flow needs: the gain of the step to the oscillation (whose inverse is the
preconditioner P of the stability condition H <= 2 P), the gain to a constant gradient, and the
curvature of the state's averages. No optimizer's formula is written here.

Index convention: a *post-update* state s is the one the step at w is taken with; `pre` finds the
state whose update gives it. F is affine in the state, leaf by leaf with slopes J (the decay of an
exponential average, 1 for a counter).
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ..errors import UnsupportedRule
from ..optimizers import AbstractOptimizer
from .compile import inlined, single_use

Vector = Float[Array, " d"]
State = Any


class Rule(eqx.Module):
    """An optimizer acting on flat weights.

    `unravel` maps flat weights to the parameter pytree that the optimizer was written for.
    Outputs keep the dtypes of the inputs, whatever the optimizer promotes to.
    """

    optimizer: AbstractOptimizer
    unravel: Callable[[Vector], PyTree]

    def init(self, w: Vector) -> State:
        """The optimizer's own state before the first step; counters are integers."""
        return self.optimizer.init(self.unravel(w))

    def parts(self, s: State, w: Vector) -> dict[str, State]:
        """The state's parts by name: what is shaped like the parameters, else single arrays."""
        params = jax.tree.structure(jax.eval_shape(self.unravel, w))
        found = jax.tree_util.tree_leaves_with_path(
            s, is_leaf=lambda part: jax.tree.structure(part) == params
        )
        return {
            jax.tree_util.keystr(path, simple=True, separator=".") or "state": part
            for path, part in found
        }

    def update(self, g: Vector, s: State, w: Vector) -> tuple[Vector, State]:
        """The discrete update: `(step [d], new state)` from the gradient at `w`."""
        return _update(self, g, s, w)


# Derivatives call it dozens of times with the same shapes: it is traced once for all of them.
@inlined
def _update(rule: Rule, g: Vector, s: State, w: Vector) -> tuple[Vector, State]:
    step, new = rule.optimizer.update(rule.unravel(g), s, rule.unravel(w))
    new = jax.tree.map(lambda n, o: jnp.asarray(n, jnp.asarray(o).dtype), new, s)
    return ravel_pytree(step)[0].astype(w.dtype), new


def traced_numbers(rule: Rule, w: Vector) -> Rule:
    """The rule with floating-point hyperparameters as arrays, which `jit` takes as arguments.

    Programs compiled for it serve all their values. A rule that has to know a value when it is
    traced, to branch on it, comes back as it is.
    """
    arrays = jax.tree.map(lambda x: jnp.asarray(float(x)) if isinstance(x, float) else x, rule)
    try:
        eqx.filter_eval_shape(lambda rule: rule.update(w, rule.init(w), w), arrays)
    except (jax.errors.ConcretizationTypeError, TypeError):
        return rule
    return arrays


def relax(state: State, w: Vector) -> State:
    """The state with counters as floating-point numbers, so that it can move continuously."""
    return jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, w.dtype)), state)


class Structure(NamedTuple):
    """What is known of a response's operators, so that diagonal ones are handled as vectors.

    `gain` is "none" where no stability operator is defined, and `follows_weights` says that it
    changes with the weights themselves. `momentum` says that some state is linear in the gradient.
    `averages` and `sums` say that some state forgets, or adds up for ever, squares of the gradient.
    `refusal` is why the rule has no central flow, empty if it has one.
    """

    gain: Literal["none", "scalar", "diagonal", "general"] = "general"
    decay: Literal["none", "diagonal", "general"] = "general"
    follows_weights: bool = True
    momentum: bool = True
    averages: bool = True
    sums: bool = False
    refusal: str = ""

    @property
    def statistics(self) -> bool:
        """Whether some state is quadratic in the gradient."""
        return self.averages or self.sums


class Response(eqx.Module):
    """The linear response of a rule around a slowly varying state.

    Build it with `derive` or `examine`. Every method takes a relaxed post-update state `s` and
    weights `w`.
    """

    rule: Rule
    structure: Structure = eqx.field(static=True)

    def step(self, s: State, g: Vector, w: Vector) -> Vector:
        """G: the step taken at `w` with the state `s` before this step's update."""
        return self.rule.update(g, s, w)[0]

    def advance(self, s: State, g: Vector, w: Vector) -> State:
        """F: the state after one update with gradient `g`."""
        return self.rule.update(g, s, w)[1]

    def slopes(self, s: State, w: Vector) -> State:
        """J, entry by entry: the derivative of each entry of F by the same entry of the state."""
        # One derivative does for all entries because no entry of F depends on another one of the
        # state, which `examine` checks.
        one = jax.tree.map(jnp.ones_like, s)
        return jax.jvp(lambda s: self.advance(s, jnp.zeros_like(w), w), (s,), (one,))[1]

    def pre(self, s: State, g: Vector, w: Vector) -> State:
        """The state that an update with gradient `g` turns into `s`.

        Entries that F forgets (slope zero) or leaves alone stay as they are.
        """
        gap = jax.tree.map(jnp.subtract, s, self.advance(s, g, w))
        return jax.tree.map(jnp.add, s, _divide(gap, self.slopes(s, w)))

    def step_from(self, s: State, g: Vector, w: Vector) -> Vector:
        """The step at `w` whose update ends in the post-update state `s`."""
        return self.step(self.pre(s, g, w), g, w)

    def linearise(self, s: State, w: Vector) -> Callable[[Vector, State, Vector], tuple]:
        """Derivative of `(G, F)` at gradient zero, where squares have no linear response.

        There the slow statistics drop out and only momentum-like state is left to oscillate. A
        weight that never had a gradient does not respond: its statistics are zero, where a rule
        that divides by their root has no derivative.
        """
        zero = jnp.zeros_like(w)
        (step, _), tangent = jax.linearize(self.rule.update, zero, self.pre(s, zero, w), w)

        def respond(dg: Vector, ds: State, dw: Vector) -> tuple[Vector, State]:
            dstep, new = tangent(dg, ds, dw)
            return jnp.where(jnp.isfinite(step) & jnp.isnan(dstep), 0, dstep), new

        return respond

    def nyquist(self, s: State, w: Vector) -> Callable[[Vector, Vector], Vector]:
        """Minus the step's amplitude when gradient and weights oscillate as (-1)^t (q, delta)."""
        tangent, none = self.linearise(s, w), jax.tree.map(jnp.zeros_like, s)
        lag = jax.tree.map(lambda j: 1 + j, self.slopes(s, w))

        def respond(q: Vector, delta: Vector) -> Vector:
            sigma = _divide(_scale(-1, tangent(q, none, delta)[1]), lag)
            return -tangent(q, sigma, delta)[0]

        return respond

    def gain(self, s: State, w: Vector) -> lx.AbstractLinearOperator:
        """The inverse of the preconditioner, P^{-1} = (I - M/2)^{-1} K, a symmetric operator.

        An oscillation delta of the weights makes the gradient oscillate by q = H delta. It neither
        grows nor decays when the step cancels twice the oscillation: 2 delta = K q + M delta. The
        eigenvalues of `gain @ H` are the effective Hessian's, critical at 2 (arXiv 2410.24206,
        generalised to any rule with state). The identity for rules without such an operator.
        """
        zero, one = jnp.zeros_like(w), jnp.ones_like(w)
        if self.structure.gain == "none":
            return lx.DiagonalLinearOperator(one)
        respond = self.nyquist(s, w)
        scale = 1.0
        if self.structure.decay == "diagonal":
            scale = 1 / (1 - respond(zero, one) / 2)
        if self.structure.gain != "general" and self.structure.decay != "general":
            return lx.DiagonalLinearOperator(scale * respond(one, zero))

        struct = jax.ShapeDtypeStruct(w.shape, w.dtype)

        def undecayed(v: Vector) -> Vector:
            return v - respond(zero, v) / 2

        def apply(q: Vector) -> Vector:
            if self.structure.decay != "general":
                return scale * respond(q, zero)
            # Derivatives of Lineax's own solves raise errors, which takes callbacks to the host.
            return jax.lax.custom_linear_solve(undecayed, respond(q, zero), _gmres)

        return lx.FunctionLinearOperator(apply, struct, lx.symmetric_tag)

    def mean_gain(self, s: State, w: Vector, q: Vector) -> Vector:
        """The step's answer to a constant gradient `q`, e.g. -lr q / (1 - beta) for momentum.

        Only state entries that forget (slope other than 1) settle; counters and sums do not.
        """
        tangent, none = self.linearise(s, w), jax.tree.map(jnp.zeros_like, s)
        still = jnp.zeros_like(w)
        driven = tangent(q, none, still)[1]
        sigma = _divide(driven, jax.tree.map(lambda j: 1 - j, self.slopes(s, w)))
        return tangent(q, sigma, still)[0]

    def quadratic(self, s: State, g: Vector, w: Vector, q: Vector, r: Vector) -> State:
        """Half the second derivative of F by the gradient, in directions `q` and `r`.

        With q, r the amplitudes of the oscillating gradient this is what the oscillation adds to
        the average of F: exact for state that is quadratic in the gradient.
        """

        def along(v: Vector) -> Callable[[Vector], State]:
            return lambda g: jax.jvp(lambda g: self.advance(s, g, w), (g,), (v,))[1]

        return _scale(0.5, jax.jvp(along(q), (g,), (r,))[1])

    def nonlinearity(self, s: State, w: Vector, g: Vector) -> Float[Array, ""]:
        """How far, relatively, step and state are from what the theory assumes of them.

        The step should be linear in gradient and momentum at fixed statistics, the state quadratic
        in the gradient; tested by scaling both by -1, 0, 1/2 and 1 from `g`.
        """
        momentum = self.linearise(s, w)(jnp.ones_like(w), *jax.tree.map(jnp.zeros_like, (s, w)))[1]

        def step(c: Float[Array, ""]) -> Vector:
            scaled = jax.tree.map(lambda x, m: jnp.where(jnp.any(m != 0), c * x, x), s, momentum)
            return self.step_from(scaled, c * g, w)

        def state(c: Float[Array, ""]) -> Array:
            return _flat(self.advance(s, c * g, w), w)

        def parts(f: Callable[[Array], Array]) -> tuple[Array, Array, Array]:
            minus, still, half, plus = jax.vmap(f)(jnp.array([-1.0, 0.0, 0.5, 1.0], w.dtype))
            odd, even = (plus - minus) / 2, (plus + minus) / 2 - still
            return even, half - still - odd / 2 - even / 4, plus - still

        even, rest, moved = parts(step)
        zero = jnp.zeros_like(w)
        of_step = _distance(even, zero, moved) + _distance(rest, zero, moved)
        _, rest, moved = parts(state)
        return jnp.maximum(of_step, _distance(rest, jnp.zeros_like(rest), moved))


class _Probe(NamedTuple):
    """What random vectors reveal of a rule.

    Defects are relative, `slopes` are the least and greatest of the state; `undefined` says that
    a weight with a gradient has no derivative of the step at gradient zero.
    """

    recursion_defect: Array
    slopes: Array
    undefined: Array
    nonlinearity: Array
    response_size: Array
    asymmetry: Array
    gain_spread: Array
    gain_defect: Array
    gain_motion: Array
    decay_size: Array
    decay_defect: Array
    momentum_size: Array
    averages: Array
    sums: Array


_TOLERANCE = 1e-8
"""Relative defect of an operator, probed in float64, that is taken for rounding."""
_NOTHING = 1e-6
"""Share of the largest response below which there is none."""
_NO_GRADIENT = (
    "the gradient is zero where the processes start, so that the optimizer's averages of it are, and "
    "its response is not defined; start elsewhere"
)
_AFTER = (0, 1, 10)
"""Steps from where a rule is probed on: a schedule may start at zero, statistics fill up."""


@single_use
def _probe(rule: Rule, s: State, w: Vector, g: Vector, key: PRNGKeyArray) -> _Probe:
    """What is revealed at the state `s` and some steps later, one row each."""

    def later(now: tuple[State, Vector], steps: Array) -> tuple:
        s, g = now

        def step(i: Array, s: State) -> State:
            noise = jr.normal(jr.fold_in(key, i), w.shape, w.dtype)
            # Gradients of the size of the one here, entry by entry: what is dead stays dead.
            return rule.update(g * (1 + noise / 2), s, w)[1]

        s = jax.lax.fori_loop(0, steps, step, s)
        return (s, g), _probe_at(rule, s, w, g, key)

    return jax.lax.scan(later, (s, g), jnp.diff(jnp.array(_AFTER), prepend=0))[1]


def _probe_at(rule: Rule, s: State, w: Vector, g: Vector, key: PRNGKeyArray) -> _Probe:
    response = Response(rule, Structure())
    zero, one, none = jnp.zeros_like(w), jnp.ones_like(w), jax.tree.map(jnp.zeros_like, s)
    q, r = jr.normal(key, (2, *w.shape), w.dtype)

    noise = jax.tree.map(lambda x: jr.normal(jr.fold_in(key, 1), x.shape, x.dtype), s)
    change = jax.jvp(lambda s: response.advance(s, g, w), (s,), (noise,))[1]
    J = response.slopes(s, w)
    expected = jax.tree.map(jnp.multiply, J, noise)
    flat_J = jnp.concatenate([jnp.ones(1, w.dtype), _flat(J, w)])

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
    momentum = response.linearise(s, w)(q, none, zero)[1]
    still = (zero, response.pre(s, zero, w), w)
    raw = jax.jvp(rule.update, still, (q, none, zero))[1][0]
    quadratic = _flat(response.quadratic(s, g, w, q, q), w) != 0
    return _Probe(
        recursion_defect=_distance(_flat(change, w), _flat(expected, w), _flat(noise, w)),
        slopes=jnp.stack([jnp.min(flat_J), jnp.max(flat_J)]),
        undefined=jnp.any(jnp.isnan(raw) & (g != 0)),
        nonlinearity=response.nonlinearity(s, w, g),
        response_size=jnp.linalg.norm(k_q),
        # P = K^{-1} (I - M/2) is symmetric where both K and M K are.
        asymmetry=jnp.maximum(asymmetry(k_q, k_r), asymmetry(mk_q, mk_r)),
        gain_spread=jnp.ptp(k_one) / jnp.maximum(jnp.max(jnp.abs(k_one)), tiny),
        gain_defect=_distance(k_q, k_one * q, k_q),
        gain_motion=jnp.linalg.norm(_flat(motion, w)),
        decay_size=jnp.linalg.norm(m_q),
        decay_defect=_distance(m_q, m_one * q, m_q),
        momentum_size=jnp.linalg.norm(_flat(momentum, w)),
        averages=jnp.any(quadratic & (flat_J[1:] < 1)),
        sums=jnp.any(quadratic & (flat_J[1:] == 1)),
    )


def examine(
    rule: Rule, s: State, w: Vector, g: Vector, key: PRNGKeyArray, *, tol: float | None = None
) -> Response:
    """Probe a rule with random vectors and return its response.

    `s` is a relaxed post-update state and `g` a gradient at `w`. The rule is probed there and at
    states some steps later, in float64 whatever the precision of `w`. `tol` is the relative defect
    up to which an operator counts as symmetric or diagonal. Runs once, on the host. A rule outside
    the theory has its reason in `structure.refusal`: its state's recursion is not diagonal and
    stable (slopes J in [0, 1]), its step is not linear in an oscillating gradient, does not
    respond to one at all, or not symmetrically.
    """
    tol = tol or _TOLERANCE
    s, w, g = jax.tree.map(lambda x: x.astype(jnp.float64), (s, w, g))
    rows = jax.device_get(_probe(rule, s, w, g, key))
    # Where a schedule has come to nothing only rounding is left of the response.
    size = rows.response_size
    answers = ~(size < _NOTHING * np.max(size, initial=0, where=np.isfinite(size)))
    probe = jax.tree.map(lambda x: x[answers].max(axis=0), rows)
    probe = probe._replace(slopes=(rows.slopes[:, 0].min(), rows.slopes[:, 1].max()))
    refusal = _refusal(probe, tol)
    if not np.any(g) and not probe.response_size > 0:
        refusal = _NO_GRADIENT
    defined = probe.response_size > 0 and probe.asymmetry <= tol
    undecayed = probe.decay_size == 0
    diagonal_decay = "diagonal" if probe.decay_defect <= tol else "general"
    gain = "diagonal" if probe.gain_defect <= tol else "general"
    if w.size > 1 and gain == "diagonal" and undecayed and probe.gain_spread <= tol:
        gain = "scalar"
    return Response(
        rule,
        Structure(
            gain=gain if defined else "none",
            decay="none" if undecayed else diagonal_decay,
            follows_weights=bool(probe.gain_motion != 0),  # also where it is not a number
            momentum=bool(probe.momentum_size > 0),
            averages=bool(probe.averages),
            sums=bool(probe.sums),
            refusal=refusal,
        ),
    )


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


def _refusal(probe: _Probe, tol: float) -> str:
    """Why the rule has no central flow; empty if it has one."""
    low, high = probe.slopes
    if not probe.recursion_defect <= tol:
        return (
            "an entry of the optimizer's state depends on other entries of the old state; only "
            "states that evolve entry by entry (averages, momenta, sums, counters) are supported"
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
    return ""


def _flat(tree: State, w: Vector) -> Float[Array, " n"]:
    return jnp.concatenate([jnp.zeros(0, w.dtype), *map(jnp.ravel, jax.tree.leaves(tree))])


def _distance(a: Array, b: Array, scale: Array) -> Array:
    size = jnp.linalg.norm(scale)
    return jnp.linalg.norm(a - b) / jnp.where(size > 0, size, 1)


def _divide(numerator: State, slopes: State) -> State:
    """Entry-wise quotient, zero where a slope is zero: slopes are of order 1, or rounding."""

    def divide(n: Array, slope: Array) -> Array:
        zero = jnp.abs(slope) <= 4 * jnp.finfo(slope.dtype).eps
        return jnp.where(zero, 0, n / jnp.where(zero, 1, slope))

    return jax.tree.map(divide, numerator, slopes)


def _gmres(product: Callable[[Vector], Vector], b: Vector) -> Vector:
    """The solution of a linear system to rounding, NaN where there is none."""
    operator = lx.FunctionLinearOperator(product, jax.ShapeDtypeStruct(b.shape, b.dtype))
    tol = 10 * float(jnp.finfo(b.dtype).eps)
    solution = lx.linear_solve(operator, b, lx.GMRES(rtol=tol, atol=tol), throw=False)
    return jnp.where(solution.result == lx.RESULTS.successful, solution.value, jnp.nan)


def _scale(factor: float, tree: State) -> State:
    return jax.tree.map(lambda x: factor * x, tree)
