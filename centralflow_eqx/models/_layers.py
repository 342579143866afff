"""Layers and options that several models share."""

from typing import Annotated, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt, Le
from jaxtyping import Array, Float, PRNGKeyArray
from typing_extensions import Doc

_EPS = 1e-5

MOST_LAYERS = 100
"""Each takes time to trace."""

Depth = Annotated[int, Gt(0), Le(MOST_LAYERS)]

TrainableNorm = Annotated[
    bool, Doc("Whether normalisations have a scale and a shift that train; else they are 1 and 0.")
]

OutputScale = Annotated[
    float,
    Ge(0),
    Doc("Multiplies the last layer's initial weights and biases; 1 is Equinox's initialisation."),
]


Initialisation = Annotated[
    Literal["default", "lecun_normal", "mup"],
    Doc(
        "default: uniform in +-1/sqrt(fan_in), biases too, as Equinox and PyTorch draw; "
        "lecun_normal: normal of variance 1/fan_in, biases 0; mup: that, with the last layer's "
        "variance 1/fan_in^2."
    ),
]


class Norm(eqx.Module):
    """Standardised groups of channels, then a scale and a shift of each channel.

    With one group and no axes but the channels it is layer normalisation. Equinox's normalisations
    clip the variance at 0, where clipping halves its second derivative: their third derivatives
    are half the right ones wherever a group is constant.
    """

    groups: int = eqx.field(static=True)
    weight: Float[Array, " channels"] | None
    bias: Float[Array, " channels"] | None

    def __init__(self, channels: int, groups: int = 1, trainable: bool = True):
        """Without `trainable` scale and shift are 1 and 0, and no leaves."""
        self.groups = groups
        self.weight = jnp.ones(channels) if trainable else None
        self.bias = jnp.zeros(channels) if trainable else None

    def __call__(self, x: Float[Array, "channels ..."]) -> Float[Array, "channels ..."]:
        grouped = x.reshape(self.groups, -1)
        centred = grouped - jnp.mean(grouped, axis=1, keepdims=True)
        variance = jnp.mean(centred * centred, axis=1, keepdims=True)
        x = (centred * jax.lax.rsqrt(variance + _EPS)).reshape(x.shape)
        if self.weight is None or self.bias is None:
            return x
        per_channel = (-1,) + (1,) * (x.ndim - 1)
        return x * self.weight.reshape(per_channel) + self.bias.reshape(per_channel)


def affine(layer: eqx.nn.Linear, x: Float[Array, "*n n_in"]) -> Float[Array, "*n n_out"]:
    """The layer for every row of `x`."""
    # x W^T rather than W x: mapped over examples it is one product that keeps them as rows.
    x = x @ layer.weight.T
    return x if layer.bias is None else x + layer.bias


def output_layer(n_in: int, n_out: int, scale: float, key: PRNGKeyArray) -> eqx.nn.Linear:
    """A last layer that starts `scale` times Equinox's initialisation."""
    return scaled(eqx.nn.Linear(n_in, n_out, key=key), scale)


def normal_layer(
    n_in: int, n_out: int, bias: bool, deviation: float, key: PRNGKeyArray
) -> eqx.nn.Linear:
    """A layer with normal weights and no biases to start with."""
    layer = scaled(eqx.nn.Linear(n_in, n_out, use_bias=bias, key=key), 0.0)
    weight = deviation * jax.random.normal(key, (n_out, n_in), layer.weight.dtype)
    return eqx.tree_at(lambda layer: layer.weight, layer, weight)


def scaled(layer: eqx.nn.Linear, scale: float) -> eqx.nn.Linear:
    """The layer with all its parameters multiplied."""
    return jax.tree.map(lambda p: scale * p, layer)
