"""The long short-term memory."""

from typing import Annotated

import equinox as eqx
import jax
import jax.numpy as jnp
from annotated_types import Gt
from jaxtyping import Array, Float, PRNGKeyArray
from typing_extensions import Doc

from ._base import AbstractModel, Interface
from ._layers import Depth, OutputScale
from ._registry import MODELS
from ._sequences import SequenceNetwork, check_sequence


class LSTMLayer(eqx.Module):
    """The hidden states of one LSTM cell along a sequence, from a state of zeros."""

    cell: eqx.nn.LSTMCell

    def __call__(self, x: Float[Array, "length width"]) -> Float[Array, "length width"]:
        assert self.cell.bias is not None
        # What does not need the state is one product for all positions.
        driven = x @ self.cell.weight_ih.T + self.cell.bias
        zero = jnp.zeros(self.cell.hidden_size, x.dtype)

        def step(state: tuple[Array, Array], now: Array) -> tuple[tuple[Array, Array], Array]:
            h, c = state
            i, f, g, o = jnp.split(now + h @ self.cell.weight_hh.T, 4)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        return jax.lax.scan(step, (zero, zero), driven)[1]


@MODELS.register("lstm")
class LSTM(AbstractModel):
    """Long short-term memory with a forget gate (Gers et al., 2000), for sequences."""

    width: Annotated[int, Gt(0), Doc("Length of the embedding and of every layer's state.")] = 32
    depth: Annotated[Depth, Doc("Number of layers.")] = 1
    output_scale: OutputScale = 1.0

    def build(self, interface: Interface, key: PRNGKeyArray) -> SequenceNetwork:
        check_sequence("lstm", interface)
        key, *keys = jax.random.split(key, 1 + self.depth)
        layers = [LSTMLayer(eqx.nn.LSTMCell(self.width, self.width, key=k)) for k in keys]
        return SequenceNetwork(interface, self.width, layers, None, self.output_scale, key)
