"""The user's own arrays."""

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from jaxtyping import Float, Int, Shaped
from typing_extensions import Doc

from ..errors import OptionError, did_you_mean
from ..registry import InputFile
from ._base import AbstractData, Dataset
from ._registry import DATASETS

_UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    SyntaxError,
    zipfile.BadZipFile,
    zlib.error,
)


def read_arrays(path: Path, keys: Mapping[str, str]) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Arrays of an npz file by option: `keys` maps each option to the array's name.

    Nothing in the file is executed. Raises `OptionError` for the option `path` if the file, or
    for the array's option if the array, is missing or cannot be read.
    """
    try:
        archive = np.load(path, allow_pickle=False)
    except _UNREADABLE:
        raise OptionError("path", f"not a readable npz file: {path}") from None
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise OptionError("path", f"not an npz archive of named arrays: {path}")
    with archive:
        return {option: _read_array(archive, option, key) for option, key in keys.items()}


def _read_array(archive: np.lib.npyio.NpzFile, option: str, key: str) -> np.ndarray:
    if key not in archive.files:
        names = ", ".join(archive.files) or "none"
        near = did_you_mean(key, archive.files)
        raise OptionError(option, f"no array '{key}' in the file, it has {names}{near}")
    try:
        return np.asarray(archive[key])
    except _UNREADABLE as error:
        reason = str(error).partition("\n")[0]
        raise OptionError(option, f"array '{key}' cannot be read: {reason}") from None


def finite(option: str, array: np.ndarray) -> Float[np.ndarray, "..."]:
    """`array` in float64; raises `OptionError` unless all of it is real and finite."""
    if array.dtype.kind not in "fiub":
        raise OptionError(option, f"must hold real numbers, got an array of {array.dtype}")
    array = array.astype(np.float64)
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        where = ", ".join(map(str, bad[0]))
        raise OptionError(option, f"must be finite, {len(bad)} are not, the first at [{where}]")
    return array


@DATASETS.register("npz")
@dataclass(frozen=True)
class Npz(AbstractData):
    """Your own arrays from an npz file, used as they are; labels are any two or more integers."""

    path: Annotated[InputFile, Doc("An npz file, relative to the spec file.")]
    inputs: Annotated[str, Doc("Name of the array of inputs [n, features].")] = "inputs"
    labels: Annotated[str, Doc("Name of the array of integer labels [n].")] = "labels"
    test_inputs: Annotated[str | None, Doc("Name of the inputs of a test split.")] = None
    test_labels: Annotated[str | None, Doc("Name of the labels of a test split.")] = None

    def load(self, seed: int) -> Dataset:
        names = {"inputs": self.inputs, "labels": self.labels}
        tests = {"test_inputs": self.test_inputs, "test_labels": self.test_labels}
        given = {option: name for option, name in tests.items() if name is not None}
        if len(given) == 1:
            missing = next(option for option in tests if option not in given)
            raise OptionError(missing, "missing, a test split needs both its inputs and its labels")
        arrays = read_arrays(self.path, names | given)
        inputs, labels = _pair(arrays, "inputs", "labels")
        values, train_labels = np.unique(labels, return_inverse=True)
        if len(values) < 2:
            raise OptionError("labels", "must take two or more different values, all are equal")
        if not given:
            return Dataset(inputs, train_labels, None, None, len(values))
        test_inputs, labels = _pair(arrays, "test_inputs", "test_labels")
        if test_inputs.shape[1] != inputs.shape[1]:
            raise OptionError(
                "test_inputs",
                f"must have {inputs.shape[1]} features as inputs has, got {test_inputs.shape[1]}",
            )
        if not np.isin(labels, values).all():
            raise OptionError("test_labels", "must only take values that labels takes")
        return Dataset(
            inputs, train_labels, test_inputs, np.searchsorted(values, labels), len(values)
        )


def _pair(
    arrays: Mapping[str, np.ndarray], inputs_option: str, labels_option: str
) -> tuple[Float[np.ndarray, "n f"], Int[np.ndarray, " n"]]:
    inputs, labels = arrays[inputs_option], arrays[labels_option]
    if inputs.ndim != 2 or 0 in inputs.shape:
        raise OptionError(
            inputs_option, f"must have shape [examples, features], got {list(inputs.shape)}"
        )
    if labels.dtype.kind not in "iub":
        raise OptionError(labels_option, f"must be integers, got an array of {labels.dtype}")
    if labels.shape != inputs.shape[:1]:
        raise OptionError(
            labels_option,
            f"must have shape [{len(inputs)}], one label per input, got {list(labels.shape)}",
        )
    return finite(inputs_option, inputs), labels
