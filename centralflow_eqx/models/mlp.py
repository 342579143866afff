"""The multilayer perceptron."""

import itertools
import math
from collections.abc import Callable
from typing import Annotated

import equinox as eqx
import jax
from annotated_types import Ge, Gt, MaxLen
from jaxtyping import Array, Float, PRNGKeyArray
from typing_extensions import Doc

from ..errors import OptionError
from ._activations import Activation, activation
from ._base import AbstractModel, Interface
from ._layers import MOST_LAYERS, Initialisation, OutputScale, affine, normal_layer, scaled
from ._registry import MODELS


class Perceptron(eqx.Module):
    """Fully connected layers with an activation between them, for the flattened input.

    The leaves, in order, are every layer's weight [out, in] and, if it has one, bias [out].
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
    """Multilayer perceptron, with `activation: identity` a deep linear network."""

    widths: Annotated[
        tuple[Annotated[int, Gt(0)], ...],
        MaxLen(MOST_LAYERS),
        Doc("Units of each hidden layer; [] is a linear model."),
    ]
    activation: Activation = "gelu"
    output_scale: OutputScale = 1.0
    bias: Annotated[bool, Doc("Whether layers have biases.")] = True
    init: Initialisation = "default"
    init_scale: Annotated[
        float, Ge(0), Doc("Multiplies the initial weights and biases of all layers.")
    ] = 1.0

    def build(self, interface: Interface, key: PRNGKeyArray) -> Perceptron:
        if interface.vocabulary is not None:
            raise OptionError("type", "mlp takes real inputs, the data's are tokens")
        sizes = (math.prod(interface.shape), *self.widths, interface.outputs)
        keys = jax.random.split(key, len(sizes) - 1)
        layers = [
            self._layer(n_in, n_out, last=i == len(self.widths), key=keys[i])
            for i, (n_in, n_out) in enumerate(itertools.pairwise(sizes))
        ]
        layers[-1] = scaled(layers[-1], self.output_scale)
        return Perceptron(layers, activation(self.activation))

    def _layer(self, n_in: int, n_out: int, *, last: bool, key: PRNGKeyArray) -> eqx.nn.Linear:
        if self.init == "default":
            layer = eqx.nn.Linear(n_in, n_out, use_bias=self.bias, key=key)
        else:
            power = 1.0 if last and self.init == "mup" else 0.5
            layer = normal_layer(n_in, n_out, self.bias, n_in**-power, key)
        return scaled(layer, self.init_scale)
