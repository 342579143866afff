"""What happened in a run, computed from its data: facts, and sentences about them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ._data import Run, ranges, smooth
from ._edge import (
    EDGE_ROWS,
    LOCK_WIDTH,
    OSCILLATES_ABOVE,
    OSCILLATING_WIDTH,
    Edge,
    edges,
    first_oscillating_row,
    oscillating,
)

_TRUST_LIMIT = 0.3
_JUDGED = (("predicted_loss", "train_loss"), ("predicted_grad_norm_sq", "grad_norm_sq"))


@dataclass(frozen=True)
class Error:
    """Relative errors of a predicted time average against the smoothed discrete run.

    Judged from `first_step` on. `own` is the median error of the flow's own value, without the
    oscillation's share.
    """

    quantity: str
    first_step: int
    median: float
    worst: float
    worst_step: int
    own: float


@dataclass(frozen=True)
class Late:
    """The discrete run oscillates long after the central flow, from `step` on or (None) never.

    An iteration that passes its edge smoothly needs time for rounding-sized oscillations to grow.
    """

    predicted_from: int
    step: int | None


@dataclass(frozen=True)
class Closeness:
    """How close the central flow stayed to `reference` (the midpoints or the discrete run).

    Distances at `step`, the last one that every compared process has. NaN if unknown.
    """

    reference: str
    step: int
    distance: float
    largest: float
    moved: float
    stable: float


@dataclass(frozen=True)
class Peak:
    """The largest value of a series, and where it was."""

    value: float
    step: int
    process: str


@dataclass(frozen=True)
class Trust:
    """Where the predictions should not be believed: ranges of steps, and the worst indicators."""

    ranges: tuple[tuple[int, int], ...]
    rows: int
    cubic: Peak | None
    quartic: Peak | None
    response: Peak | None
    sdcp_residual: Peak | None
    eigen_residual: Peak | None


@dataclass(frozen=True)
class Halt:
    """A process that stopped before the end of the run."""

    process: str
    step: int
    reason: str


@dataclass(frozen=True)
class Cost:
    """Mean work of a process in a recorded step."""

    process: str
    hvps: float
    third_derivatives: float
    gradients: float


@dataclass(frozen=True)
class Facts:
    """What `describe` puts in words."""

    status: str
    processes: tuple[str, ...]
    recorded: int
    rows: int
    first_step: int
    last_step: int
    losses: dict[str, tuple[float, float]]
    edges: tuple[Edge, ...]
    most_oscillating: int
    last_oscillating: int
    errors: tuple[Error, ...]
    late: Late | None
    closeness: Closeness | None
    trust: Trust
    halts: tuple[Halt, ...]
    costs: tuple[Cost, ...]
    wall_seconds: float


def gather(run: Run) -> Facts:
    """All facts about a run; what its data does not say is left out or NaN."""
    written = run.recorded()
    losses = {}
    for process in run.series:
        values = run.get(process, "train_loss")
        if values is not None:
            known = values[np.isfinite(values)]
            losses[process] = (float(known[0]), float(known[-1]))
    recorded = run.steps[written] if written.any() else run.steps[:1]
    counts = oscillating(run)[written].sum(axis=1)
    return Facts(
        status=str(run.attributes.get("status", "unknown")),
        processes=tuple(run.series),
        recorded=int(written.sum()),
        rows=run.steps.size,
        first_step=int(recorded[0]),
        last_step=int(recorded[-1]),
        losses=losses,
        edges=tuple(edges(run)),
        most_oscillating=int(counts.max(initial=0)),
        last_oscillating=int(counts[-1]) if counts.size else 0,
        errors=tuple(_errors(run)),
        late=_late(run),
        closeness=_closeness(run),
        trust=_trust(run),
        halts=tuple(
            Halt(process, int(run.steps[stop.row]), stop.reason)
            for process, stop in run.stops.items()
        ),
        costs=tuple(_costs(run)),
        wall_seconds=run.wall_seconds,
    )


def _errors(run: Run) -> Iterator[Error]:
    """Errors of predictions from the edge of stability on.

    Both sides are smoothed alike: smoothing a falling curve shifts it, and that is no error of
    the prediction.
    """
    for predicted_name, name in _JUDGED:
        discrete, predicted = run.get("discrete", name), run.get("central", predicted_name)
        if discrete is None or predicted is None:
            continue
        judged = np.isfinite(discrete) & np.isfinite(predicted)
        judged[: first_oscillating_row(run)] = False
        target, average, own = (
            smooth(np.where(judged, values, np.nan), run.smoothing)[judged]
            for values in (discrete, predicted, run.series["central"][name])
        )
        if judged.any() and np.all(target > 0):
            steps, errors = run.steps[judged], np.abs(average - target) / target
            worst = int(np.argmax(errors))
            yield Error(
                name,
                int(steps[0]),
                float(np.median(errors)),
                float(errors[worst]),
                int(steps[worst]),
                float(np.median(np.abs(own - target) / target)),
            )


def _late(run: Run) -> Late | None:
    """Whether the measured variance takes more than `EDGE_ROWS` rows to reach half of Sigma's."""
    predicted = run.get("central", "sigma_eigenvalues")
    measured = run.get("central", "empirical_variances")
    started = np.flatnonzero(oscillating(run).any(axis=1))
    if predicted is None or measured is None or started.size <= EDGE_ROWS:
        return None
    ratio = np.nansum(measured, axis=1)[started] / np.nansum(predicted, axis=1)[started]
    reached = np.flatnonzero(ratio >= 0.5)
    if reached.size and reached[0] <= EDGE_ROWS:
        return None
    step = int(run.steps[started[reached[0]]]) if reached.size else None
    return Late(int(run.steps[started[0]]), step)


