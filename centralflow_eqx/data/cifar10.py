"""Small photographs."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge, Le
from typing_extensions import Doc

from ..errors import OptionError
from ..registry import InputFolder
from ._base import AbstractData, Dataset
from ._cifar_files import read_cifar10
from ._registry import DATASETS
from ._split import draw


@DATASETS.register("cifar10")
@dataclass(frozen=True)
class Cifar10(AbstractData):
    """32x32 photographs of ten classes (CIFAR-10) from a file of yours, standardised by channel."""

    path: Annotated[
        InputFolder,
        Doc(
            "cifar-10-binary.tar.gz or its folder, an npz file (x_train, y_train, x_test, y_test), "
            "or parquet; relative to the spec file."
        ),
    ]
    n: Annotated[int, Ge(2), Doc("Training images.")] = 1000
    classes: Annotated[int, Ge(2), Le(10), Doc("Keep the classes 0 to classes - 1.")] = 10
    binary: Annotated[bool, Doc("Keep airplanes (label 0) and automobiles (label 1) only.")] = False
    test_n: Annotated[
        int,
        Ge(0),
        Doc("Test images at most; from those not trained on if the file has none. 0: no test."),
    ] = 1000

    def load(self, seed: int) -> Dataset:
        if self.binary and self.classes not in (2, 10):
            raise OptionError("binary", f"keeps two classes, but classes is {self.classes}")
        classes = 2 if self.binary else self.classes
        train, test = read_cifar10(self.path)
        kept = np.flatnonzero(train.labels < classes)
        test_kept = None if test is None else np.flatnonzero(test.labels < classes)
        there = None if test_kept is None else len(test_kept)
        rows, test_rows = draw(seed, len(kept), self.n, there, self.test_n, "images")
        rows = kept[rows]
        pixels = train.pixels(rows).astype(np.float64)
        mean = pixels.mean(axis=(0, 2, 3), keepdims=True)
        spread = pixels.std(axis=(0, 2, 3), keepdims=True)
        spread = np.where(spread > 0, spread, 1)
        pixels -= mean  # in place, as all of CIFAR-10 has more than a gigabyte
        pixels /= spread
        labels = train.labels[rows]
        if not len(test_rows):
            return Dataset(pixels, labels, None, None, classes)
        held_out, its = (train, kept) if test is None or test_kept is None else (test, test_kept)
        test_rows = its[test_rows]
        test_inputs = (held_out.pixels(test_rows) - mean) / spread
        return Dataset(pixels, labels, test_inputs, held_out.labels[test_rows], classes)
