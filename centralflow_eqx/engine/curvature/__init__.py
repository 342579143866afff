"""Curvature along directions: Hessian products, tracked eigenpairs, third derivatives."""

from .eigen import Eigenpairs, EigenTracker, leading, unsolved, widen
from .products import (
    LocalModel,
    Loss,
    apply_columns,
    fourth_derivatives,
    local_model,
    third_derivative,
    third_derivatives,
)

__all__ = [
    "EigenTracker",
    "Eigenpairs",
    "LocalModel",
    "Loss",
    "apply_columns",
    "fourth_derivatives",
    "leading",
    "local_model",
    "third_derivative",
    "third_derivatives",
    "unsolved",
    "widen",
]
