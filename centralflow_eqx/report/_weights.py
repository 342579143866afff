"""Distances between the weights at which runs ended."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from ..record.reader import last_weights, with_weights

_ORDER = ("midpoint", "discrete", "central")
"""Whose weights stand for a run; midpoints do not depend on the phase of an oscillation."""


@dataclass(frozen=True, eq=False)
class Apart:
    """Distances between the last stored weights of `process`.

    `runs` are the indices of the runs that have them, in the order of `matrix`; `without` those
    that stored none, `other_size` those whose number of parameters is not that of `runs`.
    """

    process: str
    runs: tuple[int, ...]
    steps: tuple[int, ...]
    matrix: Float[np.ndarray, "n n"]
    without: tuple[int, ...]
    other_size: tuple[int, ...]


def distances_apart(run_dirs: Sequence[Path]) -> Apart:
    """Distances between runs, of the process whose weights most of them stored."""
    process = _common_process(run_dirs)
    endings = [last_weights(run_dir, process) for run_dir in run_dirs]
    sizes = Counter(e.weights.size for e in endings if e is not None)
    size = sizes.most_common(1)[0][0] if sizes else 0
    same = {i: e for i, e in enumerate(endings) if e is not None and e.weights.size == size}
    matrix = np.array(
        [[np.linalg.norm(a.weights - b.weights) for b in same.values()] for a in same.values()]
    ).reshape(len(same), len(same))
    return Apart(
        process,
        tuple(same),
        tuple(e.step for e in same.values()),
        matrix,
        without=tuple(i for i, e in enumerate(endings) if e is None),
        other_size=tuple(i for i, e in enumerate(endings) if e is not None and i not in same),
    )


def _common_process(run_dirs: Sequence[Path]) -> str:
    count = Counter(process for run_dir in run_dirs for process in with_weights(run_dir))
    candidates = dict.fromkeys((*_ORDER, *sorted(count)))
    return max(candidates, key=lambda process: count[process])
