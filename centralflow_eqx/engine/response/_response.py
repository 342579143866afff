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
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from ...optimizers import AbstractOptimizer
from ...task import Layout

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
@eqx.filter_jit
def _update(rule: Rule, g: Vector, s: State, w: Vector) -> tuple[Vector, State]:
    step, new = rule.optimizer.update(rule.unravel(g), s, rule.unravel(w))
    new = jax.tree.map(lambda n, o: jnp.asarray(n, jnp.asarray(o).dtype), new, s)
    flat = ravel_pytree(step)[0].astype(w.dtype)
    return rule.unravel.whole(flat) if isinstance(rule.unravel, Layout) else flat, new


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


class Coupling(NamedTuple):
    """How the state's leaves depend on each other, where they do.

    `group` numbers the parts that the leaves belong to; one part's entries at a weight depend on
    other parts' at the same weight. `odd` says of each leaf whether it changes sign with the
    gradients (it oscillates with them) or not (it averages). `depth` is how many parts the longest
    chain of dependences has; there are no circles.
    """

    group: tuple[int, ...]
    odd: tuple[bool, ...]
    depth: int

    def only(self, tree: State, odd: bool) -> State:
        """`tree` with zeros in the leaves of the other parity."""
        leaves, structure = jax.tree.flatten(tree)
        kept = [x if o == odd else jnp.zeros_like(x) for x, o in zip(leaves, self.odd, strict=True)]
        return jax.tree.unflatten(structure, kept)


class Structure(NamedTuple):
    """What is known of a response's operators, so that diagonal ones are handled as vectors.

    `gain` is "none" where no stability operator is defined, and `follows_weights` says that it
    changes with the weights themselves. `momentum` says that some state is linear in the gradient.
    `averages` and `sums` say that some state forgets, or adds up for ever, squares of the gradient.
    `refusal` is why the rule has no central flow, empty if it has one. `maxima` says of each leaf
    of the state whether it is a running maximum, and is empty where none is: the rest holds while
    nothing begins or ceases to exceed them.
    """

    gain: Literal["none", "scalar", "diagonal", "general"] = "general"
    decay: Literal["none", "diagonal", "general"] = "general"
    follows_weights: bool = True
    momentum: bool = True
    averages: bool = True
    sums: bool = False
    refusal: str = ""
    maxima: tuple[bool, ...] = ()

    @property
    def statistics(self) -> bool:
        """Whether some state is quadratic in the gradient."""
        return self.averages or self.sums

    def maxima_of(self, s: State) -> PyTree[bool]:
        """Whether they are running maxima, for the leaves of a state as `s` is."""
        leaves, structure = jax.tree.flatten(s)
        return jax.tree.unflatten(structure, self.maxima or (False,) * len(leaves))


