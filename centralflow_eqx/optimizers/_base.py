"""What an optimizer has to declare."""

import abc
from typing import Any

import equinox as eqx
from jaxtyping import PyTree


class AbstractOptimizer(eqx.Module):
    """A first-order optimizer, declared by its discrete update rule and nothing else.

    The convention is Optax's: the optimizer moves the parameters by `params + step`.
    Everything the package derives from a rule (stability operator, mean response, averaged
    drift) it derives by differentiating `update`, so `update` must be a pure, differentiable
    JAX function. Three points of style make a rule well behaved:

    - the state is affine in the old state (exponential averages, momenta, sums, counters);
    - a step count enters only smoothly, because flows evaluate it between whole numbers;
    - the step is finite where a statistic is zero.

    Fields that hold a Python float are arrays while a run compiles the rule, as long as `update`
    does without their values in Python.
    """

    @abc.abstractmethod
    def init(self, params: PyTree) -> Any:
        """The optimizer's state before its first step, a pytree of arrays."""

    @abc.abstractmethod
    def update(self, grad: PyTree, state: Any, params: PyTree) -> tuple[PyTree, Any]:
        """One step: from the gradient at `params` to `(step, new state)`."""
