"""Charts of a simulation that is still going on, in a notebook."""

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ..record.quantities import quantity
from ..record.row import Row
from . import _style as style
from ._chart import Chart, Curve, Reference, chart

_OPTIONS: dict[str, dict[str, Any]] = {
    "train_loss": {"log_y": True},
    "test_loss": {"log_y": True},
    "eigenvalues": {"references": (Reference(2, "critical value 2"),)},
}
_NAMES = {"eigenvalues": "largest effective eigenvalue"}


def live_plot(
    rows: Iterable[Row],
    series: Sequence[str] = ("train_loss", "eigenvalues"),
    *,
    seconds: float = 1.0,
) -> Iterator[Row]:
    """Pass the rows of a simulation on, and draw them meanwhile where a notebook shows it.

        run = cf.collect(cf.live_plot(cf.simulate(...)))

    A chart for each of `series` has all processes over the optimizer's steps, of eigenvalues and
    other vectors the largest; it is drawn anew every `seconds`, and at the end. Outside of a
    notebook nothing is drawn: the rows are those that came.
    """
    display = _notebook()
    if display is None:
        yield from rows
        return
    pictures = [_Picture(name, display) for name in series]
    drawn = -np.inf
    try:
        for row in rows:
            for picture in pictures:
                picture.add(row)
            if time.monotonic() - drawn >= seconds:
                _draw(pictures)
                drawn = time.monotonic()
            yield row
    finally:
        _draw(pictures)


class _Picture:
    """A chart that grows, in its place in a notebook."""

    def __init__(self, name: str, display: Any):
        self._name, self._display = name, display
        self._place: Any = None
        self._seen: dict[str, list[tuple[int, float]]] = {}

    def add(self, row: Row) -> None:
        for process, found in row.series.items():
            values = np.ravel(found.get(self._name, np.nan))
            value = float(values[0]) if values.size else np.nan
            self._seen.setdefault(process, []).append((row.step, value))

    def draw(self) -> None:
        from ._images import png  # takes a while, which what draws nothing need not wait for

        drawing = self._chart()
        if drawing is None:
            return
        image = self._display.Image(png(drawing), width=640)
        if self._place is None:
            self._place = self._display.display(image, display_id=True)
        else:
            self._place.update(image)

    def _chart(self) -> Chart | None:
        curves = []
        for process in style.in_order(self._seen):
            steps, values = np.array(self._seen[process]).T
            curves.append(Curve(steps, values, style.called(process), style.colour(process)))
        name = _NAMES.get(self._name, quantity(self._name).long_name)
        return chart(curves, name, **_OPTIONS.get(self._name, {}))


def _draw(pictures: Iterable[_Picture]) -> None:
    for picture in pictures:
        picture.draw()


def _notebook() -> Any:
    """What displays pictures in the notebook that this runs in; None where it is in none."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(ipython, "display", None) if hasattr(shell, "kernel") else None
