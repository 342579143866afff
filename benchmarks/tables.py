"""Results as Markdown."""

from collections.abc import Sequence
from typing import Any

from .cost import PLAIN, SECOND_ORDER, ratio_to_baseline
from .measure import STRETCH
from .problem import EDGE


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are numbers."""
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))


def number(value: float | None, spec: str) -> str:
    """The formatted value, or nothing for None."""
    return "" if value is None else format(value, spec)


def cost_table(cost: dict[str, Any]) -> str:
    """A row for everything that steps."""
    header = [
        "per step",
        "time / optimizer alone",
        "time / central",
        "difference from central",
        "products",
        "third derivatives",
        "gradients",
        "ms",
        "ms, not recorded",
        "first call, s",
        "compilations when warm",
    ]
    rows = [
        [
            row["name"],
            number(row["over_plain"], ".3g"),
            number(row["over_central"], ".2g"),
            number(row.get("difference_from_central"), ".1e"),
            number(row["hvps"], ".0f"),
            number(row["third_derivatives"], ".1f"),
            number(row["gradients"], ".1f"),
            number(row["milliseconds"], ".3g"),
            number(row["unrecorded_milliseconds"], ".3g"),
            number(row["first_call_seconds"], ".1f"),
            str(row["compilations"]),
        ]
        for row in cost["rows"]
    ]
    return table(header, rows)


def floor_table(floor: dict[str, Any]) -> str:
    """How far the central step is from the work it cannot avoid."""
    rows = [
        ["central step / floor", number(floor["central_over_floor"], ".2f")],
        ["central step, not recorded / floor", number(floor["unrecorded_over_floor"], ".2f")],
        ["floor of a step, ms", number(floor["floor_milliseconds"], ".3g")],
        ["products of a substep, ms", number(floor["products_milliseconds"], ".3g")],
    ]
    for n, milliseconds in floor["third_milliseconds"].items():
        steps = floor["critical_directions"][n]
        name = f"third derivatives of a substep, {n} critical ({steps} steps), ms"
        rows.append([name, number(milliseconds, ".3g")])
    return table(["beside the floor", "value"], rows)


def convergence_table(convergence: dict[str, Any]) -> str:
    """Errors and orders by number of substeps."""
    rows = [
        [
            str(row["substeps"]),
            number(row["error"], ".1e"),
            number(row["order"], ".2f"),
            number(row["last_error"], ".1e"),
        ]
        for row in convergence["rows"]
    ]
    return table(["substeps", "largest relative error", "order", "at the last step"], rows)


def document(results: dict[str, Any]) -> str:
    """Everything, as one Markdown text."""
    cost, convergence = results["cost"], results["convergence"]
    ratio = number(ratio_to_baseline(cost["rows"]), ".1f")
    faster = ratio_to_baseline(cost["rows"], SECOND_ORDER)
    beyond = "" if faster is None else f", {faster:.1f} times as long as one {SECOND_ORDER}"
    environment = ", ".join(f"{name} {value}" for name, value in results["environment"].items())
    return "\n\n".join(
        [
            f"### Cost of a step, over {cost['steps']} steps from step {EDGE}",
            cost_table(cost),
            f"The off-the-shelf central step takes {ratio} times as long as the package's{beyond}. "
            f"Times are those of the median {STRETCH} steps, counts means; `{PLAIN}` tracks no "
            "eigenvalues.",
            "### Distance from the floor",
            floor_table(cost["floor"]),
            f"### Convergence in the substep, {convergence['steps']} steps, "
            f"against {convergence['reference']} substeps",
            convergence_table(convergence),
            f"Measured with {environment}.",
        ]
    )
