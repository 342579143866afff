"""Model, data and loss as one function of flat weights."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, Shaped

from ..data import Dataset, checked_dataset
from ..losses import AbstractLoss, Labels, Targets, counted
from ..precision import engage
from ._fit import check_loss, check_network
from ._layout import Layout, flatten


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
    train_answers: Labels | Targets
    test_inputs: Shaped[Array, "m ..."] | None
    test_answers: Labels | Targets | None
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
        """`network` maps one example to outputs; `initial_weights` replace its own.

        Raises `OptionError` if the parts do not fit together.
        """
        engage()
        dataset = checked_dataset(dataset)
        check_loss(loss, check_network(network, dataset), dataset)
        own, self.unravel, self._static = flatten(network)
        initial_weights = own if initial_weights is None else initial_weights
        self.initial_weights = jnp.asarray(initial_weights, dtype)
        self.loss = loss
        self.memory = memory

        input_type = jnp.int32 if dataset.vocabulary else dtype
        answer_type = dtype if dataset.is_regression else jnp.int32

        def held(values: np.ndarray | None, dtype: Any) -> Array | None:
            return None if values is None else jnp.asarray(values, dtype)

        self.train_inputs = jnp.asarray(dataset.train_inputs, input_type)
        self.train_answers = jnp.asarray(dataset.train_answers, answer_type)
        self.test_inputs = held(dataset.test_inputs, input_type)
        self.test_answers = held(dataset.test_answers, answer_type)

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
        return self._means(weights, self.train_inputs, self.train_answers)[0]

    def evaluate(self, weights: Float[Array, " d"]) -> dict[str, Float[Array, ""]]:
        """train_accuracy and, where there is a test split, test_loss and test_accuracy.

        There is no accuracy of real targets.
        """
        classified = jnp.issubdtype(self.train_answers.dtype, jnp.integer)
        scores = {}
        if classified:
            scores["train_accuracy"] = self._means(weights, self.train_inputs, self.train_answers)[
                1
            ]
        if self.test_inputs is None or self.test_answers is None:
            return scores
        loss, accuracy = self._means(weights, self.test_inputs, self.test_answers)
        return scores | {"test_loss": loss} | ({"test_accuracy": accuracy} if classified else {})

    def _means(
        self,
        weights: Float[Array, " d"],
        inputs: Shaped[Array, "n ..."],
        answers: Labels | Targets,
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Mean loss, and share of labels predicted correctly, over the answers that count."""
        counts = counted(answers)
        number = jnp.sum(counts, dtype=weights.dtype)
        loss, right = self._sums(weights, inputs, answers, counts)
        return loss / number, right / number

    def _sums(
        self,
        weights: Float[Array, " d"],
        inputs: Shaped[Array, "n ..."],
        answers: Labels | Targets,
        counts: Bool[Array, "n ..."],
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Total loss, and how many labels are predicted correctly, over those that count."""

        def sums(w: Array, x: Array, y: Array, counts: Array) -> tuple[Array, Array]:
            outputs = self.predict(w, x)
            return self.loss.total(outputs, y, counts), correct(outputs, y, counts)

        size = self.memory.microbatch
        if not 0 < size < len(inputs):
            whole = jax.checkpoint(sums) if self.memory.remat else sums
            return whole(weights, inputs, answers, counts)

        # The last microbatch is filled up with examples that do not count.
        missing = -len(inputs) % size
        inputs, answers = (jnp.concatenate([x, x[:missing]]) for x in (inputs, answers))
        counts = jnp.concatenate([counts, jnp.zeros_like(counts[:missing])])
        batches = jax.tree.map(
            lambda x: x.reshape(-1, size, *x.shape[1:]), (inputs, answers, counts)
        )

        # Without checkpoints the backward pass would keep the activations of every microbatch.
        def add(totals: tuple[Array, Array], batch: tuple[Array, ...]) -> tuple:
            new = jax.checkpoint(sums)(weights, *batch)
            return (totals[0] + new[0], totals[1] + new[1]), None

        zero = jnp.zeros((), weights.dtype)
        return jax.lax.scan(add, (zero, zero), batches)[0]


class FunctionTask(eqx.Module):
    """A loss on a flat vector of weights, as it is."""

    function: Callable[[Float[Array, " d"]], Float[Array, ""]] = eqx.field(static=True)
    initial_weights: Float[Array, " d"]

    def __call__(self, weights: Float[Array, " d"]) -> Float[Array, ""]:
        return self.function(weights)

    @property
    def num_parameters(self) -> int:
        """d, the length of the weights."""
        return self.initial_weights.size

    @property
    def unravel(self) -> Callable[[Float[Array, " d"]], Float[Array, " d"]]:
        """The parameters that optimizers see: the flat weights themselves."""
        return identity

    def evaluate(self, weights: Float[Array, " d"]) -> dict[str, Float[Array, ""]]:
        """Nothing is predicted, so there is nothing to score."""
        return {}


def identity(w: Float[Array, " d"]) -> Float[Array, " d"]:
    """Parameters that are the flat weights themselves."""
    return w


class Minibatch(eqx.Module):
    """The loss of `size` training examples, drawn anew in every epoch without repetition.

    An epoch has as many whole mini-batches as there are; what is left over is not used in it.
    """

    task: Task
    size: int = eqx.field(static=True)

    def __call__(
        self, weights: Float[Array, " d"], step: Int[Array, ""], key: PRNGKeyArray
    ) -> Float[Array, ""]:
        inputs, answers = self.task.train_inputs, self.task.train_answers
        per_epoch = len(inputs) // self.size
        order = jr.permutation(jr.fold_in(key, step // per_epoch), len(inputs))
        rows = jax.lax.dynamic_slice(order, (step % per_epoch * self.size,), (self.size,))
        return self.task.loss(self.task.predict(weights, inputs[rows]), answers[rows])


class Examples(eqx.Module):
    """The network's outputs on some training examples, as a function of the weights."""

    task: Task
    chosen: tuple[int, ...] = eqx.field(static=True)

    def __call__(self, weights: Float[Array, " d"]) -> Float[Array, "n *positions o"]:
        return self.task.predict(weights, self.task.train_inputs[jnp.asarray(self.chosen)])


def correct(
    outputs: Float[Array, "*n o"], answers: Labels | Targets, counts: Bool[Array, "*n"]
) -> Float[Array, ""]:
    """How many labels are those of the largest output, or of the sign of a single one.

    None where the answers are real targets.
    """
    if not jnp.issubdtype(answers.dtype, jnp.integer):
        return jnp.zeros((), outputs.dtype)
    if outputs.shape[-1] == 1:
        predicted = (outputs[..., 0] > 0).astype(answers.dtype)
    else:
        predicted = jnp.argmax(outputs, axis=-1)
    return jnp.sum((predicted == answers) & counts, dtype=outputs.dtype)
