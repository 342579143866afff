"""What all tests share."""

import jax
import pytest

jax.config.update("jax_enable_x64", True)


@pytest.fixture(autouse=True, scope="module")
def compilation(request):
    """Half the compiler's time for modules that compile much and compute little: all but a few.

    Environment variables reach the processes that tests start. Programs are forgotten after every
    module, because hundreds of them in one process exhaust its memory maps.
    """
    quick = request.node.get_closest_marker("optimized") is None
    jax.config.update("jax_disable_most_optimizations", quick)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", str(quick))
        yield
    jax.clear_caches()
