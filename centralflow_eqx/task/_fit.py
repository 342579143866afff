"""Whether a network, a loss and data fit together, found by shapes alone."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ..data import Dataset
from ..errors import OptionError, running
from ..losses import AbstractLoss
from ..models import Interface

_STATEFUL = eqx.nn.StateIndex, eqx.nn.State
_DROPOUT = (
    "the model drops units at random (eqx.nn.Dropout), a flow needs one loss: build it with p=0 or "
    "inference=True, or without"
)
_STATE = (
    "the model keeps a state beside its weights (as eqx.nn.BatchNorm does), which depends on the "
    "order of the data: use a normalisation without it, such as eqx.nn.GroupNorm or LayerNorm"
)


def interface(dataset: Dataset) -> Interface:
    """What a network for the data has to map."""
    per_position = False
    if dataset.is_regression:
        outputs = math.prod(dataset.train_answers.shape[1:])
    else:
        assert dataset.classes is not None
        outputs = 1 if dataset.classes == 2 else dataset.classes
        per_position = dataset.train_answers.ndim == 2
    shape = dataset.train_inputs.shape[1:]
    return Interface(shape, int(outputs), dataset.vocabulary, per_position)


def count_parameters(network: PyTree) -> int:
    """Length of the flat weights of a network, or of its shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(network) if _is_weight(leaf))


def check_network(network: PyTree, dataset: Dataset) -> jax.ShapeDtypeStruct:
    """The shape of what `network`, of arrays or of their shapes, makes of the training inputs.

    Raises `OptionError` for the option `type` if it is no network for the data, or has no
    derivatives.
    """
    _check_parts(network)
    wanted = interface(dataset)
    arrays, static = eqx.partition(network, _is_array)
    weights, others = eqx.partition(jax.tree.map(_shape, arrays), _is_weight)
    x = jax.ShapeDtypeStruct(wanted.shape, "int32" if wanted.vocabulary else "float32")

    def apply(weights: PyTree, others: PyTree, x: Any) -> Any:
        return eqx.combine(weights, others, static)(x)

    def total(weights: PyTree, others: PyTree, x: Any) -> Any:
        return jnp.sum(apply(weights, others, x))

    what = "the model, applied to one input,"
    with running(what):
        found = eqx.filter_eval_shape(apply, weights, others, x)
    shape = (*wanted.shape[:1] * wanted.per_position, wanted.outputs)
    _check_shape("the model", found, shape)
    _check_derivatives(what, total, weights, others, x)
    return jax.ShapeDtypeStruct((len(dataset.train_inputs), *shape), found.dtype)


def check_loss(loss: AbstractLoss, outputs: jax.ShapeDtypeStruct, dataset: Dataset) -> None:
    """Raise `OptionError` for the option `type` unless `loss` gives a number for every answer."""
    kind = outputs.dtype if dataset.is_regression else "int32"
    answers = jax.ShapeDtypeStruct(dataset.train_answers.shape, kind)
    with running("the loss"):
        found = eqx.filter_eval_shape(loss.each, outputs, answers)
    _check_shape("the loss", found, outputs.shape[:-1])
    _check_derivatives("the loss", lambda x, y: jnp.sum(loss.each(x, y)), outputs, answers)


def check_function(function: Callable[..., Any], w: Any) -> None:
    """Raise `OptionError` for the option `function` unless it is a loss of weights such as `w`."""
    w = _shape(w)
    try:
        with running("the function"):
            found = eqx.filter_eval_shape(function, w)
        _check_shape("the function", found, ())
        _check_derivatives("the function", function, w)
    except OptionError as error:
        raise OptionError("function", error.message) from None


def _is_array(leaf: Any) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)


def _is_weight(leaf: Any) -> bool:
    return _is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.inexact)


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _check_parts(network: PyTree) -> None:
    """Raise `OptionError` for a network without weights, or with what no flow can have."""
    if not callable(network):
        kind = type(network).__name__
        message = f"the model's build must return a module that can be called, got a {kind}"
        stateful = isinstance(network, tuple) and any(isinstance(x, eqx.nn.State) for x in network)
        raise OptionError("type", _STATE if stateful else message)
    parts = jax.tree.leaves(network, is_leaf=lambda x: isinstance(x, (eqx.nn.Dropout, *_STATEFUL)))
    if any(isinstance(x, _STATEFUL) for x in parts):
        raise OptionError("type", _STATE)
    if any(isinstance(x, eqx.nn.Dropout) and x.p != 0 and not x.inference for x in parts):
        raise OptionError("type", _DROPOUT)
    weights = [leaf for leaf in parts if _is_weight(leaf)]
    if not count_parameters(weights):
        raise OptionError("type", "the model has no weights: no array of floating-point numbers")
    for leaf in weights:
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise OptionError("type", f"the model has weights of {leaf.dtype}; they must be real")


def _check_shape(what: str, found: Any, shape: tuple[int, ...]) -> None:
    """Raise `OptionError` unless `found` is an array of numbers of the shape."""
    wanted = f"{what} must return an array of shape {list(shape)}"
    if not isinstance(found, jax.ShapeDtypeStruct):
        raise OptionError("type", f"{wanted}, got {type(found).__name__}")
    if found.shape != shape:
        raise OptionError("type", f"{wanted}, got {list(found.shape)}")
    if not jnp.issubdtype(found.dtype, jnp.floating):
        raise OptionError("type", f"{wanted} of floating-point numbers, got {found.dtype}")


def _check_derivatives(what: str, total: Callable[..., Any], *arguments: Any) -> None:
    """Raise `OptionError` unless `total` has a Hessian in its first argument."""

    def derivatives(x: Any, *others: Any) -> Any:
        def slope(x: Any) -> Any:
            return jax.jvp(lambda x: total(x, *others), (x,), (x,))[1]

        return jax.grad(slope)(x)

    with running(f"differentiating {what}"):
        try:
            eqx.filter_eval_shape(derivatives, *arguments)
        except (TypeError, NotImplementedError) as error:
            if not any(word in str(error) for word in ("custom_vjp", "custom_lin")):
                raise
            message = f"{what} has no forward derivatives, which a flow needs, because of"
            raise OptionError("type", f"{message} jax.custom_vjp: use jax.custom_jvp") from None
