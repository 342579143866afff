"""Which rules have a central flow, found out by probing them with random vectors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, PRNGKeyArray

from ...errors import UnsupportedRule
from ._coupling import find_coupling
from ._maximum import between_switches, find_maxima
from ._period import other_period
from ._probe import Probe, find_parts, probe_rule
from ._response import Response, Rule, State, Structure, Vector

_TOLERANCE = 1e-8
"""Relative defect of an operator, probed in float64, that is taken for rounding."""
_NOTHING = 1e-6
"""Share of the largest response below which there is none."""
_RIPPLE, _TURNS = 0.01, 3
"""Share of a step that counts as a change from step to step, and how often changes may not turn
around within the counts that are looked at: a schedule warms up, decays, and may restart once."""
ONLY_SOMETIMES = (
    "the optimizer only moves in some steps, or differently in different ones (as with "
    "optax.MultiSteps, apply_every or conditionally_mask), and a flow is of what changes slowly; "
    "where gradients are accumulated give it the mean gradient instead"
)
_NO_GRADIENT = (
    "the gradient is zero where the processes start, so that the optimizer's averages of it are, "
    "and its response is not defined; start elsewhere"
)


def examine(
    rule: Rule, s: State, w: Vector, g: Vector, key: PRNGKeyArray, *, tol: float | None = None
) -> Response:
    """Probe a rule with random vectors and return its response.

    `s` is a relaxed post-update state and `g` a gradient at `w`. The rule is probed there and at
    states some steps later, in float64 whatever the precision of `w`. `tol` is the relative defect
    up to which an operator counts as symmetric or diagonal. Runs once, on the host. A rule outside
    the theory has its reason in `structure.refusal`: its state's recursion is not stable, or mixes
    what oscillates with what averages, its step is not linear in an oscillating gradient, does not
    respond to one at all, or not symmetrically, or it does not turn unstable with period two. What
    is a running maximum in the state is taken as it is between two switches.
    """
    tol = tol or _TOLERANCE
    point = jax.tree.map(lambda x: x.astype(jnp.float64), (s, w, g))
    parts = find_parts(rule, s, w)
    maxima = find_maxima(rule, parts, point)
    if maxima:
        point = (between_switches(point[0], maxima), *point[1:])
    rows, reach = probe_rule(rule, None, parts, point, key)
    coupling, refusal = None, ""
    probe = _worst(rows)
    links = np.max(np.nan_to_num(rows.links), axis=0) > tol
    linked = np.any(links & ~np.eye(len(links), dtype=bool))
    # What depends on both, as a variance around the momentum, is linear in either alone.
    answers = probe.response_size > 0 and probe.momentum_size > 0
    if linked or (answers and not probe.nonlinearity <= tol**0.5):
        coupling, refusal = find_coupling(rule, parts, links, point, key, tol)
        if coupling is not None:
            rows, reach = probe_rule(rule, coupling, parts, point, key)
            probe = _worst(rows)
    structure = _structure(probe, w.size, tol)
    refusal = _intermittent(rows.step_size, reach) or refusal or _refusal(probe, tol)
    if not np.any(g) and not probe.response_size > 0:
        refusal = _NO_GRADIENT
    if not refusal and structure.gain in ("scalar", "diagonal"):
        refusal = other_period(rows.recursion, coupling, parts)
    return Response(rule, structure._replace(refusal=refusal, maxima=maxima), coupling)


def derive(
    rule: Rule, s: State, w: Vector, g: Vector, key: PRNGKeyArray, *, tol: float | None = None
) -> Response:
    """The response of a rule that has a central flow; see `examine`.

    Raises `UnsupportedRule` with the reason for one that has none.
    """
    response = examine(rule, s, w, g, key, tol=tol)
    if response.structure.refusal:
        raise UnsupportedRule(response.structure.refusal)
    return response


def _answering(size: Any) -> Bool[np.ndarray, " rows"]:
    """Rows with a response: where a schedule has come to nothing only rounding is left of it."""
    return ~(size < _NOTHING * np.max(size, initial=0, where=np.isfinite(size)))


def _worst(rows: Probe) -> Probe:
    """The largest of every number over the rows with a response; all slopes count."""
    answers = _answering(rows.response_size)
    probe = jax.tree.map(lambda x: x[answers].max(axis=0), rows)
    return probe._replace(slopes=(rows.slopes[:, 0].min(), rows.slopes[:, 1].max()))


def _structure(probe: Probe, d: int, tol: float) -> Structure:
    defined = probe.response_size > 0 and probe.asymmetry <= tol
    undecayed = probe.decay_size == 0
    diagonal_decay = "diagonal" if probe.decay_defect <= tol else "general"
    gain = "diagonal" if probe.gain_defect <= tol else "general"
    if d > 1 and gain == "diagonal" and undecayed and probe.gain_spread <= tol:
        gain = "scalar"
    return Structure(
        gain=gain if defined else "none",
        decay="none" if undecayed else diagonal_decay,
        follows_weights=bool(probe.gain_motion != 0),  # also where it is not a number
        momentum=bool(probe.momentum_size > 0),
        averages=bool(probe.averages),
        sums=bool(probe.sums),
    )


def _refusal(probe: Probe, tol: float) -> str:
    """Why the rule has no central flow; empty if it has one."""
    low, high = probe.slopes
    if not probe.recursion_defect <= tol:
        return (
            "an entry of the optimizer's state depends on other entries of the old state, of other "
            "weights; only what evolves weight by weight (averages, momenta, sums) is supported"
        )
    if not (low >= -tol and high <= 1 + tol):
        return (
            f"the optimizer's state multiplies itself by {low:.3g} to {high:.3g} a step; "
            "an average or a counter has a factor between 0 and 1"
        )
    if not probe.undefined and probe.step_size == 0:
        return (
            "the optimizer does not move where the processes start, nor in the steps after (as "
            "with updates that are masked until later); start where it does (warm_start)"
        )
    if not probe.undefined and not probe.response_size > 0:
        return (
            "zero response: the step does not change with a small oscillation of the gradient (as "
            "in sign descent or Lion), so there is no stability threshold"
        )
    if probe.undefined or not probe.nonlinearity <= tol**0.5:
        return (
            "nonlinear response: at fixed statistics, twice the gradient is not twice the step, or "
            "a statistic is not quadratic in the gradient (as with normalised or orthogonalised "
            f"steps, or clipping that is active); relative defect {probe.nonlinearity:.1e}"
        )
    if not probe.asymmetry <= tol:
        return (
            "asymmetric response: the answer of the step to an oscillating gradient is not a "
            "symmetric operator, so no preconditioner describes it; relative defect "
            f"{probe.asymmetry:.1e}"
        )
    if probe.uphill > tol:
        return "the step moves uphill: it has the gradient's sign; scale it by a negative number"
    return ""


def _intermittent(size: Any, reach: Any) -> str:
    """Why a rule that moves in some steps, or more in some, has no flow; empty if it does not.

    It may begin later, or end. `size` and `reach` are those of steps, `reach` from count to count.
    """
    moves = np.flatnonzero(_answering(size) & (size > 0))
    changes = np.diff(reach)
    changes = changes[np.abs(changes) > _RIPPLE * np.max(np.abs(reach), initial=0)]
    turns = np.count_nonzero(np.diff(np.sign(changes)))
    return "" if np.all(np.diff(moves) == 1) and turns < _TURNS else ONLY_SOMETIMES
