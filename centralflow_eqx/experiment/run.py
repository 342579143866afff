"""Run a spec, or go on with a run: build its parts, simulate, record, report."""

import contextlib
import os
import platform
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from ..errors import ExitCode, InputError, Location, OptionError, Problem, RunLost, one_line
from ..hosts import HostLost, NotJoined, are_several, is_first, join
from ..placement import placement_of
from ..record.logs import About, Logs, log_in
from ..record.onlooker import Onlooker
from ..record.owner import DirectoryInUse, check_free
from ..record.reader import load_run
from ..record.writer import Earlier, Layout, Recorder
from ..spec import Spec, load_plan
from ..task import AnyTask
from .build import build_task
from .calibrate import quickest_chunk
from .checkpoint import (
    Checkpoint,
    count_threads,
    find_checkpoint,
    fingerprint,
    has_checkpoint,
    kind_of_device,
)
from .earlier import is_resumable, status
from .interruption import Interruption
from .kept import Misfit
from .prepare import build_axes, prepare
from .progress import Progress
from .recording import Recording

_OWN_WORDS = "spec", "record", "data", "code"


def run_spec(spec: Spec, console: Console, *, anew: bool = False, resume: bool = False) -> ExitCode:
    """Run `spec` into its run directory and print a summary on `console`.

    An earlier run there is set aside. Raises `InputError` before anything is written, also for one
    of this very spec that can be gone on with, unless it is to be run `anew`; with `resume` it is
    gone on with. A numerical stop or an interruption keeps the rows recorded so far, reports them,
    and is told by the exit code; `RunLost` is raised for what keeps a run from going on.
    """
    console = _join(spec, console)
    _check_place(spec, spec.run_dir)
    _log_in(spec)
    if not anew and is_resumable(spec):
        if resume:
            return _go_on(spec, spec.run_dir, console)
        message = (
            f"{spec.run_dir} has an unfinished run of this spec: `resume {spec.run_dir}` goes on "
            f"with it, `run --anew` keeps it as it is and starts over"
        )
        raise spec.error("name", message)
    return _carry_out(spec, spec.run_dir, console, None)


def resume_run(
    run_dir: Path,
    console: Console,
    *,
    settings: Sequence[str] = (),
    changed: bool = False,
    user_code: bool = True,
) -> ExitCode:
    """Go on with the run in `run_dir` from its newest good checkpoint, or from its first step.

    `settings` change its spec (`steps=500`), as `--set` does. A spec that would have had other rows
    is refused unless `changed` says that it may be. Otherwise as `run_spec`.
    """
    path = run_dir / "spec.yaml"
    if not os.path.isfile(path):
        raise _refused(run_dir, "no run directory: it has no spec.yaml")
    spec = load_plan(str(path), settings, user_code).specs[0]
    console = _join(spec, console)
    _check_place(spec, run_dir)
    _log_in(spec)
    return _go_on(spec, run_dir, console, changed)


def _go_on(spec: Spec, run_dir: Path, console: Console, changed: bool = False) -> ExitCode:
    """Go on with the run in `run_dir`, or start over where that is not possible."""
    checkpoint = find_checkpoint(run_dir)
    if checkpoint is not None:
        if spec.steps < checkpoint.step:
            message = f"must be at least {checkpoint.step}: so many are done"
            raise spec.error("steps", message)
        trouble = _missing_rows(spec, run_dir, checkpoint)
        if not trouble and checkpoint.step >= spec.steps and status(run_dir) == "done":
            told = f"{run_dir} has all of its {spec.steps} steps; --steps N adds some"
            console.print(told, soft_wrap=True, markup=False, highlight=False)
            if not (run_dir / "report.html").exists():
                _report(run_dir, console)
            return ExitCode.DONE
        if not trouble:
            return _carry_out(spec, run_dir, console, checkpoint, changed)
        warnings.warn(trouble, stacklevel=2)
    warnings.warn(f"no usable checkpoint in {run_dir}: starting from its first step", stacklevel=2)
    return _carry_out(spec, run_dir, console, None)


