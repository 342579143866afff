"""What a loss has to provide."""

import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def counted(labels: Int[Array, "*n"]) -> Bool[Array, "*n"]:
    """Which labels count: one below 0 marks a position to ignore."""
    return labels >= 0


class AbstractLoss(eqx.Module):
    """A loss; its fields are its options in a spec."""

    @abc.abstractmethod
    def each(self, outputs: Float[Array, "*n o"], labels: Int[Array, "*n"]) -> Float[Array, "*n"]:
        """The loss of every label; anything finite where one does not count.

        With one output the labels are 0 and 1, else 0 to o - 1.
        """

    def total(self, outputs: Float[Array, "*n o"], labels: Int[Array, "*n"]) -> Float[Array, ""]:
        """Sum over the labels that count."""
        return jnp.sum(jnp.where(counted(labels), self.each(outputs, jnp.maximum(labels, 0)), 0))

    def __call__(self, outputs: Float[Array, "*n o"], labels: Int[Array, "*n"]) -> Float[Array, ""]:
        """Mean over the labels that count."""
        number = jnp.sum(counted(labels), dtype=outputs.dtype)
        return self.total(outputs, labels) / number
