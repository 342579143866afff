"""What is numerically doubtful about a row, and who is told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import centralflow_eqx as cf
from centralflow_eqx.cli import main
from centralflow_eqx.experiment import drive, recording
from centralflow_eqx.experiment.drive import chunks
from centralflow_eqx.record.arrays import open_run
from centralflow_eqx.record.numerics import NUMERICS, WORDS, doubts

FLOW = {
    "converged": 1,
    "sdcp_residual": 1e-4,
    "step_error": 1e-3,
    "eigenvalues": np.array([2.01, 1.7, np.nan]),
    "sigma_eigenvalues": np.array([0.1, 0.0]),
    "predicted_loss": 0.3,
    "predicted_grad_norm_sq": 1.0,
}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, 0),
        ({"converged": 0}, NUMERICS.eigenpairs),
        ({"sdcp_residual": 2e-3}, NUMERICS.complementarity),
        ({"step_error": 3.1e-3}, NUMERICS.stepping),
        ({"eigenvalues": np.array([2.06, np.nan])}, NUMERICS.sharpness),
        ({"predicted_loss": np.nan}, NUMERICS.not_finite),
        ({"gain_positive": 0}, NUMERICS.positivity),
        ({"predicted_grad_norm_sq": np.inf, "converged": 0}, 17),
    ],
)
def test_what_is_doubtful(change, expected):
    assert doubts(FLOW | change, 1e-3) == expected


def test_an_optimizer_may_swing():
    assert doubts({"converged": 1, "eigenvalues": np.array([2.6])}, 1e-3) == 0
    assert doubts({"converged": 0, "eigenvalues": np.array([2.6])}, 1e-3) == NUMERICS.eigenpairs


SPEC = """\
name: small
precision: float64
data: {type: moons, n: 30}
model: {type: mlp, widths: [4], activation: tanh}
loss: {type: mse}
optimizer: {type: gd, lr: 0.2}
processes: [discrete, central]
steps: 6
"""


def test_doubts_are_told_once_recorded_and_reported(tmp_path, monkeypatch, capsys):
    def doubtful(*arguments):
        for chunk in chunks(*arguments):
            for row in chunk.rows:
                if row.step in (2, 4):
                    row.series["central"]["numerics"] = np.int32(NUMERICS.eigenpairs)
            yield chunk

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(recording, "chunks", doubtful)
    monkeypatch.setattr(drive._Pace, "__call__", lambda self, left: 1)
    (tmp_path / "spec.yaml").write_text(SPEC)
    assert main(["run", "spec.yaml"]) == 0
    told = capsys.readouterr()
    words = WORDS[NUMERICS.eigenpairs]
    assert told.err.count(words) == 1 and f"central at step 2: {words}" in told.err
    sentence = " ".join(told.out.split())
    assert f"In 2 rows of the central flow, first at step 2: {words}." in sentence
    run = open_run(tmp_path / "runs" / "small")
    np.testing.assert_array_equal(run["central/numerics"], [0, 0, 1, 0, 1, 0])
    np.testing.assert_array_equal(run["discrete/numerics"], 0)
    np.testing.assert_array_equal(run["discrete/converged"], 1)


class Exhausted(cf.AbstractOptimizer):
    """Gradient descent by a statistic that is used up, and then has the wrong sign."""

    def init(self, params):
        return jnp.ones((), jnp.float64)

    def update(self, grads, state, params):
        return jax.tree.map(lambda g: -0.1 * state * g, grads), state - 0.035


def test_a_gain_that_loses_its_sign_is_told():
    def loss(w):
        return jnp.sum(w**2 * jnp.array([1.0, 3.0])) / 2

    names = ["discrete", "stable"]
    for row in cf.simulate(loss, Exhausted(), jnp.ones(2), processes=names, steps=36):
        for name in names:
            positive = row.series[name]["gain_positive"]
            # At 28.6 steps it is used up; a flow's state is that of an optimizer step or two ago.
            if name == "discrete" or abs(row.step - 29) > 2:
                assert positive == (row.step < 29), (row.step, name)
            assert bool(row.series[name]["numerics"] & NUMERICS.positivity) == (not positive)
