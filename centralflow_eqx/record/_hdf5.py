"""What the writer and the reader of `data.h5` share."""

import hashlib
from pathlib import Path
from typing import cast

import h5py


def dataset(group: h5py.Group, name: str) -> h5py.Dataset:
    """A member of `group` that is known to be a dataset, as a type checker cannot know."""
    return cast(h5py.Dataset, group[name])


_SEAL = b"\ncentralflow_eqx blake2b "
_DIGEST_BYTES, _PART_BYTES = 32, 2**20
_SEAL_LENGTH = len(_SEAL) + 2 * _DIGEST_BYTES + 1


def sealed(image: bytes) -> bytes:
    """The bytes of a file with a checksum behind them, which HDF5 does not look at."""
    return image + _SEAL + _digest(image).hexdigest().encode() + b"\n"


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
