"""The figures of a report."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..record.reader import Run
from . import _preconditioner as preconditioner
from . import _trajectories as trajectories
from ._chart import Chart, Drawing
from ._smooth import ranges


@dataclass(frozen=True)
class Plot:
    """A figure: its file name, title and caption; `chart` is None without data for it."""

    name: str
    title: str
    caption: str
    chart: Callable[[Run], Chart | None]


PLOTS = (
    Plot(
        "loss",
        "Training loss",
        "The discrete run's loss, raw and smoothed in time from the edge of stability on, beside "
        "the loss along each flow. The central flow predicts the discrete run's time average "
        "(dashed), which lies above its own loss while directions oscillate.",
        trajectories.loss,
    ),
    Plot(
        "eigenvalues",
        "Effective eigenvalues",
        "All tracked eigenvalues of the effective Hessian, the largest strongest. Beyond 2 a "
        "direction oscillates; a central flow holds its eigenvalues at 2. The stable flow may "
        "leave the frame.",
        trajectories.eigenvalues,
    ),
    Plot(
        "variances",
        "Oscillation",
        "Eigenvalues of the central flow's Sigma (dashed) against the discrete run's squared "
        "displacement from the flow along the same directions, smoothed in time; at most "
        f"{trajectories.MOST_DIRECTIONS} directions, where they oscillate.",
        trajectories.variances,
    ),
    Plot(
        "distances",
        "Distances",
        "Distance between the weights of every two processes; those to the central flow in full "
        "lines. The discrete run's own oscillation is part of its distances, but hardly of the "
        "midpoints'.",
        trajectories.distances,
    ),
    Plot(
        "grad_norm",
        "Squared gradient norm",
        "The discrete run's squared gradient norm, raw and smoothed in time from the edge of "
        "stability on, beside each flow's own and the time average that the central flow predicts "
        "(dashed).",
        trajectories.grad_norm,
    ),
    Plot(
        "effective_step",
        "Effective step size",
        "The step size of every process, and the largest at which the central flow would be stable "
        "without oscillating (dotted): at the edge of stability the two agree.",
        trajectories.effective_step,
    ),
    Plot(
        "stabilisation",
        "What stabilises",
        "The share of the stabilisation that the optimizer's state does by adapting to the "
        "oscillation; the rest is done by moving to flatter regions.",
        trajectories.stabilisation,
    ),
    Plot(
        "coordinates",
        "Squared gradient at single weights",
        "The discrete run's squared gradient at chosen weights, raw and smoothed, and the time "
        "average that the flow predicts (dashed).",
        preconditioner.coordinates,
    ),
    Plot(
        "nu",
        "Average of the squared gradient at single weights",
        "The average of squared gradients that the optimizer keeps: the discrete run's, the "
        "flow's (dashed), and the value at which it would settle if the weights stood still "
        "(dotted).",
        preconditioner.averages,
    ),
    Plot(
        "stationary_cosine",
        "How stationary the preconditioner is",
        "Cosine similarity of the optimizer's averages and the values at which they would settle "
        "if the weights stood still.",
        preconditioner.stationary_cosine,
    ),
    Plot(
        "efficacy",
        "Efficacy of preconditioners",
        "Speed g^T P^-1 g at which the loss falls under the optimizer's preconditioner P, the "
        "stationary one, the one chosen for stability alone, and the best scalar.",
        preconditioner.efficacy,
    ),
    Plot(
        "outputs",
        "Network outputs",
        "Outputs on chosen examples: the discrete run's, raw and smoothed, the flow's own (dotted) "
        "and the time average that it predicts (dashed).",
        trajectories.outputs,
    ),
)


def charts(run: Run) -> dict[str, Chart]:
    """Every figure that there is data for, by the names of `PLOTS`."""
    made = {plot.name: plot.chart(run) for plot in PLOTS}
    return {name: _over_steps(chart, run) for name, chart in made.items() if chart is not None}


def write_figures(figures: Mapping[str, Drawing], names: Iterable[str], folder: Path) -> None:
    """Write each of `figures` as `folder/NAME.png` and `.pdf`.

    `names` are all that there can be: a figure of an earlier report must not outlive its data.
    """
    from ._images import remove_images, write_images  # a run need not wait for matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        remove_images(folder, name)
    for name, drawing in figures.items():
        write_images(drawing, folder, name)


def _over_steps(chart: Chart, run: Run) -> Chart:
    """What all figures share: the range of steps, and shaded rows."""
    written = run.recorded()
    known = run.steps[written] if written.any() else run.steps
    margin = 0.01 * (known[-1] - known[0]) + 0.5
    half = float(np.median(np.diff(run.steps))) / 2 if run.steps.size > 1 else 0.5
    shaded = tuple(
        (float(run.steps[first] - half), float(run.steps[last] + half))
        for first, last in ranges(run.untrusted())
    )
    x_range = (float(known[0] - margin), float(known[-1] + margin))
    return replace(chart, x_range=x_range, shaded=shaded)
