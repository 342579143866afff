"""What a data set has to provide."""

import abc
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Shaped


@dataclass(frozen=True)
class Dataset:
    """Inputs and labels 0 to `classes - 1` for training and, unless None, for testing.

    An input is a vector [f], an image [channels, height, width], or a sequence [length] of tokens,
    integers from 0 to `vocabulary - 1`. Sequences have one label each, or one per position, where
    -1 stands at positions that the loss ignores.
    """

    train_inputs: Shaped[np.ndarray, "n ..."]
    train_labels: Int[np.ndarray, "n ..."]
    test_inputs: Shaped[np.ndarray, "m ..."] | None
    test_labels: Int[np.ndarray, "m ..."] | None
    classes: int
    vocabulary: int | None = None


@dataclass(frozen=True)
class AbstractData(abc.ABC):
    """A data set; its fields are its options in a spec."""

    @abc.abstractmethod
    def load(self, seed: int) -> Dataset:
        """The data, real inputs in float64; `seed` decides splits and drawn samples.

        Raises `errors.OptionError` if the options are impossible.
        """
