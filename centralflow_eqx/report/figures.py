"""The figures of a report."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from . import _style as style
from ._data import Run, ranges
from ._edge import oscillating, smoothed

_MOST_DIRECTIONS = 6
_DECADES = 5  # an axis does not follow variances further down


@dataclass(frozen=True)
class Plot:
    """A figure: its file name, title and caption; `draw` says whether there was data for it."""

    name: str
    title: str
    caption: str
    draw: Callable[[Axes, Run], bool]


def _iterates(ax: Axes, run: Run, process: str, name: str) -> None:
    """A series of the discrete run, as it is and averaged over its oscillation."""
    values = run.get(process, name)
    if values is None:
        return
    colour, label = style.colour(process), style.called(process)
    ax.plot(run.steps, style.positive(values), color=colour, label=label, **style.RAW)
    if run.smoothing > 0:
        average = style.positive(smoothed(run, values))
        ax.plot(run.steps, average, color=colour, label=f"{label}, smoothed")


def _own_and_predicted(ax: Axes, run: Run, own: str, predicted: str) -> None:
    """A series of all processes, and the time averages that flows predict for it."""
    flows = [p for p in style.in_order(run.series) if not p.startswith("discrete")]
    if "discrete" in run.series:
        flows = [p for p in flows if p != "midpoint"]
    for process in ("discrete_minibatch", "discrete"):
        _iterates(ax, run, process, own)
    for process in flows:
        values, average = run.get(process, own), run.get(process, predicted)
        colour, label = style.colour(process), style.called(process)
        if values is not None:
            suffix = "" if average is None else ", its own"
            ax.plot(run.steps, style.positive(values), color=colour, label=label + suffix)
        if average is not None:
            colour = style.BLACK if process == "central" else style.lighter(colour)
            label = f"{label}, predicted time average"
            average = style.positive(average)
            ax.plot(run.steps, average, color=colour, label=label, **style.PREDICTED)


def draw_loss(ax: Axes, run: Run) -> bool:
    """Training loss of every process, and the time average that flows predict."""
    _own_and_predicted(ax, run, "train_loss", "predicted_loss")
    style.logarithmic(ax, "training loss")
    return bool(ax.lines)


def draw_grad_norm(ax: Axes, run: Run) -> bool:
    """Squared gradient norms, and the time average that flows predict."""
    _own_and_predicted(ax, run, "grad_norm_sq", "predicted_grad_norm_sq")
    style.logarithmic(ax, "squared gradient norm")
    return bool(ax.lines)


def draw_eigenvalues(ax: Axes, run: Run) -> bool:
    """Effective eigenvalues of every process, and the critical value.

    Those of the Hessian for an optimizer that has no effective Hessian.
    """
    effective = any(run.get(p, "eigenvalues") is not None for p in run.series)
    name = "eigenvalues" if effective else "raw_eigenvalues"
    shown = {p: run.get(p, name) for p in style.in_order(run.series)}
    shown = {p: values for p, values in shown.items() if values is not None}
    for process, values in shown.items():
        colour = style.colour(process)
        strong: dict[str, Any] = style.RAW if process.startswith("discrete") else {"lw": 1.7}
        ax.plot(run.steps, values[:, 0], color=colour, label=style.called(process), **strong)
        if process == "discrete" and "midpoint" in shown:
            continue  # its other eigenvalues swing around the midpoints'
        ax.plot(run.steps, values[:, 1:], color=style.lighter(colour), zorder=1.8, **style.FAINT)
    if shown and effective:
        ax.axhline(2, color=style.BLACK, lw=1, ls=(0, (4, 3)), zorder=1.5, label="critical value 2")
        # A flow that never oscillates soon leaves the others far below.
        others = [values for process, values in shown.items() if process != "stable"]
        top = max(float(np.nanmax(values)) for values in others or shown.values())
        low = min(float(np.nanmin(values)) for values in shown.values())
        ax.set_ylim(min(0.0, 1.05 * low) if low < 0.5 else 0.9 * low, 1.05 * max(top, 2.2))
    ax.set_ylabel("effective eigenvalues" if effective else "eigenvalues of the Hessian")
    return bool(shown)


def draw_variances(ax: Axes, run: Run) -> bool:
    """Predicted and measured variance along each eigenvector of the central flow's Sigma."""
    alive = oscillating(run)
    predicted = run.get("central", "sigma_eigenvalues")
    measured = run.get("central", "empirical_variances")
    if predicted is None or not alive.any():
        return False
    directions = np.flatnonzero(alive.any(axis=0))[:_MOST_DIRECTIONS]
    for i, colour in zip(directions, cycle(style.PALETTE)):  # noqa: B905
        along = np.where(alive[:, i], predicted[:, i], np.nan)
        label = f"direction {i + 1}, predicted"
        ax.plot(run.steps, along, color=colour, label=label, **style.PREDICTED)
        if measured is not None and i < measured.shape[1]:
            values = smoothed(run, np.where(alive[:, i], measured[:, i], np.nan))
            label = f"direction {i + 1}, measured"
            ax.plot(run.steps, style.positive(values), color=colour, lw=1.4, label=label)
    style.logarithmic(ax, "variance of the oscillation")
    ax.set_ylim(bottom=max(ax.get_ylim()[0], float(np.nanmax(predicted)) * 10.0**-_DECADES))
    return True


