"""What a data set of anyone's making has to fulfil before it is computed with."""

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from ..errors import OptionError, running
from ._base import AbstractData, Dataset

_SPLITS = "train", "test"


def load_dataset(data: AbstractData, seed: int) -> Dataset:
    """What `data` loads, checked.

    Raises `OptionError` if it is not what it should be: for the option `type`, unless `data` names
    another itself.
    """
    name = type(data).__name__
    with running(f"{name}.load"):
        loaded: Any = data.load(seed)
    if not isinstance(loaded, Dataset):
        kind = type(loaded).__name__
        raise _wrong(f"{name}.load must return a centralflow_eqx.data.Dataset, got {kind}")
    return checked_dataset(loaded)


def checked_dataset(dataset: Dataset) -> Dataset:
    """`dataset` in NumPy's arrays: finite numbers, integer labels from 0, shapes that fit.

    Labels -1 and 1 become 0 and 1, which a warning tells. Raises `OptionError` for the option
    `type` where something does not fit.
    """
    if (dataset.train_labels is None) == (dataset.train_targets is None):
        raise _wrong("a Dataset needs train_labels or train_targets, and not both")
    kind = "targets" if dataset.is_regression else "labels"
    other = "labels" if dataset.is_regression else "targets"
    if getattr(dataset, f"test_{other}") is not None:
        raise _wrong(f"train_{kind} cannot be tested with test_{other}")
    if (dataset.test_inputs is None) != (dataset.test_answers is None):
        raise _wrong(f"a test split needs both test_inputs and test_{kind}")

    found: dict[str, Any] = {}
    for split in _SPLITS:
        inputs, answers = (getattr(dataset, f"{split}_{what}") for what in ("inputs", kind))
        if inputs is not None:
            inputs = _inputs(f"{split}_inputs", inputs, dataset.vocabulary)
            if dataset.is_regression:
                answers = _targets(f"{split}_targets", answers)
            else:
                answers = _labels(f"{split}_labels", answers, inputs, dataset)
            if len(answers) != len(inputs):
                lengths = f"{len(answers)} {split}_{kind} for {len(inputs)} {split}_inputs"
                raise _wrong(f"{lengths}; there must be one for each")
            found |= {f"{split}_inputs": inputs, f"{split}_{kind}": answers}
    for what in ("inputs", kind) if dataset.test_inputs is not None else ():
        train, test = (found[f"{split}_{what}"].shape[1:] for split in _SPLITS)
        if train != test:
            shapes = f"{list(test)} in test_{what}, {list(train)} in train_{what}"
            raise _wrong(f"an example's shape is {shapes}; it must be the same")
    if dataset.is_regression:
        return replace(dataset, **found)
    return replace(dataset, **found | _from_zero(found, dataset.classes))


def _wrong(message: str) -> OptionError:
    return OptionError("type", message)


def _numbers(name: str, values: Any) -> Shaped[np.ndarray, "..."]:
    try:
        array = np.asarray(values)
    except Exception:  # whatever NumPy makes of it
        array = np.empty(0, object)
    if array.dtype.kind not in "fiub" and not str(array.dtype).startswith(("bfloat", "float8")):
        raise _wrong(f"{name} must hold real numbers, got an array of {array.dtype}")
    if array.size == 0 or array.ndim == 0:
        raise _wrong(f"{name} must hold one example or more, got shape {list(array.shape)}")
    return array


def _finite(name: str, values: Shaped[np.ndarray, "n ..."]) -> Float[np.ndarray, "n ..."]:
    array = values.astype(np.float64)
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        where = ", ".join(map(str, bad[0]))
        raise _wrong(f"{name} must be finite, {len(bad)} are not, the first at [{where}]")
    return array


def _inputs(name: str, values: Any, vocabulary: int | None) -> Shaped[np.ndarray, "n ..."]:
    array = _numbers(name, values)
    if vocabulary is None:
        if array.ndim < 2:
            message = f"must have shape [examples, features], got {list(array.shape)}"
            raise _wrong(f"{name} {message}; one number an example is [:, None]")
        return _finite(name, array)
    if array.dtype.kind not in "iu" or array.ndim != 2:
        got = f"{array.dtype} of shape {list(array.shape)}"
        raise _wrong(f"{name} must be integer tokens [examples, length], got {got}")
    if array.min() < 0 or array.max() >= vocabulary:
        span = f"{array.min()} to {array.max()}"
        raise _wrong(f"tokens in {name} must be 0 to {vocabulary - 1}, they are {span}")
    return array.astype(np.int64)


def _targets(name: str, values: Any) -> Float[np.ndarray, "n o"]:
    array = _finite(name, _numbers(name, values))
    if array.ndim > 2:
        shape = list(array.shape)
        raise _wrong(f"{name} must be numbers [examples] or vectors [examples, o], got {shape}")
    return array.reshape(len(array), -1)


def _labels(
    name: str, values: Any, inputs: Shaped[np.ndarray, "n ..."], dataset: Dataset
) -> Int[np.ndarray, "m ..."]:
    array = _numbers(name, values)
    if array.dtype.kind not in "iub":
        split = name.partition("_")[0]
        message = f"{name} must be integers, got an array of {array.dtype}"
        raise _wrong(f"{message}; real targets are given as {split}_targets")
    sequences = dataset.vocabulary is not None or inputs.ndim == 3
    if array.ndim > 1 and (not sequences or array.shape[1:] != inputs.shape[1:2]):
        wanted = f"one label an input, [{len(inputs)}]"
        if sequences:
            wanted += f", or one a position, {list(inputs.shape[:2])}"
        raise _wrong(f"{name} must be {wanted}, got {list(array.shape)}")
    return array.astype(np.int64)


def _from_zero(found: dict[str, Any], classes: Any) -> dict[str, Int[np.ndarray, "n ..."]]:
    """Labels of all splits, from 0 on, or -1 at positions that are ignored."""
    if isinstance(classes, bool) or not isinstance(classes, int | np.integer) or classes < 2:
        raise _wrong(f"a Dataset with labels needs its number of classes, 2 or more, got {classes}")
    labels = {name: array for name, array in found.items() if name.endswith("labels")}
    values = set(np.concatenate([np.unique(array) for array in labels.values()]).tolist())
    positions = any(array.ndim > 1 for array in labels.values())
    if classes == 2 and values == {-1, 1} and not positions:
        warnings.warn("labels -1 and 1 are taken for the classes 0 and 1", stacklevel=2)
        return {name: (array + 1) // 2 for name, array in labels.items()}
    for name, array in labels.items():
        _within(name, array, int(classes))
    return {}


def _within(name: str, labels: Int[np.ndarray, "n ..."], classes: int) -> None:
    """Raise `OptionError` unless labels are 0 to classes - 1, or -1 at a position."""
    counted = (labels != -1) | (labels.ndim == 1)
    if not counted.any():
        raise _wrong(f"{name} must count somewhere, all are -1")
    low, high = labels[counted].min(), labels[counted].max()
    if low >= 0 and high < classes:
        return
    remedy = ""
    if (low, high) == (1, classes):
        remedy = "; subtract 1 from labels that count from 1"
    elif low == -1:
        remedy = "; -1, for what is ignored, is for labels of positions alone"
    span = f"0 to {classes - 1} for {classes} classes, they are {low} to {high}"
    raise _wrong(f"{name} must be {span}{remedy}")
