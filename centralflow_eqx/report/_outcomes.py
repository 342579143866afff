"""The results of several runs as a table."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ..record.reader import Run
from ._overlay import Member, flow_first, largest, relative_distance
from .facts import Facts, gather

Value = str | float | int
Column = tuple[str, str]
"""A group of columns, such as a process (or empty), and what a column has."""

_ORDER = (
    "discrete",
    "discrete_minibatch",
    "midpoint",
    "central",
    "stationary",
    "ablated",
    "rod",
    "edge",
    "stable",
)
_ERRORS = {
    "train_loss": "loss",
    "grad_norm_sq": "squared gradient norm",
    "grad_sq_at": "squared gradient at weights",
    "outputs": "outputs",
    "empirical_variances": "variances",
    "state/nu_sum": "sum of nu",
}
_BRIEF: dict[Column, str] = {
    ("", "run"): "run",
    ("", "status"): "status",
    ("discrete", "final train loss"): "loss",
    ("at the end", "raw eigenvalue"): "sharpness",
    ("at the end", "oscillating directions"): "oscillating",
    ("", "edge at step"): "edge",
    ("median error", "loss"): "loss error",
    ("", "relative distance"): "distance",
    ("", "untrusted rows"): "untrusted",
}
"""The columns that a terminal has room for, by a shorter name."""


@dataclass(frozen=True)
class Table:
    """Cells of `rows` by column; empty (None) where a run has nothing to say."""

    columns: tuple[Column, ...]
    rows: tuple[dict[Column, Value], ...]

    def cells(self, columns: Sequence[Column]) -> list[list[Value | None]]:
        """The rows' values in the given columns."""
        return [[row.get(column) for column in columns] for row in self.rows]

    def groups(self) -> list[tuple[str, int]]:
        """Groups of columns and how many columns wide they are."""
        wide: list[tuple[str, int]] = []
        for group, _ in self.columns:
            if wide and wide[-1][0] == group:
                wide[-1] = (group, wide[-1][1] + 1)
            else:
                wide.append((group, 1))
        return wide


def outcomes(runs: Sequence[Member]) -> Table:
    """One row per run, with the columns for which any run has a value."""
    rows = [
        {column: value for column, value in _outcome(member) if _says_something(value)}
        for member in runs
    ]
    order = list(dict.fromkeys(column for member in runs for column, _ in _outcome(member)))
    groups = list(dict.fromkeys(group for group, _ in order))
    # Runs have different processes; columns of a group belong together.
    order.sort(key=lambda column: groups.index(column[0]))
    columns = tuple(column for column in order if any(column in row for row in rows))
    return Table(columns or (("", "run"),), tuple(rows))


def _says_something(value: Value) -> bool:
    return isinstance(value, str) or bool(np.isfinite(value))


def _outcome(member: Member) -> Iterator[tuple[Column, Value]]:
    """Everything a run says about itself; NaN for what it does not know."""
    run, facts = member.run, gather(member.run)
    yield ("", "run"), member.label
    yield ("", "name"), run.name
    yield ("", "status"), facts.status
    yield ("", "last step"), facts.last_step if facts.recorded else np.nan
    edges = (edge.step for edge in facts.edges)
    yield ("", "edge at step"), next((step for step in edges if step is not None), np.nan)
    yield ("", "relative distance"), _last(relative_distance(run))
    yield ("", "untrusted rows"), facts.trust.rows
    yield ("", "wall seconds"), facts.wall_seconds
    yield from _at_the_end(run, facts)
    for error in facts.errors:
        if error.flow == facts.errors[0].flow:
            yield ("median error", _ERRORS[error.quantity]), error.median
    for process in (p for p in _ORDER if p in run.series):
        yield from _of_process(run, facts, process)


def _at_the_end(run: Run, facts: Facts) -> Iterator[tuple[Column, Value]]:
    for name, title in (
        ("raw_eigenvalues", "raw eigenvalue"),
        ("eigenvalues", "effective eigenvalue"),
    ):
        process = flow_first(run, name)
        values = None if process is None else largest(run, process, name)
        yield ("at the end", title), _last(values)
    if run.flows():
        yield ("at the end", "oscillating directions"), facts.last_oscillating


def _of_process(run: Run, facts: Facts, process: str) -> Iterator[tuple[Column, Value]]:
    losses = run.get(process, "train_loss")
    yield (process, "final train loss"), _last(losses)
    yield (process, "min train loss"), np.nan if losses is None else float(np.nanmin(losses))
    for kind in ("train", "test"):
        yield (process, f"final {kind} accuracy"), _last(run.get(process, f"{kind}_accuracy"))
    for cost in facts.costs:
        if cost.process == process:
            yield (process, "HVPs per step"), cost.hvps


def _last(values: Float[np.ndarray, " T"] | None) -> float:
    """The last value that is known; NaN if none is."""
    known = [] if values is None else values[np.isfinite(values)]
    return float(known[-1]) if len(known) else np.nan


def brief(table: Table) -> list[list[str]]:
    """The header and rows of what a terminal has room for, as text."""
    shown = [column for column in _BRIEF if column in table.columns]
    return [[_BRIEF[c] for c in shown], *([text(v) for v in row] for row in table.cells(shown))]


def csv_rows(table: Table) -> list[list[str]]:
    """Header and rows in full precision, with names like `central/final_train_loss`."""
    header = ["/".join(filter(None, column)).replace(" ", "_") for column in table.columns]
    cells = table.cells(table.columns)
    return [header, *(["" if v is None else str(v) for v in row] for row in cells)]


def text(value: Value | None) -> str:
    """A value for a reader."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Lines of text in columns, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
