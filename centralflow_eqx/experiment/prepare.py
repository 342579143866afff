"""From a spec to a simulation of its training problem."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from ..engine.noise import BatchNoise
from ..engine.settings import Settings
from ..errors import OptionError, UnsupportedRule
from ..processes import Minibatches
from ..processes.minibatch_probes import BatchSharpness
from ..processes.probes import AbstractProbe, Coordinates, Outputs, Preconditioners
from ..spec import Spec
from ..task import AnyTask, ExampleLosses, Examples, FunctionTask, Minibatch, Task
from .build import fixed_chunk
from .kept import Kept
from .start import start
from .state import Experiment, Notify, RunState


def build_settings(spec: Spec) -> Settings:
    """How the spec integrates flows and tracks spectra."""
    flow, eigen = spec.flow, spec.eigen
    settings = Settings(
        method=flow.method,
        step_tol=flow.tol,
        max_step=flow.max_step,
        substeps=flow.substeps,
        critical_above=flow.critical_above,
        state_rate=flow.state_rate,
        restoration=flow.restoration,
        max_sharpness=flow.max_sharpness,
        track_above=eigen.track_above,
        initial=eigen.initial,
        tol=eigen.tol,
        rods=flow.rods,
        hvp_chunk=fixed_chunk(spec),
    )
    if spec.minibatch.noise == "on":
        above = spec.minibatch.critical_above
        tracked = min(settings.track_above, above)
        settings = replace(settings, critical_above=above, track_above=tracked)
    if spec.record.exact:
        settings = replace(settings, max_step=min(settings.longest, 1.0))
    return settings


def build_arguments(spec: Spec, task: AnyTask) -> dict[str, Any]:
    """The spec as arguments of `start`."""
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
        "raw_spectra": spec.record.raw_spectra,
        "minibatch": Minibatches(
            build_minibatch(spec, task), build_noise(spec, task), spec.minibatch.seeds
        ),
        "diverged_above": spec.stop.diverged_above,
        "seed": spec.seed,
    }


def build_minibatch(spec: Spec, task: AnyTask) -> Minibatch | None:
    """The loss of the spec's mini-batches, if it has any."""
    if isinstance(task, FunctionTask) or not spec.minibatch.size:
        return None
    return Minibatch(task, spec.minibatch.size, spec.minibatch.draw)


def build_noise(spec: Spec, task: AnyTask) -> BatchNoise | None:
    """What the spec's central flows know of mini-batches, None if they do without.

    Raises `InputError` if the task's examples do not weigh alike.
    """
    options = spec.minibatch
    if isinstance(task, FunctionTask) or options.noise == "off":
        return None
    number = task.train_number
    rows = np.arange(number)
    if options.sample:
        rows = np.sort(np.random.default_rng(spec.seed).permutation(number)[: options.sample])
    try:
        losses = ExampleLosses(task)
    except OptionError as error:
        raise spec.error(f"minibatch.{error.option}", error.message) from None
    return BatchNoise(
        losses,
        jnp.asarray(rows),
        number,
        options.size,
        options.draw == "epochs",
        spec.memory.microbatch,
    )


def prepare(
    spec: Spec, task: AnyTask, notify: Notify = lambda _: None, kept: Kept | None = None
) -> tuple[Experiment, RunState]:
    """The spec's simulation of `task`, at its start or, with `kept`, where an earlier one was.

    Raises `InputError` for an unsupported rule, and `Misfit` for what was kept of another one.
    """
    with refusals(spec):
        return start(**build_arguments(spec, task), kept=kept, notify=notify)


@contextlib.contextmanager
def refusals(spec: Spec) -> Iterator[None]:
    """Turns what is only known once something is computed into an `InputError` at its line."""
    try:
        yield
    except UnsupportedRule as error:
        raise spec.error("optimizer", str(error)) from None
    except OptionError as error:
        path = "warm_start" if error.option == "warm_start" else f"optimizer.{error.option}"
        raise spec.error(path, error.message) from None


def coordinates(spec: Spec, task: AnyTask) -> Int[np.ndarray, " c"]:
    """The weights that the spec asks to follow: those it names, or as many spread evenly."""
    wanted = spec.record.coordinates
    if isinstance(wanted, int):
        return np.linspace(0, task.num_parameters - 1, wanted).round().astype(np.int64)
    return np.array(wanted, np.int64)


def build_probes(spec: Spec, task: AnyTask) -> list[AbstractProbe]:
    """What the spec's `record` section asks to measure."""
    chosen, record = jnp.asarray(coordinates(spec, task)), spec.record
    found: list[AbstractProbe] = []
    if chosen.size:
        found.append(Coordinates(indices=chosen))
    if record.examples and isinstance(task, Task):
        found.append(Outputs(function=Examples(task, record.examples)))
    if record.preconditioners_every:
        every = record.preconditioners_every // record.every
        found.append(Preconditioners(indices=chosen, every=every))
    minibatch = build_minibatch(spec, task)
    if spec.minibatch.sharpness_every and minibatch is not None:
        every = spec.minibatch.sharpness_every // record.every
        batches = minibatch.task.train_number // minibatch.size
        found.append(BatchSharpness(minibatch=minibatch, batches=batches, every=every))
    return found


def build_axes(spec: Spec, task: AnyTask) -> dict[str, Int[np.ndarray, " n"]]:
    """What series over weights and outputs are indexed by."""
    found, chosen = {}, coordinates(spec, task)
    if chosen.size:
        found["coordinate"] = chosen
    if spec.record.examples and isinstance(task, Task):
        shape = jax.eval_shape(Examples(task, spec.record.examples), task.initial_weights)
        found["output"] = np.arange(shape.size)
    return found
