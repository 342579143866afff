"""How exact derivatives are in float32, and in less: `python -m benchmarks.precision [MODEL ...]`.

Small instances of every model over random examples. Prints, as a Markdown table, the relative
distance of each derivative in float32, on this machine's accelerator if it has one, from that in
float64 on its CPU, at the same weights and along the same
direction: approximately the leading eigenvector of the Hessian. Networks are evaluated in float32,
in bfloat16, and on accelerators with matrix products in TensorFloat-32.
"""

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from centralflow_eqx.data import Dataset
from centralflow_eqx.engine.curvature import third_derivative
from centralflow_eqx.losses import CrossEntropy
from centralflow_eqx.models import (
    CNN,
    GRU,
    LSTM,
    MLP,
    AbstractModel,
    Interface,
    Mamba,
    ResNet,
    Transformer,
    ViT,
)
from centralflow_eqx.placement import Placement
from centralflow_eqx.precision import engage
from centralflow_eqx.task import REACHED, Evaluation, Forward, Task

from .tables import table

IMAGES = Interface((3, 16, 16), 10)
TOKENS = Interface((16,), 10, vocabulary=10)
EXAMPLES = 32
POWER_ITERATIONS = 30
HEADER = (
    "model",
    "parameters",
    "network in",
    "gradient",
    "Hessian-vector product",
    "third derivative",
)

MODELS: dict[str, tuple[AbstractModel, Interface]] = {
    "mlp": (MLP((32, 32)), IMAGES),
    "cnn": (CNN(width=8), IMAGES),
    "cnn, group norm": (CNN(width=8, norm="group"), IMAGES),
    "resnet": (ResNet(width=8, stages=2), IMAGES),
    "vit": (ViT(dim=16, depth=2, mlp_dim=32), IMAGES),
    "lstm": (LSTM(), TOKENS),
    "gru": (GRU(), TOKENS),
    "transformer": (Transformer(), TOKENS),
    "mamba": (Mamba(), TOKENS),
}


class Precision(NamedTuple):
    """Relative errors of a model's derivatives in float32, of a network in `forward`."""

    name: str
    parameters: int
    forward: Evaluation
    gradient: float
    product: float
    third: float


def build(
    model: AbstractModel, interface: Interface, dtype: str, forward: Evaluation = "highest"
) -> Task:
    """The model's cross-entropy over random examples with random labels."""
    engage()  # weights are drawn in float64, the first model's as others'
    rng = np.random.default_rng(0)
    if interface.vocabulary is None:
        inputs = rng.normal(size=(EXAMPLES, *interface.shape)).astype(np.float32)
    else:
        inputs = rng.integers(interface.vocabulary, size=(EXAMPLES, *interface.shape))
    positions = interface.shape[:1] if interface.per_position else ()
    labels = rng.integers(interface.outputs, size=(EXAMPLES, *positions))
    data = Dataset(inputs, labels, None, None, interface.outputs, interface.vocabulary)
    network = model.build(interface, jax.random.key(0))
    initial = Task(network, CrossEntropy(), data, "float32").initial_weights
    exact = Placement(tuple(jax.devices("cpu")[:1])) if dtype == "float64" else None
    precision = Forward(forward, forward)
    return Task(network, CrossEntropy(), data, dtype, initial, placement=exact, forward=precision)


def product(task: Task, w: Float[Array, " d"], u: Float[Array, " d"]) -> Float[Array, " d"]:
    """The Hessian at `w` times `u`."""
    return jax.jvp(jax.grad(task), (w,), (u,))[1]


@eqx.filter_jit
def leading_direction(task: Task) -> Float[Array, " d"]:
    """Power iterations with the Hessian at the initial weights."""

    def iterate(_: Any, u: Float[Array, " d"]) -> Float[Array, " d"]:
        u = product(task, task.initial_weights, u)
        return u / jnp.linalg.norm(u)

    start = jax.random.normal(jax.random.key(1), (task.num_parameters,), jnp.float64)
    return jax.lax.fori_loop(0, POWER_ITERATIONS, iterate, start)


@eqx.filter_jit
def derivatives(task: Task, u: Float[Array, " d"]) -> list[Float[Array, " d"]]:
    """Gradient at the initial weights, and its first and second derivative along `u`."""
    w = task.initial_weights
    return [jax.grad(task)(w), product(task, w, u), third_derivative(task, w, u, u)]


def measure(name: str, forwards: Sequence[Evaluation]) -> list[Precision]:
    """Compare with float64."""
    double = build(*MODELS[name], "float64")
    u: Any = np.asarray(leading_direction(double), np.float32)
    exact = list(map(np.asarray, derivatives(double, u.astype(np.float64))))
    found = []
    for forward in forwards:
        rough = derivatives(build(*MODELS[name], "float32", forward), u)
        errors = [
            float(np.linalg.norm(np.asarray(f, np.float64) - e) / np.linalg.norm(e))
            for f, e in zip(rough, exact, strict=True)
        ]
        found.append(Precision(name, double.num_parameters, forward, *errors))
    return found


def cells(found: Precision) -> list[str]:
    """A row of the table."""
    errors = (found.gradient, found.product, found.third)
    forward = "float32" if found.forward == "highest" else found.forward
    return [found.name, f"{found.parameters:,}", forward, *(f"{error:.1e}" for error in errors)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision", description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="all of them where left out")
    chosen = parser.parse_args().models or list(MODELS)
    forwards: list[Evaluation] = [
        f for f in REACHED if f != "tensorfloat32" or jax.default_backend() != "cpu"
    ]
    print(table(HEADER, [cells(row) for name in chosen for row in measure(name, forwards)]))


if __name__ == "__main__":
    main()
