"""A report on a run, and one on several, made from their directories alone."""

from ._smooth import smooth
from .compare import summarise_comparison, write_comparison
from .page import summarise, write_report

__all__ = [
    "smooth",
    "summarise",
    "summarise_comparison",
    "write_comparison",
    "write_report",
]
