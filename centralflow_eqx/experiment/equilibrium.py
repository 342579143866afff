"""Whether the optimizer is where flows, always in equilibrium, say that it is: at the edge."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Array, Float

_AVERAGED = "variances", "eigenvalues"
WINDOW = 15
"""Steps over which what is compared is averaged."""
DOUBTFUL = 0.6
"""Relative difference of variances above which a row is untrusted: 0.6 is a factor of 4."""
DOUBTFUL_EDGE = 0.3
"""Difference of eigenvalues, relative to the critical one, above which a row is untrusted: runs
that are right have up to 0.21, in bursts."""

Averages = dict[str, Float[np.ndarray | Array, "2"]]


def no_averages(names: Iterable[str]) -> Averages:
    """Averages over no rows, of the series `names`."""
    return {f"{name}/{what}": np.zeros(2) for name in names for what in _AVERAGED}


class EquilibriumWatch:
    """Adds `trust_equilibrium` and `trust_edge` to the rows of flows, one after the other.

    The first is |a - b|/(a + b) for a, the optimizer's squared displacement from the flow along the
    directions that the flow says to oscillate, and b, the variance that it predicts there, both
    averaged over the last steps: 1 as long as nothing oscillates, 0 where the two agree. An
    oscillation grows from what displaces the optimizer, at the rate of the sharpness beyond 2,
    which can take hundreds of steps, and may overshoot in bursts. The row is flagged where they
    differ by more than a factor of 4.

    The second is |x - y|/2 for the largest effective eigenvalues x of the optimizer and y of the
    flow, averaged over the last steps. It also tells where both have come to rest, and nothing
    oscillates that could be compared: the flow at the edge, the optimizer, after a burst, well
    below it.
    """

    def __init__(self, every: int, optimizer: str = "discrete", averages: Averages | None = None):
        """`every` steps there is a row; `averages` are those over the rows before.

        Flows are compared with the process `optimizer`.
        """
        self._optimizer = optimizer
        self._kept = math.exp(-every / WINDOW)
        self.averages = {} if averages is None else {k: np.asarray(v) for k, v in averages.items()}

    def __call__(self, series: Mapping[str, dict[str, Any]]) -> None:
        """Look at the series of a row's processes, and add to them."""
        optimizer = series.get(self._optimizer, {})
        for name, found in series.items():
            if not {"empirical_variances", "sigma_eigenvalues", "untrusted"} <= found.keys():
                continue
            trust = {"trust_equilibrium": (self._variances(name, found), DOUBTFUL)}
            if "eigenvalues" in optimizer:
                trust["trust_edge"] = self._eigenvalues(name, found, optimizer), DOUBTFUL_EDGE
            for key, (off, limit) in trust.items():
                found[key] = np.asarray(off)
                if off > limit:
                    found["untrusted"] = np.asarray(1, np.int32)

    def _variances(self, name: str, found: Mapping[str, Any]) -> float:
        """The relative difference of variances, NaN where none is predicted."""
        predicted = np.nan_to_num(found["sigma_eigenvalues"])
        swings = predicted > 0
        measured = np.nan_to_num(found["empirical_variances"])[swings]
        a, b = self._averaged(name, "variances", float(measured.sum()), float(predicted.sum()))
        return abs(a - b) / (a + b) if swings.any() and a + b > 0 else math.nan

    def _eigenvalues(
        self, name: str, found: Mapping[str, Any], optimizer: Mapping[str, Any]
    ) -> float:
        """The relative difference of eigenvalues, NaN where there are none."""
        off = float(optimizer["eigenvalues"][0] - found["eigenvalues"][0]) / 2
        if not math.isfinite(off):
            return math.nan
        off, seen = self._averaged(name, "eigenvalues", off, 1.0)
        return abs(off) / seen

    def _averaged(self, name: str, what: str, *now: float) -> Float[np.ndarray, "2"]:
        """Averages of two of a flow's numbers over the window, up to a common factor."""
        before = self.averages.get(key := f"{name}/{what}", np.zeros(2))
        self.averages[key] = self._kept * before + (1 - self._kept) * np.array(now, float)
        return self.averages[key]
