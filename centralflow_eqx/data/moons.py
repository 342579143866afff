"""Two interleaved half circles."""

from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge
from typing_extensions import Doc

from ._base import AbstractData, Dataset
from ._registry import DATASETS
from ._split import halves


@DATASETS.register("moons")
@dataclass(frozen=True)
class Moons(AbstractData):
    """Two interleaved half circles in the plane (scikit-learn's make_moons), standardised."""

    n: Annotated[int, Ge(2), Doc("Training examples; as many again are drawn for testing.")] = 200
    noise: Annotated[float, Ge(0), Doc("Standard deviation of the Gaussian noise.")] = 0.1

    def load(self, seed: int) -> Dataset:
        from sklearn.datasets import make_moons

        drawn: Any = make_moons(2 * self.n, noise=self.noise, random_state=seed)
        return halves(*drawn)
