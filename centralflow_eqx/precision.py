"""What has to be set for the whole process before anything is computed."""

import jax


def engage() -> None:
    """Let JAX compute in float64, and multiply matrices with all the precision they have.

    The complementarity problem is always solved in float64, whatever the precision of the weights,
    and JAX has one switch for both. It is thrown when something is about to be computed, not when
    the package is imported; arrays made before keep their precision.
    """
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_default_matmul_precision", "highest")
