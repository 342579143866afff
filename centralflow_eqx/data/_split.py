"""Splitting samples into training and test examples."""

import numpy as np
from jaxtyping import Float, Int

from ..errors import OptionError
from ._base import Dataset


def halves(inputs: Float[np.ndarray, "m f"], labels: Int[np.ndarray, " m"]) -> Dataset:
    """First half for training, second for testing, in units of the training half.

    Every feature is shifted and scaled to mean 0 and standard deviation 1 over the training half
    (deviation 0 where it is constant there).
    """
    n = len(inputs) // 2
    spread = inputs[:n].std(axis=0)
    inputs = (inputs - inputs[:n].mean(axis=0)) / np.where(spread > 0, spread, 1)
    return Dataset(inputs[:n], labels[:n], inputs[n:], labels[n:], int(labels.max()) + 1)


def draw(
    seed: int, there: int, n: int, test_there: int | None, test_n: int | None, what: str
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"]]:
    """Which `n` of `there` examples to train on, and which to test on, up to `test_n` (None: all).

    Test examples are among `test_there` others, or, where that is None, among those not trained
    on. Raises `OptionError` if `n` is too large.
    """
    if n > there:
        raise OptionError("n", f"must be <= {there}, the {what} there are, got {n}")
    rng = np.random.default_rng(seed)
    train, rest = np.split(rng.permutation(there), [n])
    test = rest if test_there is None else rng.permutation(test_there)
    return train, test[:test_n]
