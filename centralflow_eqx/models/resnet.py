"""The residual network."""

from collections.abc import Callable
from typing import Annotated

import equinox as eqx
import jax
import jax.numpy as jnp
from annotated_types import Gt
from jaxtyping import Array, Float, PRNGKeyArray
from typing_extensions import Doc

from ..errors import OptionError
from ._activations import Activation, activation
from ._base import AbstractModel, Interface
from ._images import Groups, NormedConv, NormKind, check_groups, group_norm, image_shape
from ._layers import Depth, OutputScale, TrainableNorm, affine, output_layer
from ._registry import MODELS


class ResidualBlock(eqx.Module):
    """Two 3 x 3 convolutions, added to their input before the second activation.

    The input is projected by a 1 x 1 convolution where the shapes differ.
    """

    convs: tuple[NormedConv, NormedConv]
    projection: NormedConv | None
    activation: Callable[[Array], Array] = eqx.field(static=True)

    def __call__(self, x: Float[Array, "n_in h w"]) -> Float[Array, "n_out new_h new_w"]:
        y = self.convs[1](self.activation(self.convs[0](x)))
        return self.activation(y + (x if self.projection is None else self.projection(x)))


class ResidualNet(eqx.Module):
    """A convolution, residual blocks, the mean over pixels and a linear layer."""

    stem: NormedConv
    blocks: list[ResidualBlock]
    output: eqx.nn.Linear
    activation: Callable[[Array], Array] = eqx.field(static=True)

    def __call__(self, x: Float[Array, "c h w"]) -> Float[Array, " outputs"]:
        x = self.activation(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return affine(self.output, jnp.mean(x, axis=(1, 2)))


@MODELS.register("resnet")
class ResNet(AbstractModel):
    """Residual network for images (He et al., 2016), with group normalisation.

    Its batch normalisation is replaced, since a loss with batch statistics is no sum over examples.
    """

    width: Annotated[
        int, Gt(0), Doc("Channels of the first stage; every further one has twice as many.")
    ] = 16
    depth: Annotated[Depth, Doc("Residual blocks per stage.")] = 1
    stages: Annotated[
        int, Gt(0), Doc("Stages; all but the first halve the image's height and width.")
    ] = 3
    activation: Activation = "gelu"
    norm: NormKind = "group"
    groups: Groups = 4
    trainable_norm: TrainableNorm = True
    output_scale: OutputScale = 1.0

    def build(self, interface: Interface, key: PRNGKeyArray) -> ResidualNet:
        channels, height, width = image_shape("resnet", interface)
        check_groups(self.norm, self.groups, self.width)
        most = min(height, width).bit_length()
        if self.stages > most:
            message = f"must be <= {most}, one more than {height} x {width} pixels can be halved"
            raise OptionError("stages", f"{message}, got {self.stages}")
        stem_key, output_key, *keys = jax.random.split(key, 2 + self.stages * self.depth)
        stem = self._conv(channels, self.width, 3, 1, stem_key)
        function, blocks, channels = activation(self.activation), [], self.width
        for i, k in enumerate(keys):
            stage, within = divmod(i, self.depth)
            first = stage > 0 and within == 0
            factor = 2 if first else 1
            blocks.append(self._block(channels, factor, function, k))
            channels *= factor
        output = output_layer(channels, interface.outputs, self.output_scale, output_key)
        return ResidualNet(stem, blocks, output, function)

    def _block(
        self, n_in: int, factor: int, function: Callable[[Array], Array], key: PRNGKeyArray
    ) -> ResidualBlock:
        """A block with `factor` times the channels, of images smaller by as much."""
        n_out, keys = factor * n_in, jax.random.split(key, 3)
        convs = (
            self._conv(n_in, n_out, 3, factor, keys[0]),
            self._conv(n_out, n_out, 3, 1, keys[1]),
        )
        projection = self._conv(n_in, n_out, 1, factor, keys[2]) if factor > 1 else None
        return ResidualBlock(convs, projection, function)

    def _conv(
        self, n_in: int, n_out: int, kernel: int, stride: int, key: PRNGKeyArray
    ) -> NormedConv:
        norm = group_norm(self.norm, n_out, self.groups, self.trainable_norm)
        return NormedConv(n_in, n_out, kernel, stride, norm, key)
