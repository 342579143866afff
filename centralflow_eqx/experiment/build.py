"""From a spec to the training problem: data, model, task."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ..data import Dataset, load_dataset, read_arrays
from ..data.npz import finite
from ..errors import InputError, OptionError, Problem
from ..losses import AbstractLoss
from ..models import AbstractModel
from ..placement import place
from ..precision import engage
from ..spec import Spec
from ..task import (
    AnyTask,
    FunctionTask,
    Memory,
    Task,
    build_network,
    check_function,
    check_loss,
    check_network,
    count_parameters,
    network_shapes,
    wrong_length,
)


class Parts(NamedTuple):
    """What a network's task is made of, known to fit together; `d` is its number of weights."""

    dataset: Dataset
    model: AbstractModel
    loss: AbstractLoss
    initial: Float[np.ndarray, " d"] | None
    d: int


class Function(NamedTuple):
    """What a task without a network is made of."""

    loss: Callable[..., Any]
    d: int


def build_task(spec: Spec) -> AnyTask:
    """The spec's training problem, in the spec's precision.

    Raises `InputError` at the responsible line if files and options do not fit together.
    """
    parts = build_parts(spec)
    if isinstance(parts, Function):
        assert spec.task is not None
        engage()
        return FunctionTask(parts.loss, jnp.asarray(spec.task.start, spec.precision))
    try:
        placement = place(spec.devices)
    except OptionError as error:
        raise spec.error("devices", error.message) from None
    network = build_network(parts.model, parts.dataset, spec.seed)
    memory = Memory(spec.memory.microbatch, spec.memory.remat)
    return Task(
        network, parts.loss, parts.dataset, spec.precision, parts.initial, memory, placement
    )


def check(specs: Sequence[Spec]) -> list[str]:
    """Build what the specs name, short of weights, and say what each would run.

    Raises `InputError` with the problems of all of them.
    """
    facts, problems = [], []
    for spec in specs:
        try:
            parts = build_parts(spec)
        except InputError as error:
            problems += error.problems
            continue
        spec.optimizer.build()
        examples = (
            "" if isinstance(parts, Function) else f"{len(parts.dataset.train_inputs)} examples, "
        )
        facts.append(
            f"{spec.steps} steps of {spec.optimizer.type}, {parts.d} weights, "
            f"{examples}{', '.join(spec.processes)}"
        )
    if problems:
        raise InputError(dict.fromkeys(problems))
    return facts


def build_parts(spec: Spec) -> Parts | Function:
    """What `build_task` builds on, with all of its checks; nothing is compiled for them."""
    parts = _function(spec) if spec.task is not None else _network(spec)
    problems = _misfits(spec, parts)
    if problems:
        raise InputError(problems)
    return parts


def _function(spec: Spec) -> Function:
    assert spec.task is not None
    loss, start = spec.task.build(), np.asarray(spec.task.start, spec.precision)
    with _blaming(spec, "task"):
        check_function(loss, start)
    return Function(loss, start.size)


def _network(spec: Spec) -> Parts:
    assert spec.data is not None and spec.model is not None and spec.loss is not None
    problems: list[Problem] = []
    dataset = initial = None
    try:
        dataset = load_dataset(spec.data.build(), spec.seed)
    except OptionError as error:
        problems.append(spec.problem(f"data.{error.option}", error.message))
    try:
        initial = _read_init(spec)
    except OptionError as error:
        problems.append(spec.problem(f"init.{error.option}", error.message))
    if dataset is None or problems:
        raise InputError(problems)

    model, loss = spec.model.build(), spec.loss.build()
    with _blaming(spec, "model"):
        network = network_shapes(model, dataset, spec.seed)
        outputs = check_network(network, dataset)
    with _blaming(spec, "loss"):
        check_loss(loss, outputs, dataset)
    return Parts(dataset, model, loss, initial, count_parameters(network))


@contextlib.contextmanager
def _blaming(spec: Spec, section: str) -> Iterator[None]:
    """Turns an `OptionError` into an `InputError` at the section's line."""
    try:
        yield
    except OptionError as error:
        raise spec.error(f"{section}.{error.option}", error.message) from None


def _misfits(spec: Spec, parts: Parts | Function) -> list[Problem]:
    """What the spec asks for, to record, or to draw, that the task does not have."""
    d, record, found = parts.d, spec.record, []
    if isinstance(parts, Function) and spec.devices not in ("auto", 1):
        found.append(spec.problem("devices", "a task has no examples to share out"))
    if isinstance(parts, Function):
        n, lacking = 0, "a task has no examples"
    else:
        n, lacking = len(parts.dataset.train_inputs), ""
        wrong = "" if parts.initial is None else wrong_length(parts.initial, d)
        if wrong:
            found.append(spec.problem("init.key", wrong))
    if spec.eigen.initial > d:
        message = f"must be <= {d}, the number of weights, got {spec.eigen.initial}"
        found.append(spec.problem("eigen.initial", message))
    wanted = record.coordinates
    largest = max(wanted, default=0) if isinstance(wanted, tuple) else wanted - 1
    if largest >= d:
        message = f"the model has {d} weights, there is none with the index {largest}"
        found.append(spec.problem("record.coordinates", message))
    if record.examples and max(record.examples) >= n:
        message = f"must be < {n}, the number of training examples, got {max(record.examples)}"
        found.append(spec.problem("record.examples", lacking or message))
    if record.preconditioners_every % record.every:
        message = f"must be a multiple of record.every, {record.every}"
        found.append(spec.problem("record.preconditioners_every", message))
    if "discrete_minibatch" in spec.processes and not spec.minibatch.size:
        message = "the process discrete_minibatch needs the number of examples in a mini-batch"
        found.append(spec.problem("minibatch.size", message))
    if spec.minibatch.noise == "on" and not spec.minibatch.size:
        message = "the noise of mini-batches needs the number of examples in one"
        found.append(spec.problem("minibatch.size", message))
    if spec.minibatch.sample == 1 or spec.minibatch.sample > n:
        got = spec.minibatch.sample
        message = f"must be 0, or from 2 to {n}, the number of training examples, got {got}"
        found.append(spec.problem("minibatch.sample", lacking or message))
    if spec.minibatch.sharpness_every % record.every:
        message = f"must be a multiple of record.every, {record.every}"
        found.append(spec.problem("minibatch.sharpness_every", message))
    if spec.minibatch.size > n:
        message = f"must be <= {n}, the number of training examples, got {spec.minibatch.size}"
        found.append(spec.problem("minibatch.size", lacking or message))
    return found


def _read_init(spec: Spec) -> Float[np.ndarray, " d"] | None:
    if spec.init is None:
        return None
    weights = read_arrays(spec.init.path, {"key": spec.init.key})["key"]
    if weights.ndim != 1:
        raise OptionError("key", f"must be a flat vector of weights, got {list(weights.shape)}")
    return finite("key", weights)
