"""Drawings as files, by matplotlib."""

import contextlib
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from fontTools import subset
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from . import _style as style
from ._chart import Bounds, Chart, Drawing, HeatMap
from ._style import Look

SUFFIXES = (".png", ".pdf")
_DPI = 150
_WIDTH, _HEIGHT = 8.0, 4.6  # inches
_LINE = 0.19  # inches a line of a legend takes
_LINES_WITHIN = 4  # a legend of more lines makes the figure higher
_CELL = 0.45  # inches a row of a heat map takes
_MOST_FAMILIES = 16  # in a legend; more would leave no room for the data
_LETTERS = 110  # in a line of a legend
_SAMPLE = 8  # letters that the line beside a label takes
_MOST_CELLS = 14  # rows of a heat map whose numbers can still be read

# What shapes text; a PDF has every glyph in its place.
_SHAPING_TABLES = ("GSUB", "GPOS", "GDEF", "MATH", "kern")


def write_images(drawing: Drawing, folder: Path, name: str) -> None:
    """Write `folder/name.png` and `folder/name.pdf`; equal drawings give equal files."""
    with matplotlib.rc_context(fname=style.RC_FILE), _bare_fonts():
        figure = _heat_map(drawing) if isinstance(drawing, HeatMap) else _chart(drawing)
        FigureCanvasAgg(figure).print_png(folder / f"{name}.png", metadata={"Software": None})
        figure.set_layout_engine("none")  # as it is laid out by now: that takes as long as drawing
        FigureCanvasPdf(figure).print_pdf(
            folder / f"{name}.pdf", metadata={"CreationDate": None, "Producer": None}
        )


def png(chart: Chart) -> bytes:
    """A chart as the bytes of an image."""
    image = io.BytesIO()
    with matplotlib.rc_context(fname=style.RC_FILE):
        FigureCanvasAgg(_chart(chart)).print_png(image)
    return image.getvalue()


@contextlib.contextmanager
def _bare_fonts() -> Iterator[None]:
    """Within, PDFs embed fonts without the tables that nobody reads.

    Cutting these down to the letters in use takes as long as everything else about a figure. It is
    fontTools that does, on behalf of matplotlib, which has no option for it.
    """
    dropped = getattr(subset.Options, "_drop_tables_default", [])
    before = dropped[:]
    dropped += _SHAPING_TABLES
    try:
        yield
    finally:
        dropped[:] = before


def remove_images(folder: Path, name: str) -> None:
    """Remove the files that `write_images` would write."""
    for suffix in SUFFIXES:
        (folder / f"{name}{suffix}").unlink(missing_ok=True)


def _chart(chart: Chart) -> Figure:
    handles, labels = _legend_entries(chart)
    columns = _columns(labels)
    height = _HEIGHT + _LINE * max(0, -(-len(labels) // columns) - _LINES_WITHIN)
    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")
    ax = figure.add_subplot()
    for curve in chart.curves:
        ax.plot(curve.x, curve.y, color=curve.colour, **_line(curve.look))
    for reference in chart.references:
        ax.axhline(reference.y, color=style.BLACK, **_line(style.REFERENCE))
    for span in chart.shaded:
        ax.axvspan(*span, color=style.UNTRUSTED, lw=0, zorder=0.5)
    _axis(ax, "x", chart.x_label, chart.log_x, chart.x_range)
    _axis(ax, "y", chart.y_label, chart.log_y, chart.y_range)
    figure.legend(handles, labels, loc="outside upper left", ncols=columns)
    return figure


def _line(look: Look) -> dict[str, Any]:
    dashes = (0, look.dash) if look.dash else "-"
    return {"lw": look.width, "alpha": look.opacity, "ls": dashes, "zorder": look.layer}


def _axis(ax: Axes, which: str, label: str, log: bool, bounds: Bounds) -> None:
    ax.set(**{f"{which}label": label, f"{which}scale": "log" if log else "linear"})
    if bounds != (None, None):
        ax.set(**{f"{which}lim": bounds})
    low, high = ax.get_xlim() if which == "x" else ax.get_ylim()
    if log and high < 100 * low:
        # Ticks at powers of ten would be too few.
        axis = ax.xaxis if which == "x" else ax.yaxis
        axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5) if high > 5 * low else "all"))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _legend_entries(chart: Chart) -> tuple[list[Artist], list[str]]:
    lines = [(c.legend_name, c.colour, c.look) for c in chart.curves if c.in_legend]
    if chart.keys:
        # Looks are told apart by the keys.
        lines = [(name, colour, style.FULL) for name, colour, _ in _thinned(lines)]
    lines += [(key.name, key.colour, key.look) for key in chart.keys]
    lines += [(line.name, style.BLACK, style.REFERENCE) for line in chart.references]
    handles: list[Artist] = [
        Line2D([], [], color=colour, **_line(replace(look, opacity=1.0)))
        for _, colour, look in lines
    ]
    labels = [_plain(name) for name, _, _ in lines]
    if chart.shaded:
        handles.append(Patch(color=style.UNTRUSTED))
        labels.append(chart.shaded_name)
    return handles, labels


def _columns(labels: list[str]) -> int:
    """Columns of a legend: at most four, as far as they fit, and not one of a single line."""
    fitting = _LETTERS // (max(map(len, labels), default=0) + _SAMPLE)
    return max(1, min(4, fitting, -(-len(labels) // 2)))


def _thinned(entries: list[Any]) -> list[Any]:
    """The first, the last and as many evenly between as a legend has room for."""
    if len(entries) <= _MOST_FAMILIES:
        return entries
    chosen = np.linspace(0, len(entries) - 1, _MOST_FAMILIES).round().astype(int)
    return [entries[i] for i in chosen]


def _plain(text: str) -> str:
    """`text` as it is, where matplotlib would read dollar signs as mathematics."""
    return text.replace("$", r"\$")


def _heat_map(drawing: HeatMap) -> Figure:
    number = len(drawing.labels)
    side = 2.5 + _CELL * min(number, _MOST_CELLS)
    figure = Figure(figsize=(side + 2.0, side), dpi=_DPI, layout="constrained")
    ax = figure.add_subplot()
    ax.grid(False)
    image = ax.imshow(drawing.values, cmap=style.HEAT, vmin=0)
    labels = [_plain(label) for label in drawing.labels]
    ax.set_xticks(range(number), labels, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(number), labels)
    figure.colorbar(image, ax=ax, label=drawing.value_label)
    if number <= _MOST_CELLS:
        dark = np.nanmax(drawing.values) / 2
        for (i, j), value in np.ndenumerate(drawing.values):
            ink = "white" if value < dark else "black"
            ax.text(j, i, drawing.text(value), ha="center", va="center", color=ink, fontsize=8)
    return figure
