"""Squared error."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._base import AbstractLoss, Labels, Targets
from ._registry import LOSSES


@LOSSES.register("mse")
class MSE(AbstractLoss):
    """Half the squared error, summed over outputs.

    Targets are the data's own, else one-hot, or +-1 for one output.
    """

    def each(self, outputs: Float[Array, "*n o"], answers: Labels | Targets) -> Float[Array, "*n"]:
        if not jnp.issubdtype(answers.dtype, jnp.integer):
            targets = answers
        elif outputs.shape[-1] == 1:
            targets = (2 * answers - 1).astype(outputs.dtype)[..., None]
        else:
            targets = jax.nn.one_hot(answers, outputs.shape[-1], dtype=outputs.dtype)
        return 0.5 * jnp.sum((outputs - targets) ** 2, axis=-1)
