"""The list of optimizers that the contract tests run on; a new optimizer is one entry of `RULES`.

Nothing derived by the package is used here: thresholds and gains are those of the literature.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from centralflow_eqx.engine.response import Response, Rule, derive, relax
from centralflow_eqx.optimizers import (
    GD,
    AbstractOptimizer,
    AdaGrad,
    Adam,
    AdamW,
    DecoupledDecay,
    HeavyBall,
    NAdam,
    Nesterov,
    Optax,
    RMSProp,
    ScalarRMSProp,
    Shampoo,
    as_schedule,
)

ETA, B, BETA2, EPS = 0.1, 0.6, 0.9, 0.05
STEPS = 6  # taken by every state that thresholds refer to
DECAY = 0.3  # the share of the weights that decays in a step
WD = DECAY / ETA
LINEAR = {"schedule": "linear", "init_value": 0.1, "end_value": 0.0, "transition_steps": 10}
LAST = 0.05  # the rate of step 6 in `LINEAR`
C1 = 1 - B**STEPS  # bias correction of the momentum

SHAPES = {"W": (3, 2), "b": (2,)}
D = 8


def tree(seed: int, dtype=jnp.float64):
    """Random parameters, or a gradient."""
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=shape), dtype) for name, shape in SHAPES.items()}


unravel = ravel_pytree(tree(0))[1]


def on_W(values):
    """One number per weight of the matrix, and 1 for those of the vector."""
    return np.append(values * np.ones(D - 2), np.ones(2))


def on_b(values):
    """One number per weight of the vector, and 1 for those of the matrix."""
    return np.append(np.ones(D - 2), values * np.ones(2))


def plain(s):
    return 1.0


def inverse_root(
    eps: float = 0.0, beta2: float = 0.0, name: str = "nu", inside: float = 0.0
) -> Callable[[Any], np.ndarray]:
    """1/(sqrt(v) + eps) of a statistic, debiased where its decay `beta2` is given."""

    def scale(s):
        v = ravel_pytree(optax.tree.get(s, name))[0] / (1 - beta2**STEPS)
        return 1 / (np.sqrt(v + inside) + eps)

    return scale


def centred_root(s):
    """1/sqrt(v - m^2 + eps) of a statistic around the gradient's mean."""
    v, m = (ravel_pytree(optax.tree.get(s, name))[0] for name in ("nu", "mu"))
    return 1 / np.sqrt(v - m**2 + EPS)


def kronecker(s):
    """(L + eps)^{-1/4} kron (R + eps)^{-1/4} for the matrix, 1/(sqrt(nu) + eps) for the vector."""

    def power(A):
        x, V = np.linalg.eigh(A)
        return V * (x + EPS) ** -0.25 @ V.T

    scale = np.zeros((D, D))
    scale[:-2, :-2] = np.kron(*map(power, s.statistics["W"]))
    scale[-2:, -2:] = np.diag(1 / (np.sqrt(s.statistics["b"]) + EPS))
    return scale


class AveragedMomentum(AbstractOptimizer):
    """m+ = beta m + (1 - beta) g, step -lr m+, as a user may write it."""

    lr: float
    beta: float

    def init(self, params):
        return {"m": jax.tree.map(jnp.zeros_like, params)}

    def update(self, grad, state, params):
        b = self.beta
        m = jax.tree.map(lambda g, m: b * m + (1 - b) * g, grad, state["m"])
        return jax.tree.map(lambda m: -self.lr * m, m), {"m": m}


class Entry(NamedTuple):
    """A rule, and what the literature says of it.

    `threshold` is the critical eigenvalue of scale(s) H at the post-update state s after `STEPS`
    steps, `mean` scale(s) g the answer to a constant gradient g. `scale` gives a number, one
    number per weight, or a matrix.
    """

    optimizer: AbstractOptimizer
    threshold: float
    scale: Callable[[Any], Any] = plain
    mean: Any = -ETA


HEAVY = 2 * (1 + B) / ETA
NESTEROV = (2 / ETA) * (1 + B) / (1 + 2 * B)
SETTLED = -ETA / (1 - B)  # of a momentum that sums
AVERAGED = 2 * (1 + B) / ((1 - B) * ETA)
ADAM = {"lr": ETA, "beta1": B, "beta2": BETA2, "eps": EPS}
OPTAX_ADAM = {"learning_rate": ETA, "b1": B, "b2": BETA2, "eps": EPS}
DEBIASED = inverse_root(EPS, BETA2)
# NAdam's step is b1 m/(1 - b1^(c+1)) + (1 - b1) g/(1 - b1^c), and m answers to an alternating g
# with (1 - b1)/(1 + b1) g.
AHEAD = B / (1 - B ** (STEPS + 1))
NADAM = 2 / (ETA * (1 - B) * (AHEAD / (1 + B) + 1 / C1))
NADAM_MEAN = -ETA * (AHEAD + (1 - B) / C1)

