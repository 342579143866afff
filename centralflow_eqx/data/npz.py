"""The user's own arrays."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Lt
from jaxtyping import Bool, Float, Int, Shaped
from typing_extensions import Doc

from ..errors import OptionError, did_you_mean
from ..registry import InputFile
from ._base import AbstractData, Dataset
from ._files import printable, reading
from ._made_up import check_amount
from ._registry import DATASETS

_MOST_BYTES = 2**30
_MOST_GROWTH = 20
_TARGETS = {"labels": "targets", "test_labels": "test_targets"}


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
    """Your own arrays from an npz file, used as they are: labels, or real targets for regression.

    Labels are any two or more integers; those per position are tokens where the inputs are, and
    -1 at positions to ignore.
    """

    path: Annotated[InputFile, Doc("An npz file, relative to the spec file.")]
    inputs: Annotated[
        str,
        Doc("Name of the array of inputs: [n, features], images [n, channels, height, width], ..."),
    ] = "inputs"
    labels: Annotated[
        str | None,
        Doc(
            "Name of the array of integer labels: [n], or [n, length] with -1: ignored; null: "
            "labels, unless there are targets."
        ),
    ] = None
    test_inputs: Annotated[str | None, Doc("Name of the inputs of a test split.")] = None
    test_labels: Annotated[str | None, Doc("Name of the labels of a test split.")] = None
    vocabulary: Annotated[
        Annotated[int, Ge(2)] | None,
        Doc("Inputs are tokens [n, length], integers from 0 to vocabulary - 1."),
    ] = None
    targets: Annotated[
        str | None,
        Doc("Name of the array of real targets, [n] or [n, outputs], for regression."),
    ] = None
    test_targets: Annotated[str | None, Doc("Name of the targets of a test split.")] = None
    test_fraction: Annotated[
        float, Ge(0), Lt(1), Doc("Share of the examples that is drawn, by the seed, to test on.")
    ] = 0.0

    def load(self, seed: int) -> Dataset:
        names = self._names()
        dataset = self._whole(read_arrays(self.path, names), names)
        if self.test_fraction:
            dataset = _held_out(dataset, self.test_fraction, seed)
        return dataset

    def _names(self) -> dict[str, str]:
        """Names of the arrays by option; raises `OptionError` for options that do not fit."""
        if self.targets is not None and self.labels is not None:
            raise OptionError("targets", "give either labels or targets, not both")
        kind = "labels" if self.targets is None else "targets"
        answers = {kind: self.targets or self.labels or "labels"}
        other = "test_targets" if kind == "labels" else "test_labels"
        if getattr(self, other) is not None:
            raise OptionError(other, f"the data have {kind}, test them with test_{kind}")
        tests = {"test_inputs": self.test_inputs, f"test_{kind}": getattr(self, f"test_{kind}")}
        given = {option: name for option, name in tests.items() if name is not None}
        if len(given) == 1:
            missing = next(option for option in tests if option not in given)
            raise OptionError(
                missing, f"missing, a test split needs both its inputs and its {kind}"
            )
        if given and self.test_fraction:
            message = "give either test_inputs or test_fraction, not both"
            raise OptionError("test_fraction", message)
        return {"inputs": self.inputs} | answers | given

    def _whole(self, arrays: Mapping[str, np.ndarray], names: Collection[str]) -> Dataset:
        """What the file holds, with the test split that it has."""
        regression = "targets" in names
        pair = self._with_targets if regression else self._with_labels
        inputs, answers = pair(arrays, "inputs", "targets" if regression else "labels")
        test_inputs = test_answers = None
        if "test_inputs" in names:
            answer = "test_targets" if regression else "test_labels"
            test_inputs, test_answers = pair(arrays, "test_inputs", answer)
            _same_shape("test_inputs", "inputs", test_inputs, inputs)
        if regression:
            if test_answers is not None:
                _same_shape("test_targets", "targets", test_answers, answers)
            return Dataset(
                inputs,
                test_inputs=test_inputs,
                vocabulary=self.vocabulary,
                train_targets=answers,
                test_targets=test_answers,
            )
        labels, test_labels, classes = self._places(answers, test_answers)
        return Dataset(inputs, labels, test_inputs, test_labels, classes, self.vocabulary)

    def _places(
        self, labels: Int[np.ndarray, "n ..."], test_labels: Int[np.ndarray, "m ..."] | None
    ) -> tuple[Int[np.ndarray, "n ..."], Int[np.ndarray, "m ..."] | None, int]:
        """Labels from 0 to classes - 1, and the number of classes."""
        if self.vocabulary is not None and labels.ndim == 2:
            check_amount("vocabulary", self.vocabulary)
            values = np.arange(self.vocabulary)
        else:
            values = np.unique(labels[_counted("labels", labels)])
        if len(values) < 2:
            raise OptionError("labels", "must take two or more different values, all are equal")
        places = _places("labels", labels, values, "tokens, or -1 to ignore a position")
        if test_labels is None:
            return places, None, len(values)
        if test_labels.ndim != labels.ndim:
            kind = "position" if labels.ndim == 2 else "input"
            raise OptionError("test_labels", f"must be one label per {kind}, as labels are")
        test_places = _places("test_labels", test_labels, values, "values that labels takes")
        return places, test_places, len(values)

    def _with_labels(
        self, arrays: Mapping[str, np.ndarray], inputs_option: str, labels_option: str
    ) -> tuple[Shaped[np.ndarray, "n ..."], Int[np.ndarray, "n ..."]]:
        """Inputs and labels of shapes and types that fit each other."""
        inputs, labels = self._checked_inputs(arrays, inputs_option), arrays[labels_option]
        if labels.dtype.kind not in "iub":
            message = f"must be integers, got an array of {labels.dtype}"
            if labels.dtype.kind == "f":
                message += f"; name an array of real numbers as {_TARGETS[labels_option]}"
            raise OptionError(labels_option, message)
        shapes = {"[{}], one label per input": inputs.shape[:1]}
        if self.vocabulary is not None or inputs.ndim == 3:
            shapes["[{}, {}], one label per position"] = inputs.shape[:2]
        if labels.shape not in shapes.values():
            words = ", or ".join(text.format(*shape) for text, shape in shapes.items())
            raise OptionError(labels_option, f"must have shape {words}, got {list(labels.shape)}")
        return inputs, labels

    def _with_targets(
        self, arrays: Mapping[str, np.ndarray], inputs_option: str, targets_option: str
    ) -> tuple[Shaped[np.ndarray, "n ..."], Float[np.ndarray, "n o"]]:
        """Inputs and targets of shapes that fit each other."""
        inputs = self._checked_inputs(arrays, inputs_option)
        targets = finite(targets_option, arrays[targets_option])
        if targets.ndim not in (1, 2) or len(targets) != len(inputs) or 0 in targets.shape:
            n, shape = len(inputs), list(targets.shape)
            message = f"must have shape [{n}] or [{n}, outputs], one for each input, got {shape}"
            raise OptionError(targets_option, message)
        return inputs, targets.reshape(len(inputs), -1)

    def _checked_inputs(
        self, arrays: Mapping[str, np.ndarray], option: str
    ) -> Shaped[np.ndarray, "n ..."]:
        inputs = arrays[option]
        if self.vocabulary is None:
            wanted, fits = "features] or [examples, channels, height, width", inputs.ndim >= 2
        else:
            wanted, fits = "length", inputs.ndim == 2
        if not fits or 0 in inputs.shape:
            message = f"must have shape [examples, {wanted}], got {list(inputs.shape)}"
            raise OptionError(option, message)
        if self.vocabulary is not None:
            return _tokens(option, inputs, self.vocabulary)
        return finite(option, inputs)


def _same_shape(option: str, as_option: str, array: np.ndarray, as_array: np.ndarray) -> None:
    """Raise `OptionError` unless examples have the same shape."""
    if array.shape[1:] != as_array.shape[1:]:
        shape = ", ".join(map(str, ("examples", *as_array.shape[1:])))
        message = f"must have shape [{shape}] as {as_option} has, got {list(array.shape)}"
        raise OptionError(option, message)


def _held_out(dataset: Dataset, fraction: float, seed: int) -> Dataset:
    """`dataset` with a share of its examples, rounded, to test on."""
    n = len(dataset.train_inputs)
    number = round(fraction * n)
    if not 0 < number < n:
        message = f"leaves {n - number} of {n} examples to train on and {number} to test on"
        raise OptionError("test_fraction", message)
    rest, test = np.split(np.random.default_rng(seed).permutation(n), [n - number])
    arrays = {"inputs": dataset.train_inputs}
    arrays |= {"targets" if dataset.is_regression else "labels": dataset.train_answers}
    held = {f"test_{name}": array[np.sort(test)] for name, array in arrays.items()}
    kept: dict[str, Any] = {f"train_{name}": a[np.sort(rest)] for name, a in arrays.items()}
    return replace(dataset, **kept | held)


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
