"""The multilayer perceptron."""

import functools
import warnings
from collections.abc import Callable
from typing import Annotated, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from annotated_types import Gt
from jaxtyping import Array, Float, PRNGKeyArray
from typing_extensions import Doc

from ._base import AbstractModel
from ._registry import MODELS

_ACTIVATIONS = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "softplus": jax.nn.softplus,
    "relu": jax.nn.relu,
}


class Perceptron(eqx.Module):
    """Fully connected layers with an activation between them.

    The leaves, in order, are every layer's weight [out, in] and bias [out].
    """

    layers: list[eqx.nn.Linear]
    activation: Callable[[Array], Array] = eqx.field(static=True)

    def __call__(self, x: Float[Array, " in_features"]) -> Float[Array, " out_features"]:
        for layer in self.layers[:-1]:
            x = self.activation(_affine(layer, x))
        return _affine(self.layers[-1], x)


def _affine(layer: eqx.nn.Linear, x: Float[Array, " n_in"]) -> Float[Array, " n_out"]:
    # x W^T rather than W x: mapped over examples it is one product that keeps them as rows.
    assert layer.bias is not None
    return x @ layer.weight.T + layer.bias


@MODELS.register("mlp")
class MLP(AbstractModel):
    """Multilayer perceptron with Equinox's default initialisation."""

    widths: Annotated[
        tuple[Annotated[int, Gt(0)], ...], Doc("Units of each hidden layer; [] is a linear model.")
    ]
    activation: Annotated[
        Literal["gelu", "silu", "tanh", "softplus", "relu"],
        Doc("gelu is the exact one, with the error function."),
    ] = "gelu"

    def build(self, in_features: int, out_features: int, key: PRNGKeyArray) -> Perceptron:
        if self.activation == "relu":
            warnings.warn(
                "model.activation: relu has kinks; how the curvature changes across them is "
                "invisible to a flow, which will be wrong there (gelu and silu are smooth)",
                stacklevel=2,
            )
        sizes = (in_features, *self.widths, out_features)
        keys = jax.random.split(key, len(sizes) - 1)
        layers = [
            eqx.nn.Linear(n_in, n_out, key=k)
            for n_in, n_out, k in zip(sizes[:-1], sizes[1:], keys, strict=True)
        ]
        return Perceptron(layers, _ACTIVATIONS[self.activation])
