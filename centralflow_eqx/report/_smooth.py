"""Averages over recorded rows."""

import numpy as np
from jaxtyping import Bool, Float


def smooth(values: Float[np.ndarray, "..."], width: float) -> Float[np.ndarray, "..."]:
    """Gaussian average over rows; `width` is the Gaussian's standard deviation in rows.

    `smoothing: 15` in a spec is a width of 15 recorded steps. The weights are cut off at four
    widths and renormalised over the rows that exist, so the ends see one side only. NaN stay NaN
    and do not spread. A width of 0 leaves the values as they are.
    """
    if width == 0:
        return values
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        average = _moment(values, known, width, 0) / _moment(1.0, known, width, 0)
    return np.where(known, average, np.nan)


def trend(values: Float[np.ndarray, "..."], width: float) -> Float[np.ndarray, "..."]:
    """Like `smooth`, without its shift at the ends of a curve that rises or falls.

    At each row, the value of the straight line that is fitted with the weights of `smooth`, held
    within the range of the values. Away from ends and gaps the two agree; at ends, this is noisier.
    """
    known = np.isfinite(values)
    if width == 0 or not known.any():
        return values
    w0, w1, w2 = (_moment(1.0, known, width, power) for power in range(3))
    y0, y1 = (_moment(values, known, width, power) for power in range(2))
    spread = w0 * w2 - w1**2
    with np.errstate(invalid="ignore", divide="ignore"):
        line = np.where(spread > 1e-9 * w0 * w2, (w2 * y0 - w1 * y1) / spread, y0 / w0)
    lowest = np.where(known, values, np.inf).min(axis=0)
    highest = np.where(known, values, -np.inf).max(axis=0)
    return np.where(known, np.clip(line, lowest, highest), np.nan)


def _moment(
    values: Float[np.ndarray, "..."] | float,
    known: Bool[np.ndarray, "..."],
    width: float,
    power: int,
) -> Float[np.ndarray, "..."]:
    """Gaussian-weighted sums, at each row, of the known values times a power of their offset."""
    from scipy.ndimage import correlate1d  # takes a while, which a run need not wait for

    radius = min(int(np.ceil(4 * width)), len(known))
    offset = np.arange(-radius, radius + 1.0)
    kernel = np.exp(-0.5 * (offset / width) ** 2) * offset**power
    return correlate1d(np.where(known, values, 0.0), kernel, axis=0, mode="constant")


def ranges(mask: Bool[np.ndarray, " T"]) -> list[tuple[int, int]]:
    """First and last row of every stretch where `mask` holds."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]])))
    return [(int(a), int(b) - 1) for a, b in zip(edges[::2], edges[1::2], strict=True)]
