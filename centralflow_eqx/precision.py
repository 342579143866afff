"""What has to be set for the whole process before anything is computed."""

import contextlib
from collections.abc import Iterator

import jax


def engage() -> None:
    """Let JAX compute in float64, and multiply matrices with all the precision they have.

    The complementarity problem is always solved in float64, whatever the precision of the weights,
    and JAX has one switch for both. It is thrown when something is about to be computed, not when
    the package is imported; arrays made before keep their precision.
    """
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_default_matmul_precision", "highest")


@contextlib.contextmanager
def engaged_here() -> Iterator[None]:
    """What `engage` sets, for this thread and no longer: others keep their precision."""
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        yield


@contextlib.contextmanager
def engaged_for_now() -> Iterator[None]:
    """`engage` for all threads of the process, taken back at the end."""
    names = "jax_enable_x64", "jax_default_matmul_precision"
    before = {name: getattr(jax.config, name) for name in names}
    engage()
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
