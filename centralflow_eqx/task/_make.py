"""From a model, data and a loss to the training problem."""

from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

from ..data import AbstractData, Dataset, load_dataset
from ..errors import OptionError, running
from ..losses import AbstractLoss
from ..models import AbstractModel
from ..placement import Shard, Wanted, place
from ..precision import engage
from ._fit import count_parameters, interface
from ._task import Forward, Memory, Task


def make_task(
    data: AbstractData,
    model: AbstractModel,
    loss: AbstractLoss,
    *,
    seed: int = 0,
    dtype: Any = "float32",
    initial_weights: Float[Array | np.ndarray, " d"] | None = None,
    memory: Memory = Memory(),  # noqa: B008
    devices: Wanted = "auto",
    shard: Shard = "examples",
    forward: Forward = Forward(),  # noqa: B008
) -> Task:
    """The training problem of a network on data, as a spec with these parts has it.

    `seed` decides the split of the data and the network's weights, which `initial_weights` replace.
    The examples are shared among `devices`: "all", a number, kinds of them such as ["gpu"], or
    "auto", all accelerators that there are. With `shard` "weights" it is the weights, and what is
    as long as they are, such as eigenvectors; "both" are shared, too.
    `forward` is the precision in which the network is evaluated.

    Raises `OptionError` if the parts do not fit together, or there are no such devices.
    """
    dataset = load_dataset(data, seed)
    if initial_weights is not None:
        wrong = wrong_length(
            initial_weights, count_parameters(network_shapes(model, dataset, seed))
        )
        if wrong:
            raise OptionError("initial_weights", wrong)
    network = build_network(model, dataset, seed)
    placement = place(devices, shard)
    return Task(network, loss, dataset, dtype, initial_weights, memory, placement, forward)


def build_network(model: AbstractModel, dataset: Dataset, seed: int) -> PyTree:
    """The model's network for the data, its weights drawn by `seed`.

    Raises `OptionError` for the option `type` if the model does not fit the data, or fails.
    """
    engage()  # weights are drawn in float64, whatever they are kept in
    with running(f"{type(model).__name__}.build"):
        return model.build(interface(dataset), jax.random.key(seed))


def network_shapes(model: AbstractModel, dataset: Dataset, seed: int) -> PyTree:
    """`build_network` with the shapes of arrays in their place, found without computing them."""
    engage()
    return eqx.filter_eval_shape(lambda: build_network(model, dataset, seed))


def wrong_length(initial_weights: Float[Array | np.ndarray, " n"], d: int) -> str:
    """Why the weights cannot be those of a network with `d` of them, empty if they can."""
    n = len(initial_weights)
    return "" if n == d else f"must have {d} entries, one per weight of the model, got {n}"
