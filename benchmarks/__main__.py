"""Measure everything and print Markdown tables: `python -m benchmarks [--quick] [--json PATH]`."""

import argparse
import json
from pathlib import Path
from typing import Any

from .convergence import measure_convergence
from .cost import measure_cost
from .measure import environment
from .problem import EDGE, build_problem
from .tables import document


def measure(quick: bool) -> dict[str, Any]:
    """All measurements; `quick` takes few steps and leaves variations out."""
    edge = build_problem(EDGE)
    if quick:
        cost = measure_cost(edge, steps=6, block=2, quick=True)
        convergence = measure_convergence(edge, substeps=(1, 2), reference=4, steps=6)
    else:
        cost = measure_cost(edge, steps=80, block=5, quick=False)
        convergence = measure_convergence(
            build_problem(0), substeps=(1, 2, 4, 8), reference=32, steps=96
        )
    return {
        "quick": quick,
        "environment": environment(),
        "cost": cost,
        "convergence": convergence,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few steps, to see that it works")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the results here")
    arguments = parser.parse_args()
    results = measure(arguments.quick)
    print(document(results))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
