"""What happened in a run, computed from its data."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from ..record.numerics import NUMERICS, WORDS
from ..record.reader import Run
from ._edge import (
    EDGE_ROWS,
    Edge,
    edges,
    first_oscillating_row,
    oscillating,
)
from ._noise import Gap, find_gap, knows_noise
from ._noise import measured as measured_for
from ._smooth import ranges, smooth


@dataclass(frozen=True)
class _Judged:
    """A prediction: the series it is of, who measures it, who predicts it without and with the
    oscillation's share. `measured_by` is None for what is measured along the flow."""

    quantity: str
    measured_by: str | None
    own: str | None
    predicted: str


_JUDGED = (
    _Judged("train_loss", "discrete", "train_loss", "predicted_loss"),
    _Judged("grad_norm_sq", "discrete", "grad_norm_sq", "predicted_grad_norm_sq"),
    _Judged("grad_sq_at", "discrete", "grad_sq_at", "predicted_grad_sq_at"),
    _Judged("outputs", "discrete", "outputs", "predicted_outputs"),
    _Judged("empirical_variances", None, None, "sigma_eigenvalues"),
    _Judged("state/nu_sum", "discrete", None, "state/nu_sum"),
)


@dataclass(frozen=True)
class Error:
    """Relative errors of a flow's predicted time average against the smoothed discrete run.

    `quantity` is the series that is predicted. Judged from `first_step` on; errors of several
    values at once are errors of their norm. `own` is the median error of the flow's own value,
    without the oscillation's share; NaN where that is nothing.
    """

    flow: str
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
    """How close the central flow stayed to `reference` (the midpoints or the discrete run, or with
    noise the mini-batch run).

    Distances at `step`, the last one that every compared process has. NaN if unknown.
    """

    reference: str
    step: int
    distance: float
    largest: float
    moved: float
    stable: float


@dataclass(frozen=True)
class Ablation:
    """The ablated flow beside the central flow at `step`, the last that both recorded.

    Each pair is (ablated, central); `sharpness` is the largest eigenvalue of the Hessian, NaN if
    unknown.
    """

    step: int
    loss: tuple[float, float]
    sharpness: tuple[float, float]


@dataclass(frozen=True)
class Adaptation:
    """What the optimizer's state does, along a flow.

    `by_state` is the median share of the stabilisation that it does where directions oscillate,
    `cosine` the similarity of the optimizer's averages and their stationary values at `step`, the
    last at which that is known. NaN if unknown.
    """

    flow: str
    by_state: float
    cosine: float
    step: int | None


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
    equilibrium: Peak | None
    edge: Peak | None
    sdcp_residual: Peak | None
    eigen_residual: Peak | None


@dataclass(frozen=True)
class Doubt:
    """What is numerically doubtful about `rows` rows of a process, first at step `first`."""

    process: str
    words: str
    rows: int
    first: int


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
    """What `describe` puts in words; `goal` is what ended the run early, empty if nothing did."""

    status: str
    goal: str
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
    gap: Gap | None
    ablation: Ablation | None
    adaptation: Adaptation | None
    trust: Trust
    doubts: tuple[Doubt, ...]
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
        goal=str(run.attributes.get("stop_goal", "")),
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
        gap=find_gap(run),
        ablation=_ablation(run),
        adaptation=_adaptation(run),
        trust=_trust(run),
        doubts=tuple(_numerical_doubts(run)),
        halts=tuple(
            Halt(process, int(run.steps[stop.row]), stop.reason)
            for process, stop in run.stops.items()
        ),
        costs=tuple(_costs(run)),
        wall_seconds=run.wall_seconds,
    )


def _errors(run: Run) -> Iterator[Error]:
    """Errors of each flow's predictions from where the discrete run oscillates on.

    Both sides are smoothed alike: smoothing a falling curve shifts it, and that is no error of
    the prediction.
    """
    first = first_oscillating_row(run) or 0
    for flow in run.flows():
        for judged in _JUDGED:
            if judged.measured_by is None:
                measured = run.get(flow, judged.quantity)
            else:
                measured = measured_for(run, flow, judged.quantity)
            predicted = run.get(flow, judged.predicted)
            own = None if judged.own is None else run.get(flow, judged.own)
            if measured is None or predicted is None:
                continue
            rows = _known(measured) & _known(predicted)
            rows[:first] = False
            if judged.predicted == "sigma_eigenvalues":
                rows &= oscillating(run, flow).any(axis=1)
            error = _error(run, flow, judged.quantity, rows, measured, predicted, own)
            if error is not None:
                yield error


