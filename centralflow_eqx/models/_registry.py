"""The models a spec can name."""

from ..registry import Registry
from ._base import AbstractModel

MODELS: Registry[AbstractModel] = Registry("model", AbstractModel)
