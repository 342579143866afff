"""What the models of images share."""

from typing import Annotated, Literal

import equinox as eqx
import jax.numpy as jnp
from annotated_types import Gt
from jaxtyping import Array, Float, PRNGKeyArray
from typing_extensions import Doc

from ..errors import OptionError
from ._base import Interface
from ._layers import Norm

NormKind = Annotated[
    Literal["group", "none"],
    Doc("Normalisation after every convolution, which then has no bias of its own."),
]

Groups = Annotated[
    int, Gt(0), Doc("Groups of channels that `norm: group` standardises, for each image.")
]


def image_shape(name: str, interface: Interface) -> tuple[int, int, int]:
    """Channels, height and width of the images; refuses anything else for the model `name`."""
    takes = f"{name} takes images [channels, height, width]"
    if interface.vocabulary is not None:
        raise OptionError("type", f"{takes}, the data's inputs are tokens")
    if len(interface.shape) != 3:
        raise OptionError("type", f"{takes}, the data's inputs have shape {list(interface.shape)}")
    if interface.per_position:
        raise OptionError("type", f"{takes} with one label each, the data's have one per position")
    channels, height, width = interface.shape
    return channels, height, width


def check_groups(norm: NormKind, groups: int, width: int) -> None:
    """Refuses groups that do not divide the `width` channels."""
    if norm == "group" and width % groups:
        raise OptionError("groups", f"must divide the width {width}, got {groups}")


def group_norm(norm: NormKind, channels: int, groups: int, trainable: bool) -> Norm | None:
    """The normalisation that the options ask for."""
    return Norm(channels, groups, trainable) if norm == "group" else None


class NormedConv(eqx.Module):
    """A convolution that keeps the image's size, or divides it by the stride, and normalises."""

    conv: eqx.nn.Conv2d
    norm: Norm | None

    def __init__(
        self, n_in: int, n_out: int, kernel: int, stride: int, norm: Norm | None, key: PRNGKeyArray
    ):
        self.conv = eqx.nn.Conv2d(
            n_in, n_out, kernel, stride, padding=kernel // 2, use_bias=norm is None, key=key
        )
        self.norm = norm

    def __call__(self, x: Float[Array, "n_in h w"]) -> Float[Array, "n_out new_h new_w"]:
        x = convolve(x, self.conv.weight, self.conv.stride[0])
        if self.conv.bias is not None:
            x = x + self.conv.bias
        return x if self.norm is None else self.norm(x)


def convolve(
    x: Float[Array, "n_in h w"], kernel: Float[Array, "n_out n_in size size"], stride: int
) -> Float[Array, "n_out new_h new_w"]:
    """Correlation with a square kernel of odd size, zeros standing around the image.

    One matrix product with the patches of all pixels. XLA's own convolution is several times slower
    on CPUs inside of loops, where most of a flow's products are computed (jax issue 12868).
    """
    n_out, n_in, size, _ = kernel.shape
    _, height, width = x.shape
    new_height, new_width = -(-height // stride), -(-width // stride)
    x = jnp.pad(x, ((0, 0), (size // 2, size // 2), (size // 2, size // 2)))
    shifted = [
        x[:, i : i + height : stride, j : j + width : stride]
        for i in range(size)
        for j in range(size)
    ]
    patches = jnp.stack(shifted, axis=1).reshape(n_in * size * size, -1)
    y = jnp.einsum("kp,ok->op", patches, kernel.reshape(n_out, -1))
    return y.reshape(n_out, new_height, new_width)


def average_pool(x: Float[Array, "c h w"]) -> Float[Array, "c new_h new_w"]:
    """Means over squares of 2 x 2 pixels; an odd last row or column is left out."""
    c, h, w = x.shape
    h, w = h // 2, w // 2
    return jnp.mean(x[:, : 2 * h, : 2 * w].reshape(c, h, 2, w, 2), axis=(2, 4))
