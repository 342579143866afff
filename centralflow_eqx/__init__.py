"""Central flows of deep-learning optimizers, derived from their update rules."""

import jax

# The complementarity problem is always solved in double precision, whatever the
# precision of the weights; JAX has one switch for both.
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_default_matmul_precision", "highest")

__version__ = "0.1.0"
