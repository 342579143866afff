"""Which of Optax's optimizers have a central flow: the table of docs/optax.md.

python -m benchmarks.optax_rules [NAME ...]
"""

import inspect
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

from centralflow_eqx.errors import OptionError
from centralflow_eqx.experiment.start import respond
from centralflow_eqx.optimizers import Optax
from centralflow_eqx.precision import engage
from centralflow_eqx.task import flatten

RATE, WARM_START = 0.01, 3
# In Optax's list of optimizers, but transformations of other optimizers or of no optimizer.
_NO_OPTIMIZERS = (
    "schedule_free_eval_params",
    "schedule_free",
    "mechanize",
    "sam",
    "reduce_on_plateau",
)
_PARTS = ("scale_by_", "split_", "hutchinson", "normalize", "differentially_private")


def names() -> list[str]:
    """The optimizers of `optax` and `optax.contrib` that take a learning rate, or nothing."""
    top = [n for n in dir(optax) if n[:1] != "_" and _is_optimizer(getattr(optax, n))]
    deep = [f"contrib.{name}" for name in dir(contrib) if _is_optimizer(getattr(contrib, name))]
    return top + deep


def _is_optimizer(found: Any) -> bool:
    function = getattr(found, "func", found)  # nadam is a partial function
    if not inspect.isfunction(function):
        return False
    home, name = function.__module__, function.__name__
    if name in _NO_OPTIMIZERS or name.startswith(_PARTS) or "State" in name:
        return False
    return home.endswith("_src.alias") or home.startswith("optax.contrib")


def problem() -> tuple[Any, jax.Array, Any]:
    """A small network's loss of flat weights, its weights, and their layout as a pytree."""
    engage()
    rng = np.random.default_rng(0)
    tree = {"matrix": rng.normal(size=(3, 2)), "vector": rng.normal(size=3)}
    w, layout, _ = flatten(jax.tree.map(jnp.asarray, tree))

    def loss(w: jax.Array) -> jax.Array:
        parameters = layout(w)
        hidden = jnp.tanh(parameters["matrix"] @ jnp.array([1.0, -0.5]) + parameters["vector"])
        return jnp.sum((hidden - 0.3) ** 2) + 0.1 * jnp.sum(w**2)

    return loss, jnp.asarray(w), layout


def verdict(name: str) -> str:
    """ "yes", or in words why the optimizer has no flow."""
    factory: Any = optax
    for part in name.split("."):
        factory = getattr(factory, part)
    parameters = inspect.signature(factory).parameters
    arguments = {"learning_rate": RATE} if "learning_rate" in parameters else {}
    needed = [
        p.name for p in parameters.values() if p.default is p.empty and p.name not in arguments
    ]
    if needed:
        return f"needs {', '.join(needed)}"
    loss, w, layout = problem()
    key = jax.random.key(0)
    try:
        response, *_ = respond(loss, Optax(factory(**arguments)), layout, w, WARM_START, key)
    except OptionError as error:
        return _short(error.message)
    return _short(response.structure.refusal) or "yes"


def _short(reason: str) -> str:
    return re.split(r"[:;(]| at an effective", reason)[0].strip()


def rows(chosen: list[str]) -> Iterator[str]:
    """The table in Markdown, line by line."""
    yield "| optimizer | central flow |"
    yield "| --- | --- |"
    for name in chosen:
        yield f"| `{name}` | {verdict(name)} |"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for row in rows(sys.argv[1:] or names()):
        print(row, flush=True)
