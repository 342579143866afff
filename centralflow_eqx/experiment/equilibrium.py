"""Whether the optimizer oscillates as much as flows, always in equilibrium, say that it does."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

WINDOW = 15
"""Steps over which both variances are averaged."""
DOUBTFUL = 0.6
"""Relative difference above which a row is untrusted: 0.6 is a factor of 4."""


class EquilibriumWatch:
    """Adds `trust_equilibrium` to the rows of flows, one after the other.

    It is |a - b|/(a + b) for a, the optimizer's squared displacement from the flow along the
    directions that the flow says to oscillate, and b, the variance that it predicts there, both
    averaged over the last steps: 1 as long as nothing oscillates, 0 where the two agree. An
    oscillation grows from what displaces the optimizer, at the rate of the sharpness beyond 2,
    which can take hundreds of steps, and may overshoot in bursts. The row is flagged where they
    differ by more than a factor of 4.
    """

    def __init__(self, every: int):
        """`every` steps there is a row."""
        self._kept = math.exp(-every / WINDOW)
        self._means: dict[str, np.ndarray] = {}

    def __call__(self, series: Mapping[str, dict[str, Any]]) -> None:
        """Look at the series of a row's processes, and add to them."""
        for name, found in series.items():
            if not {"empirical_variances", "sigma_eigenvalues"} <= found.keys():
                continue
            predicted = np.nan_to_num(found["sigma_eigenvalues"])
            swings = predicted > 0
            measured = np.nan_to_num(found["empirical_variances"])[swings]
            now = np.array([measured.sum(), predicted.sum()], float)
            before = self._means.get(name, np.zeros(2))
            a, b = self._means[name] = self._kept * before + (1 - self._kept) * now
            off = abs(a - b) / (a + b) if swings.any() and a + b > 0 else math.nan
            found["trust_equilibrium"] = np.asarray(off)
            if off > DOUBTFUL:
                found["untrusted"] = np.asarray(1, np.int32)