def _closeness(run: Run) -> Closeness | None:
    for reference in ("midpoint", "discrete"):
        distance = run.distance("central", reference)
        if distance is not None and np.isfinite(distance).any():
            break
    else:
        return None
    stable = run.distance("stable", reference)
    # A stable flow that stopped is compared where it stopped.
    compared = [distance] if stable is None or np.isnan(stable).all() else [distance, stable]
    common = np.isfinite(compared).all(axis=0)
    row = int(np.flatnonzero(common if common.any() else np.isfinite(distance))[-1])
    moved = run.get("central", "distance_moved")
    # Weights may be stored more rarely than distances.
    known = [] if moved is None else moved[: row + 1][np.isfinite(moved[: row + 1])]
    return Closeness(
        reference,
        int(run.steps[row]),
        float(distance[row]),
        float(np.nanmax(distance)),
        float(known[-1]) if len(known) else np.nan,
        np.nan if stable is None else float(stable[row]),
    )


def _peak(run: Run, name: str) -> Peak | None:
    """The largest value of a series over all processes, rows and directions."""
    found = {p: values for p in run.series if (values := run.get(p, name)) is not None}
    if not found:
        return None
    process = max(found, key=lambda p: float(np.nanmax(found[p])))
    values = found[process]
    row = np.unravel_index(np.nanargmax(values), values.shape)[0]
    return Peak(float(np.nanmax(values)), int(run.steps[row]), process)


def _trust(run: Run) -> Trust:
    doubted = run.untrusted()
    return Trust(
        tuple((int(run.steps[a]), int(run.steps[b])) for a, b in ranges(doubted)),
        int(doubted.sum()),
        _peak(run, "trust_cubic"),
        _peak(run, "trust_quartic"),
        _peak(run, "trust_response"),
        _peak(run, "sdcp_residual"),
        _peak(run, "eigen_residuals"),
    )


def _costs(run: Run) -> Iterator[Cost]:
    for process in run.series:
        counts = [run.get(process, name) for name in ("hvps", "third_derivatives", "gradients")]
        if any(values is not None for values in counts):
            yield Cost(process, *(0.0 if v is None else float(np.nanmean(v)) for v in counts))


def describe(facts: Facts) -> dict[str, list[str]]:
    """The facts in sentences, by heading."""
    chapters = {
        "What happened": _happened(facts),
        "How good the predictions are": _quality(facts),
        "Where not to trust them": _doubts(facts),
        "What it cost": _cost(facts),
    }
    return {heading: list(sentences) for heading, sentences in chapters.items()}


def _happened(facts: Facts) -> Iterator[str]:
    if facts.recorded == 0:
        yield f"Nothing was recorded (status: {facts.status})."
        return
    yield (
        f"The run ({', '.join(facts.processes)}) recorded {facts.recorded} of {facts.rows} rows, "
        f"steps {facts.first_step} to {facts.last_step}; status: {facts.status}."
    )
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
    for edge in facts.edges:
        name = _called(edge.process)
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
        what = {"train_loss": "loss", "grad_norm_sq": "squared gradient norm"}[error.quantity]
        yield (
            f"From step {error.first_step} on, the predicted time average of the {what} is off by "
            f"{_percent(error.median)} (median over rows, against the smoothed discrete run; at "
            f"worst {_percent(error.worst)}, at step {error.worst_step}). The flow's own value, "
            f"without the oscillation, is off by {_percent(error.own)}."
        )
    if facts.closeness is not None:
        yield from _about_distances(facts.closeness)
    if not facts.errors and facts.closeness is None:
        yield "There is nothing to compare: that takes a discrete run and a central flow."


def _about_distances(close: Closeness) -> Iterator[str]:
    reference = {"midpoint": "the discrete run's midpoints", "discrete": "the discrete run"}
    moved = ""
    if close.moved > 0:
        moved = f", {_percent(close.distance / close.moved)} of the {close.moved:.4g} it had moved"
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
    if "central" not in facts.processes:
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
        ("residual of the complementarity problem", trust.sdcp_residual, ""),
        ("residual of a tracked eigenpair", trust.eigen_residual, ""),
    )
    for name, worst, remark in indicators:
        if worst is not None:
            yield (
                f"Largest {name}: {worst.value:.2g}, at step {worst.step} of the "
                f"{_called(worst.process)}{remark}."
            )


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
    f"errors compare series smoothed alike."
)


def _called(process: str) -> str:
    names = {"discrete": "discrete run", "midpoint": "midpoint series"}
    return names.get(process, f"{process.replace('_', ' ')} flow")


def _directions(number: int) -> str:
    return "one direction oscillated" if number == 1 else f"{number} directions oscillated"


def _percent(share: float) -> str:
    return f"{100 * share:.2g}%" if share < 1 else f"{100 * share:.0f}%"
