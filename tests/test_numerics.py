"""What is numerically doubtful about a row, and who is told."""

import numpy as np
import pytest

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
