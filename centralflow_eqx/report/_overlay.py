"""Charts that show several runs over common axes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ..record.reader import FLOWS, Run
from . import _style as style
from ._chart import Chart, Reference, Strand, families, through_gaps
from ._edge import first_oscillating_row, smoothed
from ._labels import numbered, shortened
from ._style import Look

ITERATES = ("discrete", "discrete_minibatch", "midpoint")

_LOOKS = {
    "discrete": Look(width=1.4),
    "discrete_minibatch": Look(width=1.4, dash=(5, 1.5, 1, 1.5)),
    "midpoint": Look(width=1.0),
    "central": style.PREDICTED,
    "stationary": Look(width=1.6, dash=(6, 2)),
    "ablated": Look(width=1.6, dash=(3, 1.5, 1, 1.5)),
    "rod": Look(width=1.6, dash=(8, 2, 1, 2)),
    "edge": Look(width=1.6, dash=(2, 2)),
    "stable": Look(width=1.4, dash=style.DOTTED.dash),
}


@dataclass(frozen=True)
class Member:
    """A run among others; `short` is its label in a legend, as different from the others'."""

    run: Run
    label: str
    short: str
    colour: str


@dataclass(frozen=True, eq=False)
class _Track:
    """What is shown of a process of a run; `kind` says what it is."""

    process: str
    kind: str
    x: Float[np.ndarray, " T"]
    y: Float[np.ndarray, " T"]


def members(runs: Sequence[Run], labels: Sequence[str]) -> list[Member]:
    """Runs with their labels and colours."""
    short = numbered([shortened(label) for label in labels])
    colours = style.distinct(len(runs))
    return [Member(*these) for these in zip(runs, labels, short, colours, strict=True)]


def first_process(run: Run, name: str, order: Iterable[str]) -> str | None:
    """The first process of `order` that recorded the series `name`."""
    return next((p for p in order if run.get(p, name) is not None), None)


def flow_first(run: Run, name: str) -> str | None:
    """Whose series stands for the run, the central flow's before those of its iterates."""
    return first_process(run, name, (*FLOWS, "midpoint", "discrete", *run.series))


def largest(run: Run, process: str, name: str) -> Float[np.ndarray, " T"]:
    """The first of several eigenvalues."""
    return run.series[process][name][:, 0]


def relative_distance(run: Run) -> Float[np.ndarray, " T"] | None:
    """Distance of the central flow from the midpoints over the distance that it has moved.

    From the discrete run where there are no midpoints. NaN where the flow has not moved.
    """
    moved = run.get("central", "distance_moved")
    found = (run.distance("central", reference) for reference in ("midpoint", "discrete"))
    distance = next((d for d in found if d is not None and np.isfinite(d).any()), None)
    if moved is None or distance is None:
        return None
    return distance / np.where(moved > 0, moved, np.nan)


def _averaged(run: Run, process: str, name: str) -> Float[np.ndarray, " T"]:
    """A series of iterates: as it is, and smoothed from where it oscillates on."""
    values = run.series[process][name]
    if run.smoothing == 0 or first_oscillating_row(run) is None:
        return values
    average = smoothed(run, values, process)
    return np.where(np.isnan(average), values, average)


def _losses(run: Run) -> Iterator[_Track]:
    iterates = first_process(run, "train_loss", ITERATES)
    flow = first_process(run, "predicted_loss", FLOWS)
    if iterates == "midpoint":
        yield _Track(iterates, iterates, run.steps, run.series[iterates]["train_loss"])
    elif iterates is not None:
        values = _averaged(run, iterates, "train_loss")
        yield _Track(iterates, f"{style.called(iterates)}, smoothed", run.steps, values)
    if flow is not None:
        values = run.series[flow]["predicted_loss"]
        yield _Track(flow, f"{flow}, predicted", run.steps, values)
    if iterates is None and flow is None:
        yield from _recorded("train_loss")(run)


def _recorded(name: str) -> Callable[[Run], Iterator[_Track]]:
    """A series of scalars of one process of each run, of its iterates rather than a flow."""

    def tracks(run: Run) -> Iterator[_Track]:
        process = first_process(run, name, (*ITERATES, *FLOWS, *run.series))
        if process is not None:
            values = run.series[process][name]
            yield _Track(process, style.called(process), run.steps, values)

    return tracks


def _largest(name: str) -> Callable[[Run], Iterator[_Track]]:
    """The largest eigenvalue in each run."""

    def tracks(run: Run) -> Iterator[_Track]:
        process = flow_first(run, name)
        if process is not None:
            values = largest(run, process, name)
            yield _Track(process, style.called(process), run.steps, values)

    return tracks


