"""A report on a run, made from its directory alone."""

from .page import summarise, write_report

__all__ = ["summarise", "write_report"]
