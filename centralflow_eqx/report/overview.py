"""Run directories at a glance."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..record.owner import DirectoryInUse, check_free
from ..record.reader import Run, load_run
from ._outcomes import aligned
from .facts import Facts, gather
from .narrative import percent

_HEADER = ["run", "state", "steps", "loss", "loss error", "trusted", "age"]
_UNITS = (("days", 86400.0), ("h", 3600.0), ("min", 60.0))


@dataclass(frozen=True)
class Overview:
    """A run directory, finished or not, or one that cannot be read.

    `modified` is when its data were last written, in seconds since 1970, `steps` how many were
    recorded, `loss` the last of the discrete run, or of the first process, `error` the median
    relative error of the predicted loss, `trusted` the share of rows to be believed; NaN if
    unknown.
    """

    state: str
    modified: float
    steps: int = 0
    loss: float = math.nan
    error: float = math.nan
    trusted: float = math.nan


def overview(run_dir: Path) -> Overview:
    """What is to be said of a run directory, whatever is in it."""
    try:
        modified = (run_dir / "data.h5").stat().st_mtime
        run = load_run(run_dir)
    except (OSError, InputError):
        return Overview("cannot be read", _changed(run_dir))
    facts = gather(run)
    ends = facts.losses.get("discrete") or next(iter(facts.losses.values()), (math.nan, math.nan))
    errors = (error.median for error in facts.errors if error.quantity == "train_loss")
    seen = Overview(_state(run_dir, run, facts), modified, loss=ends[1])
    if not facts.recorded:
        return seen
    return dataclasses.replace(
        seen,
        steps=facts.last_step + 1,
        error=next(errors, math.nan),
        trusted=1 - facts.trust.rows / facts.recorded if run.flows() else math.nan,
    )


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return math.nan


def _state(run_dir: Path, run: Run, facts: Facts) -> str:
    """How the run ended, or how far it is."""
    if facts.goal:
        return f"stopped by a goal, {facts.goal}"
    if facts.status not in ("running", "interrupted", "failed"):
        return facts.status
    reached = f"at step {facts.last_step if facts.recorded else 0} of {int(run.steps[-1]) + 1}"
    if facts.status != "running":
        return f"{facts.status} {reached}"
    try:
        check_free(run_dir)
    except DirectoryInUse:
        return f"running, {reached}"
    return f"unfinished {reached}"


def tabulate(runs: Sequence[tuple[str, Overview]], now: float) -> str:
    """Lines for a terminal, a run each by its name, the newest first."""

    def newest(run: tuple[str, Overview]) -> float:
        return -math.inf if math.isnan(run[1].modified) else run[1].modified

    ordered = sorted(runs, key=newest, reverse=True)
    return aligned([_HEADER, *([name, *_cells(seen, now)] for name, seen in ordered)])


def _cells(seen: Overview, now: float) -> Iterator[str]:
    yield seen.state
    yield str(seen.steps or "")
    yield "" if math.isnan(seen.loss) else f"{seen.loss:.4g}"
    yield "" if math.isnan(seen.error) else percent(seen.error)
    yield "" if math.isnan(seen.trusted) else f"{seen.trusted:.0%}"
    yield age(now - seen.modified)


def age(seconds: float) -> str:
    """A time that has passed, in the largest unit of which there are two."""
    if math.isnan(seconds):
        return ""
    for unit, size in _UNITS:
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