def _steps_of_iterates_and_flow(run: Run) -> Iterator[_Track]:
    for order in (ITERATES, FLOWS):
        process = first_process(run, "effective_step", order)
        if process is not None:
            values = run.series[process]["effective_step"]
            yield _Track(process, style.called(process), run.steps, values)


def _loss_and_sharpness(run: Run) -> Iterator[_Track]:
    process = flow_first(run, "raw_eigenvalues")
    loss = None if process is None else run.get(process, "train_loss")
    if process is not None and loss is not None:
        sharpness = largest(run, process, "raw_eigenvalues")
        yield _Track(process, style.called(process), sharpness, loss)


def _share_of_stability(run: Run) -> Iterator[_Track]:
    process = flow_first(run, "stationary/efficacy_stability")
    if process is not None:
        series = run.series[process]
        share = series["stationary/efficacy_stationary"] / series["stationary/efficacy_stability"]
        yield _Track(process, style.called(process), *through_gaps(run.steps, share))


def _closeness(run: Run) -> Iterator[_Track]:
    values = relative_distance(run)
    if values is not None:
        yield _Track("central", "central", run.steps, values)


@dataclass(frozen=True)
class Overlay:
    """A chart of all runs: its file name, title and caption, what it takes from each run."""

    name: str
    title: str
    caption: str
    y_label: str
    tracks: Callable[[Run], Iterator[_Track]]
    log_y: bool = True
    x_label: str = "optimizer step"
    log_x: bool = False
    references: tuple[Reference, ...] = ()

    def chart(self, runs: Sequence[Member]) -> Chart | None:
        """A colour for each run, a line style for each process; None without data."""
        found = [(member, track) for member in runs for track in self.tracks(member.run)]
        several = len({track.kind for _, track in found}) > 1
        strands = [
            Strand(
                member.short,
                track.kind,
                track.x,
                track.y,
                member.colour,
                _LOOKS.get(track.process, style.FULL) if several else style.FULL,
            )
            for member, track in found
        ]
        return families(
            strands,
            self.y_label,
            log_x=self.log_x,
            log_y=self.log_y,
            x_label=self.x_label,
            references=self.references,
        )


OVERLAYS = (
    Overlay(
        "loss",
        "Training loss",
        "The loss of the iterates, smoothed in time from the edge of stability on, and its time "
        "average as the flow predicts it (dashed).",
        "training loss",
        _losses,
    ),
    Overlay(
        "sharpness",
        "Sharpness",
        "The largest eigenvalue of the Hessian, along the central flow where there is one.",
        "largest eigenvalue of the Hessian",
        _largest("raw_eigenvalues"),
    ),
    Overlay(
        "effective_eigenvalue",
        "Largest effective eigenvalue",
        "Beyond 2 a direction oscillates.",
        "largest effective eigenvalue",
        _largest("eigenvalues"),
        log_y=False,
        references=(Reference(2, "critical value 2"),),
    ),
    Overlay(
        "effective_step",
        "Effective step size",
        "The step size by which the optimizer multiplies the gradient.",
        "effective step size",
        _steps_of_iterates_and_flow,
    ),
    Overlay(
        "stabilisation",
        "What stabilises",
        "The share that the optimizer's state has in keeping the flow stable, by adapting; moving "
        "to flatter regions does the rest.",
        "share done by the optimizer's state",
        _recorded("stabilised_by_state"),
        log_y=False,
    ),
    Overlay(
        "stationary_efficacy",
        "Stationary preconditioner against the least stable one",
        "Speed g^T P^-1 g at which the loss falls under the stationary preconditioner P, relative "
        "to the P that only stability asks for: near 1 the two are alike.",
        "relative efficacy",
        _share_of_stability,
        log_y=False,
    ),
    Overlay(
        "loss_sharpness",
        "Training loss against sharpness",
        "Where the runs went: to the right is sharper, further down is better.",
        "training loss",
        _loss_and_sharpness,
        x_label="largest eigenvalue of the Hessian",
        log_x=True,
    ),
    Overlay(
        "test_loss",
        "Test loss",
        "The loss on data that was not trained on.",
        "test loss",
        _recorded("test_loss"),
    ),
    Overlay(
        "test_accuracy",
        "Test accuracy",
        "Fraction classified correctly of the data that was not trained on.",
        "test accuracy",
        _recorded("test_accuracy"),
        log_y=False,
    ),
    Overlay(
        "closeness",
        "Accuracy of the flow",
        "Distance of the central flow from the optimizer's midpoints (from its iterates where "
        "there are no midpoints), relative to how far it has moved.",
        "distance, of the distance moved",
        _closeness,
    ),
)
