"""How figures look: colours and lines."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

RC_FILE = Path(__file__).parents[1] / "figures.mplstyle"
"""Settings of matplotlib, for everybody's figures; colours are those of all drawings."""
_ENTRIES = re.findall(r"^([a-z._]+): (.*)$", RC_FILE.read_text(encoding="utf-8"), re.MULTILINE)
_COLOURS = {key: [f"#{found}" for found in re.findall(r"[0-9A-F]{6}", v)] for key, v in _ENTRIES}

PALETTE = tuple(_COLOURS["axes.prop_cycle"])
VERMILION, BLUE, GREEN, PURPLE, ORANGE, SKY, GREY = PALETTE
BLACK, UNTRUSTED = "#222222", "#F8DDD3"
(GRID,), (AXES,), (TICKS,) = (_COLOURS[f"{k}color"] for k in ("grid.", "axes.edge", "xtick."))
HEAT = "viridis"

# What is drawn later lies on top.
_PROCESSES = {
    "stable": GREEN,
    "discrete_minibatch": GREY,
    "discrete": BLUE,
    "midpoint": SKY,
    "stationary": ORANGE,
    "edge": GREY,
    "rod": BLACK,
    "ablated": PURPLE,
    "central": VERMILION,
}


@dataclass(frozen=True)
class Look:
    """How a line is drawn.

    `width` in points, `dash` the lengths of strokes and gaps in line widths (empty: a full line);
    lines of a higher `layer` lie on top.
    """

    width: float = 1.6
    opacity: float = 1.0
    dash: tuple[float, ...] = ()
    layer: float = 2.0


FULL = Look()
RAW = Look(width=0.7, opacity=0.5)
BEHIND = Look(width=0.7, opacity=0.5, layer=1.9)
STRONG = Look(width=1.7)
FAINT = Look(width=0.9, layer=1.8)
PREDICTED = Look(width=1.8, dash=(3, 1.5))
DASHED = Look(width=1.1, dash=(5, 2))
DOTTED = Look(width=1.4, dash=(1, 1.65))
REFERENCE = Look(width=1.0, dash=(4, 3), layer=1.5)


def colour(process: str) -> str:
    """The colour that stands for a process in every figure."""
    return _PROCESSES.get(process, GREY)


def lighter(base: str) -> str:
    """A paler tone, for what is less important."""
    from matplotlib.colors import to_hex, to_rgb  # a run need not wait for matplotlib

    red, green, blue = (1 - 0.65 * (1 - tone) for tone in to_rgb(base))
    return to_hex((red, green, blue))


def distinct(number: int) -> tuple[str, ...]:
    """Colours for `number` things in their order: a palette, or steps from dark to light."""
    if number <= len(PALETTE):
        return PALETTE[:number]
    import matplotlib
    from matplotlib.colors import to_hex

    # The lightest tones would vanish on white.
    shades = matplotlib.colormaps[HEAT]
    return tuple(to_hex(shades(0.92 * i / (number - 1))) for i in range(number))


def in_order(processes: Iterable[str]) -> list[str]:
    """Processes in the order in which they are drawn, unknown ones first."""
    order = list(_PROCESSES)
    return sorted(processes, key=lambda p: order.index(p) if p in order else -1)


def called(process: str) -> str:
    """A process in a legend."""
    return process.replace("_", " ")
