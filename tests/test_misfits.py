"""What data, models and losses of the user's own return is checked before it is computed with."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from centralflow_eqx.cli import main
from centralflow_eqx.data import AbstractData, Dataset, checked_dataset
from centralflow_eqx.errors import ExitCode, NumericalStop, OptionError
from centralflow_eqx.experiment.simulate import simulate
from centralflow_eqx.losses import MSE, AbstractLoss
from centralflow_eqx.models import MLP, AbstractModel
from centralflow_eqx.optimizers import GD
from centralflow_eqx.task import make_task

MINE = """\
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from dataclasses import dataclass

from centralflow_eqx.data import AbstractData, Dataset
from centralflow_eqx.losses import AbstractLoss
from centralflow_eqx.models import AbstractModel

X = np.random.default_rng(0).normal(size=(20, 2))
Y = (X[:, 0] > 0).astype(int)


@dataclass(frozen=True)
class Data(AbstractData):
    def load(self, seed):
        return {data}


class Net(eqx.Module):
    layer: eqx.nn.Linear

    def __call__(self, x):
        y = self.layer(x)
        return {output}


class Model(AbstractModel):
    def build(self, interface, key):
        return {network}


class Loss(AbstractLoss):
    def each(self, outputs, answers):
        squares = 0.5 * jnp.sum((outputs - answers.reshape(len(answers), -1)) ** 2, axis=-1)
        return {loss}
"""
GOOD = {
    "data": "Dataset(X, Y, classes=2)",
    "output": "y",
    "network": "Net(eqx.nn.Linear(interface.shape[0], interface.outputs, key=key))",
    "loss": "squares",
}
SPEC = """\
name: mine
data: {type: mine.Data}
model: {type: mine.Model}
loss: {type: mine.Loss}
optimizer: {type: gd, lr: 0.1}
processes: [discrete]
steps: 2
"""
LINES = {"data": 2, "model": 3, "loss": 4}


@pytest.fixture
def validate(tmp_path, monkeypatch, capsys):
    """What `validate` says of a spec whose parts are changed: its exit code and its lines."""
    monkeypatch.chdir(tmp_path)

    def validate(**parts):
        text = MINE
        for name, part in (GOOD | parts).items():
            text = text.replace("{" + name + "}", part)
        (tmp_path / "mine.py").write_text(text)
        (tmp_path / "s.yaml").write_text(SPEC)
        code = main(["validate", "s.yaml"])
        return code, capsys.readouterr()

    return validate


def test_the_good_parts_are_good(validate):
    code, said = validate()
    assert code == ExitCode.DONE and "20 examples" in said.out


@pytest.mark.parametrize(
    ("section", "parts", "message"),
    [
        ("data", {"data": "(X, Y)"}, "must return a centralflow_eqx.data.Dataset, got tuple"),
        ("data", {"data": "1 / 0"}, r"raises ZeroDivisionError: division by zero \(.*mine.py:18\)"),
        ("data", {"data": "Dataset(X)"}, "train_labels or train_targets, and not both"),
        ("data", {"data": "Dataset(X, Y)"}, "number of classes, 2 or more, got None"),
        ("data", {"data": "Dataset(X, Y[:19], classes=2)"}, "19 train_labels for 20 train_inputs"),
        (
            "data",
            {"data": "Dataset(X, Y, X[:5], Y[:4], classes=2)"},
            "4 test_labels for 5 test_inputs",
        ),
        ("data", {"data": "Dataset(X, Y, X[:, :1], Y, classes=2)"}, r"\[1\] in test_inputs, \[2\]"),
        ("data", {"data": "Dataset(X, Y, X, classes=2)"}, "both test_inputs and test_labels"),
        ("data", {"data": "Dataset(X[:, 0], Y, classes=2)"}, r"\[:, None\]"),
        ("data", {"data": "Dataset(X + np.inf, Y, classes=2)"}, r"40 are not, the first at \[0, 0"),
        ("data", {"data": "Dataset(X.astype(str), Y, classes=2)"}, "real numbers, got an array of"),
        (
            "data",
            {"data": "Dataset(X, Y * 0.5, classes=2)"},
            "integers, got an array of float64; real targets are given as train_targets",
        ),
        ("data", {"data": "Dataset(X, Y + 1, classes=2)"}, "subtract 1 from labels that count fro"),
        ("data", {"data": "Dataset(X, 2 * Y, classes=2)"}, "0 to 1 for 2 classes, they are 0 to 2"),
        ("data", {"data": "Dataset(X, 2 * Y - 1, classes=3)"}, "for labels of positions alone"),
        ("data", {"data": "Dataset(X, Y[:, None], classes=2)"}, r"one label an input, \[20\], got"),
        (
            "data",
            {"data": "Dataset(X, train_targets=np.where(Y, np.nan, 1.0))"},
            "train_targets must be finite",
        ),
        ("model", {"output": "y[0]"}, r"must return an array of shape \[1\], got \[\]"),
        ("model", {"output": "y[None]"}, r"must return an array of shape \[1\], got \[1, 1\]"),
        ("model", {"output": "(y, y)"}, r"must return an array of shape \[1\], got tuple"),
        ("model", {"output": "y > 0"}, "floating-point numbers, got bool"),
        ("model", {"output": "y.undefined"}, "raises AttributeError"),
        ("model", {"output": "y if y[0] > 0 else y"}, "raises TracerBoolConversionError"),
        ("model", {"network": "None"}, "module that can be called, got a NoneType"),
        ("model", {"network": "lambda x: x[:1]"}, "the model has no weights"),
        (
            "model",
            {"network": "eqx.nn.Sequential([eqx.nn.Linear(2, 1, key=key), eqx.nn.Dropout(0.5)])"},
            "drops units at random",
        ),
        (
            "model",
            {"network": "eqx.nn.make_with_state(eqx.nn.BatchNorm)(2, 'batch')"},
            "keeps a state beside its weights",
        ),
        ("loss", {"loss": "squares[:, None]"}, r"shape \[20\], got \[20, 1\]"),
        ("loss", {"loss": "squares.mean()"}, r"shape \[20\], got \[\]"),
        ("loss", {"loss": "outputs[:, 7] + missing"}, "the loss raises NameError"),
    ],
)
def test_misfits_are_refused_at_their_lines(validate, section, parts, message):
    code, said = validate(**parts)
    assert code == ExitCode.BAD_INPUT
    (line,) = [line for line in said.err.splitlines() if not line.startswith("warning: ")]
    assert line.startswith(f"s.yaml:{LINES[section]}: {section}.type: ")
    assert re.search(message, line), line


CUSTOM = """\
@jax.custom_vjp
def square(x):
    return x**2


