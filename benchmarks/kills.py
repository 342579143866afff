"""Runs that are killed at random instants and gone on with: is the result that of one that was not?

    python -m benchmarks.kills --runs 30

Each run is a process of the command line, ended by SIGKILL after a random time, within compilation,
a step, or the writing of rows and checkpoints, and resumed, until one comes to its end. Its data
must be those of an undisturbed run to 1e-12, and readable after every kill. What it needs of
programs is compiled in the undisturbed runs.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

from .measure import environment

_COMMON = {
    "seed": 0,
    "precision": "float64",
    "loss": {"type": "mse"},
    "checkpoint": {"every": 3},
}
_MOONS = {
    "data": {"type": "moons", "n": 40},
    "model": {"type": "mlp", "widths": [6], "activation": "tanh"},
}
_DIGITS = {
    "data": {"type": "digits", "n": 60},
    "model": {"type": "mlp", "widths": [6], "activation": "gelu"},
}
SPECS = {
    "gd_kept_every_step": _DIGITS
    | {
        "optimizer": {"type": "gd", "lr": 0.5},
        "processes": ["discrete", "midpoint", "stable", "central"],
        "steps": 60,
        "checkpoint": {"every": 1},
    },
    "momentum_and_probes": _DIGITS
    | {
        "optimizer": {"type": "heavy_ball", "lr": 0.1, "momentum": 0.8},
        "processes": ["discrete", "central"],
        "steps": 40,
        "record": {"coordinates": 4, "examples": [0, 1], "weights_every": 2},
    },
    "adam_by_euler": _MOONS
    | {
        "optimizer": {"type": "adam", "lr": 0.05, "beta1": 0.9, "beta2": 0.95},
        "processes": ["discrete", "midpoint", "central"],
        "steps": 40,
        "warm_start": 10,
        "flow": {"method": "euler"},
    },
    "growing_spectrum": _DIGITS
    | {
        "optimizer": {"type": "rmsprop", "lr": 0.005, "beta2": 0.95},
        "processes": ["discrete", "stable", "central"],
        "steps": 50,
        "warm_start": 10,
    },
    "minibatches_and_a_goal": _MOONS
    | {
        "optimizer": {"type": "gd", "lr": 0.4},
        "processes": ["discrete", "discrete_minibatch"],
        "minibatch": {"size": 8},
        "steps": 400,
        "stop": {"process": "discrete", "loss_below": 0.12},
    },
}
"""What is run, by name."""
TOLERANCE = 1e-12


def _command(*words: str) -> list[str]:
    return [sys.executable, "-m", "centralflow_eqx", *words]


def _environment(cache: Path) -> dict[str, str]:
    return os.environ | {"CENTRALFLOW_CACHE": str(cache)}


def _undisturbed(folder: Path, cache: Path) -> dict[str, float]:
    """Run every spec to its end; the seconds that each takes once its programs are compiled."""
    seconds = {}
    for name, spec in SPECS.items():
        path = folder / f"{name}.yaml"
        whole = _COMMON | {"name": name, "output": {"dir": str(folder / "whole")}} | spec
        path.write_text(json.dumps(whole))
        for flag in ([], ["--anew"]):
            begun = time.monotonic()
            command = _command("run", str(path), *flag)
            subprocess.run(command, env=_environment(cache), check=True, capture_output=True)
            seconds[name] = time.monotonic() - begun
    return seconds


_KILLS = 3
"""How often a run is killed at most."""


def _disturbed(name: str, number: int, folder: Path, cache: Path, seconds: float) -> dict:
    """Run a spec and kill it until it comes to its end; how often, and how far off it is."""
    draw, out = random.Random(number), folder / f"killed_{number}"
    path, run_dir = folder / f"{name}.yaml", out / name
    kills, steps = 0, []
    while True:
        command = _command("resume", str(run_dir))
        if not (run_dir / "spec.yaml").exists():  # killed before there was anything
            command = _command("run", str(path), "--set", f"output.dir={out}")
        with subprocess.Popen(
            command, env=_environment(cache), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            if kills < _KILLS:
                _kill(process, draw, run_dir / "checkpoints", seconds)
            told = process.communicate()[0].decode()
        if process.returncode == 0:
            break
        if process.returncode != -signal.SIGKILL:
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {told}")
        kills += 1
        if (run_dir / "data.h5").exists():
            steps.append(_rows(run_dir))
    return {
        "spec": name,
        "kills": kills,
        "rows_at_kills": steps,
        "error": _error(run_dir, folder / "whole" / name),
    }


def _kill(
    process: subprocess.Popen, draw: random.Random, checkpoints: Path, seconds: float
) -> None:
    """End a process at any time, or, every second time, while it takes steps, if there are any."""
    compiling = draw.random() < 0.5
    before = set(checkpoints.glob("*"))
    time.sleep(draw.uniform(0, seconds) if compiling else 0)
    while not compiling and process.poll() is None:
        time.sleep(0.001)
        if set(checkpoints.glob("*")) != before:
            time.sleep(draw.expovariate(4))
            break
    process.send_signal(signal.SIGKILL)


def _rows(run_dir: Path) -> int:
    """How many rows the data have; raises if they cannot be read."""
    with h5py.File(run_dir / "data.h5", "r", locking=False) as file:
        if "discrete/train_loss" not in file:
            return 0
        return int(np.isfinite(file["discrete/train_loss"][()]).sum())


def _error(run_dir: Path, whole: Path) -> float:
    """The largest difference of two runs' data, relative to what is compared."""
    worst = 0.0
    with h5py.File(run_dir / "data.h5") as a, h5py.File(whole / "data.h5") as b:
        names: list[str] = []
        b.visititems(lambda n, item: names.append(n) if isinstance(item, h5py.Dataset) else None)
        for name in names:
            x, y = np.asarray(a[name], float), np.asarray(b[name], float)
            if x.shape != y.shape or not np.array_equal(np.isnan(x), np.isnan(y)):
                return np.inf
            scale = np.nanmax(np.abs(y), initial=0.0) or 1.0
            worst = max(worst, float(np.nanmax(np.abs(x - y), initial=0.0)) / scale)
    return worst


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=30, help="how many runs are killed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the results there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        cache = folder / "programs"
        seconds, found = _undisturbed(folder, cache), []
        for number in range(arguments.runs):
            name = list(SPECS)[number % len(SPECS)]
            seed = arguments.seed + number
            found.append(_disturbed(name, seed, folder, cache, seconds[name]))
            print(found[-1], flush=True)
    kills = sum(result["kills"] for result in found)
    worst = max(result["error"] for result in found)
    print(f"{len(found)} runs, {kills} kills, largest difference {worst:.2g}")
    if arguments.json:
        content = {"environment": environment(), "runs": found}
        arguments.json.write_text(json.dumps(content, indent=1))
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
