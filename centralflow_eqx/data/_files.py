"""Reading files that others made: nothing in them is trusted, and nothing executed."""

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from ..errors import OptionError, show

MOST_BYTES = 2**29
"""What a file may unpack to, three times CIFAR-10's."""
MOST_ROWS = 200_000
"""Rows of a table, three times those of SST-2."""

_PACKAGES = {"PIL": "pillow"}


def extra(module: str, option: str, purpose: str) -> Any:
    """An optional module; raises `OptionError` that says what installs it where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError:
        name = module.partition(".")[0]
        package = _PACKAGES.get(name, name)
        raise OptionError(
            option,
            f"{purpose} needs {package}: install it with pip install 'centralflow_eqx[data]'",
        ) from None


@contextlib.contextmanager
def reading(option: str, what: str) -> Iterator[None]:
    """Turns everything that libraries raise about a damaged file into an `OptionError`."""
    try:
        yield
    except OptionError:
        raise
    except Exception as error:
        reason = printable(str(error).partition("\n")[0] or type(error).__name__)
        raise OptionError(option, f"{what} cannot be read: {reason}") from None


def printable(text: str, width: int = 200) -> str:
    """Text from a file on one line, without what a terminal might obey."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= width else text[: width - 3] + "..."


def beginning(path: Path, option: str) -> bytes:
    """The first bytes of a file, which tell formats apart."""
    with reading(option, str(path)), path.open("rb") as file:
        return file.read(8)


def checked_labels(
    values: Sequence[Any], classes: int, option: str, source: str
) -> Int[np.ndarray, " n"]:
    """Labels from 0 to `classes - 1`; raises `OptionError` naming the first that is none."""
    allowed = set(range(classes))
    bad = next((i for i, value in enumerate(values) if value not in allowed), None)
    if bad is not None:
        message = f"labels must be 0 to {classes - 1}, that of row {bad} is {show(values[bad])}"
        raise OptionError(option, f"{source}: {message}")
    return np.array(values, dtype=np.int64)
