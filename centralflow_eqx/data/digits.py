"""Handwritten digits."""

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Le
from typing_extensions import Doc

from ..errors import OptionError
from ._base import AbstractData, Dataset
from ._registry import DATASETS


@DATASETS.register("digits")
@dataclass(frozen=True)
class Digits(AbstractData):
    """8x8 images of handwritten digits (scikit-learn's, offline); what is not trained on tests."""

    n: Annotated[int, Ge(2), Doc("Training examples, out of 1797.")] = 200
    classes: Annotated[int, Ge(2), Le(10), Doc("Keep the digits 0 to classes - 1.")] = 10

    def load(self, seed: int) -> Dataset:
        from sklearn.datasets import load_digits

        loaded: Any = load_digits(return_X_y=True)
        images, labels = loaded
        images = (images - images.mean()) / images.std()
        kept = labels < self.classes
        images, labels = images[kept], labels[kept]
        if self.n > len(images):
            raise OptionError("n", f"must be <= {len(images)}, the images there are, got {self.n}")
        train, test = np.split(np.random.default_rng(seed).permutation(len(images)), [self.n])
        held_out = (images[test], labels[test]) if len(test) else (None, None)
        return Dataset(images[train], labels[train], *held_out, self.classes)
