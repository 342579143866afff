"""The transformer decoder."""

import math
from typing import Annotated, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from annotated_types import Gt
from jaxtyping import Array, Float, PRNGKeyArray
from typing_extensions import Doc

from ._activations import Activation, activation
from ._attention import AttentionBlock
from ._base import AbstractModel, Interface
from ._layers import Depth, Norm, OutputScale, TrainableNorm
from ._registry import MODELS
from ._sequences import SequenceNetwork, check_sequence


class LearnedPositions(eqx.Module):
    """Adds a trained vector to every position."""

    table: Float[Array, "length dim"]

    def __call__(self, x: Float[Array, "length dim"]) -> Float[Array, "length dim"]:
        return x + self.table


class SinusoidalPositions(eqx.Module):
    """Adds sines and cosines with wavelengths from 2 pi to 10000 times that to every position."""

    def __call__(self, x: Float[Array, "length dim"]) -> Float[Array, "length dim"]:
        length, dim = x.shape
        entry = jnp.arange(dim)
        rate = jnp.exp(-math.log(1e4) * (entry - entry % 2).astype(x.dtype) / dim)
        angle = jnp.arange(length, dtype=x.dtype)[:, None] * rate
        return x + jnp.where(entry % 2, jnp.cos(angle), jnp.sin(angle))


@MODELS.register("transformer")
class Transformer(AbstractModel):
    """Causal transformer with normalisation ahead of attention (Vaswani et al., 2017)."""

    dim: Annotated[int, Gt(0), Doc("Length of a token.")] = 32
    depth: Annotated[Depth, Doc("Number of attention blocks.")] = 2
    heads: Annotated[int, Gt(0), Doc("Attention heads; divides `dim`.")] = 4
    mlp_dim: Annotated[int, Gt(0), Doc("Hidden units of every block's network for a token.")] = 64
    activation: Activation = "gelu"
    positions: Annotated[
        Literal["learned", "sinusoidal", "none"],
        Doc("What tells a token its position; none leaves only the causal mask to do so."),
    ] = "learned"
    trainable_norm: TrainableNorm = True
    output_scale: OutputScale = 1.0

    def build(self, interface: Interface, key: PRNGKeyArray) -> SequenceNetwork:
        check_sequence("transformer", interface)
        key, position_key, *keys = jax.random.split(key, 2 + self.depth)
        layers = []
        if self.positions == "learned":
            table = eqx.nn.Embedding(interface.shape[0], self.dim, key=position_key).weight
            layers.append(LearnedPositions(table))
        elif self.positions == "sinusoidal":
            layers.append(SinusoidalPositions())
        function, affine_norm = activation(self.activation), self.trainable_norm
        for k in keys:
            block = AttentionBlock(
                self.dim, self.heads, self.mlp_dim, function, affine_norm, k, causal=True
            )
            layers.append(block)
        norm = Norm(self.dim, trainable=affine_norm)
        return SequenceNetwork(interface, self.dim, layers, norm, self.output_scale, key)
