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

    Raises `OptionError` if an argument is none that it can work with, the parts do not fit
    together, or there are no such devices.
    """
    _check_arguments(seed, dtype, memory)
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


def _check_arguments(seed: Any, dtype: Any, memory: Any) -> None:
    """Raise `OptionError` for a seed, a type or a `Memory` that no spec could have."""
    if not _is_whole(seed) or not 0 <= seed < 2**32:
        raise OptionError("seed", f"must be a whole number from 0 to 2**32 - 1, got {seed!r}")
    try:
        name = np.dtype(dtype).name
    except TypeError:
        name = repr(dtype)
    if name not in ("float32", "float64"):
        raise OptionError("dtype", f"must be float32 or float64, got {name}")
    if not isinstance(memory, Memory):
        example = "centralflow_eqx.task.Memory(microbatch=100)"
        raise OptionError("memory", f"must be a Memory, such as {example}, got {memory!r}")
    if not _is_whole(memory.microbatch) or memory.microbatch < 0:
        message = f"microbatch must be a whole number >= 0, got {memory.microbatch!r}"
        raise OptionError("memory", message)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


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
