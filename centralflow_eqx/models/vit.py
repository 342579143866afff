"""The vision transformer."""

from typing import Annotated, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from annotated_types import Gt
from jaxtyping import Array, Float, PRNGKeyArray
from typing_extensions import Doc

from ..errors import OptionError
from ._activations import Activation, activation
from ._attention import AttentionBlock
from ._base import AbstractModel, Interface
from ._images import image_shape
from ._layers import Depth, Norm, OutputScale, TrainableNorm, affine, output_layer
from ._registry import MODELS

_POSITION_SCALE = 0.02


class VisionTransformer(eqx.Module):
    """Attention blocks over patches of an image, then a linear layer.

    Patches are embedded linearly and have trained positions. The outputs are read off the mean of
    the normalised tokens, or off that of an additional one, `cls`.
    """

    embedding: eqx.nn.Linear
    positions: Float[Array, "patches dim"]
    cls: Float[Array, " dim"] | None
    blocks: list[AttentionBlock]
    norm: Norm
    output: eqx.nn.Linear
    patch: int = eqx.field(static=True)

    def __call__(self, x: Float[Array, "c h w"]) -> Float[Array, " outputs"]:
        tokens = affine(self.embedding, patches(x, self.patch)) + self.positions
        if self.cls is not None:
            tokens = jnp.concatenate([self.cls[None], tokens])
        for block in self.blocks:
            tokens = block(tokens)
        if self.cls is not None:
            return affine(self.output, self.norm(tokens[0]))
        return affine(self.output, jnp.mean(jax.vmap(self.norm)(tokens), axis=0))


def patches(x: Float[Array, "c h w"], size: int) -> Float[Array, "patches pixels"]:
    """The squares of `size` x `size` pixels, row by row, with the pixels of all channels."""
    c, h, w = x.shape
    x = x.reshape(c, h // size, size, w // size, size)
    return x.transpose(1, 3, 0, 2, 4).reshape(-1, c * size * size)


@MODELS.register("vit")
class ViT(AbstractModel):
    """Vision transformer with normalisation ahead of attention (Dosovitskiy et al., 2021)."""

    patch: Annotated[int, Gt(0), Doc("Side of the square patches in pixels.")] = 4
    dim: Annotated[int, Gt(0), Doc("Length of a token.")] = 64
    depth: Annotated[Depth, Doc("Number of attention blocks.")] = 4
    heads: Annotated[int, Gt(0), Doc("Attention heads; divides `dim`.")] = 4
    mlp_dim: Annotated[int, Gt(0), Doc("Hidden units of every block's network for a token.")] = 128
    activation: Activation = "gelu"
    pooling: Annotated[
        Literal["mean", "cls"], Doc("mean over the tokens, or cls, a token of its own.")
    ] = "mean"
    trainable_norm: TrainableNorm = True
    output_scale: OutputScale = 1.0

    def build(self, interface: Interface, key: PRNGKeyArray) -> VisionTransformer:
        channels, height, width = image_shape("vit", interface)
        if height % self.patch or width % self.patch:
            message = f"must divide the images' {height} x {width} pixels, got {self.patch}"
            raise OptionError("patch", message)
        number = (height // self.patch) * (width // self.patch)
        keys = jax.random.split(key, 4 + self.depth)
        embedding = eqx.nn.Linear(channels * self.patch**2, self.dim, key=keys[0])
        positions = _POSITION_SCALE * jax.random.normal(keys[1], (number, self.dim))
        cls = _POSITION_SCALE * jax.random.normal(keys[2], (self.dim,))
        output = output_layer(self.dim, interface.outputs, self.output_scale, keys[3])
        function, affine_norm = activation(self.activation), self.trainable_norm
        blocks = [
            AttentionBlock(self.dim, self.heads, self.mlp_dim, function, affine_norm, k)
            for k in keys[4:]
        ]
        return VisionTransformer(
            embedding,
            positions,
            cls if self.pooling == "cls" else None,
            blocks,
            Norm(self.dim, trainable=affine_norm),
            output,
            self.patch,
        )
