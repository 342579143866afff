"""Models, each a module of options with a `build`."""

from ._base import AbstractModel
from ._registry import MODELS
from .mlp import MLP, Perceptron

__all__ = ["MLP", "MODELS", "AbstractModel", "Perceptron"]