square.defvjp(lambda x: (x**2, x), lambda x, g: (2 * g * x,))
"""


@pytest.mark.parametrize(
    ("section", "parts"),
    [("model", {"output": "square(y)"}), ("loss", {"loss": "jnp.sum(square(outputs), -1)"})],
)
def test_what_has_no_forward_derivatives(validate, section, parts, monkeypatch):
    monkeypatch.setattr("test_misfits.MINE", MINE + "\n\n" + CUSTOM)
    code, said = validate(**parts)
    assert code == ExitCode.BAD_INPUT
    assert said.err.startswith(f"s.yaml:{LINES[section]}: {section}.type: ")
    assert "jax.custom_vjp: use jax.custom_jvp" in said.err


def test_labels_of_plus_and_minus_one_are_mapped_and_said_so(validate, capsys):
    code, said = validate(data="Dataset(X, 2 * Y - 1, X, 2 * Y - 1, classes=2)")
    assert code == ExitCode.DONE
    assert "labels -1 and 1 are taken for the classes 0 and 1" in said.err
    x = np.eye(2)
    with pytest.warns(UserWarning, match="classes 0 and 1"):
        mapped = checked_dataset(Dataset(x, np.array([-1, 1]), classes=2))
    np.testing.assert_array_equal(mapped.train_labels, [0, 1])


class Given(AbstractModel):
    """A network as it is."""

    network: eqx.Module

    def build(self, interface, key):
        return self.network


class Drawn(AbstractData):
    """A data set as it is."""

    def __init__(self, dataset):
        object.__setattr__(self, "dataset", dataset)

    def load(self, seed):
        return self.dataset


X, LABELS = np.random.default_rng(0).normal(size=(6, 2)), np.arange(6) % 2
TWO = Drawn(Dataset(X, LABELS, classes=2))


class Flat(AbstractLoss):
    def each(self, outputs, answers):
        return jnp.sum(outputs**2, axis=-1, keepdims=True)


@pytest.mark.parametrize(
    ("data", "model", "loss", "message"),
    [
        (Drawn(Dataset(X, LABELS * 0.5, classes=2)), MLP((2,)), MSE(), "given as train_targets"),
        (TWO, Given(lambda x: x[0]), MSE(), "no weights"),
        (TWO, MLP((2,)), Flat(), r"shape \[6\], got \[6, 1\]"),
    ],
)
def test_from_python_it_is_a_value_error(data, model, loss, message):
    with pytest.raises(ValueError, match=message):
        make_task(data, model, loss)


class Mixed(eqx.Module):
    """Equinox's own network, with leaves that are no weights."""

    mlp: eqx.nn.MLP  # its activations are leaves
    frozen: jax.Array
    shift: jax.Array  # of integers
    nothing: None

    def __call__(self, x):
        x = self.mlp(x + self.shift)
        return x + jax.lax.stop_gradient(self.frozen) * (self.nothing is None)


