"""What a model has to provide."""

import abc
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
from jaxtyping import Array, PRNGKeyArray


class Interface(NamedTuple):
    """What a network maps for one example: an input of `shape` to numbers.

    Images have shape [channels, height, width], sequences [length]; tokens are integers below
    `vocabulary`, None for real inputs. The output has shape [outputs], or [length, outputs] where
    it is `per_position`.
    """

    shape: tuple[int, ...]
    outputs: int
    vocabulary: int | None = None
    per_position: bool = False


class AbstractModel(eqx.Module):
    """A family of networks; its fields are its options in a spec."""

    @abc.abstractmethod
    def build(self, interface: Interface, key: PRNGKeyArray) -> Callable[[Array], Array]:
        """A network for one example: an `equinox.Module`, three times differentiable.

        Raises `OptionError` for the option `type` if the family does not fit the interface.
        """
