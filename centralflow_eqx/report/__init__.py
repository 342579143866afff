"""A report on a run, made from its directory alone."""

from ._data import smooth
from .page import summarise, write_report

__all__ = ["smooth", "summarise", "write_report"]