def _from_start(run: Run) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """How far the central flow has moved, at the steps where that is known."""
    moved = run.get("central", "distance_moved")
    if moved is None:
        return np.zeros(0), np.zeros(0)
    known = moved > 0
    return run.steps[known], moved[known]


def draw_distances(ax: Axes, run: Run) -> bool:
    """Distance between the weights of every two processes."""
    pairs = [pair for pair, values in run.distances.items() if np.any(values > 0)]
    # Distances to the central flow judge it: first in the legend and the strongest lines.
    pairs.sort(key=lambda pair: "central" not in pair)
    for pair, colour in zip(pairs, cycle(style.PALETTE)):  # noqa: B905
        look: dict[str, Any] = {"lw": 1.8} if "central" in pair else {"lw": 1.1, "ls": (0, (5, 2))}
        values = style.positive(run.distances[pair])
        ax.plot(run.steps, values, color=colour, label=" to ".join(map(style.called, pair)), **look)
    if pairs:
        steps, moved = _from_start(run)
        if steps.size:
            ax.plot(steps, moved, color=style.BLACK, lw=1.2, ls=":", label="central to its start")
    style.logarithmic(ax, "distance between weights")
    return bool(pairs)


PLOTS = (
    Plot(
        "loss",
        "Training loss",
        "The discrete run's loss, raw and smoothed in time from the edge of stability on, beside "
        "the loss along each flow. The central flow predicts the discrete run's time average "
        "(dashed), which lies above its own loss while directions oscillate.",
        draw_loss,
    ),
    Plot(
        "eigenvalues",
        "Effective eigenvalues",
        "All tracked eigenvalues of the effective Hessian, the largest strongest. Beyond 2 a "
        "direction oscillates; a central flow holds its eigenvalues at 2. The stable flow may "
        "leave the frame.",
        draw_eigenvalues,
    ),
    Plot(
        "variances",
        "Oscillation",
        "Eigenvalues of the central flow's Sigma (dashed) against the discrete run's squared "
        "displacement from the flow along the same directions, smoothed in time; at most "
        f"{_MOST_DIRECTIONS} directions, where they oscillate.",
        draw_variances,
    ),
    Plot(
        "distances",
        "Distances",
        "Distance between the weights of every two processes; those to the central flow in full "
        "lines. The discrete run's own oscillation is part of its distances, but hardly of the "
        "midpoints'.",
        draw_distances,
    ),
    Plot(
        "grad_norm",
        "Squared gradient norm",
        "The discrete run's squared gradient norm, raw and smoothed in time from the edge of "
        "stability on, beside each flow's own and the time average that the central flow predicts "
        "(dashed).",
        draw_grad_norm,
    ),
)


def write_figures(run: Run, folder: Path) -> dict[str, Path]:
    """Draw every figure that there is data for; the files by the names of `PLOTS`."""
    folder.mkdir(exist_ok=True)
    written = {}
    for plot in PLOTS:
        path = folder / f"{plot.name}.png"
        # A figure of an earlier report must not outlive its data.
        path.unlink(missing_ok=True)
        with matplotlib.rc_context(style.RC):
            figure = Figure(figsize=style.SIZE, dpi=style.DPI, layout="constrained")
            ax = figure.add_subplot()
            if plot.draw(ax, run):
                _finish(figure, ax, run)
                FigureCanvasAgg(figure).print_png(path, metadata={"Software": None})
                written[plot.name] = path
    return written


def _finish(figure: Figure, ax: Axes, run: Run) -> None:
    """What all figures share: the axis of steps, shaded rows, and a legend above the data."""
    ax.set_xlabel("optimizer step")
    known = run.steps[run.recorded()]
    margin = 0.01 * (known[-1] - known[0]) + 0.5
    ax.set_xlim(known[0] - margin, known[-1] + margin)
    handles, labels = ax.get_legend_handles_labels()
    doubted = ranges(run.untrusted())
    half = float(np.median(np.diff(run.steps))) / 2 if run.steps.size > 1 else 0.5
    for first, last in doubted:
        span = (run.steps[first] - half, run.steps[last] + half)
        ax.axvspan(*span, color=style.UNTRUSTED, lw=0, zorder=0.5)
    if doubted:
        handles.append(Patch(color=style.UNTRUSTED))
        labels.append("not to be trusted")
    columns = min(4, -(-len(labels) // 2))
    legend = figure.legend(handles, labels, loc="outside upper left", ncols=columns)
    for sample in legend.get_lines():
        sample.set_alpha(1)
