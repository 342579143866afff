"""What a data set has to provide."""

import abc
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped


@dataclass(frozen=True)
class Dataset:
    """Inputs, and what a network should make of them, for training and, if given, for testing.

    An input is a vector [f], an image [channels, height, width], or a sequence [length] of tokens,
    integers from 0 to `vocabulary - 1`. For classification `classes` is the number of classes and
    the labels are 0 to `classes - 1`: one an input, or one a position of a sequence, where -1
    stands at positions that the loss ignores. For regression there are real targets instead, one
    number or vector an input.
    """

    train_inputs: Shaped[np.ndarray, "n ..."]
    train_labels: Int[np.ndarray, "n ..."] | None = None
    test_inputs: Shaped[np.ndarray, "m ..."] | None = None
    test_labels: Int[np.ndarray, "m ..."] | None = None
    classes: int | None = None
    vocabulary: int | None = None
    train_targets: Float[np.ndarray, " n"] | Float[np.ndarray, "n o"] | None = None
    test_targets: Float[np.ndarray, " m"] | Float[np.ndarray, "m o"] | None = None

    @property
    def is_regression(self) -> bool:
        """Whether there are real targets instead of labels."""
        return self.train_targets is not None

    @property
    def train_answers(self) -> Int[np.ndarray, "n ..."] | Float[np.ndarray, "n ..."]:
        """Labels or targets, whichever there are."""
        answers = self.train_targets if self.is_regression else self.train_labels
        assert answers is not None
        return answers

    @property
    def test_answers(self) -> Int[np.ndarray, "m ..."] | Float[np.ndarray, "m ..."] | None:
        """Labels or targets to test on, if there are any."""
        return self.test_targets if self.is_regression else self.test_labels


@dataclass(frozen=True)
class AbstractData(abc.ABC):
    """A data set; its fields are its options in a spec."""

    @abc.abstractmethod
    def load(self, seed: int) -> Dataset:
        """The data, real inputs in float64; `seed` decides splits and drawn samples.

        Raises `errors.OptionError` if the options are impossible.
        """
