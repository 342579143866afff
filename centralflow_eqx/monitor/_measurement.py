"""What a measurement says, in numbers and in words."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from ..engine.complementarity import RESULTS
from ..engine.settings import Settings
from ..experiment.equilibrium import DOUBTFUL as OUT_OF_EQUILIBRIUM
from ..processes import DOUBTFUL
from ..record.numerics import NUMERICS, WORDS, doubts
from ._look import Extent, Reading

_TRUST = {
    "trust_cubic": (DOUBTFUL, "a move as large as the oscillation changes its eigenvalue"),
    "trust_quartic": (DOUBTFUL, "a quartic share of the averaged loss is neglected"),
    "trust_response": (DOUBTFUL, "the step is not linear in a gradient as large as it gets"),
    "trust_equilibrium": (
        OUT_OF_EQUILIBRIUM,
        "the optimizer does not oscillate as much as is predicted, or more",
    ),
}
"""Indicators: above what they are in doubt, and what that means."""
_WORDS = WORDS | {
    NUMERICS.sharpness: "an effective eigenvalue is above 2.05: the oscillation is not in "
    "equilibrium, and grows"
}
_ROUNDING = 1e-9
"""Share of the largest variance that is none."""


@dataclass(frozen=True)
class Measurement:
    """The edge of stability around the weights and state of a training loop.

    - `step`: what the caller said of when it was.
    - `loss`, and `averaged_loss`, the time average that the oscillation makes of it.
    - `eigenvalues` [k] of the effective Hessian, critical at 2, the largest first, and their
      relative `residuals`.
    - `sharpness`: the curvature u^T H u / u^T u along the leading direction u; `threshold`: the
      curvature along it at which this optimizer in this state turns unstable.
    - `variances` [k]: those of the oscillation that the theory predicts, the eigenvalues of the
      complementarity problem's X, in the P metric (units of the loss). `measured_variances` [k]:
      the optimizer's squared displacement along the same modes, NaN where it is not known.
    - `locked` [k]: which of `eigenvalues` the oscillation keeps where they are;
      `stabilised_by_state`: the share of that which the optimizer's state does, falling curvature
      does the rest; NaN where nothing oscillates.
    - `penalty_share`: of the step, that which is the penalty of the oscillation's curvature:
      |D p| / (|D p| + |D g|) for penalty p, gradient g and mean gain D.
    - `trust`: the indicators of a run's rows by name; `untrusted` says that one is in doubt, and
      `doubts` which, in words.
    - `unfinished`: what the budget was too short for, in words; `cost`: what was spent, in
      gradients.
    """

    step: int | None
    loss: float
    averaged_loss: float
    eigenvalues: Float[np.ndarray, " k"]
    residuals: Float[np.ndarray, " k"]
    sharpness: float
    threshold: float
    variances: Float[np.ndarray, " k"]
    measured_variances: Float[np.ndarray, " k"]
    locked: Bool[np.ndarray, " k"]
    stabilised_by_state: float
    penalty_share: float
    trust: dict[str, float]
    untrusted: bool
    doubts: tuple[str, ...]
    unfinished: tuple[str, ...]
    cost: int

    @property
    def effective_sharpness(self) -> float:
        """The largest effective eigenvalue, critical at 2."""
        return float(self.eigenvalues[0]) if self.eigenvalues.size else math.nan

    @property
    def oscillating(self) -> int:
        """How many directions oscillate, as the theory predicts."""
        return int(np.count_nonzero(self.variances))

    def as_dict(self) -> dict[str, Any]:
        """All of it in numbers, lists and strings, as JSON has them; None for what is not known."""
        found = dataclasses.asdict(self)
        derived = {n: getattr(self, n) for n in ("effective_sharpness", "oscillating")}
        return {name: _plain(value) for name, value in (found | derived).items()}

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def measurement(reading: Reading, step: int | None, settings: Settings) -> Measurement:
    """A reading on the host, judged."""
    series: Any = reading.series
    extent, seen = reading.extent, reading._asdict()
    finite = bool(np.isfinite(series["train_loss"]) and np.isfinite(reading.threshold))
    known = ~np.isnan(series["eigenvalues"]) & finite
    variances = series["sigma_eigenvalues"][known]
    variances = np.where(variances > _ROUNDING * variances.max(initial=0), variances, 0.0)
    measured = seen["measured"][known]
    trust = _trust(series, variances, measured)
    # The leading eigenpair is what there is to see, also where it is not critical.
    critical = known & (series["eigenvalues"] > settings.critical_above)
    critical[0] = known[0]
    converged = bool(series["converged"]) or _worst(series, critical) <= settings.residual
    found = [_WORDS[flag] for flag in doubts(series | {"converged": converged}, settings.step_tol)]
    if not finite:
        found = ["loss, weights or state are not finite: nothing can be measured"]
    elif (outcome := RESULTS[reading.result]) != RESULTS[RESULTS.solved]:
        found.append(outcome)
    found += [
        f"{words} ({name} {trust[name]:.2g})"
        for name, (limit, words) in _TRUST.items()
        if trust[name] > limit
    ]
    return Measurement(
        step=step,
        loss=float(series["train_loss"]),
        averaged_loss=float(series["predicted_loss"]),
        eigenvalues=series["eigenvalues"][known],
        residuals=series["eigen_residuals"][known],
        sharpness=float(reading.sharpness),
        threshold=float(reading.threshold),
        variances=variances,
        measured_variances=measured,
        locked=seen["locked"][known],
        stabilised_by_state=float(series["stabilised_by_state"]),
        penalty_share=float(reading.penalty_share),
        trust=trust,
        untrusted=bool(found),
        doubts=tuple(found),
        unfinished=tuple(_unfinished(series, extent, critical, settings)) if finite else (),
        cost=int(extent.cost),
    )


def _trust(
    series: Mapping[str, Any],
    variances: Float[np.ndarray, " k"],
    measured: Float[np.ndarray, " k"],
) -> dict[str, float]:
    """The indicators, of several directions the worst; NaN where there is nothing to judge."""
    found = {}
    for name in ("trust_cubic", "trust_quartic", "trust_response"):
        values = np.atleast_1d(series[name])
        found[name] = float(np.nanmax(values)) if np.any(~np.isnan(values)) else math.nan
    # As `EquilibriumWatch` has it, at one moment.
    a, b = measured[variances > 0].sum(), variances.sum()
    found["trust_equilibrium"] = float(abs(a - b) / (a + b)) if b > 0 else math.nan
    return found


def _worst(series: Mapping[str, Any], which: Bool[np.ndarray, " k"]) -> float:
    """The largest residual of some eigenpairs; zero of none."""
    return float(np.nanmax(series["eigen_residuals"][which], initial=0))


def _unfinished(
    series: Mapping[str, Any], extent: Extent, critical: Bool[np.ndarray, " k"], settings: Settings
) -> Iterator[str]:
    """What a look did not get to, in words; `critical` are those eigenpairs that may oscillate."""
    worst = 0.0 if series["converged"] else _worst(series, critical)
    if worst > settings.residual:
        wanted = f"{settings.residual:.0e} is wanted"
        yield f"eigenpairs: relative residuals of up to {worst:.1e} of leading ones, {wanted}"
    elif not series["converged"]:
        worst = _worst(series, ~critical & ~np.isnan(series["eigenvalues"]))
        yield (
            f"eigenpairs: relative residuals of up to {worst:.1e} of others than the leading ones, "
            "whose eigenvalues are right to about the square of that"
        )
    if extent.resolved < extent.wanted:
        yield (
            f"oscillation: only of the {extent.resolved} leading of {extent.wanted} critical "
            "directions, others need third derivatives that the budget, or room, is too small for"
        )
    if extent.judged < extent.resolved:
        yield (
            f"trust_quartic: only of the {extent.judged} leading of {extent.resolved} directions, "
            "others need fourth derivatives that the budget is too small for"
        )
    if extent.crowded:
        yield (
            "spectrum: more eigenvalues want to be followed than there is room for; give the "
            "monitor more directions, or settings with a larger track_above"
        )


def _lines(seen: Measurement) -> Iterator[str]:
    """A measurement as text."""
    step = "" if seen.step is None else f"step {seen.step}: "
    side = "beyond" if seen.effective_sharpness > 2 else "below"
    yield f"{step}loss {seen.loss:.6g}, {seen.averaged_loss:.6g} averaged over the oscillation"
    yield f"effective sharpness {seen.effective_sharpness:.5g}, {side} the critical 2"
    yield f"  curvature {seen.sharpness:.5g} along its direction, threshold {seen.threshold:.5g}"
    others = ", ".join(
        f"{theta:.4g}{' locked' if locked else ''}"
        for theta, locked in zip(seen.eigenvalues, seen.locked, strict=True)
    )
    yield f"  eigenvalues of the effective Hessian: {others}"
    if seen.oscillating:
        variances = ", ".join(f"{x:.3g}" for x in seen.variances[: seen.oscillating])
        yield f"oscillating directions: {seen.oscillating}, variances {variances}"
        yield f"  penalty of their curvature: {seen.penalty_share:.1%} of the step"
        if not math.isnan(seen.stabilised_by_state):
            state = f"{seen.stabilised_by_state:.1%}"
            yield f"  stabilised to {state} by the optimizer's state, the rest by falling curvature"
    else:
        yield "oscillating directions: none"
    yield "trust: " + ("in doubt" if seen.untrusted else "nothing in doubt")
    yield from (f"  {words}" for words in seen.doubts)
    if seen.unfinished:
        yield "not converged within the budget:"
        yield from (f"  {words}" for words in seen.unfinished)
    yield f"cost: {seen.cost} gradients"


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [_plain(x) for x in value.tolist()]
    if isinstance(value, dict):
        return {name: _plain(x) for name, x in value.items()}
    if isinstance(value, tuple):
        return list(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
