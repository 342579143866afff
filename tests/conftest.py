"""What all tests share."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_programs():
    """Hundreds of compiled programs in one process exhaust its memory maps."""
    yield
    jax.clear_caches()
