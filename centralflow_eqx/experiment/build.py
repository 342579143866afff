"""From a spec to the training problem: data, model, task."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ..data import Dataset, read_arrays
from ..data.npz import finite
from ..errors import InputError, OptionError, Problem
from ..models import AbstractModel
from ..spec import Spec
from ..task import Memory, Task, build_network, count_weights, wrong_length


class Parts(NamedTuple):
    """What a task is made of, known to fit together; `d` is the number of the model's weights."""

    dataset: Dataset
    model: AbstractModel
    initial: Float[np.ndarray, " d"] | None
    d: int


def build_task(spec: Spec) -> Task:
    """The spec's training problem, in the spec's precision.

    Raises `InputError` at the responsible line if files and options do not fit together.
    """
    dataset, model, initial, _ = build_parts(spec)
    network = build_network(model, dataset, spec.seed)
    memory = Memory(spec.memory.microbatch, spec.memory.remat)
    return Task(network, spec.loss.build(), dataset, spec.precision, initial, memory)


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
        spec.loss.build()
        spec.optimizer.build()
        facts.append(
            f"{spec.steps} steps of {spec.optimizer.type}, {parts.d} weights, "
            f"{len(parts.dataset.train_labels)} examples, {', '.join(spec.processes)}"
        )
    if problems:
        raise InputError(dict.fromkeys(problems))
    return facts


def build_parts(spec: Spec) -> Parts:
    """What `build_task` builds on, with all of its checks; nothing is compiled for them."""
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

    model = spec.model.build()
    try:
        d = count_weights(model, dataset, spec.seed)
    except OptionError as error:
        raise spec.error(f"model.{error.option}", error.message) from None
    wrong = "" if initial is None else wrong_length(initial, d)
    if wrong:
        problems.append(spec.problem("init.key", wrong))
    if spec.eigen.initial > d:
        message = f"must be <= {d}, the number of weights, got {spec.eigen.initial}"
        problems.append(spec.problem("eigen.initial", message))
    problems += _misfits(spec, dataset, d)
    if problems:
        raise InputError(problems)
    return Parts(dataset, model, initial, d)


def _misfits(spec: Spec, dataset: Dataset, d: int) -> list[Problem]:
    """What the spec asks to record, or to draw, that the task does not have."""
    n, record, found = len(dataset.train_inputs), spec.record, []
    wanted = record.coordinates
    largest = max(wanted, default=0) if isinstance(wanted, tuple) else wanted - 1
    if largest >= d:
        message = f"the model has {d} weights, there is none with the index {largest}"
        found.append(spec.problem("record.coordinates", message))
    if max(record.examples, default=0) >= n:
        message = f"must be < {n}, the number of training examples, got {max(record.examples)}"
        found.append(spec.problem("record.examples", message))
    if record.preconditioners_every % record.every:
        message = f"must be a multiple of record.every, {record.every}"
        found.append(spec.problem("record.preconditioners_every", message))
    if "discrete_minibatch" in spec.processes and not spec.minibatch.size:
        message = "the process discrete_minibatch needs the number of examples in a mini-batch"
        found.append(spec.problem("minibatch.size", message))
    if spec.minibatch.size > n:
        message = f"must be <= {n}, the number of training examples, got {spec.minibatch.size}"
        found.append(spec.problem("minibatch.size", message))
    return found


def _read_init(spec: Spec) -> Float[np.ndarray, " d"] | None:
    if spec.init is None:
        return None
    weights = read_arrays(spec.init.path, {"key": spec.init.key})["key"]
    if weights.ndim != 1:
        raise OptionError("key", f"must be a flat vector of weights, got {list(weights.shape)}")
    return finite("key", weights)
