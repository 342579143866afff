"""Cross-entropy."""

from typing import Annotated

import jax
import jax.numpy as jnp
import optax
from annotated_types import Ge, Lt
from jaxtyping import Array, Float
from typing_extensions import Doc

from ..errors import OptionError
from ._base import AbstractLoss, Labels, Targets
from ._registry import LOSSES


@LOSSES.register("cross_entropy")
class CrossEntropy(AbstractLoss):
    """Cross-entropy in nats: softmax, or logistic for one output."""

    label_smoothing: Annotated[
        float, Ge(0), Lt(1), Doc("Share of the target that is spread evenly over all classes.")
    ] = 0.0

    def each(self, outputs: Float[Array, "*n o"], answers: Labels | Targets) -> Float[Array, "*n"]:
        if not jnp.issubdtype(answers.dtype, jnp.integer):
            message = "cross_entropy is a loss of class labels, the data have real targets"
            raise OptionError("type", f"{message}; mse takes them")
        if outputs.shape[-1] == 1:
            share = self.label_smoothing
            target = (1 - share) * answers.astype(outputs.dtype) + share / 2
            return optax.sigmoid_binary_cross_entropy(outputs[..., 0], target)
        one_hot = jax.nn.one_hot(answers, outputs.shape[-1], dtype=outputs.dtype)
        target = optax.smooth_labels(one_hot, self.label_smoothing)
        return optax.softmax_cross_entropy(outputs, target)
