"""The convolutional network."""

from collections.abc import Callable
from typing import Annotated

import equinox as eqx
import jax
from annotated_types import Gt
from jaxtyping import Array, Float, PRNGKeyArray
from typing_extensions import Doc

from ..errors import OptionError
from ._activations import Activation, activation
from ._base import AbstractModel, Interface
from ._images import (
    Groups,
    NormedConv,
    NormKind,
    average_pool,
    check_groups,
    group_norm,
    image_shape,
)
from ._layers import OutputScale, TrainableNorm, affine, output_layer
from ._registry import MODELS


class ConvNet(eqx.Module):
    """3 x 3 convolutions, each with an activation and 2 x 2 average pooling; then a linear layer.

    The leaves, in order, are every convolution's weight [out, in, 3, 3], then its bias [out, 1, 1]
    or its normalisation's scale and shift [out], and the last layer's weight and bias.
    """

    convs: list[NormedConv]
    output: eqx.nn.Linear
    activation: Callable[[Array], Array] = eqx.field(static=True)

    def __call__(self, x: Float[Array, "c h w"]) -> Float[Array, " outputs"]:
        for conv in self.convs:
            x = average_pool(self.activation(conv(x)))
        return affine(self.output, x.ravel())


@MODELS.register("cnn")
class CNN(AbstractModel):
    """Convolutions with average pooling and a linear layer, for images."""

    width: Annotated[int, Gt(0), Doc("Channels of every convolution.")] = 32
    depth: Annotated[
        int, Gt(0), Doc("Number of convolutions; each halves the image's height and width.")
    ] = 2
    activation: Activation = "gelu"
    norm: NormKind = "none"
    groups: Groups = 4
    trainable_norm: TrainableNorm = True
    output_scale: OutputScale = 1.0

    def build(self, interface: Interface, key: PRNGKeyArray) -> ConvNet:
        channels, height, width = image_shape("cnn", interface)
        check_groups(self.norm, self.groups, self.width)
        most = min(height, width).bit_length() - 1
        if self.depth > most:
            message = f"must be <= {most}, as often as {height} x {width} pixels can be halved"
            raise OptionError("depth", f"{message}, got {self.depth}")
        *keys, output_key = jax.random.split(key, self.depth + 1)
        convs = []
        for k in keys:
            norm = group_norm(self.norm, self.width, self.groups, self.trainable_norm)
            convs.append(NormedConv(channels, self.width, 3, 1, norm, k))
            channels = self.width
        pixels = (height >> self.depth) * (width >> self.depth)
        output = output_layer(self.width * pixels, interface.outputs, self.output_scale, output_key)
        return ConvNet(convs, output, activation(self.activation))
