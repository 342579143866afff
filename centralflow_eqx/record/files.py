"""Files that are there whole or not at all, whatever happens while they are written."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Make `path` what `write` writes, or leave it as it was.

    The new content lies beside it until it is complete and on the disk. Raises `OSError`, such as
    for a full disk, and then leaves nothing behind.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def set_aside(path: Path) -> Path | None:
    """Rename `path`, if it exists, to the first free of `path`.1, `path`.2, ... and return that."""
    if not os.path.lexists(path):
        return None
    number = 1
    while os.path.lexists(backup := path.with_name(f"{path.name}.{number}")):
        number += 1
    path.rename(backup)
    return backup
