"""Losses of the user's own on a flat vector, from a spec."""

import numpy as np
import pytest
import yaml
from _runs import rows_of

from centralflow_eqx.cli import main
from centralflow_eqx.errors import ExitCode, InputError
from centralflow_eqx.experiment.build import build_task
from centralflow_eqx.spec import load_spec

MINE = """\
import jax.numpy as jnp


def quartic(w, mu=1.0):
    return (w[0] ** 2 - mu) ** 2 / 4


def product(w):
    return (w[0] * w[1] - 1) ** 2 / 2


def layers(w):
    # a linear network: one input, len(w)/2 hidden units, one output, which is to be zero
    u, v = jnp.split(w, 2)
    return (u @ v) ** 2 / len(w)


def vector(w):
    return w


def kinked(w):
    return float(w[0])


number = 3
"""
SPEC = """\
name: own
precision: float64
task: {function: mine.quartic, start: [1.02], args: {mu: 1.0}}
optimizer: {type: gd, lr: 1.1}
processes: [discrete, central]
steps: 300
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "s.yaml").write_text(SPEC)
    return tmp_path


def rows(*overrides):
    spec = load_spec("s.yaml", overrides)
    return list(rows_of(spec))


def test_a_quartic_oscillates_as_its_cycle_and_its_flow_as_the_theory_says(folder):
    """GD on (x^2 - mu)^2/4: centre^2 = (mu + 3/lr)/4, squared amplitude (mu - 1/lr)/4; the central
    flow rests at (mu + 2/lr)/3 with variance 2 (mu - 1/lr)/9, 8/9 of it."""
    lr, mu = 1.1, 1.0
    *_, before, last = rows()
    pair = [row.weights["discrete"][0] for row in (before, last)]
    assert np.mean(pair) ** 2 == pytest.approx((mu + 3 / lr) / 4, rel=1e-6)
    amplitude = (mu - 1 / lr) / 4
    assert np.diff(pair)[0] ** 2 / 4 == pytest.approx(amplitude, rel=1e-6)
    assert last.weights["central"][0] ** 2 == pytest.approx((mu + 2 / lr) / 3, rel=1e-6)
    variance = lr * last.series["central"]["sigma_eigenvalues"][0]  # of the P metric, P = 1/lr
    assert variance == pytest.approx(8 / 9 * amplitude, rel=1e-5)


def test_the_factorisation_of_one(folder):
    """GD beyond 2/lr swings to where u^2 + v^2 is less than that, and stays."""
    loss = "task={function: mine.product, start: [1.6, 0.3]}"
    *_, last = rows(loss, "optimizer.lr=0.9", "processes=[discrete]", "steps=80")
    assert last.series["discrete"]["train_loss"] < 1e-12
    u, v = last.weights["discrete"]
    assert u * v == pytest.approx(1, abs=1e-6) and u**2 + v**2 < 2 / 0.9


@pytest.mark.parametrize("start", [[1.6, 0.1], [1.5, 0.2, -0.7, 0.1, 0.9, -1.1, 0.8, 0.4]])
@pytest.mark.parametrize("share", [2.5, 3.5])
def test_the_catapult(folder, start, share):
    """Lewkowycz et al. (arXiv 2003.02218): f = u.v/sqrt(n) and lam = (|u|^2 + |v|^2)/n, the
    sharpness at f = 0, follow f+ = f (1 - lr lam + lr^2 f^2/n), lam+ = lam + lr f^2/n (lr lam - 4).
    From 2 < lr lam < 4 the loss grows, until lam has fallen below 2/lr."""
    n, steps = len(start) // 2, 80
    lr = float(share * n / np.dot(start, start))
    loss = f"task={{function: mine.layers, start: {start}}}"
    found = rows(loss, f"optimizer.lr={lr!r}", "processes=[discrete]", f"steps={steps}")
    w = np.array([row.weights["discrete"] for row in found])
    f = np.sum(w[:, :n] * w[:, n:], axis=1) / np.sqrt(n)
    lam = np.sum(w**2, axis=1) / n
    rounding = 100 * np.finfo(float).eps
    step = 1 - lr * lam + lr**2 * f**2 / n
    np.testing.assert_allclose(f[1:], (f * step)[:-1], rtol=0, atol=rounding * np.abs(f).max())
    fall = lr * f**2 / n * (lr * lam - 4)
    np.testing.assert_allclose(lam[1:], (lam + fall)[:-1], rtol=rounding)
    losses = np.array([row.series["discrete"]["train_loss"] for row in found])
    assert losses.max() > 2 * losses[0] and losses[-1] < 1e-9 * losses[0]
    assert lr * lam[-1] < 2
    # The Hessian is that of the squared output and f times that of the output, which is 1/sqrt(n).
    sharpness = found[-1].series["discrete"]["raw_eigenvalues"][0]
    assert sharpness == pytest.approx(lam[-1], abs=2 * abs(f[-1]) / np.sqrt(n) + 1e-9)


def test_a_resolved_spec_runs_from_anywhere(folder, monkeypatch):
    spec = load_spec("s.yaml")
    (folder / "deep").mkdir()
    (folder / "deep" / "again.yaml").write_text(spec.to_yaml())
    monkeypatch.chdir("/")
    again = load_spec(folder / "deep" / "again.yaml")
    assert again.to_yaml() == spec.to_yaml()
    assert yaml.safe_load(spec.to_yaml())["task"]["folder"] == str(folder)


def test_the_command_line(folder, capsys):
    assert main(["validate", "s.yaml"]) == ExitCode.DONE
    assert "1 weights, discrete, central" in capsys.readouterr().out
    assert main(["run", "s.yaml", "--set", "steps=4"]) == ExitCode.DONE
    assert (folder / "runs" / "own" / "report.html").exists()


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("task.function=mine.vector", "task.args: mine.vector refuses: got an unexpected keyword"),
        ("task={function: mine.vector, start: [1, 2]}", r"an array of shape [], got [2]"),
        ("task={function: mine.kinked, start: [1]}", "the function raises ConcretizationTypeError"),
        ("task.function=mine.quartc", "no function 'quartc' (did you mean 'quartic'?)"),
        ("task.function=mine.number", "task.function: mine.number is no function"),
        ("task.function=quartic", "task.function: must be the dotted name of a function, such as"),
        # What is written in C need not say what it takes.
        ("task={function: math.hypot, start: [1]}", "the function raises TypeError: Only scalar"),
        ("task.start=[]", "task.start: must be a list of one or more, each a number, got []"),
        ("data={type: moons}", "data: must be left out beside `task`"),
        ("task=null", "data: missing, must be {type: NAME, ...}"),
        ("record.examples=[0]", "record.examples: a task has no examples"),
        ("minibatch.size=1", "minibatch.size: a task has no examples"),
        ("eigen.initial=2", "eigen.initial: must be <= 1, the number of weights, got 2"),
    ],
)
def test_mistakes(folder, override, problem):
    with pytest.raises(InputError) as error:
        build_task(load_spec("s.yaml", [override]))
    assert problem in str(error.value)


def test_no_user_code(folder):
    with pytest.raises(InputError, match="would import code"):
        load_spec("s.yaml", user_code=False)