def _check_same(
    spec: Spec, path: Path, made: Mapping[str, str], now: Mapping[str, str], changed: bool
) -> None:
    """Refuse a spec or data that are not the checkpoint's; warn where rows may differ anyway."""
    if made["precision"] != now["precision"]:
        message = f"the run so far is in {made['precision']}, which cannot be changed"
        raise spec.error("precision", message)
    if made["record"] != now["record"]:
        raise spec.error("record", "what is recorded cannot be changed: the run so far has other")
    remedy = "undo the change, or go on all the same with --changed"
    if made["spec"] != now["spec"] and not changed:
        raise _refused(path, f"is not the spec of the run so far: {remedy}")
    if made["data"] != now["data"] and not changed:
        message = f"data or initial weights are not those of the run so far: {remedy}"
        raise _refused(path, message)
    if made.get("code", "") != now["code"] and not changed:
        message = f"code of your own that it names is not that of the run so far: {remedy}"
        raise _refused(path, message)
    others = [key for key in now if key not in _OWN_WORDS and made.get(key) != now[key]]
    if others:
        told = ", ".join(f"{key} {made.get(key, 'unknown')}, now {now[key]}" for key in others)
        message = f"the run so far was computed with {told}: the rows to come may differ slightly"
        warnings.warn(message, stacklevel=3)


