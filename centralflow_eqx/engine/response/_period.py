"""Whether an optimizer turns unstable by an oscillation of period two, as the theory assumes."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float

from ._probe import Parts
from ._response import Coupling

_CURVATURES = 400
"""Curvatures up to the threshold at which it is."""
_OUTSIDE = 1e-6
"""How far outside of the unit circle a root has left it."""


def other_period(recursion: Any, coupling: Coupling | None, parts: Parts) -> str:
    """Where the rule turns unstable before an oscillation of period two does; empty if it does not.

    A weight with curvature h and its momenta follow z+ = A(h) z. Period two is a root at -1; it has
    to be the first to leave the unit circle as h grows. `recursion` is `Probe.recursion` of all
    rows, [rows, n, to, of].
    """
    driven = np.nan_to_num(np.abs(recursion[..., 1:, 0])).max(axis=(0, 1)) > 0
    if coupling is not None:
        driven = np.array([_is_odd(coupling, part) for part in range(len(parts.names))], bool)
    kept = np.flatnonzero(driven)
    rows = recursion[-1]
    if not kept.size or not np.isfinite(rows[:, 1 + kept]).all():
        return ""
    z = np.r_[0, 1 + kept]
    fixed = rows[:, z][:, :, np.r_[rows.shape[2] - 1, 1 + kept]]
    fixed[:, 0, 0] += 1
    by_curvature = np.zeros_like(fixed)
    by_curvature[:, :, 0] = rows[:, z, 0]
    exits = [_first_exit(A, B) for A, B in _distinct(fixed, by_curvature)]
    earlier = [found for found in exits if found is not None]
    if not earlier:
        return ""
    share, frequency = min(earlier)
    return (
        "it turns unstable before an oscillation of period two does: at an effective eigenvalue "
        f"of {2 * share:.4g} instead of 2 an oscillation of frequency {frequency:.3g} pi begins to "
        "grow"
    )


def _is_odd(coupling: Coupling, part: int) -> bool:
    return any(o for o, n in zip(coupling.odd, coupling.group, strict=True) if n == part)


def _distinct(*arrays: Float[np.ndarray, "n k k"]) -> Iterator[tuple[np.ndarray, ...]]:
    """The matrices of every weight, those of equal weights once."""
    seen = set()
    for matrices in zip(*arrays, strict=True):
        known = tuple(np.round(np.concatenate([m.ravel() for m in matrices]), 12))
        if known not in seen:
            seen.add(known)
            yield matrices


def _first_exit(
    A: Float[np.ndarray, "k k"], B: Float[np.ndarray, "k k"]
) -> tuple[float, float] | None:
    """Where, as a share of the period-two threshold, a root of A + h B leaves the unit circle.

    With its frequency in units of pi; None if the root at -1 is the first.
    """
    identity = np.eye(len(A))
    if not np.any(B[:, 0]):
        return None
    # det(A + h B + 1) is linear in h, as B has a single column
    at_zero, at_one = (np.linalg.det(M + identity) for M in (A, A + B))
    threshold = at_zero / (at_zero - at_one) if at_zero != at_one else np.inf
    if not 0 < threshold < np.inf:
        return None

    def radius(share: float) -> float:
        return float(np.abs(np.linalg.eigvals(A + share * threshold * B)).max())

    shares = np.linspace(0, 1, _CURVATURES + 1)[1:-1]
    outside = [share for share in shares if radius(share) > 1 + _OUTSIDE]
    if not outside:
        return None
    low, high = outside[0] - shares[0], outside[0]
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if radius(middle) > 1 else (middle, high)
    roots = np.linalg.eigvals(A + high * threshold * B)
    root = roots[np.argmax(np.abs(roots))]
    return float(high), float(abs(np.angle(root)) / np.pi)
