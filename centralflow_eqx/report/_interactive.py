"""Drawings that a browser zooms, by plotly."""

import html
from typing import Any

import numpy as np
import plotly.graph_objects as go
import plotly.io
import plotly.offline

from . import _style as style
from ._chart import Bounds, Chart, Drawing, HeatMap
from ._style import Look

_PIXELS = 4 / 3  # in a point
_HEIGHT = 460  # pixels
_CELL = 34  # pixels a row of a heat map takes
_MOST_ABOVE = 12  # entries of a legend above the data; longer ones scroll beside it
_ABOVE = {"orientation": "h", "x": 0, "y": 1.02, "xanchor": "left", "yanchor": "bottom"}
# The tools would cover a legend on their side.
_TOOLS_BESIDE = {
    "modebar": {"orientation": "v"},
    "margin": {"l": 70, "r": 40, "t": 20, "b": 50},
}
_TOOLS_ABOVE = {
    "modebar": {"orientation": "h"},
    "margin": {"l": 70, "r": 20, "t": 40, "b": 50},
}
_FONT = {"family": "system-ui, sans-serif", "size": 13, "color": style.BLACK}


def library() -> str:
    """The JavaScript that a page needs once for all its drawings."""
    return plotly.offline.get_plotlyjs()


def division(drawing: Drawing, name: str) -> str:
    """HTML of an interactive drawing; equal drawings of equal `name` give equal text."""
    figure = _heat_map(drawing) if isinstance(drawing, HeatMap) else _chart(drawing)
    config = {
        # Neither a logo that leads out of the page nor a button that would upload the data.
        "displaylogo": False,
        "showSendToCloud": False,
        "plotlyServerURL": "",
        "responsive": True,
        "toImageButtonOptions": {"format": "png", "filename": name, "scale": 3},
    }
    return plotly.io.to_html(
        figure,
        config=config,
        full_html=False,
        include_plotlyjs=False,
        div_id=f"chart-{name}",
        default_height=f"{figure.layout['height']}px",
    )


def _chart(chart: Chart) -> go.Figure:
    entries = sum(curve.in_legend for curve in chart.curves) + len(chart.keys)
    above = entries <= _MOST_ABOVE
    traces = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": curve.x,
            "y": curve.y,
            "name": html.escape(curve.legend_name, quote=False),
            "line": _line(curve.colour, curve.look),
            "opacity": curve.look.opacity,
            "showlegend": curve.in_legend,
            "legendgroup": html.escape(curve.legend_name, quote=False),
            "zorder": round(10 * curve.look.layer),
            "hovertemplate": _hover(curve.name, chart.x_label),
        }
        for curve in chart.curves
    ]
    traces += [
        {
            "type": "scatter",
            "mode": "lines",
            "x": [None],
            "y": [None],
            "name": html.escape(key.name, quote=False),
            "line": _line(key.colour, key.look),
            "legendrank": 1001 if above else 999,
        }
        for key in chart.keys
    ]
    layout = {
        "xaxis": _axis(chart.x_label, chart.log_x, chart.x_range),
        "yaxis": _axis(chart.y_label, chart.log_y, chart.y_range),
        "shapes": [*_references(chart), *_shading(chart)],
        "legend": _ABOVE if above else {},
        "height": _HEIGHT,
        "hovermode": "closest",
        **(_TOOLS_BESIDE if above else _TOOLS_ABOVE),
    }
    return _figure(traces, layout)


def _figure(traces: list[dict[str, Any]], layout: dict[str, Any]) -> go.Figure:
    common = {
        "template": go.layout.Template(),
        "font": _FONT,
        "plot_bgcolor": "white",
        "showlegend": True,
    }
    return go.Figure(traces, common | layout)


def _hover(name: str, x_label: str) -> str:
    # A brace after a percent sign would start a placeholder.
    name = html.escape(name, quote=False).replace("%{", "% {")
    return f"{name}<br>{x_label} %{{x:.5g}}: %{{y:.5g}}<extra></extra>"


def _line(colour: str, look: Look) -> dict[str, Any]:
    dash = ",".join(f"{length * look.width * _PIXELS:.1f}px" for length in look.dash)
    return {"color": colour, "width": look.width * _PIXELS, "dash": dash or "solid"}


def _axis(label: str, log: bool, bounds: Bounds) -> dict[str, Any]:
    axis = {
        "title": {"text": html.escape(label, quote=False)},
        "type": "log" if log else "linear",
        "gridcolor": style.GRID,
        "linecolor": style.AXES,
        "tickcolor": style.TICKS,
        "ticks": "outside",
        "zeroline": False,
        "exponentformat": "power",
        "automargin": True,
    }
    if bounds != (None, None):
        axis["range"] = [_end(bound, log) for bound in bounds]
    return axis


def _end(bound: float | None, log: bool) -> float | None:
    return float(np.log10(bound)) if log and bound is not None else bound


def _references(chart: Chart) -> list[dict[str, Any]]:
    return [
        {
            "type": "line",
            "xref": "x domain",
            "x0": 0,
            "x1": 1,
            "y0": reference.y,
            "y1": reference.y,
            "line": _line(style.BLACK, style.REFERENCE),
            "layer": "below",
            "name": html.escape(reference.name, quote=False),
            "showlegend": True,
        }
        for reference in chart.references
    ]


def _shading(chart: Chart) -> list[dict[str, Any]]:
    return [
        {
            "type": "rect",
            "yref": "y domain",
            "x0": first,
            "x1": last,
            "y0": 0,
            "y1": 1,
            "fillcolor": style.UNTRUSTED,
            "line": {"width": 0},
            "layer": "below",
            "name": chart.shaded_name,
            "legendgroup": chart.shaded_name,
            "showlegend": number == 0,
        }
        for number, (first, last) in enumerate(chart.shaded)
    ]


def _heat_map(drawing: HeatMap) -> go.Figure:
    labels = [html.escape(label, quote=False) for label in drawing.labels]
    positions = list(range(len(labels)))
    # By position: equal labels would share a row.
    ticks = {"tickvals": positions, "ticktext": labels, "showgrid": False, "automargin": True}
    trace = {
        "type": "heatmap",
        "z": drawing.values,
        "text": [[drawing.text(value) for value in row] for row in drawing.values],
        "texttemplate": "%{text}",
        "colorscale": style.HEAT.capitalize(),
        "zmin": 0,
        "colorbar": {"title": {"text": drawing.value_label, "side": "right"}},
        "customdata": [[f"{a}<br>{b}" for b in labels] for a in labels],
        "hovertemplate": "%{customdata}<br>%{z:.5g}<extra></extra>",
    }
    layout = {
        "xaxis": ticks,
        "yaxis": ticks | {"autorange": "reversed"},
        "height": _HEIGHT // 2 + _CELL * len(labels),
        **_TOOLS_ABOVE,
    }
    return _figure([trace], layout)
