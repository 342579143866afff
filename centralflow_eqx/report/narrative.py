"""Sentences about a run, from facts about it."""

from collections.abc import Iterator

import numpy as np

from ..record.reader import FLOWS
from ._edge import EDGE_ROWS, LOCK_WIDTH, OSCILLATES_ABOVE, OSCILLATING_WIDTH, Edge
from ._noise import Gap
from .facts import Ablation, Adaptation, Closeness, Error, Facts, Late

_TRUST_LIMIT = 0.3
_EQUILIBRIUM_LIMIT = 0.6
_EDGE_LIMIT = 0.3
QUANTITIES = {
    "train_loss": "time average of the loss",
    "grad_norm_sq": "time average of the squared gradient norm",
    "grad_sq_at": "time average of the squared gradient at chosen weights",
    "outputs": "time average of the network's outputs",
    "empirical_variances": "variance of the oscillation",
    "state/nu_sum": "sum of the optimizer's averages of squared gradients",
}
"""What is predicted, by the series that has it."""


def describe(facts: Facts) -> dict[str, list[str]]:
    """The facts in sentences, by heading."""
    chapters = {
        "What happened": _happened(facts),
        "How good the predictions are": _quality(facts),
        "What stabilised it": _stabilised(facts),
        "Where not to trust them": _doubts(facts),
        "What it cost": _cost(facts),
    }
    told = {heading: list(sentences) for heading, sentences in chapters.items()}
    return {heading: sentences for heading, sentences in told.items() if sentences}


def _happened(facts: Facts) -> Iterator[str]:
    if facts.recorded == 0:
        yield f"Nothing was recorded (status: {facts.status})."
        return
    yield (
        f"The run ({', '.join(facts.processes)}) recorded {facts.recorded} of {facts.rows} rows, "
        f"steps {facts.first_step} to {facts.last_step}; status: {facts.status}."
    )
    if facts.goal:
        yield f"It ended at its goal, {facts.goal}."
    yield from _about_edges(facts)
    if "central" in facts.processes:
        if facts.most_oscillating:
            yield (
                f"At most {_directions(facts.most_oscillating)} at the same time; at the end, "
                f"{facts.last_oscillating}."
            )
        else:
            yield "No direction oscillated, so the central flow is the stable flow."
    losses = (f"{a:.4g} to {b:.4g} ({p})" for p, (a, b) in facts.losses.items())
    yield f"Training loss: {', '.join(losses)}."
    for halt in facts.halts:
        yield f"The {_called(halt.process)} stopped at step {halt.step}: {halt.reason}."


def _about_edges(facts: Facts) -> Iterator[str]:
    ended = {halt.process for halt in facts.halts}
    for edge in facts.edges:
        name = _called(edge.process)
        if edge.step is None and edge.process in ended:
            continue  # what is told of its end says more
        if edge.step is None:
            yield f"The {name} did not reach the edge of stability."
            continue
        when = f"The {name} reached the edge of stability at step {edge.step}"
        if edge.process == "central":
            yield (
                f"{when}; from there the median of its largest effective eigenvalue is "
                f"{edge.median:.4f}{_drift(edge)}."
            )
        else:
            yield f"{when} (median eigenvalue from there {edge.median:.3f})."


def _drift(edge: Edge) -> str:
    if np.isnan(edge.drift):
        return ""
    return f", and from {EDGE_ROWS} rows later on it stays within {edge.drift:.1g} of 2"


def _quality(facts: Facts) -> Iterator[str]:
    for error in facts.errors:
        if error.flow == facts.errors[0].flow:
            yield _about_error(error)
        elif error.quantity == "train_loss":
            yield (
                f"The loss that the {_called(error.flow)} predicts is off by "
                f"{percent(error.median)}."
            )
    if facts.closeness is not None:
        yield from _about_distances(facts.closeness)
    if facts.gap is not None:
        yield _about_gap(facts.gap)
    if not facts.errors and facts.closeness is None:
        yield "There is nothing to compare: that takes a discrete run and a central flow."


def _about_gap(gap: Gap) -> str:
    told = ""
    if np.isfinite(gap.measured):
        told = f"; that of the mini-batch run is {gap.measured:.3g} below"
    return (
        f"The noise of mini-batches keeps the effective eigenvalue of the {_called(gap.flow)} "
        f"{gap.predicted:.3g} below 2, on average over the oscillation's variance{told}."
    )


def _about_error(error: Error) -> str:
    own = ""
    if np.isfinite(error.own):
        own = f" The flow's own value, without the oscillation, is off by {percent(error.own)}."
    return (
        f"From step {error.first_step} on, the predicted {QUANTITIES[error.quantity]} is off by "
        f"{percent(error.median)} (median over rows, against the smoothed discrete run; at "
        f"worst {percent(error.worst)}, at step {error.worst_step}).{own}"
    )


def _stabilised(facts: Facts) -> Iterator[str]:
    if facts.ablation is not None:
        yield _about_ablation(facts.ablation)
    if facts.adaptation is not None:
        yield from _about_adaptation(facts.adaptation)


def _about_ablation(ablation: Ablation) -> str:
    (loss, central_loss), (sharpness, central_sharpness) = ablation.loss, ablation.sharpness
    sharp = ""
    if np.isfinite(sharpness) and np.isfinite(central_sharpness):
        where = "sharper" if sharpness > central_sharpness else "no sharper"
        sharp = (
            f" It is in {where} regions: the largest eigenvalue of the Hessian is "
            f"{sharpness:.4g}, against {central_sharpness:.4g}."
        )
    which = "higher" if loss > central_loss else "no higher"
    return (
        f"The ablated flow is the central flow without the force that the oscillation exerts "
        f"towards flatter regions. At step {ablation.step} its training loss is {which}: "
        f"{loss:.4g}, against {central_loss:.4g}.{sharp}"
    )


