"""How figures look: colours, lines, axes."""

from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

DPI = 150
SIZE = (8.0, 4.6)  # inches

# Okabe and Ito's palette, distinguishable with any colour vision.
BLUE, SKY, GREEN, VERMILION = "#0072B2", "#56B4E9", "#009E73", "#D55E00"
ORANGE, PURPLE, BLACK, GREY = "#E69F00", "#CC79A7", "#222222", "#8A8A8A"
PALETTE = (VERMILION, BLUE, GREEN, PURPLE, ORANGE, SKY, GREY)
UNTRUSTED = "#F8DDD3"

# What is drawn later lies on top.
_PROCESSES = {
    "stable": GREEN,
    "discrete_minibatch": GREY,
    "discrete": BLUE,
    "midpoint": SKY,
    "stationary": ORANGE,
    "ablated": PURPLE,
    "central": VERMILION,
}

RC: dict[Any, Any] = {
    "font.size": 10,
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.7,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.handlelength": 2.4,
    "savefig.facecolor": "white",
}
RAW: dict[str, Any] = {"lw": 0.7, "alpha": 0.5}
FAINT: dict[str, Any] = {"lw": 0.9}
PREDICTED: dict[str, Any] = {"lw": 1.8, "dashes": (3, 1.5)}


def colour(process: str) -> str:
    """The colour that stands for a process in every figure."""
    return _PROCESSES.get(process, GREY)


def lighter(base: str) -> tuple[float, ...]:
    """A paler tone, for what is less important."""
    return tuple(1 - 0.65 * (1 - c) for c in to_rgb(base))


def in_order(processes: Any) -> list[str]:
    """Processes in the order in which they are drawn, unknown ones first."""
    order = list(_PROCESSES)
    return sorted(processes, key=lambda p: order.index(p) if p in order else -1)


def called(process: str) -> str:
    """A process in a legend."""
    return process.replace("_", " ")


def positive(values: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """What a logarithmic axis can show."""
    return np.where(values > 0, values, np.nan)


def logarithmic(ax: Axes, label: str) -> None:
    """A logarithmic y axis, with readable ticks where it spans less than two decades."""
    ax.set_yscale("log")
    ax.set_ylabel(label)
    low, high = ax.get_ylim()
    if high < 100 * low:
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5) if high > 5 * low else "all"))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
