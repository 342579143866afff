"""What memory a run will need: as its programs say, or estimated before there are any."""

import math
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from ..engine.curvature import Loss, local_model, third_derivative
from ..engine.response import Vector
from ..placement import Placement, placement_of
from ..task import Task

FUSED = 0.7
"""Share of the intermediate arrays of a traced program that the compiler keeps, about."""


def estimate_peak(loss: Loss, w: Vector, columns: int, chunk: int = 0) -> dict[str, int]:
    """Bytes that the largest intermediate arrays take, for each of what a flow's step computes.

    Of those on one of the devices that share the work.

    Keys are "gradient", "hvps" (Hessian-vector products with `columns` vectors, `chunk` at a time)
    and "third_derivative"; the peak of a step is about the largest. Only shapes are traced. The
    vectors of the eigensolver itself, some 20 per column, are in "hvps".
    """
    V = jax.ShapeDtypeStruct((w.size, columns), w.dtype)
    vector = jax.ShapeDtypeStruct(w.shape, w.dtype)
    programs = {
        "gradient": jax.make_jaxpr(jax.grad(loss))(vector),
        "hvps": jax.make_jaxpr(lambda w, V: local_model(loss, w, chunk).hvps(V))(vector, V),
        "third_derivative": jax.make_jaxpr(lambda w, u: third_derivative(loss, w, u, u))(
            vector, vector
        ),
    }
    on_all, on_each = (loss.placement if isinstance(loss, Task) else None), placement_of(w)
    share = FUSED / (1 if on_all is None else on_all.shares)
    peaks = {name: int(share * peak_bytes(program.jaxpr)) for name, program in programs.items()}
    basis = 20 * w.size * columns * jnp.dtype(w.dtype).itemsize
    return peaks | {"hvps": peaks["hvps"] + basis // (1 if on_each is None else on_each.parts)}


def fits(loss: Loss, w: Vector, columns: int, chunk: int = 0) -> bool:
    """Whether a step that keeps `columns` eigenvectors fits a device that has nothing else to do.

    True where devices do not say how much memory they have.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    peaks = estimate_peak(loss, w, columns, chunk) if "bytes_limit" in stats else {}
    return max(peaks.values(), default=0) <= stats.get("bytes_limit", math.inf)


def peak_bytes(jaxpr: Jaxpr) -> int:
    """Most bytes alive at once when `jaxpr` runs line by line, its inputs aside."""
    last_use = {
        var: i
        for i, eqn in enumerate(jaxpr.eqns)
        for var in (*eqn.invars, *eqn.outvars)
        if not isinstance(var, Literal)
    }
    kept = {var for var in (*jaxpr.invars, *jaxpr.constvars) if not isinstance(var, Literal)}
    kept |= {var for var in jaxpr.outvars if not isinstance(var, Literal)}
    alive = peak = 0
    for i, eqn in enumerate(jaxpr.eqns):
        alive += sum(_size(var.aval) for var in eqn.outvars)
        inner = max((peak_bytes(sub) for sub in _subprograms(eqn.params)), default=0)
        peak = max(peak, alive + inner)
        used = {var for var in (*eqn.invars, *eqn.outvars) if not isinstance(var, Literal)}
        alive -= sum(_size(var.aval) for var in used if last_use[var] == i and var not in kept)
    return peak


def _size(aval) -> int:
    return math.prod(aval.shape) * aval.dtype.itemsize if hasattr(aval, "shape") else 0


def _subprograms(params: dict) -> list[Jaxpr]:
    found = []
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr):
                found.append(item.jaxpr)
            elif isinstance(item, Jaxpr):
                found.append(item)
    return found


def free_memory() -> int | None:
    """Bytes free on the device that will compute; None if it does not tell."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def needed(program: Any) -> int:
    """Bytes that a compiled program takes on each device, beside its arguments."""
    found = program.compiled.memory_analysis()
    if found is None:  # it depends on the kind of device
        return 0
    return found.temp_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes


def warning(name: str, needed: int, free: int | None, remedies: Sequence[str]) -> str | None:
    """What to set where a step of the process `name` does not fit into `free` bytes, or nothing."""
    if free is None or needed <= free:
        return None
    return (
        f"a step of {name} needs {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free; set "
        f"{' and '.join(remedies)}"
    )


def remedies(chunk: int, placement: Placement | None) -> list[str]:
    """What takes less memory than `chunk` columns at a time on these devices."""
    found = ["memory.microbatch (examples at a time)"]
    if chunk != 1:
        found.append("memory.hvp_chunk (Hessian-vector products at a time)")
    if placement is not None and placement.count > 1 and placement.parts == 1:
        found.append("shard: both (eigenvectors, too, are split among the devices)")
    return found
