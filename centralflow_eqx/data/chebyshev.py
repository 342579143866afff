"""Points of a Chebyshev polynomial."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge, Le
from typing_extensions import Doc

from ._base import AbstractData, Dataset
from ._made_up import check_amount
from ._registry import DATASETS


@DATASETS.register("chebyshev")
@dataclass(frozen=True)
class Chebyshev(AbstractData):
    """Regression: a Chebyshev polynomial of the first kind at evenly spaced points of [-1, 1]."""

    degree: Annotated[int, Ge(1), Le(1000), Doc("Degree of the polynomial.")] = 6
    n: Annotated[int, Ge(2), Doc("Points, both ends included.")] = 20

    def load(self, seed: int) -> Dataset:
        check_amount("n", self.n)
        x = np.linspace(-1, 1, self.n)
        values = np.polynomial.Chebyshev.basis(self.degree)(x)
        return Dataset(x[:, None], train_targets=values[:, None])
