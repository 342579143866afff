"""How an optimizer answers to an oscillating gradient, derived from its update rule."""

from ._examine import ONLY_SOMETIMES, derive, examine
from ._response import (
    Coupling,
    Response,
    Rule,
    State,
    Structure,
    Vector,
    relax,
    traced_numbers,
)

__all__ = [
    "ONLY_SOMETIMES",
    "Coupling",
    "Response",
    "Rule",
    "State",
    "Structure",
    "Vector",
    "derive",
    "examine",
    "relax",
    "traced_numbers",
]
