"""The one place that turns a spec into objects."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ..data import Dataset, read_arrays
from ..data.npz import finite
from ..engine.settings import Settings
from ..errors import InputError, OptionError, Problem, UnsupportedRule
from ..processes.probes import AbstractProbe, Coordinates, Outputs, Preconditioners
from ..record.row import Row
from ..spec import Spec
from ..task import Examples, Memory, Minibatch, Task, build_network, count_weights, wrong_length
from .drive import Notify
from .simulate import simulate


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


def build_settings(spec: Spec) -> Settings:
    """How the spec integrates flows and tracks spectra."""
    flow, eigen = spec.flow, spec.eigen
    return Settings(
        substeps=flow.substeps,
        critical_above=flow.critical_above,
        state_rate=flow.state_rate,
        restoration=flow.restoration,
        max_sharpness=flow.max_sharpness,
        track_above=eigen.track_above,
        initial=eigen.initial,
        tol=eigen.tol,
        hvp_chunk=spec.memory.hvp_chunk,
    )


def build_arguments(spec: Spec, task: Task) -> dict[str, Any]:
    """The spec as arguments of `simulate` and `start`, its steps aside."""
    return {
        "loss": task,
        "optimizer": spec.optimizer.build(),
        "w": task.initial_weights,
        "processes": spec.processes,
        "warm_start": spec.warm_start,
        "unravel": task.unravel,
        "settings": build_settings(spec),
        "record_every": spec.record.every,
        "evaluate": task.evaluate,
        "probes": build_probes(spec, task),
        "minibatch": Minibatch(task, spec.minibatch.size) if spec.minibatch.size else None,
        "seed": spec.seed,
    }


def prepare(spec: Spec, task: Task, notify: Notify = lambda _: None) -> Iterator[Row]:
    """The rows of the spec's simulation of `task`; raises `InputError` for an unsupported rule."""
    try:
        return simulate(**build_arguments(spec, task), steps=spec.steps, notify=notify)
    except UnsupportedRule as error:
        raise spec.error("optimizer", str(error)) from None
    except OptionError as error:
        raise spec.error(f"optimizer.{error.option}", error.message) from None


def coordinates(spec: Spec, task: Task) -> Int[np.ndarray, " c"]:
    """The weights that the spec asks to follow: those it names, or as many spread evenly."""
    wanted = spec.record.coordinates
    if isinstance(wanted, int):
        return np.linspace(0, task.num_parameters - 1, wanted).round().astype(np.int64)
    return np.array(wanted, np.int64)


def build_probes(spec: Spec, task: Task) -> list[AbstractProbe]:
    """What the spec's `record` section asks to measure."""
    chosen, record = jnp.asarray(coordinates(spec, task)), spec.record
    found: list[AbstractProbe] = []
    if chosen.size:
        found.append(Coordinates(indices=chosen))
    if record.examples:
        found.append(Outputs(function=Examples(task, record.examples)))
    if record.preconditioners_every:
        every = record.preconditioners_every // record.every
        found.append(Preconditioners(indices=chosen, every=every))
    return found


def build_axes(spec: Spec, task: Task) -> dict[str, Int[np.ndarray, " n"]]:
    """What series over weights and outputs are indexed by."""
    found, chosen = {}, coordinates(spec, task)
    if chosen.size:
        found["coordinate"] = chosen
    if spec.record.examples:
        shape = jax.eval_shape(Examples(task, spec.record.examples), task.initial_weights)
        found["output"] = np.arange(shape.size)
    return found