def _about_adaptation(adaptation: Adaptation) -> Iterator[str]:
    if np.isfinite(adaptation.by_state):
        yield (
            f"Where directions oscillate, the optimizer's state does "
            f"{percent(adaptation.by_state)} of the stabilisation of the "
            f"{_called(adaptation.flow)} by adapting (median over rows); moving to flatter regions "
            f"does the rest."
        )
    if adaptation.step is not None:
        yield (
            f"At step {adaptation.step} the optimizer's averages and the values at which they "
            f"would settle if the weights stood still have cosine similarity "
            f"{adaptation.cosine:.3f}."
        )


def _about_distances(close: Closeness) -> Iterator[str]:
    reference = {
        "midpoint": "the discrete run's midpoints",
        "discrete": "the discrete run",
        "discrete_minibatch": "the mini-batch run",
    }
    moved = ""
    if close.moved > 0:
        moved = f", {percent(close.distance / close.moved)} of the {close.moved:.4g} it had moved"
    yield (
        f"At step {close.step} the central flow is {close.distance:.3g} away from "
        f"{reference[close.reference]}{moved}; the largest distance at any step is "
        f"{close.largest:.3g}."
    )
    if np.isfinite(close.stable):
        ratio = close.stable / close.distance if close.distance > 0 else np.inf
        times = f", {ratio:.3g} times as far" if np.isfinite(ratio) else ""
        yield f"The stable flow is {close.stable:.3g} away at that step{times}."


def _doubts(facts: Facts) -> Iterator[str]:
    trust = facts.trust
    if not set(FLOWS) & set(facts.processes):
        yield "There is no central flow in this run."
    elif trust.ranges:
        spans = [f"{a}" if a == b else f"{a} to {b}" for a, b in trust.ranges]
        shown = ", ".join(spans[:8]) + (f" and {len(spans) - 8} more" if len(spans) > 8 else "")
        yield (
            f"{trust.rows} of {facts.recorded} recorded rows should not be believed: "
            f"steps {shown}. They are shaded in the figures."
        )
    else:
        yield "No row was flagged."
    if facts.late is not None:
        yield _about_late(facts.late)
    indicators = (
        ("cubic indicator", trust.cubic, f" (doubtful above {_TRUST_LIMIT})"),
        ("quartic indicator", trust.quartic, f" (doubtful above {_TRUST_LIMIT})"),
        ("nonlinear share of the step", trust.response, f" (doubtful above {_TRUST_LIMIT})"),
        (
            "relative difference of measured and predicted variance, over 15 steps",
            trust.equilibrium,
            f" (doubtful above {_EQUILIBRIUM_LIMIT}, a factor of 4)",
        ),
        (
            "relative difference of effective eigenvalues, optimizer and flow, over 15 steps",
            trust.edge,
            f" (doubtful above {_EDGE_LIMIT})",
        ),
        ("residual of the complementarity problem", trust.sdcp_residual, ""),
        ("residual of a tracked eigenpair", trust.eigen_residual, ""),
    )
    for name, worst, remark in indicators:
        if worst is not None:
            yield (
                f"Largest {name}: {worst.value:.2g}, at step {worst.step} of the "
                f"{_called(worst.process)}{remark}."
            )
    for doubt in facts.doubts:
        rows = "1 row" if doubt.rows == 1 else f"{doubt.rows} rows"
        where = f"{rows} of the {_called(doubt.process)}, first at step {doubt.first}"
        yield f"In {where}: {doubt.words}."


def _about_late(late: Late) -> str:
    start = f"The oscillation is predicted from step {late.predicted_from} on, but the discrete run"
    if late.step is None:
        return f"{start} never has half of the predicted variance: its time averages are others."
    return (
        f"{start} first has half of the predicted variance at step {late.step}: until then its "
        f"time averages cannot be the predicted ones."
    )


def _cost(facts: Facts) -> Iterator[str]:
    for cost in facts.costs:
        counts = [
            f"{unit} {value:.3g}"
            for value, unit in (
                (cost.hvps, "Hessian-vector products"),
                (cost.third_derivatives, "third derivatives"),
                (cost.gradients, "gradients"),
            )
            if value > 0
        ]
        if counts:
            yield f"Mean work of the {_called(cost.process)} per step: {', '.join(counts)}."
    if np.isfinite(facts.wall_seconds):
        yield f"The run took {facts.wall_seconds:.3g} s, compilation included."


DEFINITION = (
    f"A process has reached the edge of stability at the first recorded step at which its largest "
    f"effective eigenvalue, and the median over the {EDGE_ROWS} rows from there, lie between "
    f"{2 - LOCK_WIDTH:g} and {2 + LOCK_WIDTH:g}; for the discrete run and its midpoints, whose "
    f"eigenvalues swing, up to {2 + OSCILLATING_WIDTH:g}. A direction oscillates where its "
    f"eigenvalue of Sigma exceeds {OSCILLATES_ABOVE:g} of the largest in the run. Prediction "
    f"errors compare series smoothed alike; those of several values at once are of their norm."
)


def _called(process: str) -> str:
    names = {
        "discrete": "discrete run",
        "midpoint": "midpoint series",
        "discrete_minibatch": "mini-batch run",
    }
    return names.get(process, f"{process.replace('_', ' ')} flow")


def _directions(number: int) -> str:
    return "one direction oscillated" if number == 1 else f"{number} directions oscillated"


def percent(share: float) -> str:
    """A relative error for a reader; beyond ten times the value only its size matters."""
    if share > 10:
        return "more than 1000%"
    return f"{100 * share:.2g}%" if share < 1 else f"{100 * share:.0f}%"
