"""Noisy points of two curves in the plane."""

import numpy as np
from jaxtyping import Float

from ._base import Dataset
from ._split import halves


def two_curves(
    first: Float[np.ndarray, "2 n"], second: Float[np.ndarray, "2 n"], noise: float, seed: int
) -> Dataset:
    """The curves' points in random order, with Gaussian noise, labelled 0 and 1.

    Order and noise are those of scikit-learn's make_moons and make_circles, to the bit; importing
    scikit-learn takes two seconds.
    """
    rng = np.random.RandomState(seed)
    points = np.concatenate([first, second], axis=1).T
    labels = np.repeat([0, 1], [first.shape[1], second.shape[1]])
    order = rng.permutation(len(points))
    points, labels = points[order], labels[order]
    return halves(points + rng.normal(scale=noise, size=points.shape), labels)
