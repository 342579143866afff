"""Charts of what every run records: losses, eigenvalues, oscillation, distances, step sizes."""

from collections.abc import Iterator
from itertools import chain, cycle

import numpy as np
from jaxtyping import Float

from ..record.reader import Run
from . import _style as style
from ._chart import Chart, Curve, Reference, Strand, chart, families
from ._edge import oscillating, smoothed
from ._style import Look

MOST_DIRECTIONS = 6
MOST_OUTPUTS = 6
_DECADES = 5  # an axis does not follow variances further down
_DISCRETE = ("discrete_minibatch", "discrete")


def _iterates(
    run: Run, process: str, values: Float[np.ndarray, " T"], name: str, colour: str
) -> Iterator[Curve]:
    """A series of an optimizer's run, as it is and averaged over its oscillation."""
    yield Curve(run.steps, values, name, colour, style.RAW)
    if run.smoothing > 0:
        average = smoothed(run, values, process)
        yield Curve(run.steps, average, f"{name}, smoothed", colour)


def _own_and_predicted(run: Run, own: str, predicted: str) -> Iterator[Curve]:
    """A series of all processes, and the time averages that flows predict for it."""
    for process in _DISCRETE:
        values = run.get(process, own)
        if values is not None:
            yield from _iterates(run, process, values, style.called(process), style.colour(process))
    for process in style.in_order(run.series):
        if process in _DISCRETE or (process == "midpoint" and "discrete" in run.series):
            continue
        values, average = run.get(process, own), run.get(process, predicted)
        colour, name = style.colour(process), style.called(process)
        if values is not None:
            suffix = "" if average is None else ", its own"
            yield Curve(run.steps, values, name + suffix, colour)
        if average is not None:
            colour = style.BLACK if process == "central" else style.lighter(colour)
            name = f"{name}, predicted time average"
            yield Curve(run.steps, average, name, colour, style.PREDICTED)


def loss(run: Run) -> Chart | None:
    """Training loss of every process, and the time average that flows predict."""
    curves = _own_and_predicted(run, "train_loss", "predicted_loss")
    return chart(curves, "training loss", log_y=True)


def grad_norm(run: Run) -> Chart | None:
    """Squared gradient norms, and the time average that flows predict."""
    curves = _own_and_predicted(run, "grad_norm_sq", "predicted_grad_norm_sq")
    return chart(curves, "squared gradient norm", log_y=True)


def eigenvalues(run: Run) -> Chart | None:
    """Effective eigenvalues of every process, and the critical value.

    Those of the Hessian for an optimizer that has no effective Hessian.
    """
    effective = any(run.get(p, "eigenvalues") is not None for p in run.series)
    name = "eigenvalues" if effective else "raw_eigenvalues"
    found = {p: run.get(p, name) for p in style.in_order(run.series)}
    shown = {p: values for p, values in found.items() if values is not None}
    curves = chain.from_iterable(_spectrum(run, p, shown) for p in shown)
    if not shown or not effective:
        return chart(curves, "eigenvalues of the Hessian")
    return chart(
        curves,
        "effective eigenvalues",
        references=(Reference(2, "critical value 2"),),
        y_range=_around_the_edge(shown),
    )


def _spectrum(
    run: Run, process: str, shown: dict[str, Float[np.ndarray, "T k"]]
) -> Iterator[Curve]:
    """All eigenvalues of a process, the largest strongest."""
    values, name, colour = shown[process], style.called(process), style.colour(process)
    look = style.RAW if process in _DISCRETE else style.STRONG
    yield Curve(run.steps, values[:, 0], name, colour, look, group=name)
    if process == "discrete" and "midpoint" in shown:
        return  # its other eigenvalues swing around the midpoints'
    pale = style.lighter(colour)
    for column in values.T[1:]:
        yield Curve(run.steps, column, name, pale, style.FAINT, in_legend=False, group=name)


def _around_the_edge(shown: dict[str, Float[np.ndarray, "T k"]]) -> tuple[float, float]:
    """Bounds of effective eigenvalues."""
    # A flow that nothing holds at the edge soon leaves the others far below.
    others = [values for p, values in shown.items() if p not in ("stable", "ablated")]
    top = max(float(np.nanmax(values)) for values in others or shown.values())
    low = min(float(np.nanmin(values)) for values in shown.values())
    return min(0.0, 1.05 * low) if low < 0.5 else 0.9 * low, 1.05 * max(top, 2.2)


