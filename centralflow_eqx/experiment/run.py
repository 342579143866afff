"""Run a spec: build its parts, simulate, record, report."""

import math
import platform
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from ..errors import ExitCode, NumericalStop
from ..record.row import Halt, Row
from ..record.writer import Recorder
from ..spec import Spec
from ..task import AnyTask
from .build import build_task
from .goals import GoalWatch
from .memory import estimate_peak, free_memory, warning
from .prepare import build_axes, prepare
from .progress import Progress


def run_spec(spec: Spec, console: Console) -> ExitCode:
    """Run `spec` into its run directory and print a summary on `console`.

    Raises `InputError` before anything is written. A numerical stop or an interruption keeps the
    rows recorded so far, reports them, and is told by the exit code.
    """
    with Progress() as progress:
        progress.working("loading data and model")
        task = build_task(spec)
        _warn_of_memory(spec, task)
        rows = prepare(spec, task, progress.working)
        with _recorder(spec, task) as recorder:
            if recorder.backup is not None:
                console.print(f"the earlier run is kept in {recorder.backup}", soft_wrap=True)
            code = _record(spec, rows, recorder, progress)
        progress.working("writing the report")
    from ..report import summarise, write_report  # draws: slow to import

    report = write_report(recorder.run_dir)
    console.print(summarise(recorder.run_dir), soft_wrap=True, markup=False, highlight=False)
    console.print(f"report: {report}", soft_wrap=True, markup=False, highlight=False)
    return code


def _recorder(spec: Spec, task: AnyTask) -> Recorder:
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
    axes = build_axes(spec, task)
    return Recorder.create(
        directory, spec.name, spec.to_yaml(), steps, weights_steps, attributes, axes
    )


def _warn_of_memory(spec: Spec, task: AnyTask) -> None:
    columns = max(2, spec.eigen.initial)
    peaks = estimate_peak(task, task.initial_weights, columns, spec.memory.hvp_chunk)
    message = warning(peaks, free_memory())
    if message:
        warnings.warn(f"memory: {message}", stacklevel=1)


def _record(spec: Spec, rows: Iterator[Row], recorder: Recorder, progress: Progress) -> ExitCode:
    """Write every row; returns how the simulation ended."""
    start, number, lost = time.monotonic(), 0, False
    goal, watch = "", GoalWatch(spec.stop, spec.processes)
    try:
        for row in rows:
            number = row.step // spec.record.every
            if row.series and row.step % spec.record.every == 0:
                _write(spec, row, recorder, time.monotonic() - start)
                goal = watch(row.series)
            for process, halt in row.stops.items():
                lost |= halt.numerical
                _note_stop(recorder, progress, row, process, halt, number)
            if row.series:
                progress.update(row.step + 1, spec.steps, **_headline(row))
            if goal:
                goal = f"step {row.step}: {goal}"
                progress.message(f"stopped at {goal}")
                break
    except NumericalStop:
        lost = True  # its row has told why
    except KeyboardInterrupt:
        recorder.finish("interrupted")
        progress.message(f"interrupted; the first {number + 1} rows are kept")
        return ExitCode.INTERRUPTED
    recorder.finish("numerical stop" if lost else "done", stop_goal=goal)
    return ExitCode.NUMERICAL_STOP if lost else ExitCode.DONE


def _note_stop(
    recorder: Recorder, progress: Progress, row: Row, process: str, halt: Halt, number: int
) -> None:
    recorder.stop(process, number, halt.reason)
    progress.message(f"{process} stopped at step {row.step}: {halt.reason}")


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
