"""What an earlier run of a spec has left in its run directory."""

from pathlib import Path
from typing import Any

import h5py

from ..errors import InputError
from ..record.files import is_intact
from ..spec import Spec
from ..spec.document import parse
from .checkpoint import has_checkpoint

_UNFINISHED = "running", "interrupted", "failed"
_ENDED = "done", "numerical stop"


def is_recorded(spec: Spec) -> bool:
    """Whether the run directory is that of this very spec, wherever that lies, and readable."""
    found = read_mapping(spec.run_dir / "spec.yaml")
    wanted = parse(spec.to_yaml(), "")[0].plain()
    same = found is not None and found | {"output": None} == wanted | {"output": None}
    return same and status(spec.run_dir) is not None


def ending(spec: Spec) -> str | None:
    """How the run of this very spec in the run directory ended; None if it can be gone on with.

    "done", or "numerical stop", to which it would come again; None also where there is no run.
    """
    found = status(spec.run_dir) if is_recorded(spec) else None
    return found if found in _ENDED else None


def is_done(spec: Spec) -> bool:
    """Whether the run directory has the finished run of this very spec."""
    return ending(spec) == "done"


def is_resumable(spec: Spec) -> bool:
    """Whether the run directory has an unfinished run of this very spec, with a checkpoint."""
    if not has_checkpoint(spec.run_dir):
        return False
    return is_recorded(spec) and status(spec.run_dir) in _UNFINISHED


def read_mapping(path: Path) -> dict[str, Any] | None:
    """The mapping in a YAML file; None if there is none."""
    try:
        found = parse(path.read_text(encoding="utf-8"), str(path))[0].plain()
    except (OSError, UnicodeDecodeError, InputError):
        return None
    return found if isinstance(found, dict) else None


def status(run_dir: Path) -> str | None:
    """How the run ended; None if its data cannot be read."""
    path = run_dir / "data.h5"
    try:
        with h5py.File(path, "r", locking=False) as file:
            return str(file.attrs["status"]) if is_intact(path) else None
    except (OSError, KeyError):
        return None
