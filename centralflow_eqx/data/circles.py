"""Two circles, one inside the other."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt, Lt
from typing_extensions import Doc

from ._base import AbstractData, Dataset
from ._curves import two_curves
from ._made_up import check_amount
from ._registry import DATASETS


@DATASETS.register("circles")
@dataclass(frozen=True)
class Circles(AbstractData):
    """A circle inside another (scikit-learn's make_circles), standardised."""

    n: Annotated[int, Ge(2), Doc("Training examples; as many again are drawn for testing.")] = 200
    noise: Annotated[float, Ge(0), Doc("Standard deviation of the Gaussian noise.")] = 0.1
    factor: Annotated[float, Gt(0), Lt(1), Doc("Radius of the inner over the outer circle.")] = 0.5

    def load(self, seed: int) -> Dataset:
        check_amount("n", self.n, 4)  # two halves of points in the plane
        angle = np.linspace(0, 2 * np.pi, self.n, endpoint=False)
        outer = np.stack([np.cos(angle), np.sin(angle)])
        return two_curves(outer, outer * self.factor, self.noise, seed)