def _missing_rows(spec: Spec, run_dir: Path, checkpoint: Checkpoint) -> str:
    """Why the rows before the checkpoint are not all there, empty if they are."""
    try:
        recorded = load_run(run_dir).recorded()
    except InputError as error:
        return str(error)
    rows = -(-checkpoint.step // spec.record.every)
    if set(spec.processes) <= checkpoint.stops.keys():  # then there are no more
        rows = min(rows, max(stop.row for stop in checkpoint.stops.values()))
    if len(recorded) < rows or not recorded[:rows].all():
        return f"{run_dir / 'data.h5'} lacks rows before step {checkpoint.step}"
    return ""


def _carry_out(
    spec: Spec,
    run_dir: Path,
    console: Console,
    checkpoint: Checkpoint | None,
    changed: bool = False,
) -> ExitCode:
    """Run into `run_dir`, from the checkpoint on if there is one, and report."""
    with Interruption() as interruption:
        with Progress(shown=is_first()) as progress, _lasting():
            progress.working("loading data and model")
            task = build_task(spec)
            made = fingerprint(spec, task)
            if checkpoint is not None:
                _check_same(spec, run_dir / "spec.yaml", checkpoint.made, made, changed)
            _warn_of_parts(spec, task)
            chunk = _products_at_once(spec, task, checkpoint, progress)
            made["hvp_chunk"] = str(chunk)
            kept = None if checkpoint is None else checkpoint.kept
            try:
                experiment, state = prepare(_with(spec, chunk), task, progress.working, kept)
            except Misfit as error:
                raise _refused(run_dir, f"its checkpoint is of another spec: {error}") from None
            recorder = _recorder(spec, task, run_dir, checkpoint, chunk)
            since = 0 if checkpoint is None else checkpoint.step
            with _lasting(run_dir), recorder, _logs(spec, run_dir, since) as logs:
                if recorder.backup is not None:
                    console.print(f"the earlier run is kept in {recorder.backup}", soft_wrap=True)
                recording = Recording(spec, recorder, logs, progress, made, checkpoint)
                code = recording.record(experiment, state, interruption)
            progress.working("writing the report")
        if is_first():
            with _lasting(run_dir):
                _report(run_dir, console)
    return code


def _join(spec: Spec, console: Console) -> Console:
    """Meet the other processes of the run; what to print on, which the first alone does."""
    if spec.distributed == "off":
        return console
    try:
        with Progress() as progress:
            progress.working("waiting for the other processes of the run")
            join() if spec.distributed == "auto" else join(**spec.distributed.model_dump())
    except NotJoined as error:
        message = f"the processes of the run did not find each other: {error}"
        raise spec.error("distributed", message) from None
    return console if is_first() else Console(quiet=True)


def _check_place(spec: Spec, run_dir: Path) -> None:
    """Refuse early, before anything is compiled, what could not be written later."""
    if not is_first():
        return
    try:
        check_free(run_dir)
    except DirectoryInUse as error:
        raise _refused(run_dir, str(error)) from None
    place = run_dir.absolute()
    while not os.path.exists(place):
        place = place.parent
    if place == run_dir.absolute() and not os.path.isdir(place):  # it is set aside
        place = place.parent
    try:
        tempfile.TemporaryDirectory(prefix=".", dir=place).cleanup()  # only an attempt tells
    except OSError as error:
        why = error.strerror if os.path.isdir(place) else f"{place} is no directory"
        raise spec.error("output.dir", f"{run_dir} cannot be written: {why}") from None


def _log_in(spec: Spec) -> None:
    """Refuse early what could not be logged later."""
    try:
        if is_first():
            log_in(spec.record.log_to)
    except OptionError as error:
        raise spec.error(f"record.{error.option}", error.message) from None


def _logs(spec: Spec, run_dir: Path, since: int) -> Logs:
    """What the rows from step `since` on are logged to, by the first process alone."""
    about = About(run_dir, spec.name, spec.model_dump(mode="json"), since)
    return Logs.open(spec.record.log_to if is_first() else (), about)


def _report(run_dir: Path, console: Console) -> None:
    from ..report import summarise, write_report  # draws: slow to import

    report = write_report(run_dir)
    console.print(summarise(run_dir), soft_wrap=True, markup=False, highlight=False)
    console.print(f"report: {report}", soft_wrap=True, markup=False, highlight=False)


def _products_at_once(
    spec: Spec, task: AnyTask, checkpoint: Checkpoint | None, progress: Progress
) -> int:
    """Hessian-vector products at a time; what was measured once holds for the whole run."""
    if spec.memory.hvp_chunk != "auto":
        return spec.memory.hvp_chunk
    if checkpoint is not None and "hvp_chunk" in checkpoint.made:
        return int(checkpoint.made["hvp_chunk"])
    progress.working("measuring how many Hessian-vector products to take at once")
    return quickest_chunk(task, task.initial_weights)


def _with(spec: Spec, chunk: int) -> Spec:
    """The spec with as many products at a time."""
    return spec.model_copy(update={"memory": spec.memory.model_copy(update={"hvp_chunk": chunk})})


def _recorder(
    spec: Spec, task: AnyTask, run_dir: Path, checkpoint: Checkpoint | None, chunk: int
) -> Recorder | Onlooker:
    """The run directory, new or with the rows before the checkpoint."""
    if not is_first():
        return Onlooker(run_dir)
    steps = np.arange(0, spec.steps, spec.record.every)
    weights_every = spec.record.weights_every
    weights_steps = steps[steps % weights_every == 0] if weights_every else steps[:0]
    attributes = {
        "name": spec.name,
        "seed": spec.seed,
        "precision": spec.precision,
        "device": kind_of_device(task),
        "platform": platform.platform(),
        "threads": count_threads(),
        "devices": len(task.initial_weights.sharding.device_set),
        "processes": jax.process_count(),
        "hvp_chunk": chunk,
    }
    layout = Layout(spec.to_yaml(), steps, weights_steps, attributes, build_axes(spec, task))
    try:
        if checkpoint is None:
            return Recorder.create(run_dir, layout)
        stops = {name: (stop.row, stop.reason) for name, stop in checkpoint.stops.items()}
        return Recorder.reopen(run_dir, layout, Earlier(checkpoint.step, stops))
    except DirectoryInUse as error:
        raise _refused(run_dir, str(error)) from None
    except OSError as error:
        message = f"{run_dir} cannot be written: {error.strerror or error}"
        raise spec.error("output.dir", message) from None


@contextlib.contextmanager
def _lasting(run_dir: Path | None = None) -> Iterator[None]:
    """Turns what keeps a run from going on, its own fault or not, into a `RunLost`."""
    try:
        yield
    except BrokenPipeError:  # who reads what is printed has seen enough
        raise
    except HostLost as error:
        what = f"another process of the run is gone ({error})"
        raise RunLost(what + _what_is_kept(run_dir)) from None
    except OSError as error:
        where = error.filename or run_dir
        what = f"{where and f'{where}: '}{error.strerror or error}"
        raise RunLost(what + _what_is_kept(run_dir)) from None
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            if are_several():
                raise RunLost(f"another process of the run is gone ({one_line(error)})") from None
            raise
        remedy = (
            "memory.hvp_chunk: 1 and memory.microbatch take less, and so do fewer processes and, "
            "with record.every, fewer rows"
        )
        what = f"out of memory ({one_line(error)}): {remedy}"
        raise RunLost(what + _what_is_kept(run_dir)) from None


def _what_is_kept(run_dir: Path | None) -> str:
    if run_dir is None or not (run_dir / "data.h5").exists():
        return ""
    kept = f"; what was recorded is in {run_dir}"
    return kept + (f": `resume {run_dir}` goes on" if has_checkpoint(run_dir) else "")


def _refused(place: Path, message: str) -> InputError:
    return InputError([Problem(Location(str(place)), "", message)])


def _warn_of_parts(spec: Spec, task: AnyTask) -> None:
    """Tell where the weights to be split do not divide among the devices."""
    placement, d = placement_of(task.initial_weights), task.num_parameters
    if placement is None or spec.shard not in ("weights", "both"):
        return
    here = sum(device.process_index == jax.process_index() for device in placement.devices)
    if placement.parts < here:
        whole = "each device has all of every vector" if placement.parts == 1 else ""
        told = whole or f"every vector is split into {placement.parts} parts"
        message = f"shard: {d} weights do not divide among the {here} devices of a host: {told}"
        warnings.warn(message, stacklevel=1)
