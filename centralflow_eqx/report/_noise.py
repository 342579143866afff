"""What a run says of mini-batch noise: which optimizer a flow predicts, and the gap below 2."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ..record.reader import Run

_OF_ENSEMBLES = {"train_loss": "ensemble_loss", "grad_norm_sq": "ensemble_grad_norm_sq"}
"""What averages over several optimizers are called; a mean loss is not that of mean weights."""


@dataclass(frozen=True)
class Gap:
    """How far below 2 a flow with noise and its optimizers keep the effective eigenvalue.

    Means over rows and the oscillation, each by its variance. `measured` is NaN without several
    optimizers.
    """

    flow: str
    predicted: float
    measured: float


def knows_noise(run: Run, flow: str) -> bool:
    """Whether a flow predicts an optimizer with mini-batches."""
    return run.get(flow, "sharpness_gap") is not None


def measured(run: Run, flow: str, quantity: str) -> Float[np.ndarray, "..."] | None:
    """The series of the optimizer that a flow predicts, averaged over several if there are."""
    if not knows_noise(run, flow):
        return run.get("discrete", quantity)
    averaged = run.get("discrete_minibatch", _OF_ENSEMBLES.get(quantity, quantity))
    return run.get("discrete_minibatch", quantity) if averaged is None else averaged


def find_gap(run: Run) -> Gap | None:
    """The gap of the first flow that knows noise."""
    for flow in run.flows():
        predicted, variances = run.get(flow, "sharpness_gap"), run.get(flow, "sigma_eigenvalues")
        if predicted is None or variances is None:
            continue
        found = run.get("discrete_minibatch", "ensemble_gap")
        swings = run.get("discrete_minibatch", "ensemble_variances")
        by_optimizers = np.nan if found is None or swings is None else _mean(found, swings)
        return Gap(flow, _mean(predicted, variances), by_optimizers)
    return None


def _mean(values: Float[np.ndarray, " T"], variances: Float[np.ndarray, "T k"]) -> float:
    weights = np.nansum(variances, axis=1)
    known = np.isfinite(values) & (weights > 0)
    return float(np.average(values[known], weights=weights[known])) if known.any() else np.nan
