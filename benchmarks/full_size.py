"""What a central step costs at full size: `python -m benchmarks.full_size [SPEC ...]`.

Takes every spec (all of `specs/full_size` unless some are named) to the edge of stability at its
initial weights, by choosing the learning rate of its gradient descent, and prints a row for each as
a Markdown table. Where CIFAR-10 is missing, random images stand in for it. Every spec runs in a
process of its own, so that the peak memory is its own.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array
from scipy.sparse.linalg import LinearOperator, eigsh

from centralflow_eqx.errors import InputError
from centralflow_eqx.experiment.build import build_task
from centralflow_eqx.experiment.drive import drive
from centralflow_eqx.experiment.memory import estimate_peak
from centralflow_eqx.experiment.prepare import prepare
from centralflow_eqx.spec import Spec, load_spec
from centralflow_eqx.task import Task

from .tables import table

SPECS = Path(__file__).parents[1] / "specs" / "full_size"
EFFECTIVE = 2.02
"""Largest effective eigenvalue that the first step starts with: one direction is critical."""
HEADER = (
    "spec",
    "parameters",
    "microbatch",
    "first step, s",
    "later steps, s",
    "products",
    "third derivatives",
    "peak memory, GiB",
    "estimated, GiB",
)


class FullSize(NamedTuple):
    """One spec's cost. Seconds of the first step include compilation; counts are of that step.

    `later` is NaN after a single step. `peak` is the process's resident memory, or the device's
    where that tells; `estimate` that of `memory.estimate_peak` for the arrays of a step alone.
    """

    name: str
    parameters: int
    microbatch: int
    first: float
    later: float
    hvps: int
    third_derivatives: int
    peak: int
    estimate: int


def write_stand_in(path: Path) -> None:
    """Random images in the shape of CIFAR-10, 400 of each class for training and 100 for tests."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 4000), ("test", 1000)):
        arrays[f"x_{split}"] = rng.integers(0, 256, (n, 32, 32, 3), np.uint8)
        arrays[f"y_{split}"] = np.arange(n) % 10
    np.savez(path, **arrays)


def load(path: Path, overrides: Sequence[str], folder: Path) -> tuple[Spec, Task]:
    """The spec and its task, on the stand-in where its data are missing."""
    spec = load_spec(path, overrides)
    try:
        return spec, build_task(spec)
    except InputError:
        if spec.data.type != "cifar10":
            raise
    images = folder / "images.npz"
    if not images.exists():
        write_stand_in(images)
    spec = load_spec(path, [*overrides, f"data.path={images}"])
    return spec, build_task(spec)


def sharpness(task: Task) -> float:
    """The largest eigenvalue of the Hessian at the initial weights, within a percent."""
    w = task.initial_weights

    @eqx.filter_jit
    def product(loss: Task, v: Array) -> Array:
        return jax.jvp(jax.grad(loss), (w,), (v,))[1]

    hessian = LinearOperator((w.size, w.size), lambda v: product(task, v), dtype=w.dtype)
    start = np.random.default_rng(0).standard_normal(w.size).astype(w.dtype)
    return eigsh(hessian, 1, which="LA", v0=start, ncv=10, tol=1e-2, return_eigenvectors=False)[0]


def measure(path: Path, overrides: Sequence[str], steps: int) -> FullSize:
    """Take `steps` central steps at the edge of stability."""
    with tempfile.TemporaryDirectory() as folder:
        _, task = load(path, overrides, Path(folder))
        step_size = EFFECTIVE / sharpness(task)
        chosen = [*overrides, "processes=[central]", f"steps={steps}", f"optimizer.lr={step_size}"]
        spec, task = load(path, chosen, Path(folder))
    seconds, start = [], time.perf_counter()
    for row in drive(*prepare(spec, task), steps):
        seconds.append(time.perf_counter() - start)
        start, series = time.perf_counter(), row.series["central"]
        if len(seconds) == 1:
            first = series
    chunk = spec.memory.hvp_chunk
    columns = first["eigenvalues"].size
    estimate = max(estimate_peak(task, task.initial_weights, columns, chunk).values())
    return FullSize(
        path.stem,
        task.num_parameters,
        spec.memory.microbatch,
        seconds[0],
        median(seconds[1:]) if steps > 1 else float("nan"),
        int(first["hvps"]),
        int(first["third_derivatives"]),
        _peak(),
        estimate,
    )


def _peak() -> int:
    stats = jax.devices()[0].memory_stats() or {}
    resident = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(stats.get("peak_bytes_in_use", resident))


def cells(found: FullSize) -> list[str]:
    """A row of the table."""
    return [
        found.name,
        f"{found.parameters:,}",
        str(found.microbatch or "all"),
        f"{found.first:.0f}",
        "" if np.isnan(found.later) else f"{found.later:.1f}",
        str(found.hvps),
        str(found.third_derivatives),
        f"{found.peak / 2**30:.2f}",
        f"{found.estimate / 2**30:.2f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.full_size", description=__doc__)
    parser.add_argument("specs", nargs="*", type=Path, metavar="SPEC")
    parser.add_argument("--steps", type=int, default=2, help="central steps to take")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], dest="settings")
    arguments = parser.parse_args()
    rows = []
    for path in arguments.specs or sorted(SPECS.glob("*.yaml")):
        # Spawned: a forked process would share the parent's memory and JAX's threads.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            found = pool.submit(measure, path, arguments.settings, arguments.steps).result()
        rows.append(cells(found))
        print(*rows[-1], sep="  ", flush=True)
    print("\n" + table(HEADER, rows))


if __name__ == "__main__":
    main()
