"""Rows as the history of a run of Weights & Biases."""

import json
import secrets
from pathlib import Path
from typing import Any

import wandb  # pyright: ignore[reportMissingImports]

from .files import write_whole
from .logs import About, AbstractLog, Scalars

_MARK = "wandb.json"


def refusal() -> str:
    """Why nobody is logged in, empty if somebody is or need not be."""
    if wandb.setup().settings.mode in ("offline", "disabled"):
        return ""
    try:
        wandb.login()
    except wandb.Error as error:
        return f"{error} WANDB_MODE=offline keeps the run here, for `wandb sync`"
    return ""


class WandbLog(AbstractLog):
    """The history of one run, whose identity is kept in the run directory.

    Rows are handed over at a `flush`, after a note of how far they go: whatever ends the process,
    none is handed over twice.
    """

    def __init__(self, about: About):
        self._mark = about.run_dir / _MARK
        known = _read(self._mark)
        self._id: str = known.get("id") or secrets.token_hex(8)
        self._next: int = known.get("next", 0)
        self._waiting: dict[int, dict[str, float]] = {}
        self._run = wandb.init(
            id=self._id,
            resume="allow",
            name=about.name,
            config=dict(about.config),
            dir=str(about.run_dir),
            settings=wandb.Settings(console="off"),
        )
        self._note()

    def write(self, step: int, scalars: Scalars) -> None:
        """Take the scalars of a row that was not handed over yet."""
        if step >= self._next:
            self._waiting[step] = {
                f"{process}/{name}" if process else name: value
                for process, numbers in scalars.items()
                for name, value in numbers.items()
            }

    def flush(self) -> None:
        """Hand the rows over."""
        if not self._waiting:
            return
        self._next = max(self._waiting) + 1
        self._note()
        for step, numbers in self._waiting.items():
            self._run.log(numbers, step=step)
        self._waiting.clear()

    def close(self, failed: bool) -> None:
        """Hand the rows over and finish the run."""
        self.flush()
        self._run.finish(exit_code=int(failed))

    def _note(self) -> None:
        mark = json.dumps({"id": self._id, "next": self._next}).encode()
        write_whole(self._mark, lambda file: file.write(mark))


def _read(mark: Path) -> dict[str, Any]:
    """What an earlier part of the run has noted; nothing if there is none."""
    try:
        found = json.loads(mark.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


open_log = WandbLog
