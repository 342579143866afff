"""Squared error."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ._base import AbstractLoss
from ._registry import LOSSES


@LOSSES.register("mse")
class MSE(AbstractLoss):
    """Half the squared error, summed over outputs; targets are one-hot, or +-1 for one output."""

    def each(self, outputs: Float[Array, "*n o"], labels: Int[Array, "*n"]) -> Float[Array, "*n"]:
        if outputs.shape[-1] == 1:
            targets = (2 * labels - 1).astype(outputs.dtype)[..., None]
        else:
            targets = jax.nn.one_hot(labels, outputs.shape[-1], dtype=outputs.dtype)
        return 0.5 * jnp.sum((outputs - targets) ** 2, axis=-1)