class Response(eqx.Module):
    """The linear response of a rule around a slowly varying state.

    Build it with `derive` or `examine`. Every method takes a relaxed post-update state `s` and
    weights `w`. `coupling` is None where no entry of the state depends on another.
    """

    rule: Rule
    structure: Structure = eqx.field(static=True)
    coupling: Coupling | None = eqx.field(static=True, default=None)

    def step(self, s: State, g: Vector, w: Vector) -> Vector:
        """G: the step taken at `w` with the state `s` before this step's update."""
        return self.rule.update(g, s, w)[0]

    def advance(self, s: State, g: Vector, w: Vector) -> State:
        """F: the state after one update with gradient `g`."""
        return self.rule.update(g, s, w)[1]

    def slopes(self, s: State, w: Vector) -> State:
        """J, entry by entry: the derivative of each entry of F by the same entry of the state."""

        def along(tangent: State) -> State:
            return jax.jvp(lambda s: self.advance(s, jnp.zeros_like(w), w), (s,), (tangent,))[1]

        one, coupling = jax.tree.map(jnp.ones_like, s), self.coupling
        if coupling is None:
            # One derivative does for all entries because none depends on another.
            return along(one)
        return own_slopes(along, one, coupling.group)

    def pre(self, s: State, g: Vector, w: Vector, slopes: State | None = None) -> State:
        """The state that an update with gradient `g` turns into `s`.

        Entries that F forgets (slope zero) or leaves alone stay as they are, and so do maxima: what
        they were before they were exceeded does not matter. `slopes` are those of F, if they are
        known.
        """
        before, J = s, self.slopes(s, w) if slopes is None else slopes
        if self.structure.maxima:
            J = jax.tree.map(lambda m, j: jnp.where(m, 0, j), self.structure.maxima_of(J), J)
        for _ in range(self._depth):  # what an entry depends on is right before it is
            gap = jax.tree.map(jnp.subtract, s, self.advance(before, g, w))
            before = jax.tree.map(jnp.add, before, _divide(gap, J))
        return before

    @property
    def _depth(self) -> int:
        return 1 if self.coupling is None else self.coupling.depth

    def step_from(self, s: State, g: Vector, w: Vector, slopes: State | None = None) -> Vector:
        """The step at `w` whose update ends in the post-update state `s`; `slopes` as in `pre`."""
        return self.step(self.pre(s, g, w, slopes), g, w)

    def linearise(
        self, s: State, w: Vector, slopes: State | None = None
    ) -> Callable[[Vector, State, Vector], tuple]:
        """Derivative of `(G, F)` at gradient zero, where squares have no linear response.

        There the slow statistics drop out and only momentum-like state is left to oscillate. What
        statistics there still are that would respond, as those of the distance between gradient and
        momentum, are held fixed after the update. A weight that never had a gradient does not
        respond: its statistics are zero, where a rule that divides by their root has no derivative.
        `slopes` as in `pre`.
        """
        zero, coupling = jnp.zeros_like(w), self.coupling
        J = self.slopes(s, w) if slopes is None else slopes
        (step, _), tangent = jax.linearize(self.rule.update, zero, self.pre(s, zero, w, J), w)

        def respond(dg: Vector, ds: State, dw: Vector) -> tuple[Vector, State]:
            dstep, new = tangent(dg, ds, dw)
            for _ in range(0 if coupling is None else coupling.depth):
                assert coupling is not None
                held = coupling.only(_divide(new, J), odd=False)
                ds = jax.tree.map(jnp.subtract, ds, held)
                dstep, new = tangent(dg, ds, dw)
            return jnp.where(jnp.isfinite(step) & jnp.isnan(dstep), 0, dstep), new

        return respond

    def _settled(self, respond: Callable, J: State, q: Vector, delta: Vector, sign: int) -> State:
        """The momenta that an update multiplies by `sign` while gradient and weights do so too."""
        coupling, sigma = self.coupling, jax.tree.map(jnp.zeros_like, J)
        room = jax.tree.map(lambda j: sign - j, J)
        for i in range(self._depth):
            new = respond(q, sigma, delta)[1]
            if i:
                new = jax.tree.map(lambda n, j, x: n - j * x, new, J, sigma)
            sigma = _divide(new, room)
            sigma = sigma if coupling is None else coupling.only(sigma, odd=True)
        return sigma

    def nyquist(self, s: State, w: Vector) -> Callable[[Vector, Vector], Vector]:
        """Minus the step's amplitude when gradient and weights oscillate as (-1)^t (q, delta)."""
        J = self.slopes(s, w)
        tangent = self.linearise(s, w, J)

        def respond(q: Vector, delta: Vector) -> Vector:
            sigma = self._settled(tangent, J, q, delta, -1)
            return -tangent(q, sigma, delta)[0]

        return respond

    def swinging(self, s: State, w: Vector) -> Callable[[Vector, Vector], State]:
        """The momenta's amplitude, before an update, when gradient and weights oscillate so."""
        J = self.slopes(s, w)
        tangent = self.linearise(s, w, J)
        return lambda q, delta: self._settled(tangent, J, q, delta, -1)

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
        J, still = self.slopes(s, w), jnp.zeros_like(w)
        tangent = self.linearise(s, w, J)
        sigma = self._settled(tangent, J, q, still, 1)
        return tangent(q, sigma, still)[0]

    def quadratic(self, s: State, g: Vector, w: Vector, q: Vector, r: Vector) -> State:
        """Half the second derivative of F by gradient and momenta, in directions `q` and `r`.

        With q, r the amplitudes of the oscillating gradient, and the momenta's with them, this is
        what the oscillation adds to the average of F: exact for state that is quadratic in them.
        """
        coupling = self.coupling
        if coupling is None:

            def along(v: Vector) -> Callable[[Vector], State]:
                return lambda g: jax.jvp(lambda g: self.advance(s, g, w), (g,), (v,))[1]

            return _scale(0.5, jax.jvp(along(q), (g,), (r,))[1])

        J, still = self.slopes(s, w), jnp.zeros_like(w)
        tangent = self.linearise(s, w, J)

        def swung(v: Vector) -> tuple[Vector, State]:
            return v, self._settled(tangent, J, v, still, -1)

        def both(v: tuple[Vector, State]) -> Callable[[Vector, State], State]:
            return lambda g, s: jax.jvp(lambda g, s: self.advance(s, g, w), (g, s), v)[1]

        second = jax.jvp(both(swung(q)), (g, s), swung(r))[1]
        return coupling.only(_scale(0.5, second), odd=False)

    def momenta(self, s: State, w: Vector) -> State:
        """Of each leaf of the state, whether it answers linearly to the gradient."""
        if self.coupling is not None:
            odd = self.coupling.only(jax.tree.map(jnp.ones_like, s), odd=True)
        else:
            still = jax.tree.map(jnp.zeros_like, (s, w))
            odd = self.linearise(s, w)(jnp.ones_like(w), *still)[1]
        return jax.tree.map(lambda m: jnp.any(m != 0), odd)

    def nonlinearity(self, s: State, w: Vector, g: Vector) -> Float[Array, ""]:
        """How far, relatively, step and state are from what the theory assumes of them.

        At fixed statistics the step should be linear in the gradient and in the momenta, these
        linear in the gradient, and the statistics quadratic in it; tested by scaling gradient and
        momenta by -1, 0, 1/2 and 1.
        """
        swinging, coupling = self.momenta(s, w), self.coupling

        def scaled(c: Float[Array, ""]) -> State:
            return jax.tree.map(lambda x, odd: jnp.where(odd, c * x, x), s, swinging)

        def together(c: Float[Array, ""]) -> Vector:
            return self.step_from(scaled(c), c * g, w)

        def by_gradient(c: Float[Array, ""]) -> Vector:
            return self.step_from(s, c * g, w)

        def by_momenta(c: Float[Array, ""]) -> Vector:
            return self.step_from(scaled(c), jnp.zeros_like(g), w)

        def state(c: Float[Array, ""]) -> Array:
            new = self.advance(s, c * g, w)
            return flat_state(new if coupling is None else coupling.only(new, odd=False), w)

        def momenta(c: Float[Array, ""]) -> Array:
            assert coupling is not None
            statistics = coupling.only(self.pre(s, c * g, w), odd=False)
            before = coupling.only(self.pre(s, jnp.zeros_like(g), w), odd=True)
            before = jax.tree.map(jnp.add, before, statistics)
            return flat_state(coupling.only(self.advance(before, c * g, w), odd=True), w)

        def parts(f: Callable[[Array], Array]) -> tuple[Array, Array, Array]:
            # One after the other: what a rule decomposes is no batch then; see `decompose`.
            minus, still, half, plus = jax.lax.map(f, jnp.array([-1.0, 0.0, 0.5, 1.0], w.dtype))
            odd, even = (plus - minus) / 2, (plus + minus) / 2 - still
            return even, half - still - odd / 2 - even / 4, plus - still

        def linear(*functions: Callable) -> list[Array]:
            found = [parts(f) for f in functions]
            moved = jnp.linalg.norm(jnp.stack([jnp.linalg.norm(moved) for _, _, moved in found]))
            return [
                relative_size(even, moved) + relative_size(rest, moved) for even, rest, _ in found
            ]

        # Momenta that are part of the statistics, as a mean that a variance is taken around, count
        # as fixed while the gradient changes.
        if coupling is None:
            defects = linear(together)
        else:
            defects = linear(by_gradient, by_momenta) + linear(momenta)
        _, rest, moved = parts(state)
        return jnp.max(jnp.stack([*defects, relative_size(rest, moved)]))


