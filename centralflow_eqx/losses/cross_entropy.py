"""Cross-entropy."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from ._base import AbstractLoss
from ._registry import LOSSES


@LOSSES.register("cross_entropy")
class CrossEntropy(AbstractLoss):
    """Cross-entropy in nats: softmax, or logistic for one output."""

    def __call__(self, outputs: Float[Array, "n o"], labels: Int[Array, " n"]) -> Float[Array, ""]:
        if outputs.shape[1] == 1:
            each = optax.sigmoid_binary_cross_entropy(outputs[:, 0], labels)
        else:
            each = optax.softmax_cross_entropy_with_integer_labels(outputs, labels)
        return jnp.mean(each)
