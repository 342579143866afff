"""What a data set has to provide."""

import abc
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class Dataset:
    """Inputs and labels 0 to `classes - 1` for training and, unless None, for testing."""

    train_inputs: Float[np.ndarray, "n f"]
    train_labels: Int[np.ndarray, " n"]
    test_inputs: Float[np.ndarray, "m f"] | None
    test_labels: Int[np.ndarray, " m"] | None
    classes: int


@dataclass(frozen=True)
class AbstractData(abc.ABC):
    """A data set; its fields are its options in a spec."""

    @abc.abstractmethod
    def load(self, seed: int) -> Dataset:
        """The data in float64; `seed` decides splits and drawn samples.

        Raises `errors.OptionError` if the options are impossible.
        """
