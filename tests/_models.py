"""Small instances of every model, shared by the tests."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from centralflow_eqx.data import Dataset
from centralflow_eqx.losses import CrossEntropy
from centralflow_eqx.models import (
    CNN,
    GRU,
    LSTM,
    MLP,
    AbstractModel,
    Interface,
    Mamba,
    ResNet,
    Transformer,
    ViT,
)
from centralflow_eqx.task import Task


class Case(NamedTuple):
    """A model, what it maps, and how many parameters it has, counted by hand."""

    name: str
    model: AbstractModel
    interface: Interface
    parameters: int


IMAGE = Interface((2, 5, 4), 3)
SQUARE = Interface((2, 4, 4), 3)
TOKENS = Interface((4,), 3, vocabulary=5)
FEATURES = Interface((4, 2), 3)

CASES = [
    Case("mlp", MLP((3, 4)), Interface((2,), 3), 3 * 3 + 4 * 4 + 3 * 5),
    # [out, in, 3, 3] weights and biases, and two outputs of 1 x 1 pixels
    Case("cnn", CNN(4, 2, "silu"), IMAGE, 4 * (2 * 9 + 1) + 4 * (4 * 9 + 1) + 3 * (4 + 1)),
    Case(
        "cnn, fixed norm",
        CNN(4, 1, norm="group", groups=2, trainable_norm=False, output_scale=0.5),
        IMAGE,
        4 * 2 * 9 + 3 * (4 * 2 * 2 + 1),
    ),
    # a convolution has a scale and a shift per channel; the second stage's shortcut is 1 x 1
    Case(
        "resnet",
        ResNet(2, 1, 2, groups=1),
        SQUARE,
        2 * (2 * 9 + 2) + 2 * 2 * (2 * 9 + 2) + 4 * (2 * 9 + 2) + 4 * (4 * 9 + 2) + 4 * (2 + 2)
        + 3 * (4 + 1),
    ),
    # the embedding, 4 positions and the token; attention, network and 2 norms; a norm
    Case(
        "vit, cls",
        ViT(2, 4, 1, 2, 5, pooling="cls"),
        SQUARE,
        4 * (8 + 1) + 4 * (4 + 1) + 4 * 4 * 4 + 5 * (4 + 1) + 4 * (5 + 1) + 2 * 2 * 4 + 2 * 4
        + 3 * (4 + 1),
    ),
    Case(
        "vit, fixed norms",
        ViT(2, 4, 1, 1, 5, "tanh", trainable_norm=False),
        SQUARE,
        4 * (8 + 1) + 4 * 4 + 4 * 4 * 4 + 5 * (4 + 1) + 4 * (5 + 1) + 3 * (4 + 1),
    ),
    # every gate has a bias; one of the GRU's has a second
    Case("lstm", LSTM(3), TOKENS, 3 * 5 + 12 * (3 + 3 + 1) + 3 * (3 + 1)),
    Case(
        "gru, real inputs, per position",
        GRU(3),
        FEATURES._replace(per_position=True),
        3 * (2 + 1) + 9 * (3 + 3 + 1) + 3 + 3 * (3 + 1),
    ),
    # tokens and positions; attention without biases, network and 2 norms; a norm
    Case(
        "transformer, per position",
        Transformer(4, 1, 2, 5),
        TOKENS._replace(per_position=True),
        4 * 5 + 4 * 4 + 4 * 4 * 4 + 5 * (4 + 1) + 4 * (5 + 1) + 2 * 2 * 4 + 2 * 4 + 3 * (4 + 1),
    ),
    Case(
        "transformer, real inputs, fixed positions and norms",
        Transformer(4, 1, 1, 5, "softplus", "sinusoidal", trainable_norm=False),
        FEATURES,
        4 * (2 + 1) + 4 * 4 * 4 + 5 * (4 + 1) + 4 * (5 + 1) + 3 * (4 + 1),
    ),
    # 8 channels with 2 branches, a kernel, a step size of rank 1, B and C, A, D and a way out
    Case(
        "mamba, per position",
        Mamba(4, 1, state=2, conv_width=3),
        TOKENS._replace(per_position=True),
        4 * 5 + 8 * (2 * 4 + (3 + 1) + (1 + 2 * 2) + (1 + 1) + 2 + 1 + 4) + 2 * 2 * 4
        + 3 * (4 + 1),
    ),
]  # fmt: skip


def small_task(case: Case, n: int = 3, dtype: str = "float64") -> Task:
    """The cross-entropy of a case's model over random examples."""
    rng, interface = np.random.default_rng(1), case.interface
    if interface.vocabulary is None:
        inputs = rng.normal(size=(n, *interface.shape))
    else:
        inputs = rng.integers(interface.vocabulary, size=(n, *interface.shape))
    classes = 2 if interface.outputs == 1 else interface.outputs
    positions = interface.shape[:1] if interface.per_position else ()
    labels = rng.integers(classes, size=(n, *positions))
    data = Dataset(inputs, labels, None, None, classes, interface.vocabulary)
    network = case.model.build(interface, jax.random.key(0))
    return Task(network, CrossEntropy(), data, dtype)


def by_leaf(task: Task, flat) -> dict[str, np.ndarray]:
    """The parts of a flat vector by the names of the parameters that they belong to."""
    leaves = jax.tree_util.tree_leaves_with_path(task.unravel(jnp.asarray(flat)))
    return {jax.tree_util.keystr(path): np.asarray(leaf).ravel() for path, leaf in leaves}
