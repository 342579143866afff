"""Activations by the names that specs give them."""

import functools
import warnings
from collections.abc import Callable
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array
from typing_extensions import Doc

Activation = Annotated[
    Literal["gelu", "silu", "tanh", "softplus", "identity", "relu"],
    Doc("gelu is the exact one, with the error function; identity makes a linear network."),
]

_ACTIVATIONS = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "softplus": jax.nn.softplus,
    "identity": jax.nn.identity,
    "relu": jax.nn.relu,
}


def activation(name: Activation) -> Callable[[Array], Array]:
    """The function of that name, applied entry by entry; warns if it has kinks."""
    if name == "relu":
        warnings.warn(
            "model.activation: relu has kinks; how the curvature changes across them is "
            "invisible to a flow, which will be wrong there (gelu and silu are smooth)",
            stacklevel=3,
        )
    return _ACTIVATIONS[name]
