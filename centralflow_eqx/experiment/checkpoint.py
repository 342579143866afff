"""Moments from which a run can go on, on disk."""

import hashlib
import json
import os
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..placement import placement_of
from ..record.files import write_whole
from ..record.quantities import versions
from ..spec import Spec, digest_code
from ..task import AnyTask
from .kept import Kept

FOLDER = "checkpoints"
_FORMAT = 1
_ABOUT = "about"
_EVERY_SECONDS = 300.0
_ROWS_STAND = "name", "steps", "stop", "checkpoint", "output", "sweep", "record"
"""Sections of a spec that change no row of a run; what is recorded is a matter of its own."""
_OTHER_DEVICES = "devices", "shard", "distributed"
"""Sections that may change its rounding."""


class _Unusable(ValueError):
    """A checkpoint that is none any more."""


@dataclass(frozen=True)
class Stopped:
    """A process that went no further than `row`, and why; `numerical` says that it was lost."""

    row: int
    reason: str
    numerical: bool


@dataclass(frozen=True)
class Checkpoint:
    """A run before step `step`: the arrays of its state, and what the host keeps.

    `stops` has the processes that have ended, `first_loss` is what goals are compared with,
    `wall_seconds` is the time that was spent, `made` the `fingerprint` of who computed it.
    """

    step: int
    kept: Kept
    stops: Mapping[str, Stopped]
    first_loss: float | None
    wall_seconds: float
    made: Mapping[str, str]


def count_threads() -> int:
    """The processors that this process may use: sums are split among them, which changes bits."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def kind_of_device(task: AnyTask) -> str:
    """What the devices call themselves on which a task lies."""
    return min(device.device_kind for device in task.initial_weights.sharding.device_set)


def number_of_devices(task: AnyTask) -> str:
    """How many devices share a task, and vectors as long as its weights."""
    placement = placement_of(task.initial_weights)
    if placement is None or placement.parts == 1:
        return str(len(task.initial_weights.sharding.device_set))
    return f"{placement.count}, weights in {placement.parts} parts"


def fingerprint(spec: Spec, task: AnyTask) -> dict[str, str]:
    """What a run's rows depend on: spec, data, weights, the user's code, versions, device."""
    # without what is left at its default: a later version may know more keys
    left_out = {*_ROWS_STAND, *_OTHER_DEVICES}
    content = spec.model_dump(mode="json", exclude=left_out, exclude_defaults=True)
    record = spec.record.model_dump(mode="json", exclude={"log_to"}, exclude_defaults=True)
    return {
        "spec": _hash_of(content),
        "record": _hash_of(record),
        "data": _digest(task.arrays()),
        "code": digest_code(spec.own_names),
        "precision": spec.precision,
        "device": kind_of_device(task),
        "devices": number_of_devices(task),
        "threads": str(count_threads()),
        **versions(),
    }


class Checkpoints:
    """Writes checkpoints of a run in its directory, and removes older ones.

    `every` is the number of steps between them; 0 for none before the end, None for some by wall
    time. The newest `keep` are kept.
    """

    def __init__(self, run_dir: Path, every: int | None, keep: int):
        self._folder, self._every, self._keep = run_dir / FOLDER, every, keep
        self._last = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether a run that has come to `step` is to be kept now."""
        if self._every is None:
            return time.monotonic() - self._last >= _EVERY_SECONDS
        return self._every > 0 and step % self._every == 0

    def save(self, checkpoint: Checkpoint) -> None:
        """Write it; raises `OSError`."""
        self._folder.mkdir(exist_ok=True)
        path = self._folder / f"step_{checkpoint.step:09d}.npz"
        write_whole(path, lambda file: _write(file, checkpoint))
        # Those of later steps are damaged, or of a way that was not taken.
        own = [p for p in _newest_first(self._folder) if p.name <= path.name]
        leftovers = set(self._folder.glob(".*.part")) | set(_newest_first(self._folder)) - set(own)
        for old in [*own[self._keep :], *leftovers]:
            old.unlink(missing_ok=True)
        self._last = time.monotonic()


def find_checkpoint(run_dir: Path) -> Checkpoint | None:
    """The newest checkpoint that can be read; warns of those that cannot."""
    for path in _newest_first(run_dir / FOLDER):
        try:
            return _read(path)
        except Exception as error:  # a damaged archive raises many kinds of them
            why = str(error) if isinstance(error, _Unusable) else type(error).__name__
            warnings.warn(f"{path} cannot be used ({why})", stacklevel=2)
    return None


def has_checkpoint(run_dir: Path) -> bool:
    """Whether there is a checkpoint, good or not."""
    return bool(_newest_first(run_dir / FOLDER))


def _newest_first(folder: Path) -> list[Path]:
    try:
        return sorted(folder.glob("step_*.npz"), reverse=True)
    except OSError:  # nothing that can be read
        return []


def _write(file: BinaryIO, checkpoint: Checkpoint) -> None:
    about = {field.name: getattr(checkpoint, field.name) for field in fields(checkpoint)}
    about["stops"] = {name: asdict(stop) for name, stop in checkpoint.stops.items()}
    about |= {"format": _FORMAT, "kept": _digest(checkpoint.kept)}
    arrays: dict[str, Any] = {_ABOUT: np.array(json.dumps(about)), **checkpoint.kept}
    np.savez(file, **arrays)


def _read(path: Path) -> Checkpoint:
    with np.load(path, allow_pickle=False) as archive:
        about = json.loads(str(archive[_ABOUT]))
        if about.pop("format") != _FORMAT:
            raise _Unusable("written in another format, by another version of this package")
        kept = {name: archive[name] for name in archive.files if name != _ABOUT}
    if about["kept"] != _digest(kept):
        raise _Unusable("its content has changed since it was written")
    stops = {name: Stopped(**stop) for name, stop in about["stops"].items()}
    return Checkpoint(**about | {"kept": kept, "stops": stops})


def _hash_of(content: Any) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digest(kept: Kept) -> str:
    found = hashlib.blake2b()
    for name, array in sorted(kept.items()):
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).data if array.ndim else array.tobytes())
    return found.hexdigest()
