"""Splitting drawn samples into a training and a test half."""

import numpy as np
from jaxtyping import Float, Int

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
