"""The training problem: model, data and loss as one function of flat weights."""

import itertools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from .data import Dataset, read_arrays
from .data.npz import finite
from .errors import InputError, OptionError, Problem
from .losses import AbstractLoss
from .spec import Spec


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


class Task(eqx.Module):
    """The training loss L(w) of flat weights w, and how well w predicts.

    The data are array leaves, so that a jitted function that takes the task as an argument has
    them as inputs, not as constants.
    """

    loss: AbstractLoss
    train_inputs: Float[Array, "n f"]
    train_labels: Int[Array, " n"]
    test_inputs: Float[Array, "m f"] | None
    test_labels: Int[Array, " m"] | None
    initial_weights: Float[Array, " d"]
    unravel: Layout
    _static: PyTree  # the network without its weights

    def __init__(
        self,
        network: PyTree,
        loss: AbstractLoss,
        dataset: Dataset,
        dtype: Any,
        initial_weights: Float[Array | np.ndarray, " d"] | None = None,
    ):
        """`network` maps one example [f] to outputs [o]; `initial_weights` replace its own."""
        params, self._static = eqx.partition(network, eqx.is_inexact_array)
        leaves, structure = jax.tree.flatten(params)
        self.unravel = Layout(structure, tuple(leaf.shape for leaf in leaves))
        if initial_weights is None:
            initial_weights = jnp.concatenate([leaf.ravel() for leaf in leaves])
        self.initial_weights = jnp.asarray(initial_weights, dtype)
        self.loss = loss
        self.train_inputs = jnp.asarray(dataset.train_inputs, dtype)
        self.train_labels = jnp.asarray(dataset.train_labels, jnp.int32)
        has_test = dataset.test_inputs is not None
        self.test_inputs = jnp.asarray(dataset.test_inputs, dtype) if has_test else None
        self.test_labels = jnp.asarray(dataset.test_labels, jnp.int32) if has_test else None

    @property
    def num_parameters(self) -> int:
        """d, the length of the flat weights."""
        return self.unravel.size

    def predict(
        self, weights: Float[Array, " d"], inputs: Float[Array, "n f"]
    ) -> Float[Array, "n o"]:
        """The network's outputs for every input."""
        return jax.vmap(eqx.combine(self.unravel(weights), self._static))(inputs)

    def __call__(self, weights: Float[Array, " d"]) -> Float[Array, ""]:
        """The training loss."""
        return self.loss(self.predict(weights, self.train_inputs), self.train_labels)

    def evaluate(self, weights: Float[Array, " d"]) -> dict[str, Float[Array, ""]]:
        """train_accuracy and, where there is a test split, test_loss and test_accuracy."""
        outputs = self.predict(weights, self.train_inputs)
        scores = {"train_accuracy": accuracy(outputs, self.train_labels)}
        if self.test_inputs is None or self.test_labels is None:
            return scores
        outputs = self.predict(weights, self.test_inputs)
        return scores | {
            "test_loss": self.loss(outputs, self.test_labels),
            "test_accuracy": accuracy(outputs, self.test_labels),
        }


def accuracy(outputs: Float[Array, "n o"], labels: Int[Array, " n"]) -> Float[Array, ""]:
    """Fraction classified correctly: by the largest output, or by the sign of a single one."""
    if outputs.shape[1] == 1:
        predicted = (outputs[:, 0] > 0).astype(labels.dtype)
    else:
        predicted = jnp.argmax(outputs, axis=1)
    return jnp.mean(predicted == labels, dtype=outputs.dtype)


def build_task(spec: Spec) -> Task:
    """The spec's training problem, in the spec's precision.

    Raises `InputError` at the responsible line if files and options do not fit together. Nothing
    is compiled before they are known to.
    """
    problems: list[Problem] = []
    dataset = initial = None
    try:
        dataset = spec.data.build().load(spec.seed)
    except OptionError as error:
        problems.append(spec.problem(f"data.{error.option}", error.message))
    try:
        initial = _read_init(spec)
    except OptionError as error:
        problems.append(spec.problem(f"init.{error.option}", error.message))
    if dataset is None or problems:
        raise InputError(problems)

    outputs = 1 if dataset.classes == 2 else dataset.classes
    args = (dataset.train_inputs.shape[1], outputs, jax.random.key(spec.seed))
    model = spec.model.build()
    shapes = eqx.filter_eval_shape(model.build, *args)
    d = sum(x.size for x in jax.tree.leaves(shapes) if jnp.issubdtype(x.dtype, jnp.inexact))
    if initial is not None and len(initial) != d:
        message = f"must have {d} entries, one per weight of the model, got {len(initial)}"
        problems.append(spec.problem("init.key", message))
    if spec.eigen.initial > d:
        message = f"must be <= {d}, the number of weights, got {spec.eigen.initial}"
        problems.append(spec.problem("eigen.initial", message))
    if problems:
        raise InputError(problems)
    return Task(model.build(*args), spec.loss.build(), dataset, spec.precision, initial)


def _read_init(spec: Spec) -> Float[np.ndarray, " d"] | None:
    if spec.init is None:
        return None
    weights = read_arrays(spec.init.path, {"key": spec.init.key})["key"]
    if weights.ndim != 1:
        raise OptionError("key", f"must be a flat vector of weights, got {list(weights.shape)}")
    return finite("key", weights)