class Tied(eqx.Module):
    """A decoder that shares the encoder's weights."""

    shared: eqx.nn.Shared

    def __init__(self, key):
        keys = jax.random.split(key, 2)
        layers = [eqx.nn.Linear(2, 2, use_bias=False, key=k) for k in keys]
        self.shared = eqx.nn.Shared(
            layers, where=lambda pair: pair[1].weight, get=lambda pair: pair[0].weight
        )

    def __call__(self, x):
        first, second = self.shared()
        return jnp.sum(second(jnp.tanh(first(x))), keepdims=True)


def mixed(key):
    mlp = eqx.nn.MLP(2, 1, 3, 1, activation=jnp.tanh, key=key)
    return Mixed(mlp, jnp.ones(1), jnp.arange(2), None)


@pytest.mark.parametrize(("make", "d"), [(mixed, 3 * 3 + 4 + 1), (Tied, 4)])
def test_networks_with_leaves_that_are_no_weights(make, d):
    """Weights are the arrays of floating-point numbers, each counted once; a flow runs on them."""
    network = make(jax.random.key(0))
    task = make_task(TWO, Given(network), MSE(), dtype="float64")
    assert task.num_parameters == d
    outputs = task.predict(task.initial_weights, task.train_inputs)
    expected = jnp.stack([network(x) for x in X])
    np.testing.assert_allclose(outputs, expected, rtol=1e-6)
    *_, last = simulate(task, GD(0.1), task.initial_weights, processes=["discrete"], steps=3)
    assert last.series["discrete"]["train_loss"] < task(task.initial_weights)


KINDS = st.sampled_from(["int64", "uint8", "bool", "float32", "float64", "complex64", "U1"])
LENGTHS = st.integers(0, 3)


@st.composite
def arrays(draw):
    """Anything a user might hand over as an array, NaN, strings and scalars included."""
    shape = draw(st.lists(LENGTHS, max_size=3))
    if draw(st.booleans()):
        shape = [3, *shape[1:2]]
    values = draw(st.lists(st.sampled_from([-1.0, 0.0, 1.0, 2.0, 0.5, np.nan]), min_size=1))
    with np.errstate(invalid="ignore"):
        return np.resize(np.array(values), shape).astype(draw(KINDS))


@settings(max_examples=300, deadline=None)
@given(
    st.fixed_dictionaries(
        {"train_inputs": arrays()},
        optional={
            "train_labels": arrays(),
            "test_inputs": arrays(),
            "test_labels": arrays(),
            "train_targets": arrays(),
            "test_targets": arrays(),
            "classes": st.sampled_from([None, 2, 3, 2.5, "2", True]),
            "vocabulary": st.sampled_from([None, 2, 3]),
        },
    )
)
def test_a_data_set_is_usable_or_refused_in_words(parts):
    try:
        dataset = checked_dataset(Dataset(**parts))
    except OptionError as error:
        assert error.option == "type" and "\n" not in error.message
        return
    n = len(dataset.train_inputs)
    assert n == len(dataset.train_answers) > 0
    assert np.isfinite(dataset.train_inputs).all() and np.isfinite(dataset.train_answers).all()
    if not dataset.is_regression:
        assert 0 <= dataset.train_labels.max() < dataset.classes
        assert dataset.train_labels.min() >= (0 if dataset.train_labels.ndim == 1 else -1)


