"""Timing that survives a noisy machine, and a count of compilations."""

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import mean, median
from typing import Any

import jax
import numpy as np

from .baseline import Cost

STRETCH = 20
"""Steps that are averaged over."""
_COMPILED = "/jax/core/compile/backend_compile_duration"


class Compilations:
    """Counts XLA compilations in this process while it is the context."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> "Compilations":
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, duration: float, **_: object) -> None:
        self.count += event == _COMPILED


@dataclass
class Contender:
    """Something that steps, and what its steps took.

    `start` makes the first state, `step` maps a state to the next one, its weights and its cost,
    and blocks until they are there. `aside`, if given, is timed at every step from the same state
    and its result dropped. `path` has the weights after every step, the warm-up's included.
    """

    name: str
    start: Callable[[], Any]
    step: Callable[[Any], tuple[Any, jax.Array, Cost]]
    aside: Callable[[Any], Any] | None = None
    state: Any = None
    first_call: float = 0.0
    warm_up_compilations: int = 0
    compilations: int = 0
    seconds: list[float] = field(default_factory=list)
    aside_seconds: list[float] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)
    path: list[np.ndarray] = field(default_factory=list)

    def warm_up(self) -> None:
        """Start and compile by taking a step, which counts for the path only."""
        with Compilations() as compilations:
            start = time.perf_counter()
            self.state, w, _ = self.step(self.start())
            self.first_call = time.perf_counter() - start
            self.path.append(np.asarray(w))
        self.warm_up_compilations = compilations.count

    def advance(self, steps: int) -> None:
        """Take timed steps."""
        with Compilations() as compilations:
            for _ in range(steps):
                if self.aside is not None:
                    start = time.perf_counter()
                    self.aside(self.state)
                    self.aside_seconds.append(time.perf_counter() - start)
                start = time.perf_counter()
                self.state, w, cost = self.step(self.state)
                self.seconds.append(time.perf_counter() - start)
                self.costs.append(cost)
                self.path.append(np.asarray(w))
        self.compilations += compilations.count

    @property
    def milliseconds(self) -> float:
        """A step of the median stretch: those of a flow that looks ahead are not alike."""
        stretches = [self.seconds[i : i + STRETCH] for i in range(0, len(self.seconds), STRETCH)]
        return 1e3 * median(map(mean, stretches))

    @property
    def aside_milliseconds(self) -> float | None:
        """The median step aside."""
        return 1e3 * median(self.aside_seconds) if self.aside_seconds else None

    @property
    def cost(self) -> dict[str, float]:
        """The mean cost of a step."""
        return {name: mean(getattr(c, name) for c in self.costs) for name in Cost._fields}


def race(contenders: Sequence[Contender], steps: int, block: int) -> None:
    """Let all contenders take `steps` timed steps in turns of `block`: noise hits all alike."""
    for contender in contenders:
        contender.warm_up()
    for start in range(0, steps, block):
        for contender in contenders:
            contender.advance(min(block, steps - start))


def kernel_milliseconds(kernels: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Medians over interleaved calls, after one call each that compiles."""
    seconds: dict[str, list[float]] = {name: [] for name in kernels}
    for kernel in kernels.values():
        jax.block_until_ready(kernel())
    for _ in range(repeats):
        for name, kernel in kernels.items():
            start = time.perf_counter()
            jax.block_until_ready(kernel())
            seconds[name].append(time.perf_counter() - start)
    return {name: 1e3 * median(s) for name, s in seconds.items()}


def differences(
    path: Sequence[np.ndarray], other: Sequence[np.ndarray], start: np.ndarray
) -> np.ndarray:
    """Distances between two trajectories step by step, relative to how far the second one gets."""
    gaps = [np.linalg.norm(a - b) for a, b in zip(path, other, strict=True)]
    return np.array(gaps) / np.linalg.norm(other[-1] - start)


def environment() -> dict[str, Any]:
    """Versions and device."""
    packages = ("centralflow_eqx", "jax", "equinox", "cvxpy", "clarabel")
    versions = {name: importlib.metadata.version(name) for name in packages}
    device = jax.devices()[0]
    return versions | {
        "Python": platform.python_version(),
        "platform": platform.machine(),
        "device": f"{device.platform} {device.device_kind}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
    }
