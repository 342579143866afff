"""Model, data and loss as one function of flat weights."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, Shaped

from ..data import Dataset, checked_dataset
from ..errors import OptionError
from ..losses import AbstractLoss, Labels, Targets, counted
from ..placement import Placement, to_host
from ..precision import engage
from ._fit import check_loss, check_network
from ._layout import Layout, flatten

T = TypeVar("T")
Evaluation = Literal["highest", "tensorfloat32", "bfloat16"]
REACHED: dict[Evaluation, float] = {
    "highest": 0,
    "tensorfloat32": 20 * 2**-11,
    "bfloat16": 20 / 256,
}
"""Residuals of eigenpairs that rounding lets products reach: some twenty times its unit."""


class Memory(NamedTuple):
    """How a task trades time for memory.

    `microbatch` is the number of examples at a time, 0 for all at once; `remat` recomputes
    activations in the backward pass.
    """

    microbatch: int = 0
    remat: bool = False


class Forward(eqx.Module):
    """In which precision a network is evaluated; weights, losses and sums keep that of the task.

    "tensorfloat32" is of matrix products alone, on devices that have it; with "bfloat16" all of the
    network is in it. Gradients and products with the Hessian follow, `third_derivatives` have a
    precision of their own.
    """

    precision: Evaluation = eqx.field(static=True, default="highest")
    third_derivatives: Evaluation = eqx.field(static=True, default="highest")


class Counted(NamedTuple):
    """Examples, their answers, and which of these count."""

    inputs: Shaped[Array, "n ..."]
    answers: Labels | Targets
    counts: Bool[Array, "n ..."]


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
    forward: Forward
    train_number: int = eqx.field(static=True)
    """How many training examples there are; more, to share them evenly, do not count."""
    test_number: int = eqx.field(static=True)
    _static: PyTree  # the network without its weights

    def __init__(
        self,
        network: PyTree,
        loss: AbstractLoss,
        dataset: Dataset,
        dtype: Any,
        initial_weights: Float[Array | np.ndarray, " d"] | None = None,
        memory: Memory = Memory(),  # noqa: B008
        placement: Placement | None = None,
        forward: Forward = Forward(),  # noqa: B008
    ):
        """`network` maps one example to outputs; `initial_weights` replace its own.

        With a `placement` its devices share the examples, or the weights, or both.

        Raises `OptionError` if the parts do not fit together.
        """
        engage()
        dataset = checked_dataset(dataset)
        check_loss(loss, check_network(network, dataset), dataset)
        own, layout, self._static = flatten(network)
        initial_weights = own if initial_weights is None else initial_weights
        weights: Any = np.asarray(initial_weights, dtype)
        placement = placement and placement.of_weights(weights.size)
        self.initial_weights = (
            placement.lay(weights, weights.size) if placement else jnp.asarray(weights)
        )
        self.unravel = replace(layout, placement=placement)
        self.loss, self.forward = loss, forward
        self.memory = memory if placement is None else _divisible(memory, placement.shares)
        self.train_number = len(dataset.train_inputs)
        self.test_number = 0 if dataset.test_inputs is None else len(dataset.test_inputs)

        input_type = np.int32 if dataset.vocabulary else dtype
        answer_type = dtype if dataset.is_regression else np.int32

        def held(values: np.ndarray | None, dtype: Any) -> Any:
            if values is None or placement is None:
                return None if values is None else jnp.asarray(values, dtype)
            size = self.memory.microbatch
            multiple = size if 0 < size < len(values) else placement.shares
            return placement.share(_filled_up(np.asarray(values, dtype), multiple))

        self.train_inputs = held(dataset.train_inputs, input_type)
        self.train_answers = held(dataset.train_answers, answer_type)
        self.test_inputs = held(dataset.test_inputs, input_type)
        self.test_answers = held(dataset.test_answers, answer_type)

    @property
    def num_parameters(self) -> int:
        """d, the length of the flat weights."""
        return self.unravel.size

    @property
    def placement(self) -> Placement | None:
        """The devices that share it, None for the one that JAX chose itself."""
        return self.unravel.placement

    def __repr__(self) -> str:
        """One line: the data, the loss and the weights."""
        if not (eqx.is_array(self.train_inputs) and eqx.is_array(self.initial_weights)):
            return super().__repr__()  # a part of one, as in JAX's messages
        shape = ", ".join(map(str, self.train_inputs.shape[1:]))
        tests = f" and {self.test_number} test" if self.test_number else ""
        return (
            f"Task({type(self.loss).__name__} of {self.train_number} training{tests} examples "
            f"[{shape}], {self.num_parameters} weights, {self.initial_weights.dtype})"
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """Examples and initial weights on the host, by their names."""
        numbers = {"train": self.train_number, "test": self.test_number}
        fields = [f"{part}_{kind}" for part in numbers for kind in ("inputs", "answers")]
        given = {name: getattr(self, name) for name in fields}
        return {"initial_weights": to_host(self.initial_weights)} | {
            name: to_host(x)[: numbers[name.partition("_")[0]]]
            for name, x in given.items()
            if x is not None
        }

    def predict(
        self, weights: Float[Array, " d"], inputs: Shaped[Array, "n ..."]
    ) -> Float[Array, "n *positions o"]:
        """The network's outputs for every input."""
        if self.forward.precision == "bfloat16":
            return self._outputs(*_rounded((weights, inputs))).astype(weights.dtype)
        if self.forward.precision == "highest":  # as everything is
            return self._outputs(weights, inputs)
        with jax.default_matmul_precision(self.forward.precision):
            return self._outputs(weights, inputs)

    def _outputs(
        self, weights: Float[Array, " d"], inputs: Shaped[Array, "n ..."]
    ) -> Float[Array, "n *positions o"]:
        return jax.vmap(eqx.combine(self.unravel(weights), self._static))(inputs)

    def for_third_derivatives(self) -> "Task":
        """The same problem, with the precision of third derivatives."""
        precision = self.forward.third_derivatives
        return eqx.tree_at(lambda t: t.forward, self, Forward(precision, precision))

    def __call__(self, weights: Float[Array, " d"]) -> Float[Array, ""]:
        """The training loss."""
        return self._train_means(weights)[0]

    def evaluate(self, weights: Float[Array, " d"]) -> dict[str, Float[Array, ""]]:
        """train_accuracy and, where there is a test split, test_loss and test_accuracy.

        There is no accuracy of real targets.
        """
        classified = jnp.issubdtype(self.train_answers.dtype, jnp.integer)
        scores = {}
        if classified:
            scores["train_accuracy"] = self._train_means(weights)[1]
        if self.test_inputs is None or self.test_answers is None:
            return scores
        inputs, answers = self.test_inputs, self.test_answers
        loss, accuracy = self._means(weights, inputs, answers, self.test_number)
        return scores | {"test_loss": loss} | ({"test_accuracy": accuracy} if classified else {})

    def shares(self) -> Counted | None:
        """The training examples of each device, stacked along a first axis, for `of_share`.

        None where devices do not share examples, or do not have whole vectors each.
        """
        placement = self.placement
        if placement is None or placement.shares == 1 or placement.parts > 1:
            return None
        given = self.train_inputs, self.train_answers, self._training_counts()
        return Counted(*(x.reshape(placement.shares, -1, *x.shape[1:]) for x in given))

    def of_share(self, weights: Float[Array, " d"], share: Counted) -> Float[Array, ""]:
        """What the examples of one device add to the training loss."""
        assert self.placement is not None
        number = jnp.sum(self._training_counts(), dtype=weights.dtype)
        return self._sums(weights, share, self.placement.shares)[0] / number

    def _training_counts(self) -> Bool[Array, "n ..."]:
        return _those_that_count(self.train_answers, self.train_number)

    def _train_means(
        self, weights: Float[Array, " d"]
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        return self._means(weights, self.train_inputs, self.train_answers, self.train_number)

    def _means(
        self,
        weights: Float[Array, " d"],
        inputs: Shaped[Array, "n ..."],
        answers: Labels | Targets,
        examples: int,
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Mean loss, and share of labels predicted correctly, over the answers that count.

        They are among those of the first `examples` inputs.
        """
        counts = _those_that_count(answers, examples)
        number = jnp.sum(counts, dtype=weights.dtype)
        # They are gathered once for all microbatches.
        whole = self.unravel.whole(weights)
        loss, right = self._sums(whole, Counted(inputs, answers, counts))
        return loss / number, right / number

    def _sums(
        self, weights: Float[Array, " d"], given: Counted, shares: int = 1
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Total loss, and how many labels are predicted correctly, over those that count.

        Of one of as many `shares` as there may be, microbatches are as much smaller.
        """

        def sums(w: Array, given: Counted) -> tuple[Array, Array]:
            inputs, answers, counts = given
            outputs = self.predict(w, inputs)
            return self.loss.total(outputs, answers, counts), correct(outputs, answers, counts)

        size, n = self.memory.microbatch // shares, len(given.inputs)
        if not 0 < size < n:
            return (jax.checkpoint(sums) if self.memory.remat else sums)(weights, given)

        # The last microbatch is filled up with examples that do not count.
        missing = -n % size
        filled = Counted(*(jnp.concatenate([x, x[:missing]]) for x in given))
        there = jnp.arange(n + missing) < n
        filled = filled._replace(counts=filled.counts & _along(there, filled.counts))
        # Examples far apart come together: those of one device are neighbours.
        batches = jax.tree.map(
            lambda x: jnp.swapaxes(x.reshape(size, -1, *x.shape[1:]), 0, 1), filled
        )

        # Without checkpoints the backward pass would keep the activations of every microbatch.
        def add(totals: tuple[Array, Array], batch: Counted) -> tuple:
            new = jax.checkpoint(sums)(weights, batch)
            return (totals[0] + new[0], totals[1] + new[1]), None

        zero = jnp.zeros((), weights.dtype)
        return jax.lax.scan(add, (zero, zero), batches)[0]


def _those_that_count(answers: Labels | Targets, examples: int) -> Bool[Array, "n ..."]:
    """Which answers count, of the first `examples`."""
    counts = counted(answers)
    if examples == len(answers):
        return counts
    return counts & _along(jnp.arange(len(answers)) < examples, counts)


def _along(these: Bool[Array, " n"], like: Bool[Array, "n ..."]) -> Bool[Array, "n ..."]:
    """With as many axes as `like`."""
    return these.reshape(-1, *(1,) * (like.ndim - 1))


def _rounded(arrays: T) -> T:
    """Numbers in bfloat16; what is counted stays."""
    return jax.tree.map(
        lambda x: x.astype(jnp.bfloat16) if jnp.issubdtype(x.dtype, jnp.floating) else x, arrays
    )


def _divisible(memory: Memory, devices: int) -> Memory:
    """Microbatches that as many devices share evenly."""
    return memory._replace(microbatch=-(-memory.microbatch // devices) * devices)


def _filled_up(examples: Shaped[np.ndarray, "n ..."], multiple: int) -> Shaped[np.ndarray, "m ..."]:
    """The examples, and the first of them again until `multiple` divides their number."""
    n = len(examples)
    return examples[np.arange(n + -n % multiple) % n]


class FunctionTask(eqx.Module):
    """A loss on a flat vector of weights, as it is."""

    function: Callable[[Float[Array, " d"]], Float[Array, ""]] = eqx.field(static=True)
    initial_weights: Float[Array, " d"]

    def __repr__(self) -> str:
        """One line: the function and the weights."""
        if not eqx.is_array(self.initial_weights):
            return super().__repr__()  # a part of one, as in JAX's messages
        name = getattr(self.function, "__qualname__", type(self.function).__name__)
        dtype = self.initial_weights.dtype
        return f"FunctionTask({name} of {self.num_parameters} weights, {dtype})"

    def __call__(self, weights: Float[Array, " d"]) -> Float[Array, ""]:
        return self.function(weights)

    @property
    def num_parameters(self) -> int:
        """d, the length of the weights."""
        return self.initial_weights.size

    def arrays(self) -> dict[str, np.ndarray]:
        """The initial weights on the host."""
        return {"initial_weights": to_host(self.initial_weights)}

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


Draw = Literal["epochs", "fresh"]


class Minibatch(eqx.Module):
    """The loss of `size` training examples, drawn without repetition.

    With `draw` "epochs" an epoch has every example once; it has as many whole mini-batches as there
    are, and what is left over is not used in it. With "fresh" every mini-batch is drawn from all.
    """

    task: Task
    size: int = eqx.field(static=True)
    draw: Draw = eqx.field(static=True, default="epochs")

    def __call__(
        self, weights: Float[Array, " d"], step: Int[Array, ""], key: PRNGKeyArray
    ) -> Float[Array, ""]:
        inputs, answers = self.task.train_inputs, self.task.train_answers
        number = self.task.train_number
        per_epoch = number // self.size if self.draw == "epochs" else 1
        order = jr.permutation(jr.fold_in(key, step // per_epoch), number)
        rows = jax.lax.dynamic_slice(order, (step % per_epoch * self.size,), (self.size,))
        return self.task.loss(self.task.predict(weights, inputs[rows]), answers[rows])


class ExampleLosses(eqx.Module):
    """The loss of each of some training examples; over all of them the mean is the training loss.

    Raises `OptionError` for the option `noise` if examples have different numbers of answers that
    count: then mini-batches of a size do not weigh examples alike.
    """

    task: Task

    def __check_init__(self) -> None:
        answers = self.task.train_answers[: self.task.train_number]
        counts = counted(answers).reshape(len(answers), -1).sum(axis=1)
        least, most = int(counts.min()), int(counts.max())
        if least < most:
            wanted = "every training example must have as many answers that count as the others"
            raise OptionError("noise", f"{wanted}, got {least} to {most}: run without noise")

    def __call__(self, weights: Float[Array, " d"], rows: Int[Array, " b"]) -> Float[Array, " b"]:
        inputs, answers = self.task.train_inputs[rows], self.task.train_answers[rows]
        return jax.vmap(self.task.loss)(self.task.predict(weights, inputs), answers)


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
