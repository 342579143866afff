"""The selective state space model."""

import math
from collections.abc import Callable
from typing import Annotated

import equinox as eqx
import jax
import jax.numpy as jnp
from annotated_types import Gt, Le
from jaxtyping import Array, Float, PRNGKeyArray
from typing_extensions import Doc

from ._activations import Activation, activation
from ._base import AbstractModel, Interface
from ._layers import Depth, Norm, OutputScale, TrainableNorm, affine
from ._registry import MODELS
from ._sequences import SequenceNetwork, check_sequence

# The range of initial step sizes, and the entries of a token for each dimension in which step
# sizes vary, of Gu and Dao.
_STEPS = 1e-3, 1e-1
_DIM_PER_RANK = 16


def causal_convolution(
    x: Float[Array, "length channels"], kernel: Float[Array, "width channels"]
) -> Float[Array, "length channels"]:
    """Every channel with its own kernel; the last entry meets the present, zeros stand before x."""
    width, length = len(kernel), len(x)
    x = jnp.pad(x, ((width - 1, 0), (0, 0)))
    return sum((kernel[i] * x[i : i + length] for i in range(1, width)), kernel[0] * x[:length])


def selective_scan(
    x: Float[Array, "length channels"],
    step: Float[Array, "length channels"],
    A: Float[Array, "channels state"],
    B: Float[Array, "length state"],
    C: Float[Array, "length state"],
) -> Float[Array, "length channels"]:
    """The outputs C_t h_t of h_t = exp(step_t A) h_{t-1} + step_t x_t B_t, from h of zeros."""

    def advance(h: Array, now: tuple[Array, ...]) -> tuple[Array, Array]:
        x, step, b, c = now
        h = jnp.exp(step[:, None] * A) * h + (step * x)[:, None] * b
        return h, h @ c

    return jax.lax.scan(advance, jnp.zeros(A.shape, x.dtype), (x, step, B, C))[1]


class MambaBlock(eqx.Module):
    """A gated selective state space of the normalised tokens, added to a residual stream.

    Gu and Dao, 2023, with A = -exp(`log_rates`), whose initial rows are -1, -2, ..., and layer
    normalisation.
    """

    norm: Norm
    inward: Float[Array, "2*channels dim"]
    kernel: Float[Array, "width channels"]
    kernel_bias: Float[Array, " channels"]
    selection: Float[Array, "rank+2*state channels"]
    step: eqx.nn.Linear
    log_rates: Float[Array, "channels state"]
    skip: Float[Array, " channels"]
    outward: Float[Array, "dim channels"]
    activation: Callable[[Array], Array] = eqx.field(static=True)

    def __init__(
        self,
        dim: int,
        channels: int,
        state: int,
        conv_width: int,
        activation: Callable[[Array], Array],
        trainable_norm: bool,
        key: PRNGKeyArray,
    ):
        keys = jax.random.split(key, 6)
        rank = math.ceil(dim / _DIM_PER_RANK)

        def matrix(n_in: int, n_out: int, k: PRNGKeyArray) -> Array:
            return eqx.nn.Linear(n_in, n_out, use_bias=False, key=k).weight

        self.norm = Norm(dim, trainable=trainable_norm)
        self.inward = matrix(dim, 2 * channels, keys[0])
        # Equinox's initialisation of a convolution that has one channel in for each one out.
        kernel = eqx.nn.Linear(conv_width, channels, key=keys[1])
        assert kernel.bias is not None
        self.kernel, self.kernel_bias = kernel.weight.T, kernel.bias
        self.selection = matrix(channels, rank + 2 * state, keys[2])
        low, high = (math.log(s) for s in _STEPS)
        steps = jnp.exp(jax.random.uniform(keys[3], (channels,), minval=low, maxval=high))
        linear = eqx.nn.Linear(rank, channels, key=keys[4])
        inverse_softplus = steps + jnp.log(-jnp.expm1(-steps))
        self.step = eqx.tree_at(lambda layer: layer.bias, linear, inverse_softplus)
        self.log_rates = jnp.tile(jnp.log(jnp.arange(1.0, state + 1)), (channels, 1))
        self.skip = jnp.ones(channels)
        self.outward = matrix(channels, dim, keys[5])
        self.activation = activation

    def __call__(self, x: Float[Array, "length dim"]) -> Float[Array, "length dim"]:
        u, gate = jnp.split(jax.vmap(self.norm)(x) @ self.inward.T, 2, axis=-1)
        u = self.activation(causal_convolution(u, self.kernel) + self.kernel_bias)
        rank, state = self.step.weight.shape[1], self.log_rates.shape[1]
        step, B, C = jnp.split(u @ self.selection.T, [rank, rank + state], axis=-1)
        step = jax.nn.softplus(affine(self.step, step))
        y = selective_scan(u, step, -jnp.exp(self.log_rates), B, C) + self.skip * u
        return x + (y * self.activation(gate)) @ self.outward.T


@MODELS.register("mamba")
class Mamba(AbstractModel):
    """Selective state space model (Gu and Dao, 2023), for sequences."""

    dim: Annotated[int, Gt(0), Doc("Length of a token.")] = 32
    depth: Annotated[Depth, Doc("Number of blocks.")] = 2
    state: Annotated[int, Gt(0), Doc("Length of every channel's state.")] = 8
    conv_width: Annotated[int, Gt(0), Le(100), Doc("Positions that a convolution sees.")] = 4
    expansion: Annotated[int, Gt(0), Doc("Channels of a block for each entry of a token.")] = 2
    activation: Activation = "silu"
    trainable_norm: TrainableNorm = True
    output_scale: OutputScale = 1.0

    def build(self, interface: Interface, key: PRNGKeyArray) -> SequenceNetwork:
        check_sequence("mamba", interface)
        key, *keys = jax.random.split(key, 1 + self.depth)
        function, channels = activation(self.activation), self.expansion * self.dim
        layers = [
            MambaBlock(
                self.dim,
                channels,
                self.state,
                self.conv_width,
                function,
                self.trainable_norm,
                k,
            )
            for k in keys
        ]
        norm = Norm(self.dim, trainable=self.trainable_norm)
        return SequenceNetwork(interface, self.dim, layers, norm, self.output_scale, key)
