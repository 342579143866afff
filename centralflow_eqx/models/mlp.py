"""The multilayer perceptron."""

import math
from collections.abc import Callable
from typing import Annotated

import equinox as eqx
import jax
from annotated_types import Gt
from jaxtyping import Array, Float, PRNGKeyArray
from typing_extensions import Doc

from ..errors import OptionError
from ._activations import Activation, activation
from ._base import AbstractModel, Interface
from ._layers import OutputScale, affine, output_layer
from ._registry import MODELS


class Perceptron(eqx.Module):
    """Fully connected layers with an activation between them, for the flattened input.

    The leaves, in order, are every layer's weight [out, in] and bias [out].
    """

    layers: list[eqx.nn.Linear]
    activation: Callable[[Array], Array] = eqx.field(static=True)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, " outputs"]:
        x = x.ravel()
        for layer in self.layers[:-1]:
            x = self.activation(affine(layer, x))
        return affine(self.layers[-1], x)


@MODELS.register("mlp")
class MLP(AbstractModel):
    """Multilayer perceptron with Equinox's default initialisation."""

    widths: Annotated[
        tuple[Annotated[int, Gt(0)], ...], Doc("Units of each hidden layer; [] is a linear model.")
    ]
    activation: Activation = "gelu"
    output_scale: OutputScale = 1.0

    def build(self, interface: Interface, key: PRNGKeyArray) -> Perceptron:
        if interface.vocabulary is not None:
            raise OptionError("type", "mlp takes real inputs, the data's are tokens")
        sizes = (math.prod(interface.shape), *self.widths, interface.outputs)
        keys = jax.random.split(key, len(sizes) - 1)
        hidden = [
            eqx.nn.Linear(n_in, n_out, key=k)
            for n_in, n_out, k in zip(sizes[:-2], sizes[1:-1], keys[:-1], strict=True)
        ]
        output = output_layer(sizes[-2], sizes[-1], self.output_scale, keys[-1])
        return Perceptron([*hidden, output], activation(self.activation))
