"""From a spec to the training problem: data, model, task."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ..data import Dataset, load_dataset, read_arrays
from ..data.npz import finite
from ..errors import InputError, OptionError, Problem
from ..losses import AbstractLoss
from ..models import AbstractModel
from ..placement import Placement, choose_devices, place
from ..precision import engage
from ..record.logs import missing
from ..spec import Cluster, Spec
from ..task import (
    AnyTask,
    Forward,
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
from .memory import fits


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
        start = np.asarray(spec.task.start, spec.precision)
        placement = _place(spec) if spec.shard == "weights" else None
        placement = placement and placement.of_weights(start.size)
        held: Any = start if placement is None else placement.lay(start, start.size)
        return FunctionTask(parts.loss, jnp.asarray(held))
    network = build_network(parts.model, parts.dataset, spec.seed)
    memory = Memory(spec.memory.microbatch, spec.memory.remat)
    forward = Forward(spec.forward.precision, spec.forward.third_derivatives)

    def placed(placement: Placement | None) -> Task:
        made = spec.precision, parts.initial, memory, placement, forward
        return Task(network, parts.loss, parts.dataset, *made)

    placement = _place(spec)
    task, columns = placed(placement), max(2, spec.eigen.initial)
    if placement is None or spec.shard != "auto":
        return task
    if fits(task, task.initial_weights, columns, fixed_chunk(spec)):
        return task
    return placed(replace(placement, shard="both"))


def fixed_chunk(spec: Spec) -> int:
    """Hessian-vector products at a time, before they have been timed if they are to be."""
    return 0 if spec.memory.hvp_chunk == "auto" else spec.memory.hvp_chunk


def _place(spec: Spec) -> Placement | None:
    """The devices that the spec means, and what they share out."""
    try:
        return place(spec.devices, "examples" if spec.shard == "auto" else spec.shard)
    except OptionError as error:
        raise spec.error("devices", error.message) from None


def lacking(spec: Spec) -> str:
    """Which of the spec's devices this machine lacks, empty if none: another may have them."""
    if spec.devices in ("auto", "all", 1) or spec.distributed != "off":
        return ""
    try:
        choose_devices(spec.devices)
    except OptionError as error:
        return f"devices: {error.message}"
    return ""


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
    if isinstance(parts, Function):
        none = "a task has no examples to share out, its weights can be: shard: weights"
        if spec.shard in ("examples", "both"):
            found.append(spec.problem("shard", none))
        elif spec.shard == "auto" and spec.devices not in ("auto", 1):
            found.append(spec.problem("devices", none))
    if isinstance(parts, Function):
        n, lacking = 0, "a task has no examples"
    else:
        n, lacking = len(parts.dataset.train_inputs), ""
        wrong = "" if parts.initial is None else wrong_length(parts.initial, d)
        if wrong:
            found.append(spec.problem("init.key", wrong))
    found += _misfits_of_precision(spec, parts)
    cluster, devices = spec.distributed, spec.devices
    if isinstance(cluster, Cluster) and isinstance(devices, int) and devices < cluster.processes:
        message = f"must be >= {cluster.processes}: each of the processes needs one, got {devices}"
        found.append(spec.problem("devices", message))
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
    if why := missing(record.log_to):
        found.append(spec.problem("record.log_to", why))
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


def _misfits_of_precision(spec: Spec, parts: Parts | Function) -> list[Problem]:
    """Networks in a precision that the spec's numbers, or its loss, do not have."""
    found = []
    for key in ("precision", "third_derivatives"):
        chosen = getattr(spec.forward, key)
        if chosen == "highest":
            continue
        if isinstance(parts, Function):
            message = "a task has no network: its function chooses its precision"
            found.append(spec.problem(f"forward.{key}", message))
        elif spec.precision != "float32":
            message = f"must be highest with precision: {spec.precision}, got {chosen}"
            found.append(spec.problem(f"forward.{key}", message))
    return found


def _read_init(spec: Spec) -> Float[np.ndarray, " d"] | None:
    if spec.init is None:
        return None
    weights = read_arrays(spec.init.path, {"key": spec.init.key})["key"]
    if weights.ndim != 1:
        raise OptionError("key", f"must be a flat vector of weights, got {list(weights.shape)}")
    return finite("key", weights)