def variances(run: Run) -> Chart | None:
    """Predicted and measured variance along each eigenvector of a flow's Sigma."""
    alive = oscillating(run)
    if not alive.any():
        return None
    flow = run.flows()[0]
    predicted, measured = (
        run.series[flow]["sigma_eigenvalues"],
        run.get(flow, "empirical_variances"),
    )
    curves = []
    directions = np.flatnonzero(alive.any(axis=0))[:MOST_DIRECTIONS]
    for i, colour in zip(directions, cycle(style.PALETTE)):  # noqa: B905
        along = np.where(alive[:, i], predicted[:, i], np.nan)
        name = f"direction {i + 1}"
        curves.append(Curve(run.steps, along, f"{name}, predicted", colour, style.PREDICTED))
        if measured is not None and i < measured.shape[1]:
            values = smoothed(run, np.where(alive[:, i], measured[:, i], np.nan))
            curves.append(Curve(run.steps, values, f"{name}, measured", colour, Look(width=1.4)))
    floor = float(np.nanmax(predicted)) * 10.0**-_DECADES
    below = any(np.any((curve.y > 0) & (curve.y < floor)) for curve in curves)
    bounds = (floor if below else None, None)
    return chart(curves, "variance of the oscillation", log_y=True, y_range=bounds)


def distances(run: Run) -> Chart | None:
    """Distance between the weights of every two processes."""
    pairs = [pair for pair, values in run.distances.items() if np.any(values > 0)]
    if not pairs:
        return None
    # Distances to the central flow judge it: first in the legend and the strongest lines.
    pairs.sort(key=lambda pair: "central" not in pair)
    curves = [
        Curve(
            run.steps,
            run.distances[pair],
            " to ".join(map(style.called, pair)),
            colour,
            Look(width=1.8) if "central" in pair else style.DASHED,
        )
        for pair, colour in zip(pairs, cycle(style.PALETTE))  # noqa: B905
    ]
    moved = run.get("central", "distance_moved")
    if moved is not None:
        known = moved > 0
        look = Look(width=1.2, dash=style.DOTTED.dash)
        name = "central to its start"
        curves.append(Curve(run.steps[known], moved[known], name, style.BLACK, look))
    return chart(curves, "distance between weights", log_y=True)


def effective_step(run: Run) -> Chart | None:
    """Step size of every process, and the largest stable one where a flow is."""
    curves = []
    for process in style.in_order(run.series):
        values = run.get(process, "effective_step")
        if values is not None:
            look = style.RAW if process in _DISCRETE else style.FULL
            name, colour = style.called(process), style.colour(process)
            curves.append(Curve(run.steps, values, name, colour, look))
    sharpness = run.get("central", "raw_eigenvalues")
    if not curves or sharpness is None:
        return None
    limit = 2 / np.where(sharpness[:, 0] > 0, sharpness[:, 0], np.nan)
    name = "2 / sharpness of the central flow"
    curves.append(Curve(run.steps, limit, name, style.BLACK, style.DOTTED))
    return chart(curves, "effective step size", log_y=True)


def stabilisation(run: Run) -> Chart | None:
    """How much of the stabilisation the optimizer's state does, in every flow."""
    curves = [
        Curve(run.steps, values, style.called(flow), style.colour(flow))
        for flow in run.flows()
        if (values := run.get(flow, "stabilised_by_state")) is not None
    ]
    return chart(curves, "share done by the optimizer's state", y_range=(0, 1))


def strands(
    run: Run, process: str, values: Float[np.ndarray, " T"], family: str, colour: str
) -> Iterator[Strand]:
    """A series of an optimizer's run as a part of a family, its average first."""
    if run.smoothing > 0:
        average = smoothed(run, values, process)
        yield Strand(family, f"{process}, smoothed", run.steps, average, colour, style.FULL)
    yield Strand(family, process, run.steps, values, colour, style.BEHIND)


def outputs(run: Run) -> Chart | None:
    """Network outputs of the discrete run, and the time averages that a flow predicts."""
    return families(_outputs(run), "network output")


def _outputs(run: Run) -> Iterator[Strand]:
    flow = next(iter(run.flows()), "")
    measured, own = run.get("discrete", "outputs"), run.get(flow, "outputs")
    predicted = run.get(flow, "predicted_outputs")
    sources = ((own, f"{flow}, its own", style.DOTTED), (predicted, "predicted", style.PREDICTED))
    for i, colour in zip(range(MOST_OUTPUTS), style.PALETTE, strict=False):
        family = f"output {i + 1}"
        if measured is not None and i < measured.shape[1]:
            yield from strands(run, "discrete", measured[:, i], family, colour)
        for values, kind, look in sources:
            if values is not None and i < values.shape[1]:
                yield Strand(family, kind, run.steps, values[:, i], colour, look)
