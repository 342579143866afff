"""Charts of single weights' gradients and of the statistics an optimizer keeps of them."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from ..record.reader import Run
from . import _style as style
from ._chart import Chart, Curve, Strand, chart, families, through_gaps
from ._style import Look
from ._trajectories import strands

MOST_COORDINATES = 4


def coordinates(run: Run) -> Chart | None:
    """Squared gradients at chosen weights, and the time averages that a flow predicts."""
    return families(_squared_gradients(run), "squared gradient", log_y=True)


def _squared_gradients(run: Run) -> Iterator[Strand]:
    flow = next(iter(run.flows()), "")
    measured = _by_weight(run, "discrete", "grad_sq_at")
    predicted = _by_weight(run, flow, "predicted_grad_sq_at")
    for name, colour in _weights(run):
        if name in measured:
            yield from strands(run, "discrete", measured[name], name, colour)
        if name in predicted:
            yield Strand(name, "predicted", run.steps, predicted[name], colour, style.PREDICTED)


def averages(run: Run) -> Chart | None:
    """The optimizer's average of squared gradients at chosen weights."""
    return families(_averages(run), "average of the squared gradient", log_y=True)


def _averages(run: Run) -> Iterator[Strand]:
    flow = next(iter(run.flows()), "")
    sources = (
        ("discrete", "state/nu_at", "discrete", style.FULL),
        (flow, "state/nu_at", flow, style.PREDICTED),
        (flow, "stationary/nu_at", "stationary value", style.DOTTED),
    )
    for name, colour in _weights(run):
        for process, series, kind, look in sources:
            values = _by_weight(run, process, series)
            if name in values:
                x, y = through_gaps(run.steps, values[name])
                yield Strand(name, kind, x, y, colour, look)


def _weights(run: Run) -> Iterator[tuple[str, str]]:
    """Names and colours of the weights that are shown."""
    numbers = run.coordinates or range(MOST_COORDINATES)
    for number, colour in zip(numbers[:MOST_COORDINATES], style.PALETTE, strict=False):
        yield f"weight {number}", colour


def _by_weight(run: Run, process: str, series: str) -> dict[str, Float[np.ndarray, " T"]]:
    values = run.get(process, series)
    if values is None:
        return {}
    return {name: column for (name, _), column in zip(_weights(run), values.T, strict=False)}


def stationary_cosine(run: Run) -> Chart | None:
    """How nearly the optimizer's averages are those it would settle at."""
    curves = []
    for process in style.in_order(run.series):
        values = run.get(process, "stationary/cosine")
        if values is not None:
            x, y = through_gaps(run.steps, values)
            look = Look(width=1.2) if process == "discrete" else style.FULL
            curves.append(Curve(x, y, style.called(process), style.colour(process), look))
    return chart(curves, "cosine similarity")


def efficacy(run: Run) -> Chart | None:
    """Speed at which four preconditioners reduce the loss."""
    process = next((p for p in (*run.flows(), *run.series) if _has_efficacy(run, p)), None)
    kinds = (
        ("", f"{process}, actual", style.VERMILION, style.FULL),
        ("_stationary", "stationary", style.BLUE, style.PREDICTED),
        ("_stability", "only stability", style.GREEN, style.DASHED),
        ("_scalar", "best scalar", style.GREY, style.DOTTED),
    )
    curves = []
    for suffix, name, colour, look in kinds:
        values = None if process is None else run.get(process, f"stationary/efficacy{suffix}")
        if values is not None:
            x, y = through_gaps(run.steps, values)
            curves.append(Curve(x, y, name, colour, look))
    return chart(curves, "efficacy", log_y=True)


def _has_efficacy(run: Run, process: str) -> bool:
    return any(name.startswith("stationary/efficacy") for name in run.series.get(process, {}))