RULES = {
    "gd": Entry(GD(ETA), 2 / ETA),
    "gd decayed, scheduled": Entry(
        DecoupledDecay(GD(LINEAR), LINEAR, WD), (2 - LAST * WD) / 2 * 2 / LAST, mean=-LAST
    ),
    "heavy_ball": Entry(HeavyBall(ETA, B), HEAVY, mean=SETTLED),
    "heavy_ball without memory": Entry(HeavyBall(ETA, 0.0), 2 / ETA),
    "heavy_ball decayed": Entry(
        DecoupledDecay(HeavyBall(ETA, B), ETA, WD), (2 - DECAY) / 2 * HEAVY, mean=SETTLED
    ),
    "nesterov": Entry(Nesterov(ETA, B), NESTEROV, mean=SETTLED),
    "averaged momentum": Entry(AveragedMomentum(ETA, 0.9), 38 / ETA),
    "scalar_rmsprop": Entry(ScalarRMSProp(ETA, BETA2), 2 / ETA, inverse_root()),
    "scalar_rmsprop debiased": Entry(ScalarRMSProp(ETA, BETA2, EPS, True), 2 / ETA, DEBIASED),
    "rmsprop": Entry(RMSProp(ETA, BETA2), 2 / ETA, inverse_root()),
    "rmsprop debiased": Entry(RMSProp(ETA, BETA2, EPS, True), 2 / ETA, DEBIASED),
    "adagrad": Entry(AdaGrad(ETA, EPS), 2 / ETA, inverse_root(EPS, name="sum")),
    "adam": Entry(Adam(**ADAM), C1 * AVERAGED, DEBIASED, -ETA / C1),
    "adam biased": Entry(
        Adam(ETA, B, BETA2, eps=0.0, bias_correction=False), AVERAGED, inverse_root()
    ),
    "nadam": Entry(NAdam(**ADAM), NADAM, DEBIASED, NADAM_MEAN),
    "adamw": Entry(
        AdamW(**ADAM, weight_decay=WD), (2 - DECAY) / 2 * C1 * AVERAGED, DEBIASED, -ETA / C1
    ),
    "shampoo": Entry(Shampoo(ETA, BETA2, EPS), 2 / ETA, kronecker),
    "optax sgd scheduled": Entry(
        Optax(optax.sgd(as_schedule(LINEAR), B)), 2 * (1 + B) / LAST, mean=-LAST / (1 - B)
    ),
    "optax chain": Entry(
        Optax(
            optax.chain(
                optax.clip_by_global_norm(1e3),
                optax.clip(1e2),
                optax.add_decayed_weights(DECAY),
                optax.sgd(ETA, B, nesterov=True),
            )
        ),
        NESTEROV - DECAY,
        mean=SETTLED,
    ),
    "optax adagrad": Entry(
        Optax(optax.adagrad(ETA, EPS, eps=0.0)), 2 / ETA, inverse_root(name="sum_of_squares")
    ),
    "optax adam": Entry(Optax(optax.adam(**OPTAX_ADAM)), C1 * AVERAGED, DEBIASED, -ETA / C1),
    "optax adamw": Entry(
        Optax(optax.adamw(**OPTAX_ADAM, weight_decay=WD)),
        (2 - DECAY) / 2 * C1 * AVERAGED,
        DEBIASED,
        -ETA / C1,
    ),
    "optax rmsprop with momentum": Entry(
        Optax(optax.rmsprop(ETA, BETA2, eps=EPS, momentum=B)),
        HEAVY,
        inverse_root(inside=EPS),
        SETTLED,
    ),
    "optax centred rmsprop": Entry(
        Optax(optax.rmsprop(ETA, BETA2, eps=EPS, centered=True)), 2 / ETA, centred_root
    ),
    "optax adabelief": Entry(
        Optax(optax.adabelief(ETA, B, BETA2, EPS)), C1 * AVERAGED, DEBIASED, -ETA / C1
    ),
    "optax decay masked": Entry(
        Optax(
            optax.chain(
                optax.trace(B),
                optax.add_decayed_weights(WD, mask={"W": True, "b": False}),
                optax.scale(-ETA),
            )
        ),
        HEAVY,
        lambda s: on_W(2 / (2 - DECAY)),
        SETTLED * on_W((2 - DECAY) / 2),
    ),
    "optax masked": Entry(
        Optax(
            optax.chain(
                optax.masked(
                    optax.scale_by_rms(BETA2, EPS, eps_in_sqrt=False), {"W": True, "b": False}
                ),
                optax.scale(-ETA),
            )
        ),
        2 / ETA,
        lambda s: on_W(inverse_root(EPS)(s)),
    ),
    "optax multi_transform": Entry(
        Optax(
            optax.multi_transform(
                {"slow": optax.sgd(ETA, B), "adaptive": optax.rmsprop(ETA, BETA2, eps=EPS)},
                {"W": "slow", "b": "adaptive"},
            )
        ),
        2 / ETA,
        lambda s: on_W(1 / (1 + B)) * on_b(inverse_root(inside=EPS)(s)),
        -ETA * on_W((1 + B) / (1 - B)),
    ),
}


def after(optimizer: AbstractOptimizer, steps: int):
    """The optimizer's own state after steps with random gradients."""
    params, state = tree(0), optimizer.init(tree(0))
    for i in range(steps):
        state = optimizer.update(tree(1 + i), state, params)[1]
    return state


class Example(NamedTuple):
    """A rule's response, derived at the relaxed post-update state `s` of a step from `before`."""

    entry: Entry
    response: Response
    before: Any
    s: Any
    w: jax.Array
    g: jax.Array


@functools.cache
def example(name: str) -> Example:
    entry = RULES[name]
    rule = Rule(entry.optimizer, unravel)
    w, g = (ravel_pytree(tree(seed))[0] for seed in (0, STEPS))
    before = after(entry.optimizer, STEPS - 1)
    s = relax(rule.update(g, before, w)[1], w)
    return Example(entry, derive(rule, s, w, g, jr.key(0)), before, s, w, g)
