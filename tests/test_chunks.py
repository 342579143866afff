"""How many Hessian-vector products are taken at once, where a run finds that out."""

from pathlib import Path

import h5py
import jax.numpy as jnp
import numpy as np
import pytest

from centralflow_eqx.cli import main
from centralflow_eqx.experiment import calibrate
from centralflow_eqx.experiment import run as running

SPEC = """\
name: small
data: {type: moons, n: 20}
model: {type: mlp, widths: [4], activation: tanh}
loss: {type: mse}
optimizer: {type: gd, lr: 0.5}
processes: [discrete]
memory: {hvp_chunk: auto}
steps: 2
"""


@pytest.fixture
def spec(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("spec.yaml").write_text(SPEC)


def chunk_of_the_run():
    with h5py.File("runs/small/data.h5", locking=False) as file:
        return int(np.asarray(file.attrs["hvp_chunk"]))


@pytest.mark.parametrize("quickest", calibrate.CHUNKS)
def test_the_quickest_is_taken(monkeypatch, quickest):
    monkeypatch.setattr(calibrate, "_time", lambda *given: abs(given[-1] - quickest))
    assert calibrate.quickest_chunk(lambda w: jnp.sum(w**4), jnp.ones(20)) == quickest


def test_what_does_not_fit_is_not_tried(monkeypatch):
    tried = []
    monkeypatch.setattr(calibrate, "_time", lambda *given: tried.append(given[-1]) or 1.0)
    monkeypatch.setattr(calibrate, "needed", lambda _: 10)
    monkeypatch.setattr(calibrate, "free_memory", lambda: 5)
    assert calibrate.quickest_chunk(lambda w: jnp.sum(w**4), jnp.ones(20)) == 1
    assert not tried


def test_a_run_that_goes_on_takes_as_many_as_before(spec, monkeypatch):
    monkeypatch.setattr(running, "quickest_chunk", lambda *_: 4)
    assert main(["run", "spec.yaml"]) == 0
    monkeypatch.setattr(running, "quickest_chunk", lambda *_: 1)
    assert main(["resume", "runs/small", "--steps", "4"]) == 0
    assert chunk_of_the_run() == 4
    assert main(["run", "spec.yaml"]) == 0
    assert chunk_of_the_run() == 1
    assert main(["run", "spec.yaml", "--set", "memory.hvp_chunk=2"]) == 0
    assert chunk_of_the_run() == 2