def _known(values: Float[np.ndarray, "..."]) -> Bool[np.ndarray, " T"]:
    """Rows in which all values are finite."""
    return np.all(np.isfinite(values.reshape(values.shape[0], -1)), axis=1)


def _error(
    run: Run,
    flow: str,
    quantity: str,
    rows: Bool[np.ndarray, " T"],
    measured: Float[np.ndarray, "..."],
    predicted: Float[np.ndarray, "..."],
    own: Float[np.ndarray, "..."] | None,
) -> Error | None:
    """The error over `rows`, as far as what was measured there is not zero."""
    target = _averaged(run, measured, rows)
    size = np.linalg.norm(target, axis=1)
    judged = size > 0
    if not judged.any():
        return None
    steps = run.steps[rows][judged]

    def relative(values: Float[np.ndarray, "..."]) -> Float[np.ndarray, " n"]:
        difference = _averaged(run, values, rows) - target
        return (np.linalg.norm(difference, axis=1)[judged]) / size[judged]

    errors = relative(predicted)
    worst = int(np.argmax(errors))
    return Error(
        flow,
        quantity,
        int(steps[0]),
        float(np.median(errors)),
        float(errors[worst]),
        int(steps[worst]),
        np.nan if own is None else float(np.median(relative(own))),
    )


def _averaged(
    run: Run, values: Float[np.ndarray, "..."], rows: Bool[np.ndarray, " T"]
) -> Float[np.ndarray, "n k"]:
    """`values` smoothed over `rows` alone, at those rows."""
    columns = values.reshape(values.shape[0], -1)
    return smooth(np.where(rows[:, None], columns, np.nan), run.smoothing)[rows]


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
    noisy = knows_noise(run, "central")
    for reference in ("discrete_minibatch",) if noisy else ("midpoint", "discrete"):
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


def _ablation(run: Run) -> Ablation | None:
    ablated, central = run.get("ablated", "train_loss"), run.get("central", "train_loss")
    if ablated is None or central is None:
        return None
    common = np.flatnonzero(np.isfinite(ablated) & np.isfinite(central))
    if not common.size:
        return None
    row = int(common[-1])

    def sharpness(flow: str) -> float:
        values = run.get(flow, "raw_eigenvalues")
        return np.nan if values is None else float(values[row, 0])

    return Ablation(
        int(run.steps[row]),
        (float(ablated[row]), float(central[row])),
        (sharpness("ablated"), sharpness("central")),
    )


def _adaptation(run: Run) -> Adaptation | None:
    """Of the first flow that recorded anything about it."""
    for flow in run.flows():
        share, cosine = run.get(flow, "stabilised_by_state"), run.get(flow, "stationary/cosine")
        if share is None and cosine is None:
            continue
        by_state, last, step = np.nan, np.nan, None
        if share is not None:
            shares = share[oscillating(run, flow).any(axis=1) & np.isfinite(share)]
            by_state = float(np.median(shares)) if shares.size else np.nan
        if cosine is not None:
            row = int(np.flatnonzero(np.isfinite(cosine))[-1])
            last, step = float(cosine[row]), int(run.steps[row])
        return Adaptation(flow, by_state, last, step)
    return None


def _peak(run: Run, name: str) -> Peak | None:
    """The largest value of a series over all processes, rows and directions."""
    there = {p: values for p in run.series if (values := run.get(p, name)) is not None}
    found = {p: values for p, values in there.items() if not np.all(np.isnan(values))}
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
        _peak(run, "trust_equilibrium"),
        _peak(run, "trust_edge"),
        _peak(run, "sdcp_residual"),
        _peak(run, "eigen_residuals"),
    )


def _numerical_doubts(run: Run) -> Iterator[Doubt]:
    for process in run.series:
        flags = run.get(process, "numerics")
        if flags is None:
            continue
        for doubt in NUMERICS:
            marked = np.nan_to_num(flags).astype(int) & doubt != 0
            if marked.any():
                first = int(run.steps[np.argmax(marked)])
                yield Doubt(process, WORDS[doubt], int(marked.sum()), first)


def _costs(run: Run) -> Iterator[Cost]:
    for process in run.series:
        counts = [run.get(process, name) for name in ("hvps", "third_derivatives", "gradients")]
        if any(values is not None for values in counts):
            yield Cost(process, *(0.0 if v is None else float(np.nanmean(v)) for v in counts))
