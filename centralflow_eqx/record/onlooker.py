"""What the other processes of a run have in place of a recorder."""

from pathlib import Path
from typing import Any, Self


class Onlooker:
    """Takes what a `Recorder` takes, and leaves it: the first process writes it."""

    backup: Path | None = None

    def __init__(self, run_dir: Path):
        self.run_dir = run_dir

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def ignore(self, *_: Any, **__: Any) -> None:
        """What would be recorded."""

    write = write_weights = stop = finish = publish = settle = ignore
