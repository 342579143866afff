"""Two interleaved half circles."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge
from typing_extensions import Doc

from ._base import AbstractData, Dataset
from ._curves import two_curves
from ._made_up import check_amount
from ._registry import DATASETS


@DATASETS.register("moons")
@dataclass(frozen=True)
class Moons(AbstractData):
    """Two interleaved half circles in the plane (scikit-learn's make_moons), standardised."""

    n: Annotated[int, Ge(2), Doc("Training examples; as many again are drawn for testing.")] = 200
    noise: Annotated[float, Ge(0), Doc("Standard deviation of the Gaussian noise.")] = 0.1

    def load(self, seed: int) -> Dataset:
        check_amount("n", self.n, 4)  # two halves of points in the plane
        angle = np.linspace(0, np.pi, self.n)
        upper = np.stack([np.cos(angle), np.sin(angle)])
        lower = np.stack([1 - np.cos(angle), 1 - np.sin(angle) - 0.5])
        return two_curves(upper, lower, self.noise, seed)
