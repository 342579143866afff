"""The training problem: model, data and loss as one function of flat weights."""

import itertools
import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree, Shaped

from .data import AbstractData, Dataset
from .errors import OptionError
from .losses import AbstractLoss, counted
from .models import AbstractModel, Interface
from .precision import engage


class Layout(eqx.Module):
    """Where a network's parameters stand in flat weights: `layout(w)` is the pytree of them."""

    structure: Any = eqx.field(static=True)
    shapes: tuple[tuple[int, ...], ...] = eqx.field(static=True)

    @property
    def size(self) -> int:
        """Length of the flat weights."""
        return sum(math.prod(shape) for shape in self.shapes)

    def __call__(self, weights: Float[Array, " d"]) -> PyTree[Float[Array, "..."]]:
        ends = list(itertools.accumulate(math.prod(shape) for shape in self.shapes))
        parts = jnp.split(weights, ends[:-1])
        leaves = [p.reshape(shape) for p, shape in zip(parts, self.shapes, strict=True)]
        return jax.tree.unflatten(self.structure, leaves)


class Memory(NamedTuple):
    """How a task trades time for memory.

    `microbatch` is the number of examples at a time, 0 for all at once; `remat` recomputes
    activations in the backward pass.
    """

    microbatch: int = 0
    remat: bool = False


