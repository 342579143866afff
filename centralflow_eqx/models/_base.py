"""What a model has to provide."""

import abc
from collections.abc import Callable

import equinox as eqx
from jaxtyping import Array, Float, PRNGKeyArray


class AbstractModel(eqx.Module):
    """A family of networks; its fields are its options in a spec."""

    @abc.abstractmethod
    def build(
        self, in_features: int, out_features: int, key: PRNGKeyArray
    ) -> Callable[[Float[Array, " in_features"]], Float[Array, " out_features"]]:
        """A network for one example: an `equinox.Module`, three times differentiable."""
