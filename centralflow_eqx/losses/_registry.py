"""The losses a spec can name."""

from ..registry import Registry
from ._base import AbstractLoss

LOSSES: Registry[AbstractLoss] = Registry("loss", AbstractLoss)
