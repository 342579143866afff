"""What a loss has to provide."""

import abc

import equinox as eqx
from jaxtyping import Array, Float, Int


class AbstractLoss(eqx.Module):
    """A loss; its fields are its options in a spec."""

    @abc.abstractmethod
    def __call__(self, outputs: Float[Array, "n o"], labels: Int[Array, " n"]) -> Float[Array, ""]:
        """Mean over examples. With one output the labels are 0 and 1, else 0 to o - 1."""
