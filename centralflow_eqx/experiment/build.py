"""The one place that turns a spec into objects."""

import numpy as np
from jaxtyping import Float

from ..data import Dataset, read_arrays
from ..data.npz import finite
from ..errors import InputError, OptionError, Problem
from ..spec import Spec
from ..task import Memory, Task, build_network, count_weights, wrong_length


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
    memory = Memory(spec.memory.microbatch, spec.memory.remat)
    network = build_network(model, dataset, spec.seed)
    return Task(network, spec.loss.build(), dataset, spec.precision, initial, memory)


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
