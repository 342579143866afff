"""Which cases of a test run by default."""

from collections.abc import Iterable
from typing import Any

import pytest


def quick(cases: Iterable[Any], *first: Any) -> list:
    """The cases as parameters: all but `first`, one of each kind, are slow tests."""
    cases = list(cases)
    assert set(first) <= set(cases)
    return [c if c in first else pytest.param(c, marks=pytest.mark.slow) for c in cases]
