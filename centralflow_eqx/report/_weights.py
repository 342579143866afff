"""Distances between the weights at which runs ended."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Float

from ..record.writer import dataset

_ORDER = ("midpoint", "discrete", "central")
"""Whose weights stand for a run; midpoints do not depend on the phase of an oscillation."""


@dataclass(frozen=True)
class Ending:
    """The last weights of a process that a run stored, and their step."""

    step: int
    weights: Float[np.ndarray, " d"]


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
    endings = [ending(run_dir, process) for run_dir in run_dirs]
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
    count: Counter[str] = Counter()
    for run_dir in run_dirs:
        with h5py.File(run_dir / "data.h5", "r", locking=False) as file:
            count += Counter(str(name) for name in file if f"{name}/weights" in file)
    candidates = dict.fromkeys((*_ORDER, *sorted(count)))
    return max(candidates, key=lambda process: count[process])


def ending(run_dir: Path, process: str) -> Ending | None:
    """The last row of a process's weights that is finite, or None."""
    with h5py.File(run_dir / "data.h5", "r", locking=False) as file:
        if f"{process}/weights" not in file:
            return None
        weights, steps = (
            dataset(file, f"{process}/weights"),
            dataset(file, f"{process}/weights_step"),
        )
        for row in reversed(range(weights.shape[0])):
            values = weights[row]
            if np.isfinite(values).all():
                return Ending(int(steps[row]), values.astype(float))
    return None
