"""Attention between the tokens of one example."""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..errors import OptionError
from ._layers import Norm, affine


class SelfAttention(eqx.Module):
    """Multi-head attention of every token to all, or with `causal` to those not after it.

    Vaswani et al., 2017. Nothing has a bias: attention would not depend on one of the keys.
    """

    projections: Float[Array, "3*dim dim"]
    output: Float[Array, "dim dim"]
    heads: int = eqx.field(static=True)
    causal: bool = eqx.field(static=True)

    def __init__(self, dim: int, heads: int, causal: bool, key: PRNGKeyArray):
        """Raises `OptionError` for `heads` unless it divides `dim`."""
        if dim % heads:
            raise OptionError("heads", f"must divide dim, {dim}, got {heads}")
        keys = jax.random.split(key)
        self.projections = eqx.nn.Linear(dim, 3 * dim, use_bias=False, key=keys[0]).weight
        self.output = eqx.nn.Linear(dim, dim, use_bias=False, key=keys[1]).weight
        self.heads = heads
        self.causal = causal

    def __call__(self, x: Float[Array, "tokens dim"]) -> Float[Array, "tokens dim"]:
        tokens, dim = x.shape
        parts = (x @ self.projections.T).reshape(tokens, 3, self.heads, dim // self.heads)
        queries, keys, values = parts[:, 0], parts[:, 1], parts[:, 2]
        scores = jnp.einsum("qhf,khf->hqk", queries, keys) / math.sqrt(dim // self.heads)
        if self.causal:
            seen = jnp.tri(tokens, dtype=bool)
            scores = jnp.where(seen, scores, jnp.finfo(scores.dtype).min)
        mixed = jnp.einsum("hqk,khf->qhf", jax.nn.softmax(scores), values)
        return mixed.reshape(tokens, dim) @ self.output.T


class AttentionBlock(eqx.Module):
    """Attention between tokens, then a network for each token, each added to a residual stream.

    Both act on normalised tokens.
    """

    norms: tuple[Norm, Norm]
    attention: SelfAttention
    layers: tuple[eqx.nn.Linear, eqx.nn.Linear]
    activation: Callable[[Array], Array] = eqx.field(static=True)

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_dim: int,
        activation: Callable[[Array], Array],
        trainable_norm: bool,
        key: PRNGKeyArray,
        causal: bool = False,
    ):
        """Raises `OptionError` for `heads` unless it divides `dim`."""
        keys = jax.random.split(key, 3)
        self.norms = (Norm(dim, trainable=trainable_norm), Norm(dim, trainable=trainable_norm))
        self.attention = SelfAttention(dim, heads, causal, keys[0])
        self.layers = (
            eqx.nn.Linear(dim, mlp_dim, key=keys[1]),
            eqx.nn.Linear(mlp_dim, dim, key=keys[2]),
        )
        self.activation = activation

    def __call__(self, x: Float[Array, "tokens dim"]) -> Float[Array, "tokens dim"]:
        x = x + self.attention(jax.vmap(self.norms[0])(x))
        y = self.activation(affine(self.layers[0], jax.vmap(self.norms[1])(x)))
        return x + affine(self.layers[1], y)
