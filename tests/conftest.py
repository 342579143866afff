"""What all tests share."""

import gc
import os
import shutil
import tempfile

import jax
import pytest
from _typechecks import modules
from jaxtyping import install_import_hook

# Shapes and types in signatures hold whenever anything is computed.
install_import_hook(modules(), "_typechecks.checked")

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_default_matmul_precision", "highest")

# As in the command line: looking for garbage in what is traced takes time and finds little.
gc.set_threshold(50_000, 20, 20)

_GENERATOR = "--xla_cpu_use_fusion_emitters=false"
_SHARED = {
    "JAX_COMPILATION_CACHE_DIR": "",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


def pytest_configure(config):
    """Programs that one test compiled are there for the others, in whatever process they run.

    Those of tests themselves are made by the code generator that those of the package are.
    """
    os.environ["XLA_FLAGS"] = f"{_GENERATOR} {os.environ.get('XLA_FLAGS', '')}"
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or hasattr(config, "workerinput"):
        return
    config.shared_programs = tempfile.mkdtemp()
    os.environ.update(_SHARED | {"JAX_COMPILATION_CACHE_DIR": config.shared_programs})
    # This process has read its environment already; workers have not.
    jax.config.update("jax_compilation_cache_dir", config.shared_programs)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


# What takes longest comes first, so that no process is left with it at the end.
_LONGEST = (
    "contract",
    "flows",
    "references",
    "sweep",
    "response",
    "exact",
    "model_contract",
    "advance",
    "guards",
    "stationary",
    "arrays",
    "docs",
    "mixed_states",
    "what_a_run_says",
)


def pytest_collection_modifyitems(items):
    def rank(item):
        name = item.path.stem.removeprefix("test_")
        return _LONGEST.index(name) if name in _LONGEST else len(_LONGEST)

    items.sort(key=rank)


def pytest_unconfigure(config):
    folder = getattr(config, "shared_programs", None)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


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
