"""Members as an array of SLURM jobs, through submitit."""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from ..errors import ExitCode, InputError, Location, Problem, one_line
from ..spec import Spec
from ..spec.document import parse
from .conductor import Backend, Event
from .folder import run_arguments

_POLL_SECONDS = 1.0
_DEFAULTS = {"timeout_min": 60}
_TASKS = "tasks_per_node", "nodes", "slurm_ntasks_per_node", "slurm_nodes", "slurm_ntasks"
"""Parameters of which any above 1 has a job start several processes."""


def parse_settings(settings: Sequence[str], flag: str = "--slurm-set") -> dict[str, Any]:
    """`key=value` texts, the values YAML, as a mapping."""
    found, here = {}, Location(flag)
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            message = f"{json.dumps(setting)} is not of the form key=value"
            raise InputError([Problem(here, "", message)])
        node, problems = parse(text, flag, has_lines=False)
        if problems:
            raise InputError(problems)
        found[key.strip()] = node.plain()
    return found


def on_cluster(cluster: str, settings: dict[str, Any], folder: Path, user_code: bool) -> Backend:
    """Jobs of submitit's `cluster` ("slurm", or "local" for trying it out) with its `settings`.

    Raises `InputError` where that is not possible. Jobs go on when the iterator is closed; those
    of SLURM that wait or run are found again by the next call, and not submitted a second time.
    """
    with tempfile.TemporaryDirectory() as scratch:  # executors make their folder at once
        _executor(cluster, Path(scratch), settings)

    def run(members: Sequence[Spec]) -> Generator[Event, None, None]:
        _check_tasks(settings, members)
        executor = _executor(cluster, folder / "submitit", settings)
        jobs = _unfinished(cluster, folder / "submitit")
        jobs = {member.name: jobs[member.name] for member in members if member.name in jobs}
        new = [member for member in members if member.name not in jobs]
        if new:
            arguments = [run_arguments(member, user_code) for member in new]
            submitted = _submit(executor, arguments)
            jobs |= {member.name: job for member, job in zip(new, submitted, strict=True)}
        ids = {name: job.job_id for name, job in jobs.items()}
        (folder / "submitit" / "jobs.json").write_text(json.dumps(ids), encoding="utf-8")
        for member in members:
            job = jobs[member.name]
            yield Event(member, note=f"job {job.job_id}, log {job.paths.stdout}")
        waiting = list(members)
        while waiting:
            time.sleep(_POLL_SECONDS)
            for member in [m for m in waiting if jobs[m.name].done()]:
                waiting.remove(member)
                job = jobs[member.name]
                yield Event(member, _code(job), str(job.paths.stderr))

    return run


def _check_tasks(settings: dict[str, Any], members: Sequence[Spec]) -> None:
    """Refuse jobs of several processes that would all write the same run."""
    if all(settings.get(name, 1) in (1, None) for name in _TASKS):
        return
    alone = [spec for spec in members if spec.distributed != "auto"]
    if alone:
        message = "jobs of several tasks need `distributed: auto`, with which they share a run"
        raise InputError([spec.problem("distributed", message) for spec in alone[:1]])


def _submitit() -> Any:
    level = os.environ.get("SUBMITIT_LOG_LEVEL")
    # Else it configures logging, which closes the streams of other libraries' handlers.
    os.environ["SUBMITIT_LOG_LEVEL"] = level or "NOCONFIG"
    try:
        return importlib.import_module("submitit")
    except ModuleNotFoundError:
        message = "needs submitit: pip install 'centralflow_eqx[slurm]'"
        raise InputError([Problem(Location("--slurm"), "", message)]) from None
    finally:
        if level is None:
            del os.environ["SUBMITIT_LOG_LEVEL"]


def _executor(cluster: str, folder: Path, settings: dict[str, Any]) -> Any:
    try:
        executor = _submitit().AutoExecutor(folder=folder, cluster=cluster)
    except RuntimeError as error:  # there is no SLURM
        message = f"{one_line(error)}; without SLURM, use --workers"
        raise InputError([Problem(Location(f"--{cluster}"), "", message)]) from None
    try:
        executor.update_parameters(**_DEFAULTS | settings)
    except Exception as error:  # whatever submitit says about parameters
        raise InputError([Problem(Location("--slurm-set"), "", one_line(error))]) from None
    return executor


def _unfinished(cluster: str, folder: Path) -> dict[str, Any]:
    """Jobs of an earlier call that wait or run, by member."""
    record = folder / "jobs.json"
    if cluster != "slurm" or not record.exists():
        return {}
    job_class = _submitit().SlurmJob
    ids = json.loads(record.read_text(encoding="utf-8"))
    jobs = {name: job_class(folder=folder, job_id=job_id) for name, job_id in ids.items()}
    return {name: job for name, job in jobs.items() if not job.done(force_check=True)}


def _submit(executor: Any, arguments: list[list[str]]) -> list[Any]:
    try:
        return executor.map_array(_Command(), arguments)
    except Exception as error:  # what sbatch refuses, such as an unknown partition
        raise InputError([Problem(Location("--slurm"), "", one_line(error))]) from None


class _Command:
    """A job: one command of ours, that ends well before a time limit, and is started again."""

    _process: subprocess.Popen | None = None

    def __call__(self, arguments: list[str]) -> int:
        command = [sys.executable, "-m", "centralflow_eqx", *arguments]
        self._process = subprocess.Popen(command)
        return self._process.wait()

    def checkpoint(self, arguments: list[str]) -> Any:
        """What submitit calls before the time limit, and the job that it queues instead."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGINT)
            # Not by `wait`, in whose lock the handler of the signal that led here may stand.
            with contextlib.suppress(ChildProcessError):  # it had ended already
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        return _submitit().helpers.DelayedSubmission(self, arguments)


def _code(job: Any) -> int:
    """The exit code of a job that ended; one that was killed left none.

    The first of several processes has reported.
    """
    try:
        return int(job.results()[0])
    except Exception:  # submitit's, for a job without a result
        return ExitCode.BUG
