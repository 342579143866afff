"""Data sets, each a dataclass of options with a `load`."""

from ._base import AbstractData, Dataset
from ._registry import DATASETS
from .circles import Circles
from .classification import Classification
from .digits import Digits
from .moons import Moons
from .npz import Npz, read_arrays

__all__ = [
    "DATASETS",
    "AbstractData",
    "Circles",
    "Classification",
    "Dataset",
    "Digits",
    "Moons",
    "Npz",
    "read_arrays",
]
