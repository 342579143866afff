"""The user's own arrays."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Ge
from jaxtyping import Bool, Float, Int, Shaped
from typing_extensions import Doc

from ..errors import OptionError, did_you_mean
from ..registry import InputFile
from ._base import AbstractData, Dataset
from ._files import printable, reading
from ._registry import DATASETS

_MOST_BYTES = 2**30
_MOST_GROWTH = 20


def read_arrays(path: Path, keys: Mapping[str, str]) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Arrays of an npz file by option: `keys` maps each option to the array's name.

    Nothing in the file is executed. Raises `OptionError` for the option `path` if the file, or
    for the array's option if the array, is missing or cannot be read, or unpacks to both over
    1 GiB and 20 times the size of the file.
    """
    with _opened(path) as archive:
        most = max(_MOST_BYTES, _MOST_GROWTH * path.stat().st_size)
        return {option: _read_array(archive, option, key, most) for option, key in keys.items()}


def array_names(path: Path) -> list[str]:
    """Names of the arrays of an npz file; raises `OptionError` for the option `path`."""
    with _opened(path) as archive:
        return archive.files


def _opened(path: Path) -> np.lib.npyio.NpzFile:
    try:
        archive = np.load(path, allow_pickle=False)
    except Exception:  # whatever a damaged file makes NumPy raise
        raise OptionError("path", f"not a readable npz file: {path}") from None
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise OptionError("path", f"not an npz archive of named arrays: {path}")
    return archive


def _read_array(archive: np.lib.npyio.NpzFile, option: str, key: str, most: int) -> np.ndarray:
    if key not in archive.files:
        names = printable(", ".join(archive.files)) or "none"
        near = printable(did_you_mean(key, archive.files))
        raise OptionError(option, f"no array '{key}' in the file, it has {names}{near}")
    with reading(option, f"array '{key}'"):
        assert archive.zip is not None
        members = archive.zip.namelist()
        size = archive.zip.getinfo(key if key in members else f"{key}.npy").file_size
        if size > most:
            raise ValueError(
                f"it unpacks to {size >> 20} MiB, far more than the file; write it with np.savez"
            )
        return np.asarray(archive[key])


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
    """Your own arrays from an npz file, used as they are; labels are any two or more integers.

    Labels per position are tokens where the inputs are, and -1 at positions to ignore.
    """

    path: Annotated[InputFile, Doc("An npz file, relative to the spec file.")]
    inputs: Annotated[
        str,
        Doc("Name of the array of inputs: [n, features], images [n, channels, height, width], ..."),
    ] = "inputs"
    labels: Annotated[
        str, Doc("Name of the array of integer labels: [n], or [n, length] with -1: ignored.")
    ] = "labels"
    test_inputs: Annotated[str | None, Doc("Name of the inputs of a test split.")] = None
    test_labels: Annotated[str | None, Doc("Name of the labels of a test split.")] = None
    vocabulary: Annotated[
        Annotated[int, Ge(2)] | None,
        Doc("Inputs are tokens [n, length], integers from 0 to vocabulary - 1."),
    ] = None

    def load(self, seed: int) -> Dataset:
        names = {"inputs": self.inputs, "labels": self.labels}
        tests = {"test_inputs": self.test_inputs, "test_labels": self.test_labels}
        given = {option: name for option, name in tests.items() if name is not None}
        if len(given) == 1:
            missing = next(option for option in tests if option not in given)
            raise OptionError(missing, "missing, a test split needs both its inputs and its labels")
        arrays = read_arrays(self.path, names | given)
        inputs, labels = self._pair(arrays, "inputs", "labels")
        if self.vocabulary is not None and labels.ndim == 2:
            values = np.arange(self.vocabulary)
        else:
            values = np.unique(labels[_counted("labels", labels)])
        if len(values) < 2:
            raise OptionError("labels", "must take two or more different values, all are equal")
        train_labels = _places("labels", labels, values, "tokens, or -1 to ignore a position")
        classes = len(values)
        if not given:
            return Dataset(inputs, train_labels, None, None, classes, self.vocabulary)
        test_inputs, test_labels = self._pair(arrays, "test_inputs", "test_labels")
        if test_inputs.shape[1:] != inputs.shape[1:]:
            shape = ", ".join(map(str, ("examples", *inputs.shape[1:])))
            message = f"must have shape [{shape}] as inputs has, got {list(test_inputs.shape)}"
            raise OptionError("test_inputs", message)
        if test_labels.ndim != labels.ndim:
            kind = "position" if labels.ndim == 2 else "input"
            raise OptionError("test_labels", f"must be one label per {kind}, as labels are")
        test_labels = _places("test_labels", test_labels, values, "values that labels takes")
        return Dataset(inputs, train_labels, test_inputs, test_labels, classes, self.vocabulary)

    def _pair(
        self, arrays: Mapping[str, np.ndarray], inputs_option: str, labels_option: str
    ) -> tuple[Shaped[np.ndarray, "n ..."], Int[np.ndarray, "n ..."]]:
        """Inputs and labels of shapes and types that fit each other."""
        inputs, labels = arrays[inputs_option], arrays[labels_option]
        if self.vocabulary is None:
            wanted, fits = "features] or [examples, channels, height, width", inputs.ndim >= 2
        else:
            wanted, fits = "length", inputs.ndim == 2
        if not fits or 0 in inputs.shape:
            message = f"must have shape [examples, {wanted}], got {list(inputs.shape)}"
            raise OptionError(inputs_option, message)
        if labels.dtype.kind not in "iub":
            raise OptionError(labels_option, f"must be integers, got an array of {labels.dtype}")
        shapes = {"[{}], one label per input": inputs.shape[:1]}
        if self.vocabulary is not None or inputs.ndim == 3:
            shapes["[{}, {}], one label per position"] = inputs.shape[:2]
        if labels.shape not in shapes.values():
            words = ", or ".join(text.format(*shape) for text, shape in shapes.items())
            raise OptionError(labels_option, f"must have shape {words}, got {list(labels.shape)}")
        if self.vocabulary is not None:
            return _tokens(inputs_option, inputs, self.vocabulary), labels
        return finite(inputs_option, inputs), labels


def _tokens(option: str, inputs: np.ndarray, vocabulary: int) -> Int[np.ndarray, "n length"]:
    if inputs.dtype.kind not in "iu":
        raise OptionError(option, f"must hold integer tokens, got an array of {inputs.dtype}")
    bad = np.argwhere((inputs < 0) | (inputs >= vocabulary))
    if len(bad):
        row, position = bad[0]
        message = f"tokens must be 0 to {vocabulary - 1}, got {inputs[row, position]}"
        raise OptionError(option, f"{message} at [{row}, {position}]")
    return inputs.astype(np.int64)


def _counted(option: str, labels: Int[np.ndarray, "n ..."]) -> Bool[np.ndarray, "n ..."]:
    """Which labels count: all, or, of those per position, all but -1."""
    counted = np.full(labels.shape, True) if labels.ndim == 1 else labels != -1
    if not counted.any():
        raise OptionError(option, "must count somewhere, all are -1")
    return counted


def _places(
    option: str, labels: Int[np.ndarray, "n ..."], values: Int[np.ndarray, " c"], allowed: str
) -> Int[np.ndarray, "n ..."]:
    """The place of every label among sorted `values`; -1 where it does not count."""
    counted = _counted(option, labels)
    if not np.isin(labels, values)[counted].all():
        raise OptionError(option, f"must only take {allowed}")
    return np.where(counted, np.searchsorted(values, labels), -1)
