"""Whole runs, from the command line to the run directory."""

import signal
import time

import h5py
import numpy as np
import pytest
from _marks import quick
from _runs import contents, undocumented

from centralflow_eqx.cli import main
from centralflow_eqx.experiment import drive, recording
from centralflow_eqx.experiment.drive import chunks
from centralflow_eqx.spec import load_spec

SPEC = """\
name: small
precision: float64
data: {type: moons, n: 30}
model: {type: mlp, widths: [4], activation: tanh}
loss: {type: mse}
optimizer: {type: rmsprop, lr: 0.02, beta2: 0.9}
processes: [discrete, midpoint, stable, central]
steps: 12
warm_start: 5
record: {weights_every: 1}
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the spec with overrides; the exit code and the run directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spec.yaml").write_text(SPEC)

    def run(*overrides):
        arguments = [word for override in overrides for word in ("--set", override)]
        return main(["run", "spec.yaml", *arguments]), tmp_path / "runs" / "small"

    return run


def test_a_run_leaves_what_the_contract_says(run, capsys):
    code, run_dir = run()
    assert code == 0
    assert undocumented(run_dir) == []
    data, attributes = contents(run_dir)
    np.testing.assert_array_equal(data["step"], np.arange(12))
    processes = ["discrete", "midpoint", "stable", "central"]
    for process in processes:
        for name in ("train_loss", "grad_norm_sq", "state/nu_sum", "test_loss", "test_accuracy"):
            assert np.all(np.isfinite(data[f"{process}/{name}"])), (process, name)
        assert data[f"{process}/eigenvalues"].shape[0] == 12
        assert data[f"{process}/raw_eigenvalues"].shape == data[f"{process}/eigenvalues"].shape
        assert data[f"{process}/weights"].shape == (12, 17)
    for name in ("predicted_loss", "sigma_eigenvalues", "trust_cubic", "empirical_variances"):
        assert data[f"central/{name}"].shape[0] == 12
    w = {process: data[f"{process}/weights"] for process in processes}
    np.testing.assert_allclose(
        data["distance/discrete-central"], np.linalg.norm(w["discrete"] - w["central"], axis=1)
    )
    middle = (w["discrete"][:-2] + 2 * w["discrete"][1:-1] + w["discrete"][2:]) / 4
    np.testing.assert_allclose(w["midpoint"][1:-1], middle, rtol=1e-13)
    np.testing.assert_array_equal(w["midpoint"][0], w["discrete"][0])
    assert attributes["seed"] == 0 and attributes["precision"] == "float64"
    assert len((run_dir / "metrics.jsonl").read_text().splitlines()) == 12
    assert (run_dir / "report.html").exists() and (run_dir / "figures" / "loss.png").exists()
    assert load_spec(run_dir / "spec.yaml").steps == 12
    assert "What happened" in capsys.readouterr().out


def test_the_same_spec_gives_the_same_bytes_and_loses_no_earlier_run(run):
    _, run_dir = run("steps=3", "processes=[discrete,central]")
    first = (run_dir / "data.h5").read_bytes()
    _, run_dir = run("steps=3", "processes=[discrete,central]")
    assert (run_dir / "data.h5").read_bytes() == first
    assert (run_dir.with_name("small.1") / "data.h5").read_bytes() == first


@pytest.mark.slow
def test_single_precision_agrees_with_double(run):
    wanted = ("steps=6", "processes=[discrete,stable,central]", "optimizer={type: gd, lr: 0.5}")
    double = contents(run(*wanted)[1])[0]
    code, run_dir = run(*wanted, "precision=float32")
    single = contents(run_dir)[0]
    assert code == 0 and single["central/weights"].dtype == np.float32
    for name in (
        "discrete/weights",
        "stable/weights",
        "central/weights",
        "central/predicted_loss",
    ):
        np.testing.assert_allclose(single[name], double[name], rtol=1e-4, atol=1e-5)


def test_divergence_stops_the_run_and_keeps_the_rows_before(run, capsys):
    code, run_dir = run(
        "optimizer={type: gd, lr: 60.0}",
        "model.activation=softplus",
        "processes=[discrete]",
        "steps=400",
        "warm_start=0",
    )
    error = capsys.readouterr().err
    assert code == 3 and "discrete stopped at step" in error and "it diverged" in error
    data, attributes = contents(run_dir)
    with h5py.File(run_dir / "data.h5") as file:
        row = file["discrete"].attrs["stop_row"]
    assert attributes["status"] == "numerical stop"
    # its last row is that where it was seen to have diverged
    loss = data["discrete/train_loss"]
    assert row > 0 and np.all(loss[:row] < 1e4 * loss[0]) and loss[row] >= 1e4 * loss[0]
    assert np.all(np.isnan(loss[row + 1 :]))
    assert len((run_dir / "metrics.jsonl").read_text().splitlines()) == row + 1


@pytest.mark.parametrize("how", quick([signal.SIGINT, signal.SIGTERM], signal.SIGTERM))
def test_an_interrupted_run_keeps_its_rows(run, how, monkeypatch, capsys):
    def interrupted(*args):
        for number, chunk in enumerate(chunks(*args)):
            if number == 1:
                signal.raise_signal(how)
                time.sleep(0.2)  # it is noted in another thread
            yield chunk

    monkeypatch.setattr(drive._Pace, "__call__", lambda self, left: 1)
    monkeypatch.setattr(recording, "chunks", interrupted)
    code, run_dir = run("processes=[discrete]")
    data, attributes = contents(run_dir)
    assert code == 4 and attributes["status"] == "interrupted"
    # The chunk in which it came is the last, or one soon after.
    there = np.isfinite(data["discrete/train_loss"])
    rows = int(there.sum())
    assert 2 <= rows < 12 and there[:rows].all()
    assert (run_dir / "report.html").exists()
    told = capsys.readouterr().err
    assert "another signal ends at once" in told and f"the rows before step {rows} are kept" in told


def test_a_stable_flow_stops_at_its_limit_and_the_rest_goes_on(run):
    code, run_dir = run(
        "flow.max_sharpness=0.5", "processes=[stable,discrete]", "record={every: 3}"
    )
    assert code == 0
    data, _ = contents(run_dir)
    np.testing.assert_array_equal(data["step"], [0, 3, 6, 9])
    assert np.all(np.isfinite(data["discrete/train_loss"]))
    np.testing.assert_array_equal(
        np.isfinite(data["stable/train_loss"]), [True, False, False, False]
    )
    with h5py.File(run_dir / "data.h5") as file:
        assert "max_sharpness" in file["stable"].attrs["stop_reason"]


def test_bad_input_leaves_an_earlier_run_alone(run, capsys):
    _, run_dir = run("steps=1", "processes=[discrete]")
    before = sorted(p.name for p in run_dir.parent.iterdir())
    code, _ = run("eigen.initial=99")
    assert code == 2 and "17" in capsys.readouterr().err
    assert sorted(p.name for p in run_dir.parent.iterdir()) == before
