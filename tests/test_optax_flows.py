"""Optax's rules, unmodified, have the flows of the package's own."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import Array, Float

from centralflow_eqx.engine.settings import Settings
from centralflow_eqx.experiment.simulate import simulate
from centralflow_eqx.optimizers import (
    Adam,
    AdamW,
    HeavyBall,
    NAdam,
    Nesterov,
    Optax,
    RMSProp,
)

ADAM = (0.15, 0.6, 0.9, 1e-8)
PAIRS = {
    "adam": (Adam(*ADAM), optax.adam(*ADAM)),
    "nadam": (NAdam(*ADAM), optax.nadam(*ADAM)),
    "adamw": (AdamW(*ADAM, weight_decay=0.1), optax.adamw(*ADAM, weight_decay=0.1)),
    "rmsprop": (
        RMSProp(0.05, 0.9, eps=1e-3),
        optax.rmsprop(0.05, 0.9, eps=1e-3, eps_in_sqrt=False),
    ),
    "heavy_ball": (HeavyBall(0.2, 0.4), optax.sgd(0.2, 0.4)),
    "nesterov": (Nesterov(0.2, 0.4), optax.sgd(0.2, 0.4, nesterov=True)),
}


class Valley(eqx.Module):
    """A valley that sharpens downhill: the flow reaches the edge of stability and stays."""

    def __call__(self, w: Float[Array, " 6"]) -> Float[Array, ""]:
        sharpness = 8.0 * (1 + w[1] ** 2)
        return sharpness * w[0] ** 2 / 2 + jnp.sum((w[1:] - 2.0) ** 2) / 10


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_same_hyperparameters_same_flow(name):
    ours, theirs = PAIRS[name]
    start = jnp.array([0.1, 0.5, -0.3, 0.2, 1.0, 0.4])

    def flow(optimizer):
        return list(
            simulate(
                Valley(),
                optimizer,
                start,
                processes=["central"],
                steps=12,
                warm_start=2,
                settings=Settings(method="euler", substeps=2),
            )
        )

    expected, found = flow(ours), flow(Optax(theirs))
    assert max(row.series["central"]["sigma_eigenvalues"][0] for row in expected) > 1e-6
    moved = np.linalg.norm(expected[-1].weights["central"] - start)
    for a, b in zip(expected, found, strict=True):
        assert np.linalg.norm(a.weights["central"] - b.weights["central"]) < 1e-6 * moved