def broken(x):
    raise RuntimeError("this is\nhow it is")


# What a model or a loss may do to what would have been right.
SLIPS = {
    "nothing": lambda x: x,
    "scalar": jnp.sum,
    "number": lambda x: 3.0,
    "first": lambda x: x[0],
    "longer": lambda x: jnp.concatenate([x, x]),
    "axis_more": lambda x: x[..., None],
    "axis_first": lambda x: x[None],
    "empty": lambda x: x[:0],
    "tuple": lambda x: (x,),
    "mapping": lambda x: {"x": x},
    "none": lambda x: None,
    "text": lambda x: "x",
    "integers": lambda x: x.astype(int),
    "booleans": lambda x: x > 0,
    "half": lambda x: x.astype(jnp.float16),
    "complex": lambda x: x.astype(complex),
    "numpy": lambda x: np.asarray(x),
    "nan": lambda x: x * jnp.nan,
    "infinite": lambda x: x / 0.0,
    "constant": lambda x: jnp.zeros_like(x),
    "raises": broken,
    "python_branch": lambda x: x if x.sum() > 0 else -x,
    "wrong_call": lambda x: jnp.dot(x, jnp.ones(1234)),
}
WEIGHTS = {
    "single": lambda w: w,
    "half": lambda w: w.astype(jnp.float16),
    "complex": lambda w: w.astype(complex),
    "integers": lambda w: w.astype(int),
    "empty": lambda w: w[:0],
    "nan": lambda w: w * jnp.nan,
    "none": lambda w: None,
    "text": lambda w: "w",
}


class Slipping(eqx.Module):
    """A linear model, but for what it does to its outputs."""

    weight: object
    slip: str = eqx.field(static=True)

    def __call__(self, x):
        return SLIPS[self.slip](self.weight @ x)


class SlippingModel(AbstractModel):
    slip: str
    weights: str

    def build(self, interface, key):
        w = jax.random.normal(key, (interface.outputs, *interface.shape))
        return Slipping(WEIGHTS[self.weights](w), self.slip)


class SlippingLoss(AbstractLoss):
    slip: str

    def each(self, outputs, answers):
        squares = jnp.sum((outputs - answers.reshape(len(answers), -1)) ** 2, axis=-1)
        return SLIPS[self.slip](squares)


class Points(AbstractData):
    def load(self, seed):
        inputs = np.random.default_rng(seed).normal(size=(6, 2))
        return Dataset(inputs, train_targets=inputs[:, 0])


@settings(max_examples=40, deadline=None)
@given(
    st.one_of(
        st.tuples(st.sampled_from([*SLIPS]), st.just("nothing"), st.just("single")),
        st.tuples(st.just("nothing"), st.sampled_from([*SLIPS]), st.just("single")),
        st.tuples(*(st.sampled_from([*x]) for x in (SLIPS, SLIPS, WEIGHTS))),
    )
)
def test_a_model_and_a_loss_are_usable_or_refused_in_words(slips):
    model, loss, weights = slips
    try:
        task = make_task(Points(), SlippingModel(model, weights), SlippingLoss(loss))
    except ValueError as error:
        assert str(error) and "\n" not in str(error)
        return
    w = task.initial_weights
    try:
        rows = list(simulate(task, GD(0.1), w, processes=("discrete",), steps=2))
    except NumericalStop as stop:
        assert "not finite" in stop.reason and {"nan", "infinite"} & set(slips)
        return
    except ValueError as error:
        assert "finite" in str(error) and {"nan", "infinite"} & set(slips)
        return
    assert np.isfinite([row.series["discrete"]["train_loss"] for row in rows]).all()
