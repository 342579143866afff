"""Real targets, from data to a run, against published figures and values worked out by hand."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from _runs import rows_of

from centralflow_eqx.cli import main
from centralflow_eqx.data import Chebyshev, Dataset, Npz
from centralflow_eqx.errors import ExitCode, OptionError
from centralflow_eqx.losses import MSE, CrossEntropy
from centralflow_eqx.models import MLP
from centralflow_eqx.record.arrays import open_run
from centralflow_eqx.spec import load_spec
from centralflow_eqx.task import Memory, Task, build_network, make_task

PUBLISHED = Path(__file__).parent / "data" / "chebyshev_tanh.npz"
PRINTED = 5e-7  # half a unit of the sixth decimal
SPEC = """\
name: published
precision: float64
data: {type: chebyshev, degree: 6, n: 20}
model: {type: mlp, widths: [30, 20], activation: tanh, init: lecun_normal}
loss: {type: mse}
init: {path: FILE, key: w0}
optimizer: {type: gd, lr: 0.2}
processes: [discrete]
steps: 402
"""


@pytest.fixture
def published(tmp_path):
    with np.load(PUBLISHED) as file:
        figures = dict(file)

    def rows(*overrides):
        (tmp_path / "s.yaml").write_text(SPEC.replace("FILE", str(PUBLISHED)))
        spec = load_spec(tmp_path / "s.yaml", overrides)
        series = [row.series["discrete"] for row in rows_of(spec)]
        return [
            np.array([np.nanmax(s[key]) for s in series]) for key in ("train_loss", "eigenvalues")
        ]

    return figures, rows


def test_the_published_run_to_every_printed_digit(published):
    figures, rows = published
    loss, theta = rows()
    there = figures["steps"] < len(loss) - 1
    steps = figures["steps"][there]
    assert len(steps) > 5
    np.testing.assert_allclose(loss[steps], figures["loss"][there], rtol=0, atol=1.1 * PRINTED)
    # The published sharpness of a step is that where the step leads. It is printed to six digits,
    # and ours found to the square of a residual of 1e-3.
    np.testing.assert_allclose(theta[steps + 1] / 0.2, figures["sharpness"][there], rtol=1e-5)
    passed = int(np.argmax(theta / 0.2 > 10))
    assert 375 <= passed <= 387


def test_the_published_catapult(published):
    figures, rows = published
    loss, _ = rows("optimizer.lr=0.4169", "steps=11")
    np.testing.assert_allclose(loss, figures["catapult_loss"], rtol=0, atol=1.1 * PRINTED)


def test_chebyshev_points_are_the_polynomials():
    drawn = Chebyshev(degree=3, n=5).load(0)
    np.testing.assert_array_equal(drawn.train_inputs[:, 0], [-1, -0.5, 0, 0.5, 1])
    np.testing.assert_allclose(drawn.train_targets[:, 0], [-1, 1, 0, -1, 1], atol=1e-15)
    assert drawn.is_regression and drawn.classes is None


X = np.array([[0.5, 1.0], [2.0, -1.0], [0.0, 3.0]])
Y = np.array([[1.0, 2.0], [0.0, -1.0], [0.5, 0.25]])


def save(folder, **arrays):
    np.savez(folder / "data.npz", **arrays)
    return Npz(folder / "data.npz", targets="y")


@pytest.mark.parametrize("vector", [False, True])
def test_the_loss_is_half_the_squared_error_summed_over_outputs(tmp_path, vector):
    y = Y if vector else Y[:, 0]
    task = make_task(save(tmp_path, inputs=X, y=y), MLP((), "identity"), MSE(), dtype="float64")
    outputs = 2 if vector else 1
    A = np.arange(2.0 * outputs).reshape(outputs, 2)
    b = np.linspace(0.5, 1, outputs)
    expected = 0.5 * np.sum((X @ A.T + b - y.reshape(3, -1)) ** 2) / 3
    assert float(task(jnp.concatenate([A.ravel(), b]))) == pytest.approx(expected, rel=1e-14)
    assert task.evaluate(task.initial_weights) == {}  # no accuracy


def test_microbatches_change_no_loss_of_targets():
    data, model = Chebyshev(4, 10), MLP((3,), "tanh")
    whole = make_task(data, model, MSE(), dtype="float64")
    parts = make_task(data, model, MSE(), dtype="float64", memory=Memory(microbatch=4))
    w = whole.initial_weights
    np.testing.assert_allclose(whole(w), parts(w), rtol=1e-14)


def test_a_share_is_held_out(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(10, 2)), rng.normal(size=10)
    np.savez(tmp_path / "data.npz", inputs=x, y=y, labels=np.arange(10) % 2)
    held = [
        Npz(tmp_path / "data.npz", **kind, test_fraction=0.3).load(seed)
        for kind in ({"targets": "y"}, {})
        for seed in (0, 0, 1)
    ]
    for data in held:
        assert (len(data.train_inputs), len(data.test_inputs)) == (7, 3)
        both = np.concatenate([data.train_inputs, data.test_inputs])
        np.testing.assert_array_equal(np.sort(both, axis=0), np.sort(x, axis=0))
    row = int(np.flatnonzero((x == held[0].test_inputs[0]).all(axis=1))[0])
    assert held[0].test_targets[0, 0] == y[row] and held[3].test_labels[0] == row % 2
    np.testing.assert_array_equal(held[0].test_inputs, held[1].test_inputs)
    assert not np.array_equal(held[0].test_inputs, held[2].test_inputs)
    network = build_network(MLP((2,), "tanh"), held[0], seed=0)
    task = Task(network, MSE(), held[0], "float64")
    assert set(task.evaluate(task.initial_weights)) == {"test_loss"}


@pytest.mark.parametrize(
    ("options", "arrays", "option", "message"),
    [
        ({"labels": "y"}, {}, "labels", "array of float64; name an array of real numbers as targ"),
        ({"labels": "k", "targets": "y"}, {}, "targets", "either labels or targets, not both"),
        ({"targets": "y", "test_labels": "k", "test_inputs": "inputs"}, {}, "test_labels", "test_"),
        ({"targets": "y", "test_inputs": "inputs"}, {}, "test_targets", "missing"),
        ({"targets": "y", "test_fraction": 0.01}, {}, "test_fraction", "0 to test on"),
        (
            {"targets": "y", "test_inputs": "inputs", "test_targets": "y", "test_fraction": 0.5},
            {},
            "test_fraction",
            "not both",
        ),
        ({"targets": "y"}, {"y": Y[:2]}, "targets", r"\[3\] or \[3, outputs\]"),
        ({"targets": "y"}, {"y": Y[:, :, None]}, "targets", r"got \[3, 2, 1\]"),
        ({"targets": "y"}, {"y": np.array(["a", "b", "c"])}, "targets", "real numbers"),
        ({"targets": "y"}, {"y": np.array([1, np.nan, 2])}, "targets", r"the first at \[1\]"),
    ],
)
def test_what_is_no_regression(tmp_path, options, arrays, option, message):
    np.savez(tmp_path / "data.npz", **{"inputs": X, "y": Y, "k": [0, 1, 0]} | arrays)
    with pytest.raises(OptionError, match=message) as error:
        Npz(tmp_path / "data.npz", **options).load(0)
    assert error.value.option == option


def test_cross_entropy_refuses_targets():
    with pytest.raises(OptionError, match="mse takes them"):
        make_task(Chebyshev(), MLP((3,)), CrossEntropy())


def test_a_run_on_a_single_example(tmp_path, monkeypatch):
    """One number in, one number out: 1/2 (u v x - y)^2, and a report without accuracies."""
    monkeypatch.chdir(tmp_path)
    np.savez("one.npz", inputs=[[1.0]], targets=[0.5])
    Path("s.yaml").write_text(
        "name: one\nprecision: float64\ndata: {type: npz, path: one.npz, targets: targets}\n"
        "model: {type: mlp, widths: [1], bias: false, activation: identity}\nloss: {type: mse}\n"
        "optimizer: {type: gd, lr: 0.2}\nprocesses: [discrete, central]\nsteps: 3\n"
    )
    assert main(["run", "s.yaml"]) == ExitCode.DONE
    tree = open_run("runs/one")
    assert "train_accuracy" not in tree["discrete"]
    assert tree["discrete"]["train_loss"].values[-1] < tree["discrete"]["train_loss"].values[0]


def test_a_dataset_holds_one_kind():
    with pytest.raises(OptionError, match="train_labels or train_targets, and not both"):
        Task(lambda x: x, MSE(), Dataset(X), "float64")
