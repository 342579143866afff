"""The processes a spec can name."""

from ..registry import Registry
from ._base import AbstractObserver, AbstractProcess

PROCESSES: Registry[AbstractProcess | AbstractObserver] = Registry("process")
