"""What devices exchange in a run that they share: `python -m benchmarks.scale [--devices 1 2 4 8]`.

Every number of devices has a process of its own, where CPUs stand in for devices that are not
there. Prints Markdown tables of what the compiled programs of a gradient, of blocks of
Hessian-vector products, of third derivatives and of eigenpairs exchange (number and bytes, of one
pass of a loop), and of the memory that they need on each device: with as many examples for any
number of devices (strong scaling), and with as many for each device (weak scaling); with examples
alone shared out, and with weights and eigenvectors, too. Real devices, `--real`, it times.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np

import centralflow_eqx as cf
from centralflow_eqx.engine.curvature import (
    Eigenpairs,
    EigenTracker,
    local_model,
    third_derivatives,
    unsolved,
)
from centralflow_eqx.placement import Shard
from centralflow_eqx.task import Task

from .tables import table

EXAMPLES, EACH = 840, 105
"""Examples for all devices, and for each."""
COLUMNS = 1, 8
CRITICAL, TRACKED = 3, 8
"""Directions whose third derivatives are taken, and those with room for their eigenvectors."""
ALL_AT_ONCE = 2**30
HEADER = ("devices", "share out", "examples", "of", "exchanges", "KiB", "memory on each, MiB")
_KINDS = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
_BYTES = {"f64": 8, "s64": 8, "u64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "pred": 1}
_REPEATS = 20


def exchanges(compiled: Any) -> list[tuple[str, int]]:
    """The collective operations of a compiled program, and the bytes that each moves."""
    found = []
    for shapes, kind in re.findall(rf"= (.*?) ({_KINDS})(?:-start)?\(", compiled.as_text()):
        arrays = re.findall(r"(\w+)\[([\d,]*)\]", shapes)
        sizes = [_BYTES[t] * np.prod([int(i) for i in n.split(",") if i]) for t, n in arrays]
        found.append((kind, int(sum(sizes))))
    return found


def programs(task: Task) -> dict[str, tuple[Callable, tuple]]:
    """What a step of a flow consists of, with arguments."""
    w, placement = task.initial_weights, task.placement
    chunk = 1 if placement is not None and placement.parts > 1 else ALL_AT_ONCE

    def lay(tree: Any) -> Any:
        return tree if placement is None else placement.lay(tree, w.size)

    def products(task: Task, w: jax.Array, V: jax.Array) -> jax.Array:
        return local_model(task, w, chunk).hvps(V)

    def eigenpairs(task: Task, w: jax.Array, pairs: Eigenpairs) -> Eigenpairs:
        gain = lx.DiagonalLinearOperator(jnp.ones_like(w))
        return EigenTracker().solve(local_model(task, w, chunk), gain, pairs)

    def thirds(task: Task, w: jax.Array, U: jax.Array) -> jax.Array:
        return third_derivatives(task, w, U, jnp.asarray(CRITICAL))

    def ones(k: int) -> jax.Array:
        return lay(jnp.ones((w.size, k), w.dtype))

    pairs = lay(unsolved(w.size, TRACKED, w.dtype, jax.random.key(0)))
    return {
        "gradient": (lambda task, w: jax.value_and_grad(task)(w), (task, w)),
        **{f"{k} products": (products, (task, w, ones(k))) for k in COLUMNS},
        f"{CRITICAL * (CRITICAL + 1) // 2} third derivatives": (thirds, (task, w, ones(CRITICAL))),
        f"{TRACKED} eigenpairs": (eigenpairs, (task, w, pairs)),
    }


def compile_program(function: Callable, arguments: tuple) -> Any:
    """The program of XLA."""
    return eqx.filter_jit(function).lower(*arguments).compile().compiled


def measure(devices: int, examples: int, timed: bool) -> list[list[str]]:
    """Rows of the table for as many devices of this process."""
    sharings: tuple[Shard, ...] = ("examples",) if devices == 1 else ("examples", "both")
    return [row for shard in sharings for row in _measure(devices, examples, shard, timed)]


def _measure(devices: int, examples: int, shard: Shard, timed: bool) -> list[list[str]]:
    # Without biases a power of two divides the number of weights.
    data, model = cf.data.Digits(n=examples), cf.models.MLP((128, 128), bias=False)
    task = cf.make_task(data, model, cf.losses.CrossEntropy(), devices=devices, shard=shard)
    rows = []
    for name, (function, arguments) in programs(task).items():
        compiled = compile_program(function, arguments)
        moved = exchanges(compiled)
        memory = compiled.memory_analysis()
        total = sum(size for _, size in moved) / 2**10
        row = [str(devices), shard, str(examples), name, str(len(moved)), f"{total:.1f}"]
        row.append(f"{(memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 2**20:.2f}")
        if timed:
            row.append(f"{1e3 * _seconds(function, arguments):.2f}")
        rows.append(row)
    return rows


def _seconds(function: Callable, arguments: tuple) -> float:
    jitted, seconds = eqx.filter_jit(function), []
    for _ in range(_REPEATS + 1):
        start = time.perf_counter()
        jax.block_until_ready(jitted(*arguments))
        seconds.append(time.perf_counter() - start)
    return median(seconds[1:])


def measure_apart(devices: int, examples: int, real: bool) -> list[list[str]]:
    """`measure` in a process that has so many devices."""
    forced = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | ({} if real else {"XLA_FLAGS": forced, "JAX_PLATFORMS": "cpu"})
    command = [sys.executable, "-m", __spec__.name, "--measure", str(devices), str(examples)]
    command += ["--real"] if real else []
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def tables(devices: Sequence[int], real: bool) -> str:
    """Both tables."""
    header = (*HEADER, "ms") if real else HEADER
    strong = [row for n in devices for row in measure_apart(n, EXAMPLES, real)]
    weak = [row for n in devices for row in measure_apart(n, EACH * n, real)]
    return f"Strong scaling:\n\n{table(header, strong)}\n\nWeak scaling:\n\n{table(header, weak)}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4, 8], metavar="N")
    parser.add_argument("--real", action="store_true", help="on the devices there are, and timed")
    parser.add_argument("--measure", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure, timed=arguments.real)))
    else:
        print(tables(arguments.devices, arguments.real))


if __name__ == "__main__":
    main()
