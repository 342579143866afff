"""Handwritten digits."""

import gzip
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Le
from jaxtyping import Float, Int
from typing_extensions import Doc

from ._base import AbstractData, Dataset
from ._registry import DATASETS
from ._split import draw


@DATASETS.register("digits")
@dataclass(frozen=True)
class Digits(AbstractData):
    """8x8 images of handwritten digits (scikit-learn's, offline); what is not trained on tests."""

    n: Annotated[int, Ge(2), Doc("Training examples, out of 1797.")] = 200
    classes: Annotated[int, Ge(2), Le(10), Doc("Keep the digits 0 to classes - 1.")] = 10
    size: Annotated[
        Literal[8, 16, 24, 32, 40, 48, 56, 64] | None,
        Doc("Pixels that images are enlarged to, for image models; null: a vector of 64 pixels."),
    ] = None

    def load(self, seed: int) -> Dataset:
        images, labels = _images()
        images = (images - images.mean()) / images.std()
        kept = labels < self.classes
        images, labels = images[kept], labels[kept]
        train, test = draw(seed, len(images), self.n, None, None, "images")
        if self.size is not None:
            images = _enlarged(images, self.size)
        held_out = (images[test], labels[test]) if len(test) else (None, None)
        return Dataset(images[train], labels[train], *held_out, self.classes)


def _images() -> tuple[Float[np.ndarray, "1797 64"], Int[np.ndarray, " 1797"]]:
    """Pixels and labels, from the file that scikit-learn's `load_digits` reads.

    Importing scikit-learn takes two seconds; it is only looked up.
    """
    package = find_spec("sklearn")
    assert package is not None and package.submodule_search_locations, "a dependency"
    (folder,) = package.submodule_search_locations
    with gzip.open(Path(folder) / "datasets" / "data" / "digits.csv.gz", "rt") as file:
        table = np.loadtxt(file, delimiter=",")
    return table[:, :-1], table[:, -1].astype(int)


def _enlarged(pixels: Float[np.ndarray, "n 64"], size: int) -> Float[np.ndarray, "n 1 size size"]:
    """Images by bilinear interpolation between the centres of the pixels."""
    from scipy.ndimage import zoom

    images, factors = pixels.reshape(-1, 1, 8, 8), (1, 1, size / 8, size / 8)
    return np.asarray(zoom(images, factors, order=1, mode="nearest", grid_mode=True))
