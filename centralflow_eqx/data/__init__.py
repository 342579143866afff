"""Data sets, each a dataclass of options with a `load`."""

from ._base import AbstractData, Dataset
from ._checks import checked_dataset, load_dataset
from ._registry import DATASETS
from .chebyshev import Chebyshev
from .cifar10 import Cifar10
from .circles import Circles
from .classification import Classification
from .copying import Copying
from .digits import Digits
from .moons import Moons
from .npz import Npz, read_arrays
from .sorting import Sorting
from .sst2 import Sst2

__all__ = [
    "DATASETS",
    "AbstractData",
    "Chebyshev",
    "Cifar10",
    "Circles",
    "Classification",
    "Copying",
    "Dataset",
    "Digits",
    "Moons",
    "Npz",
    "Sorting",
    "Sst2",
    "checked_dataset",
    "load_dataset",
    "read_arrays",
]
