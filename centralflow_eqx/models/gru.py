"""The gated recurrent unit."""

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


class GRULayer(eqx.Module):
    """The states of one GRU cell along a sequence, from a state of zeros."""

    cell: eqx.nn.GRUCell

    def __call__(self, x: Float[Array, "length width"]) -> Float[Array, "length width"]:
        bias_new = self.cell.bias_n
        assert self.cell.bias is not None and bias_new is not None
        # What does not need the state is one product for all positions.
        driven = x @ self.cell.weight_ih.T + self.cell.bias

        def step(h: Array, now: Array) -> tuple[Array, Array]:
            reset, keep, new = jnp.split(now, 3)
            by_reset, by_keep, by_new = jnp.split(h @ self.cell.weight_hh.T, 3)
            recalled = jax.nn.sigmoid(reset + by_reset) * (by_new + bias_new)
            keep = jax.nn.sigmoid(keep + by_keep)
            h = (1 - keep) * jnp.tanh(new + recalled) + keep * h
            return h, h

        return jax.lax.scan(step, jnp.zeros(self.cell.hidden_size, x.dtype), driven)[1]


@MODELS.register("gru")
class GRU(AbstractModel):
    """Gated recurrent unit (Cho et al., 2014), for sequences."""

    width: Annotated[int, Gt(0), Doc("Length of the embedding and of every layer's state.")] = 32
    depth: Annotated[Depth, Doc("Number of layers.")] = 1
    output_scale: OutputScale = 1.0

    def build(self, interface: Interface, key: PRNGKeyArray) -> SequenceNetwork:
        check_sequence("gru", interface)
        key, *keys = jax.random.split(key, 1 + self.depth)
        layers = [GRULayer(eqx.nn.GRUCell(self.width, self.width, key=k)) for k in keys]
        return SequenceNetwork(interface, self.width, layers, None, self.output_scale, key)
