"""What a run leaves and says, and that a compilation cache never ends one."""

import h5py
import jax
import pytest
from _runs import undocumented
from jax.experimental.compilation_cache import compilation_cache

from centralflow_eqx.cli import main

SPEC = """\
name: small
data: {type: moons, n: 30}
model: {type: mlp, widths: [4], activation: tanh}
loss: {type: mse}
optimizer: {type: adam, lr: 0.02, beta1: 0.6, beta2: 0.9}
processes: [discrete, midpoint, stable, central, discrete_minibatch]
steps: 4
minibatch: {size: 10}
record: {coordinates: 3, examples: [0], preconditioners_every: 2}
"""


@pytest.fixture
def spec(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spec.yaml").write_text(SPEC)
    return tmp_path


def forget_programs():
    jax.clear_caches()
    compilation_cache.reset_cache()


@pytest.mark.slow
def test_every_recorded_series_says_what_it_is(spec):
    """Of all processes and probes at once; others' runs are looked at where they are made."""
    assert main(["run", "spec.yaml"]) == 0
    assert undocumented(spec / "runs" / "small") == []


@pytest.mark.parametrize("cache", ["corrupt", pytest.param("no folder", marks=pytest.mark.slow)])
def test_a_spoilt_cache_ends_no_run(spec, cache, monkeypatch):
    """JAX warns of what it cannot read, and compiles anew."""
    folder, before = spec / "cache", jax.config.jax_compilation_cache_dir
    if cache == "no folder":
        folder.write_text("a file")
    monkeypatch.setenv("CENTRALFLOW_CACHE", str(folder))
    little = ["optimizer={type: gd, lr: 0.1}", "processes=[discrete]", "record={}"]
    run = ["run", "spec.yaml", *(word for key in little for word in ("--set", key))]
    jax.config.update("jax_compilation_cache_dir", None)
    forget_programs()
    try:
        assert main(run) == 0
        files = list(folder.glob("*-cache")) if folder.is_dir() else []
        assert bool(files) == (cache == "corrupt")
        for file in files:
            file.write_bytes(b"spoilt")
        forget_programs()
        assert main(run) == 0
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        forget_programs()


def test_raw_spectra_are_not_computed_unless_asked_for_and_a_run_says_what_it_does(spec, capsys):
    """What needs none of them is there, and the report is; from the first second on it is told."""
    little = [
        "optimizer={type: rmsprop, lr: 0.02, beta2: 0.9}",
        "processes=[discrete]",
        "record={raw_spectra: false}",
    ]
    assert main(["run", "spec.yaml", *(word for key in little for word in ("--set", key))]) == 0
    run_dir = spec / "runs" / "small"
    with h5py.File(run_dir / "data.h5", locking=False) as file:
        assert "eigenvalues" in file["discrete"] and "raw_eigenvalues" not in file["discrete"]
    assert (run_dir / "report.html").exists()
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("loading")
    assert any(line.startswith("compiling discrete") for line in said[:3])
    assert any(line.startswith("step 4/4") for line in said)
