"""Models, each a module of options with a `build`."""

from ._base import AbstractModel, Interface
from ._registry import MODELS
from .cnn import CNN
from .gru import GRU
from .lstm import LSTM
from .mamba import Mamba
from .mlp import MLP, Perceptron
from .resnet import ResNet
from .transformer import Transformer
from .vit import ViT

__all__ = [
    "CNN",
    "GRU",
    "LSTM",
    "MLP",
    "MODELS",
    "AbstractModel",
    "Interface",
    "Mamba",
    "Perceptron",
    "ResNet",
    "Transformer",
    "ViT",
]
