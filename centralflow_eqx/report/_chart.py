"""What a figure shows, without saying what draws it."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Real

from ._style import BLACK, Look

Bounds = tuple[float | None, float | None]


@dataclass(frozen=True, eq=False)
class Curve:
    """A line through (x, y), broken where y is NaN.

    Curves of one `group` are switched on and off together where a figure is interactive, and
    legends call them by its name.
    """

    x: Real[np.ndarray, " n"]
    y: Float[np.ndarray, " n"]
    name: str
    colour: str
    look: Look = Look()
    in_legend: bool = True
    group: str | None = None

    @property
    def legend_name(self) -> str:
        """What the curve is called in a legend."""
        return self.group or self.name


@dataclass(frozen=True, eq=False)
class Strand:
    """A curve of a family: families differ by colour, the kinds of curves in them by look."""

    family: str
    kind: str
    x: Real[np.ndarray, " n"]
    y: Float[np.ndarray, " n"]
    colour: str
    look: Look


@dataclass(frozen=True)
class Reference:
    """A dashed horizontal line."""

    y: float
    name: str


@dataclass(frozen=True)
class Key:
    """A line in the legend that stands for no single curve."""

    name: str
    colour: str
    look: Look


@dataclass(frozen=True, eq=False)
class Chart:
    """Curves over common axes.

    A bound that is None follows the data. `shaded` are ranges of x, `shaded_name` what they mean.
    """

    curves: tuple[Curve, ...]
    y_label: str
    x_label: str = "optimizer step"
    log_x: bool = False
    log_y: bool = False
    x_range: Bounds = (None, None)
    y_range: Bounds = (None, None)
    references: tuple[Reference, ...] = ()
    keys: tuple[Key, ...] = ()
    shaded: tuple[tuple[float, float], ...] = ()
    shaded_name: str = "not to be trusted"


@dataclass(frozen=True, eq=False)
class HeatMap:
    """A symmetric table of `values` between things called `labels`, as colours and numbers."""

    values: Float[np.ndarray, "n n"]
    labels: tuple[str, ...]
    value_label: str

    def text(self, value: float) -> str:
        """A value as it stands in its cell."""
        return f"{value:.3g}"


Drawing = Chart | HeatMap


def chart(
    curves: Iterable[Curve], y_label: str, *, log_x: bool = False, log_y: bool = False, **options
) -> Chart | None:
    """A chart of the curves that its axes can show, or None if they can show none of them."""
    shown = tuple(_on_axes(curve, log_x, log_y) for curve in curves)
    shown = tuple(curve for curve in shown if np.isfinite(curve.x + curve.y).any())
    return Chart(shown, y_label, log_x=log_x, log_y=log_y, **options) if shown else None


def _on_axes(curve: Curve, log_x: bool, log_y: bool) -> Curve:
    x = positive(curve.x) if log_x else curve.x
    y = positive(curve.y) if log_y else curve.y
    return replace(curve, x=x, y=y)


def families(strands: Iterable[Strand], y_label: str, **options) -> Chart | None:
    """A chart whose legend names families and kinds of curves, rather than every curve."""
    strands = list(strands)
    curves = [
        Curve(s.x, s.y, f"{s.family}, {s.kind}", s.colour, s.look, group=s.family) for s in strands
    ]
    found = chart(curves, y_label, **options)
    if found is None:
        return None
    first = {curve.group: curve for curve in reversed(found.curves)}
    shown = {curve.name for curve in found.curves}
    kinds = {s.kind: s.look for s in strands if f"{s.family}, {s.kind}" in shown}
    return replace(
        found,
        curves=tuple(replace(c, in_legend=c is first[c.group]) for c in found.curves),
        keys=tuple(Key(kind, BLACK, look) for kind, look in kinds.items()),
    )


def positive(values: Real[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """What a logarithmic axis can show; NaN for the rest."""
    return np.where(values > 0, values, np.nan)


def through_gaps(
    x: Real[np.ndarray, " T"], y: Float[np.ndarray, " T"]
) -> tuple[Real[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Only the known values, so that a line passes over the rows between them."""
    known = np.isfinite(y)
    return x[known], y[known]
