"""Gaussian clusters."""

from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le
from typing_extensions import Doc

from ..errors import OptionError
from ._base import AbstractData, Dataset
from ._made_up import check_amount
from ._registry import DATASETS
from ._split import halves


@DATASETS.register("classification")
@dataclass(frozen=True)
class Classification(AbstractData):
    """One Gaussian cluster per class (scikit-learn's make_classification), standardised."""

    n: Annotated[int, Ge(2), Doc("Training examples; as many again are drawn for testing.")] = 200
    features: Annotated[int, Ge(1), Doc("Input features.")] = 20
    informative: Annotated[int, Ge(1), Doc("Features that depend on the class.")] = 5
    classes: Annotated[int, Ge(2), Doc("Number of classes.")] = 2
    separation: Annotated[float, Gt(0), Doc("Half the distance between clusters.")] = 1.0
    noise: Annotated[float, Ge(0), Le(1), Doc("Fraction of labels drawn at random.")] = 0.01

    def load(self, seed: int) -> Dataset:
        if self.informative > self.features:
            raise OptionError(
                "informative", f"must be <= features = {self.features}, got {self.informative}"
            )
        check_amount("n", 2 * self.n, self.features)
        # Every cluster has a matrix of its own, and sits on a corner of a cube.
        check_amount("informative", self.classes, self.informative, self.informative)
        corners = 2**self.informative
        if self.classes > min(corners, self.n):
            raise OptionError(
                "classes",
                f"must be <= n = {self.n} and <= 2^informative = {corners}, got {self.classes}",
            )
        from sklearn.datasets import make_classification  # takes two seconds to import

        drawn: Any = make_classification(
            2 * self.n,
            n_features=self.features,
            n_informative=self.informative,
            n_redundant=0,
            n_classes=self.classes,
            n_clusters_per_class=1,
            class_sep=self.separation,
            flip_y=self.noise,
            random_state=seed,
        )
        return halves(*drawn)
