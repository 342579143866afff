"""Run a spec: build its parts, simulate, record, report."""

import math
import platform
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int
from rich.console import Console

from ..engine.curvature import EigenTracker
from ..errors import ExitCode, NumericalStop, OptionError, UnsupportedRule
from ..processes.probes import AbstractProbe, Coordinates, Outputs, Preconditioners
from ..record.writer import Recorder
from ..report import summarise, write_report
from ..spec import Spec
from ..task import Examples, Minibatch, Task
from .build import build_task
from .goals import GoalWatch
from .memory import estimate_peak, free_memory, warning
from .progress import Progress
from .simulate import FlowOptions, Row, simulate


def run_spec(spec: Spec, console: Console) -> ExitCode:
    """Run `spec` into its run directory and print a summary on `console`.

    Raises `InputError` before anything is written. A numerical stop or an interruption keeps the
    rows recorded so far, reports them, and is told by the exit code.
    """
    task = build_task(spec)
    _warn_of_memory(spec, task)
    rows = prepare(spec, task)
    steps = np.arange(0, spec.steps, spec.record.every)
    weights_every = spec.record.weights_every
    weights_steps = steps[steps % weights_every == 0] if weights_every else steps[:0]
    attributes = {
        "name": spec.name,
        "seed": spec.seed,
        "precision": spec.precision,
        "device": str(jax.devices()[0].device_kind),
        "platform": platform.platform(),
    }
    directory = Path(spec.output.dir)
    with Recorder.create(
        directory, spec.name, spec.to_yaml(), steps, weights_steps, attributes, axes(spec, task)
    ) as recorder:
        if recorder.backup is not None:
            console.print(f"the earlier run is kept in {recorder.backup}", soft_wrap=True)
        code = _record(spec, rows, recorder)
    report = write_report(recorder.run_dir)
    console.print(summarise(recorder.run_dir), soft_wrap=True, markup=False, highlight=False)
    console.print(f"report: {report}", soft_wrap=True, markup=False, highlight=False)
    return code


def _warn_of_memory(spec: Spec, task: Task) -> None:
    columns = max(2, spec.eigen.initial)
    peaks = estimate_peak(task, task.initial_weights, columns, spec.memory.hvp_chunk)
    message = warning(peaks, free_memory())
    if message:
        warnings.warn(f"memory: {message}", stacklevel=1)


def prepare(spec: Spec, task: Task) -> Iterator[Row]:
    """The rows of the spec's simulation of `task`; raises `InputError` for an unsupported rule."""
    assert spec.eigen.tol is not None, "loading a spec fills it in"
    try:
        return simulate(
            task,
            spec.optimizer.build(),
            task.initial_weights,
            processes=spec.processes,
            steps=spec.steps,
            warm_start=spec.warm_start,
            unravel=task.unravel,
            tracker=EigenTracker(spec.eigen.track_above, spec.eigen.initial, spec.eigen.tol),
            flow=FlowOptions(
                spec.flow.substeps,
                spec.flow.critical_above,
                spec.flow.state_rate,
                spec.flow.restoration,
                spec.flow.max_sharpness,
                spec.memory.hvp_chunk,
            ),
            record_every=spec.record.every,
            evaluate=task.evaluate,
            probes=probes(spec, task),
            minibatch=Minibatch(task, spec.minibatch.size) if spec.minibatch.size else None,
            seed=spec.seed,
        )
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


def probes(spec: Spec, task: Task) -> list[AbstractProbe]:
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


def axes(spec: Spec, task: Task) -> dict[str, Int[np.ndarray, " n"]]:
    """What series over weights and outputs are indexed by."""
    found, chosen = {}, coordinates(spec, task)
    if chosen.size:
        found["coordinate"] = chosen
    if spec.record.examples:
        shape = jax.eval_shape(Examples(task, spec.record.examples), task.initial_weights)
        found["output"] = np.arange(shape.size)
    return found


def _record(spec: Spec, rows: Iterator[Row], recorder: Recorder) -> ExitCode:
    """Write every row; returns how the simulation ended."""
    start, number = time.monotonic(), 0
    goal, watch = "", GoalWatch(spec.stop, spec.processes)
    with Progress() as progress:
        try:
            for row in rows:
                number = row.step // spec.record.every
                if row.step % spec.record.every == 0:
                    _write(spec, row, recorder, time.monotonic() - start)
                    goal = watch(row.series)
                for process, reason in row.stops.items():
                    recorder.stop(process, number, reason)
                    progress.message(f"{process} stopped at step {row.step}: {reason}")
                progress.update(row.step + 1, spec.steps, **_headline(row))
                if goal:
                    goal = f"step {row.step}: {goal}"
                    progress.message(f"stopped at {goal}")
                    break
        except NumericalStop as stop:
            recorder.stop(stop.process, stop.step // spec.record.every, stop.reason)
            recorder.finish("numerical stop")
            progress.message(str(stop))
            return ExitCode.NUMERICAL_STOP
        except KeyboardInterrupt:
            recorder.finish("interrupted")
            progress.message(f"interrupted; the first {number + 1} rows are kept")
            return ExitCode.INTERRUPTED
    recorder.finish("done", stop_goal=goal)
    return ExitCode.DONE


def _write(spec: Spec, row: Row, recorder: Recorder, wall_seconds: float) -> None:
    recorder.write(row.step // spec.record.every, row.series, row.comparisons, wall_seconds)
    every = spec.record.weights_every
    if every and row.step % every == 0:
        stored = math.lcm(every, spec.record.every)
        weights = {name: np.asarray(w) for name, w in row.weights.items()}
        recorder.write_weights(row.step // stored, weights)


def _headline(row: Row) -> dict:
    """What progress shows: of the central flow if there is one, else of the first process."""
    name = "central" if "central" in row.series else next(iter(row.series))
    series = row.series[name]
    return {
        "loss": float(series["train_loss"]),
        "sharpness": float(series["eigenvalues"][0]),
        "critical": int(series.get("critical_directions", 0)),
    }
