"""Weights that a file holds, measured as those of a spec's model."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree, Shaped

from ..data.npz import array_names, read_arrays
from ..engine.response import Rule, Vector, traced_numbers
from ..errors import InputError, Location, OptionError, Problem, did_you_mean
from ..experiment.build import build_task
from ..experiment.prepare import build_settings, refusals
from ..experiment.start import warm_up
from ..spec import Spec
from ._measurement import Measurement
from ._monitor import At, Monitor

Arrays = Mapping[str, Shaped[np.ndarray, "..."]]


def measure_stored(
    path: Path,
    spec: Spec,
    *,
    key: str | None = None,
    steps: int = 0,
    at: At = "midpoint",
) -> Measurement:
    """What there is at the weights in a file, for the spec's loss and optimizer.

    The file is an npz archive or, by its ending, of safetensors. It holds all weights in one array
    [d], named `key` or the only one, in the order in which `init` has them: parameters as
    `parameter_names` lists them, one after the other. Or it holds an array for each, by these
    names. `steps` optimizer steps are taken from there first, with the spec's learning rate: the
    optimizer's averages begin at nothing. Raises `InputError` with file, array and remedy.
    """
    task = build_task(spec)
    try:
        weights = read_weights(path, key, task.unravel, task.num_parameters)
    except OptionError as error:
        name = "" if error.option == "path" else error.option
        raise InputError([Problem(Location(str(path)), name, error.message)]) from None
    optimizer, w = spec.optimizer.build(), jnp.asarray(weights, spec.precision)
    settings = build_settings(spec)
    with refusals(spec):
        monitor = Monitor(
            task,
            optimizer,
            w,
            at=at,
            unravel=task.unravel,
            tol=settings.residual,
            settings=settings,
            seed=spec.seed,
        )
        rule = traced_numbers(Rule(optimizer, task.unravel), w)
        w, state = warm_up(task, rule, w, jnp.asarray(steps))
        return monitor.measure(w, state)


def parameter_names(unravel: Callable[[Vector], PyTree], d: int) -> dict[str, tuple[int, ...]]:
    """The shapes of parameters by their names, in the order of flat weights."""
    params = jax.eval_shape(unravel, jax.ShapeDtypeStruct((d,), "float32"))
    found = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(p, simple=True, separator="."): x.shape for p, x in found}


def read_weights(
    path: Path, key: str | None, unravel: Callable[[Vector], PyTree], d: int
) -> Float[np.ndarray, " d"]:
    """The flat weights that a file holds; raises `OptionError` for what is wrong with which array.

    The option is the array's name, or `path` for the file.
    """
    names = _names(path)
    if key is None and len(names) == 1:
        key = names[0]
    if key is not None:
        if key not in names:
            message = f"no such array, the file has {_listed(names)}{did_you_mean(key, names)}"
            raise OptionError(key, message)
        flat = _arrays(path, [key])[key]
        if flat.shape != (d,):
            message = f"must be all {d} weights of the model in one array, got {list(flat.shape)}"
            raise OptionError(key, message)
        return _finite(key, flat)
    shapes = parameter_names(unravel, d)
    if lacking := [name for name in shapes if name not in names]:
        message = f"missing; the file has {_listed(names)}, the model {_listed(list(shapes))}"
        one = "or give all weights in one array by --key"
        raise OptionError(lacking[0], f"{message}; {one}{did_you_mean(lacking[0], names)}")
    if other := [name for name in names if name not in shapes]:
        near = did_you_mean(other[0], list(shapes))
        raise OptionError(other[0], f"no parameter of the model, remove it{near}")
    arrays = _arrays(path, list(shapes))
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            got = list(arrays[name].shape)
            raise OptionError(name, f"must be of shape {list(shape)}, as in the model, got {got}")
    return np.concatenate([np.ravel(_finite(name, arrays[name])) for name in shapes])


def _names(path: Path) -> list[str]:
    if not path.is_file():
        raise OptionError("path", "no such file; give an npz or safetensors file")
    if path.suffix != ".safetensors":
        return array_names(path)
    with _safetensors(path) as file:
        return list(file.keys())


def _arrays(path: Path, names: list[str]) -> Arrays:
    if path.suffix != ".safetensors":
        return read_arrays(path, {name: name for name in names})
    with _safetensors(path) as file:
        return {name: file.get_tensor(name) for name in names}


@contextlib.contextmanager
def _safetensors(path: Path) -> Iterator[Any]:
    try:
        import safetensors
    except ImportError:
        needs = "needs safetensors: pip install 'centralflow_eqx[safetensors]'"
        raise OptionError("path", needs) from None
    try:
        with safetensors.safe_open(path, "numpy") as file:
            yield file
    except safetensors.SafetensorError as error:
        raise OptionError("path", f"not a readable safetensors file: {error}") from None


def _finite(name: str, array: np.ndarray) -> Float[np.ndarray, "..."]:
    """The array, of real and finite numbers."""
    bad = int(np.sum(~np.isfinite(array))) if array.dtype.kind in "fiu" else array.size
    if bad:
        raise OptionError(name, f"must hold finite numbers, {bad} of {array.size} are not")
    return array


def _listed(names: list[str]) -> str:
    """A few of the names."""
    few = ", ".join(names[:6]) or "none"
    return few if len(names) <= 6 else f"{few}, ... ({len(names)})"
