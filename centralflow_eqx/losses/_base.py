"""What a loss has to provide."""

import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Labels = Int[Array, "*n"]
Targets = Float[Array, "*n o"]


def counted(answers: Labels | Targets) -> Bool[Array, "*n"]:
    """Which answers count: all, but for labels below 0, which mark positions to ignore."""
    if jnp.issubdtype(answers.dtype, jnp.integer):
        return answers >= 0
    return jnp.ones(answers.shape[:-1], bool)


class AbstractLoss(eqx.Module):
    """A loss; its fields are its options in a spec."""

    @abc.abstractmethod
    def each(self, outputs: Float[Array, "*n o"], answers: Labels | Targets) -> Float[Array, "*n"]:
        """The loss of every answer, a label or a real target for each of the outputs.

        With one output labels are 0 and 1, else 0 to o - 1. Where a label does not count any finite
        number will do. A loss that only knows one of the two raises `OptionError` for the option
        `type` where it gets the other.
        """

    def total(
        self,
        outputs: Float[Array, "*n o"],
        answers: Labels | Targets,
        counts: Bool[Array, "*n"],
    ) -> Float[Array, ""]:
        """Sum over the answers that count."""
        if jnp.issubdtype(answers.dtype, jnp.integer):
            answers = jnp.maximum(answers, 0)
        return jnp.sum(jnp.where(counts, self.each(outputs, answers), 0))

    def __call__(
        self, outputs: Float[Array, "*n o"], answers: Labels | Targets
    ) -> Float[Array, ""]:
        """Mean over the answers that count."""
        counts = counted(answers)
        return self.total(outputs, answers, counts) / jnp.sum(counts, dtype=outputs.dtype)
