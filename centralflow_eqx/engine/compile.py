"""How programs are compiled."""

from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx

F = TypeVar("F", bound=Callable)

# XLA's newer code generator for CPUs takes twice the time of the older one for programs such as
# these, and what it makes of them is no faster. Other devices have no such choice.
_OPTIONS = {"xla_cpu_use_fusion_emitters": False}
_ONCE = {"xla_backend_optimization_level": 0}


_jit: Any = eqx.filter_jit  # it hands on what it does not document


def program(function: F) -> F:
    """`eqx.filter_jit` for what runs many times."""
    return _jit(function, compiler_options=_OPTIONS)


def single_use(function: F) -> F:
    """`eqx.filter_jit` for what runs once: optimising it takes longer than it saves."""
    return _jit(function, compiler_options=_OPTIONS | _ONCE)