def own_slopes(along: Callable[[State], State], one: State, group: tuple[int, ...]) -> State:
    """The derivative of every entry of `along`'s function by the same entry, part by part."""
    leaves, structure = jax.tree.flatten(one)
    found = list(leaves)
    for part in sorted(set(group)):
        own = [x if n == part else jnp.zeros_like(x) for x, n in zip(leaves, group, strict=True)]
        answer = jax.tree.leaves(along(jax.tree.unflatten(structure, own)))
        found = [a if n == part else f for a, f, n in zip(answer, found, group, strict=True)]
    return jax.tree.unflatten(structure, found)


def flat_state(tree: State, w: Vector) -> Float[Array, " n"]:
    """All leaves of a state, one after the other."""
    return jnp.concatenate([jnp.zeros(0, w.dtype), *map(jnp.ravel, jax.tree.leaves(tree))])


def relative_size(a: Array, scale: Array) -> Array:
    """|a| over |scale|, or |a| where that is zero."""
    size = jnp.linalg.norm(scale)
    return jnp.linalg.norm(a) / jnp.where(size > 0, size, 1)


def _divide(numerator: State, slopes: State) -> State:
    """Entry-wise quotient, zero where a slope is zero: slopes are of order 1, or rounding."""

    def divide(n: Array, slope: Array) -> Array:
        zero = jnp.abs(slope) <= 4 * jnp.finfo(slope.dtype).eps
        return jnp.where(zero, 0, n / jnp.where(zero, 1, slope))

    return jax.tree.map(divide, numerator, slopes)


def _gmres(product: Callable[[Vector], Vector], b: Vector) -> Vector:
    """The solution of a linear system to rounding, NaN where there is none."""
    arrays, static = eqx.partition(eqx.filter_closure_convert(product, b), eqx.is_array)
    tol = 10 * float(jnp.finfo(b.dtype).eps)

    @jax.custom_batching.sequential_vmap  # its own QR is no batch then; see `decompose`
    def solve(arrays: Any, b: Vector) -> Vector:
        operator = lx.FunctionLinearOperator(
            eqx.combine(arrays, static), jax.ShapeDtypeStruct(b.shape, b.dtype)
        )
        solution = lx.linear_solve(operator, b, lx.GMRES(rtol=tol, atol=tol), throw=False)
        return jnp.where(solution.result == lx.RESULTS.successful, solution.value, jnp.nan)

    return solve(arrays, b)


def _scale(factor: float, tree: State) -> State:
    return jax.tree.map(lambda x: factor * x, tree)
