"""What the models of sequences share."""

from collections.abc import Callable, Sequence

import equinox as eqx
import jax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..errors import OptionError
from ._base import Interface
from ._layers import Norm, affine, output_layer

Layer = Callable[[Float[Array, "length width"]], Float[Array, "length width"]]


def check_sequence(name: str, interface: Interface) -> None:
    """Refuses data that are no sequences for the model `name`."""
    takes = f"{name} takes sequences, tokens [length] or real inputs [length, features]"
    real = interface.vocabulary is None
    if len(interface.shape) != (2 if real else 1):
        inputs = "inputs" if real else "tokens"
        shape = list(interface.shape)
        raise OptionError("type", f"{takes}, the data's {inputs} have shape {shape}")


class Embedding(eqx.Module):
    """A vector for every position of a sequence: a row of `weight` for a token of it.

    Real inputs are mapped linearly, with a bias.
    """

    weight: Float[Array, "entries width"]
    bias: Float[Array, " width"] | None

    def __init__(self, interface: Interface, width: int, key: PRNGKeyArray):
        """Equinox's initialisations."""
        if interface.vocabulary is not None:
            self.weight = eqx.nn.Embedding(interface.vocabulary, width, key=key).weight
            self.bias = None
        else:
            linear = eqx.nn.Linear(interface.shape[-1], width, key=key)
            self.weight = linear.weight.T
            self.bias = linear.bias

    def __call__(
        self, x: Int[Array, " length"] | Float[Array, "length features"]
    ) -> Float[Array, "length width"]:
        if self.bias is not None:
            return x @ self.weight + self.bias
        # Not an index: its derivative adds rows up in no fixed order on GPUs.
        return jax.nn.one_hot(x, len(self.weight), dtype=self.weight.dtype) @ self.weight


class SequenceNetwork(eqx.Module):
    """Embedding, layers, a normalisation, and a linear layer for every position or the last one."""

    embedding: Embedding
    layers: Sequence[Layer]
    norm: Norm | None
    output: eqx.nn.Linear
    per_position: bool = eqx.field(static=True)

    def __init__(
        self,
        interface: Interface,
        width: int,
        layers: Sequence[Layer],
        norm: Norm | None,
        output_scale: float,
        key: PRNGKeyArray,
    ):
        """`layers` and `norm` act on vectors of `width` entries."""
        keys = jax.random.split(key)
        self.embedding = Embedding(interface, width, keys[0])
        self.layers = layers
        self.norm = norm
        self.output = output_layer(width, interface.outputs, output_scale, keys[1])
        self.per_position = interface.per_position

    def __call__(
        self, x: Int[Array, " length"] | Float[Array, "length features"]
    ) -> Float[Array, "*length outputs"]:
        h = self.embedding(x)
        for layer in self.layers:
            h = layer(h)
        if not self.per_position:
            h = h[-1:]
        if self.norm is not None:
            h = jax.vmap(self.norm)(h)
        outputs = affine(self.output, h)
        return outputs if self.per_position else outputs[0]