class Task(eqx.Module):
    """The training loss L(w) of flat weights w, and how well w predicts.

    The data are array leaves, so that a jitted function that takes the task as an argument has
    them as inputs, not as constants.
    """

    loss: AbstractLoss
    train_inputs: Shaped[Array, "n ..."]
    train_labels: Int[Array, "n ..."]
    test_inputs: Shaped[Array, "m ..."] | None
    test_labels: Int[Array, "m ..."] | None
    initial_weights: Float[Array, " d"]
    unravel: Layout
    memory: Memory = eqx.field(static=True)
    _static: PyTree  # the network without its weights

    def __init__(
        self,
        network: PyTree,
        loss: AbstractLoss,
        dataset: Dataset,
        dtype: Any,
        initial_weights: Float[Array | np.ndarray, " d"] | None = None,
        memory: Memory = Memory(),  # noqa: B008
    ):
        """`network` maps one example to outputs; `initial_weights` replace its own."""
        engage()
        params, self._static = eqx.partition(network, eqx.is_inexact_array)
        leaves, structure = jax.tree.flatten(params)
        self.unravel = Layout(structure, tuple(leaf.shape for leaf in leaves))
        if initial_weights is None:
            # By NumPy, as JAX would compile a program for every shape.
            initial_weights = np.concatenate([np.ravel(leaf) for leaf in leaves])
        self.initial_weights = jnp.asarray(initial_weights, dtype)
        self.loss = loss
        self.memory = memory

        kind = jnp.int32 if dataset.vocabulary else dtype

        def held(values: np.ndarray | None, dtype: Any) -> Array | None:
            return None if values is None else jnp.asarray(values, dtype)

        self.train_inputs = jnp.asarray(dataset.train_inputs, kind)
        self.train_labels = jnp.asarray(dataset.train_labels, jnp.int32)
        self.test_inputs = held(dataset.test_inputs, kind)
        self.test_labels = held(dataset.test_labels, jnp.int32)

    @property
    def num_parameters(self) -> int:
        """d, the length of the flat weights."""
        return self.unravel.size

    def predict(
        self, weights: Float[Array, " d"], inputs: Shaped[Array, "n ..."]
    ) -> Float[Array, "n *positions o"]:
        """The network's outputs for every input."""
        return jax.vmap(eqx.combine(self.unravel(weights), self._static))(inputs)

    def __call__(self, weights: Float[Array, " d"]) -> Float[Array, ""]:
        """The training loss."""
        number = jnp.sum(counted(self.train_labels), dtype=weights.dtype)
        return self._sums(weights, self.train_inputs, self.train_labels)[0] / number

    def evaluate(self, weights: Float[Array, " d"]) -> dict[str, Float[Array, ""]]:
        """train_accuracy and, where there is a test split, test_loss and test_accuracy."""
        number = jnp.sum(counted(self.train_labels), dtype=weights.dtype)
        _, correct = self._sums(weights, self.train_inputs, self.train_labels)
        scores = {"train_accuracy": correct / number}
        if self.test_inputs is None or self.test_labels is None:
            return scores
        number = jnp.sum(counted(self.test_labels), dtype=weights.dtype)
        loss, correct = self._sums(weights, self.test_inputs, self.test_labels)
        return scores | {"test_loss": loss / number, "test_accuracy": correct / number}

    def _sums(
        self,
        weights: Float[Array, " d"],
        inputs: Shaped[Array, "n ..."],
        labels: Int[Array, "n ..."],
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Total loss, and how many labels are predicted correctly, over those that count."""

        def sums(w: Array, x: Array, y: Array) -> tuple[Array, Array]:
            outputs = self.predict(w, x)
            return self.loss.total(outputs, y), correct(outputs, y)

        size = self.memory.microbatch
        if not 0 < size < len(inputs):
            return (jax.checkpoint(sums) if self.memory.remat else sums)(weights, inputs, labels)

        # The last microbatch is filled up with examples that do not count.
        missing = -len(inputs) % size
        inputs = jnp.concatenate([inputs, inputs[:missing]])
        labels = jnp.concatenate([labels, jnp.full_like(labels[:missing], -1)])
        batches = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), (inputs, labels))

        # Without checkpoints the backward pass would keep the activations of every microbatch.
        def add(totals: tuple[Array, Array], batch: tuple[Array, Array]) -> tuple:
            new = jax.checkpoint(sums)(weights, *batch)
            return (totals[0] + new[0], totals[1] + new[1]), None

        zero = jnp.zeros((), weights.dtype)
        return jax.lax.scan(add, (zero, zero), batches)[0]


class Minibatch(eqx.Module):
    """The loss of `size` training examples, drawn anew in every epoch without repetition.

    An epoch has as many whole mini-batches as there are; what is left over is not used in it.
    """

    task: Task
    size: int = eqx.field(static=True)

    def __call__(
        self, weights: Float[Array, " d"], step: Int[Array, ""], key: PRNGKeyArray
    ) -> Float[Array, ""]:
        inputs, labels = self.task.train_inputs, self.task.train_labels
        per_epoch = len(inputs) // self.size
        order = jr.permutation(jr.fold_in(key, step // per_epoch), len(inputs))
        rows = jax.lax.dynamic_slice(order, (step % per_epoch * self.size,), (self.size,))
        return self.task.loss(self.task.predict(weights, inputs[rows]), labels[rows])


class Examples(eqx.Module):
    """The network's outputs on some training examples, as a function of the weights."""

    task: Task
    chosen: tuple[int, ...] = eqx.field(static=True)

    def __call__(self, weights: Float[Array, " d"]) -> Float[Array, "n *positions o"]:
        return self.task.predict(weights, self.task.train_inputs[jnp.asarray(self.chosen)])


def correct(outputs: Float[Array, "*n o"], labels: Int[Array, "*n"]) -> Float[Array, ""]:
    """How many labels are those of the largest output, or of the sign of a single one."""
    if outputs.shape[-1] == 1:
        predicted = (outputs[..., 0] > 0).astype(labels.dtype)
    else:
        predicted = jnp.argmax(outputs, axis=-1)
    return jnp.sum((predicted == labels) & counted(labels), dtype=outputs.dtype)


def make_task(
    data: AbstractData,
    model: AbstractModel,
    loss: AbstractLoss,
    *,
    seed: int = 0,
    dtype: Any = "float32",
    initial_weights: Float[Array | np.ndarray, " d"] | None = None,
    memory: Memory = Memory(),  # noqa: B008
) -> Task:
    """The training problem of a network on data, as a spec with these parts has it.

    `seed` decides the split of the data and the network's weights, which `initial_weights` replace.

    Raises `OptionError` if the parts do not fit together.
    """
    dataset = data.load(seed)
    if initial_weights is not None:
        wrong = wrong_length(initial_weights, count_weights(model, dataset, seed))
        if wrong:
            raise OptionError("initial_weights", wrong)
    network = build_network(model, dataset, seed)
    return Task(network, loss, dataset, dtype, initial_weights, memory)


def build_network(model: AbstractModel, dataset: Dataset, seed: int) -> PyTree:
    engage()  # weights are drawn in float64, whatever they are kept in
    return model.build(interface(dataset), jax.random.key(seed))


def count_weights(model: AbstractModel, dataset: Dataset, seed: int) -> int:
    """d of the network for the data, found without building it."""
    engage()
    shapes = eqx.filter_eval_shape(lambda: build_network(model, dataset, seed))
    return sum(x.size for x in jax.tree.leaves(shapes) if jnp.issubdtype(x.dtype, jnp.inexact))


def wrong_length(initial_weights: Float[Array | np.ndarray, " n"], d: int) -> str:
    """Why the weights cannot be those of a network with `d` of them, empty if they can."""
    n = len(initial_weights)
    return "" if n == d else f"must have {d} entries, one per weight of the model, got {n}"


def interface(dataset: Dataset) -> Interface:
    """What a network for the data has to map."""
    return Interface(
        shape=dataset.train_inputs.shape[1:],
        outputs=1 if dataset.classes == 2 else dataset.classes,
        vocabulary=dataset.vocabulary,
        per_position=dataset.train_labels.ndim == 2,
    )
