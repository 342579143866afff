"""The processes a spec can name."""

from ..registry import Registry
from ._base import AbstractProcess

PROCESSES: Registry[AbstractProcess] = Registry("process")
