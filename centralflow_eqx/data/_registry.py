"""The data sets a spec can name."""

from ..registry import Registry
from ._base import AbstractData

DATASETS: Registry[AbstractData] = Registry("data set", AbstractData)
