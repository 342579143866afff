"""A report on a run, and one on several, made from their directories alone."""

from ._smooth import smooth
from .compare import summarise_comparison, write_comparison
from .overview import overview, tabulate
from .page import summarise, write_report

__all__ = [
    "overview",
    "smooth",
    "summarise",
    "summarise_comparison",
    "tabulate",
    "write_comparison",
    "write_report",
]
