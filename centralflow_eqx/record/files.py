"""Files that are there whole or not at all, whatever happens while they are written."""

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

_SEAL = b"\ncentralflow_eqx blake2b "
_DIGEST_BYTES, _PART_BYTES = 32, 2**20
_SEAL_LENGTH = len(_SEAL) + 2 * _DIGEST_BYTES + 1


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


def write_sealed(file: BinaryIO, image: bytes) -> None:
    """Write the bytes of a file with a checksum behind them, which HDF5 does not look at."""
    file.write(image)
    file.write(_SEAL + _digest(image).hexdigest().encode() + b"\n")


def is_intact(path: Path) -> bool:
    """Whether a file is what was sealed; one without a seal may be. Raises `OSError`."""
    length = max(path.stat().st_size - _SEAL_LENGTH, 0)
    digest = _digest()
    with path.open("rb") as file:
        while part := file.read(min(_PART_BYTES, length - file.tell())):
            digest.update(part)
        seal = file.read()
    found = digest.hexdigest().encode()
    return not seal.startswith(_SEAL) or seal == _SEAL + found + b"\n"


def _digest(image: bytes = b"") -> "hashlib.blake2b":
    return hashlib.blake2b(image, digest_size=_DIGEST_BYTES)
