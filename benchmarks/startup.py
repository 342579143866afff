"""Where the time of a run goes: `python -m benchmarks.startup [SPEC]`.

`run SPEC` and `explain specs/digits_adam.yaml`, each in a process of its own, first with an empty
cache of compiled programs, then with the one that this left. Tracing, lowering and compiling are
JAX's own events, added up over threads that do them side by side: their sum can exceed the time
that passes. Importing ends when a command says that it loads the data. Prints a Markdown table.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEADER = ("command", "cache", "import", "trace", "lower", "compile", "steps", "report", "total")
EVENTS = {
    "trace": "/jax/core/compile/jaxpr_trace_duration",
    "lower": "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "compile": "/jax/core/compile/backend_compile_duration",
}
MARK = "measured "


def child(arguments: list[str]) -> None:
    """Run a command of the package in this process and print what it took."""
    import jax

    from centralflow_eqx.cli import main

    spent = dict.fromkeys(EVENTS, 0.0)

    def listen(event: str, duration: float, **_: object) -> None:
        for name, known in EVENTS.items():
            spent[name] += duration if event == known else 0.0

    jax.monitoring.register_event_duration_secs_listener(listen)
    code = main(arguments)
    print(MARK + json.dumps(spent))
    sys.exit(code)


def measure(arguments: list[str], cache: str, folder: str) -> dict[str, float]:
    """What a command took, in seconds by name."""
    command = [sys.executable, "-m", "benchmarks.startup", "--child", *arguments]
    environment = os.environ | {"CENTRALFLOW_CACHE": cache}
    begin, said = time.monotonic(), {}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True
    ) as done:
        assert done.stdout is not None and done.stderr is not None
        for line in done.stderr:
            said.setdefault(line.split()[0], time.monotonic() - begin)
        printed = done.stdout.read().splitlines()
    if done.returncode:
        sys.exit(f"{' '.join(arguments)} failed, exit code {done.returncode}")
    (line,) = (line for line in printed if line.startswith(MARK))
    spent = json.loads(line.removeprefix(MARK))
    spent |= {"import": said["loading"], "total": time.monotonic() - begin}
    if "writing" in said:
        spent["report"] = spent["total"] - said["writing"]
    metrics = next(iter(Path(folder).glob("*/metrics.jsonl")), None)
    if metrics is not None:
        walls = [json.loads(line)["wall_seconds"] for line in metrics.read_text().splitlines()]
        spent["steps"] = walls[-1] - walls[0]
    return spent


def rows(spec: str) -> list[list[str]]:
    """The table, cold and warm for each command."""
    found = []
    for name in (f"run {spec}", "explain specs/digits_adam.yaml"):
        with tempfile.TemporaryDirectory() as cache:
            for kind in ("empty", "filled"):
                with tempfile.TemporaryDirectory() as folder:
                    arguments = name.split() + ["--set", f"output.dir={folder}"]
                    spent = measure(arguments, cache, folder)
                found.append([name, kind, *(_cell(spent, column) for column in HEADER[2:])])
    return found


def _cell(spent: dict[str, float], column: str) -> str:
    return f"{spent[column]:.1f}" if column in spent else ""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__)
    parser.add_argument("spec", nargs="?", default="specs/digits_gd.yaml", metavar="SPEC")
    from .tables import table  # not for the commands that are measured: it imports much

    print(table(HEADER, rows(parser.parse_args().spec)))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2:])
    else:
        main()
