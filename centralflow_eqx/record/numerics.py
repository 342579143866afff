"""What is numerically doubtful about a row."""

import enum
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

_UNLOCKED_ABOVE = 2.05
_FAR_OFF = 3.0
"""A step is taken anew if it is seen in time to be off by so many times what is asked, and may be
shorter. Much of its error is known only where the next one begins."""


class NUMERICS(enum.IntFlag):
    """What the series `numerics` is a sum of."""

    eigenpairs = 1
    complementarity = 2
    stepping = 4
    sharpness = 8
    not_finite = 16
    positivity = 32


WORDS = {
    NUMERICS.eigenpairs: "tracked eigenpairs did not reach their tolerance",
    NUMERICS.complementarity: "the complementarity problem is violated by more than `flow.tol`",
    NUMERICS.stepping: f"a step was off by more than {_FAR_OFF:g} times `flow.tol`",
    NUMERICS.sharpness: f"an effective eigenvalue of the flow is above {_UNLOCKED_ABOVE:g}",
    NUMERICS.not_finite: "a prediction is not finite",
    NUMERICS.positivity: "the optimizer's gain is negative: its step leads up the gradient",
}


def doubts(series: Mapping[str, Any], step_tol: float) -> NUMERICS:
    """What is doubtful about a process at a row; `step_tol` is the error that steps may make."""
    found = NUMERICS(0)
    if series.get("converged", 1) == 0:
        found |= NUMERICS.eigenpairs
    if series.get("gain_positive", 1) == 0:
        found |= NUMERICS.positivity
    if series.get("sdcp_residual", 0.0) > step_tol:
        found |= NUMERICS.complementarity
    if series.get("step_error", 0.0) > _FAR_OFF * step_tol:
        found |= NUMERICS.stepping
    if "sigma_eigenvalues" in series:
        held = "rod_lengths" not in series  # at the edge, by an oscillation in equilibrium
        if held and np.any(series["eigenvalues"] > _UNLOCKED_ABOVE):  # what is not tracked is NaN
            found |= NUMERICS.sharpness
        if not math.isfinite(series["predicted_loss"] + series["predicted_grad_norm_sq"]):
            found |= NUMERICS.not_finite
    return found
