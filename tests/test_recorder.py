"""What a run leaves on disk, however it ends."""

import hashlib
import json
import signal
import subprocess
import sys
import textwrap
import time

import h5py
import numpy as np
import pytest
import xarray as xr

from centralflow_eqx.record import writer as recorder_module
from centralflow_eqx.record.quantities import QUANTITIES, quantity
from centralflow_eqx.record.writer import Layout, Recorder

STEPS = np.arange(0, 24, 2)
SPEC = "name: run\nflow:\n  smoothing: 3.0\n"


def create(folder, name="run", weights_steps=(), **attributes):
    attributes = {"device": "cpu", "precision": "float64", "seed": 3} | attributes
    layout = Layout(SPEC, STEPS, np.asarray(weights_steps, int), attributes)
    return Recorder.create(folder / name, layout)


def row(t, k=2):
    """A row of two processes, with numbers that differ from row to row."""
    theta = 2 - 0.1 * np.arange(k) + 0.01 * t
    discrete = {"train_loss": 1 / (1 + t), "eigenvalues": theta, "hvps": np.int32(7 + t)}
    central = discrete | {
        "sigma_eigenvalues": 0.1 * theta,
        "trust_cubic": theta / 9,
        "state/nu_sum": np.float32(0.5 * t),
    }
    return {"discrete": discrete, "central": central}


def fill(folder, rows=STEPS.size, **options):
    with create(folder, **options) as recorder:
        for t in range(rows):
            recorder.write(t, row(t), {"distance/discrete-central": 0.1 * t}, 0.5 * t)
        recorder.finish("done")
    return recorder.run_dir


def test_contract_names_shapes_and_values(tmp_path):
    run_dir = fill(tmp_path)
    assert (run_dir / "spec.yaml").read_text() == SPEC
    with h5py.File(run_dir / "data.h5") as file:
        T = len(STEPS)
        np.testing.assert_array_equal(file["step"], STEPS)
        np.testing.assert_array_equal(file["central/train_loss"], 1 / (1 + np.arange(T)))
        np.testing.assert_array_equal(file["central/hvps"], 7 + np.arange(T))
        np.testing.assert_array_equal(file["central/state/nu_sum"], 0.5 * np.arange(T))
        np.testing.assert_array_equal(file["distance/discrete-central"], 0.1 * np.arange(T))
        assert file["discrete/eigenvalues"].shape == (T, 2)
        np.testing.assert_array_equal(
            file["central/eigenvalues"][4], row(4)["central"]["eigenvalues"]
        )
        assert file["central/state/nu_sum"].dtype == np.float32
        assert file.attrs["status"] == "done"


def test_attributes_say_how_the_run_was_made(tmp_path):
    with h5py.File(fill(tmp_path) / "data.h5") as file:
        assert file.attrs["device"] == "cpu"
        assert file.attrs["seed"] == 3
        assert file.attrs["version_numpy"] == np.__version__
        assert {f"version_{name}" for name in ("centralflow_eqx", "jax", "optax", "python")} <= set(
            file.attrs
        )
        assert "platform" in file.attrs


def test_every_dataset_has_units_and_a_long_name(tmp_path):
    without = []

    def look(name, item):
        if isinstance(item, h5py.Dataset) and not {"units", "long_name"} <= set(item.attrs):
            without.append(name)

    with h5py.File(fill(tmp_path, weights_steps=[0]) / "data.h5") as file:
        file.visititems(look)
        assert file["central/eigenvalues"].attrs["long_name"] == QUANTITIES["eigenvalues"].long_name
    assert without == []
    assert quantity("distance/a-b").units == "weight"
    assert "entries of nu in the optimizer's state" in quantity("state/nu_sum").long_name
    assert quantity("my_series").units == "unknown"


def test_rows_never_written_are_marked(tmp_path):
    with h5py.File(fill(tmp_path, rows=3) / "data.h5") as file:
        assert np.isfinite(file["central/train_loss"][:3]).all()
        assert np.isnan(file["central/train_loss"][3:]).all()
        assert np.isnan(file["central/sigma_eigenvalues"][3:]).all()
        np.testing.assert_array_equal(file["central/hvps"][3:], -1)


def test_directions_grow(tmp_path):
    with create(tmp_path) as recorder:
        for t in range(6):
            recorder.write(t, row(t, k=2 if t < 3 else 4), {}, 0.0)
        recorder.write(6, row(6, k=3), {}, 0.0)
    with h5py.File(recorder.run_dir / "data.h5") as file:
        for name in ("eigenvalues", "trust_cubic", "sigma_eigenvalues"):
            assert file[f"central/{name}"].shape == (len(STEPS), 4)
        np.testing.assert_array_equal(file["central/direction"], np.arange(4))
        assert np.isnan(file["central/eigenvalues"][:3, 2:]).all()
        assert np.isfinite(file["central/eigenvalues"][3:6]).all()
        assert np.isnan(file["central/eigenvalues"][6, 3])
        sigma = file["central/sigma_eigenvalues"]
        np.testing.assert_array_equal(sigma[:3, 2:], 0)
        assert sigma[6, 3] == 0
        assert np.isnan(sigma[7:]).all()


def test_a_short_vector_in_a_wide_process(tmp_path):
    with create(tmp_path) as recorder:
        recorder.write(0, {"central": {"eigenvalues": np.ones(4)}}, {}, 0.0)
        recorder.write(1, {"central": {"empirical_variances": np.ones(1)}}, {}, 0.0)
        recorder.write(2, {"central": {"empirical_variances": np.zeros(0)}}, {}, 0.0)
    with h5py.File(recorder.run_dir / "data.h5") as file:
        variances = file["central/empirical_variances"]
        np.testing.assert_array_equal(variances[1:3], [[1, 0, 0, 0], [0, 0, 0, 0]])
        assert np.isnan(variances[0]).all()


def test_a_matrix_is_refused(tmp_path):
    with create(tmp_path) as recorder, pytest.raises(ValueError, match=r"central/x.*\(2, 2\)"):
        recorder.write(0, {"central": {"x": np.eye(2)}}, {}, 0.0)


def test_a_process_may_lag_behind(tmp_path):
    with create(tmp_path) as recorder:
        for t in range(3):
            recorder.write(t, {"discrete": row(t)["discrete"]}, {}, 0.0)
            if t:
                recorder.write(t - 1, {"midpoint": {"train_loss": float(t - 1)}}, {}, 0.0)
    with h5py.File(recorder.run_dir / "data.h5") as file:
        np.testing.assert_array_equal(file["midpoint/train_loss"][:3], [0, 1, np.nan])
        assert np.isfinite(file["discrete/train_loss"][2])


def test_metrics_have_a_line_per_row(tmp_path):
    with create(tmp_path) as recorder:
        recorder.write(0, row(0), {"distance/discrete-central": 0.25}, 1.5)
        odd = {"central": {"eigenvalues": [2.0, np.nan], "train_loss": np.inf, "long": np.ones(99)}}
        recorder.write(1, odd, {}, 2.5)
        recorder.publish()
        # Lines must be there to be followed while the run goes on.
        lines = (recorder.run_dir / "metrics.jsonl").read_text().splitlines()
    first, second = map(json.loads, lines)
    assert (first["step"], first["wall_seconds"]) == (0, 1.5)
    assert first["central/hvps"] == 7
    assert first["distance/discrete-central"] == 0.25
    assert second == {
        "step": 2,
        "wall_seconds": 2.5,
        "central/eigenvalues": [2.0, None],
        "central/train_loss": None,
    }


def test_weights(tmp_path):
    w = np.arange(5.0)
    with create(tmp_path, weights_steps=[0, 8, 16]) as recorder:
        recorder.write_weights(0, {"discrete": w, "central": w + 1})
        recorder.write_weights(1, {"discrete": 2 * w})
    with h5py.File(recorder.run_dir / "data.h5") as file:
        np.testing.assert_array_equal(file["discrete/weights"][:2], [w, 2 * w])
        np.testing.assert_array_equal(file["central/weights"][0], w + 1)
        assert np.isnan(file["central/weights"][1:]).all()
        np.testing.assert_array_equal(file["central/weights_step"], [0, 8, 16])
        scales = [dim[0].name for dim in file["central/weights"].dims]
        assert scales == ["/central/weights_step", "/parameter"]


def test_xarray_opens_every_group(tmp_path):
    with create(tmp_path, weights_steps=[0, 8]) as recorder:
        for t in range(5):
            recorder.write(t, row(t, k=2 + 2 * (t > 2)), {"distance/discrete-central": 1.0}, 0.0)
        recorder.write_weights(0, {"central": np.ones(6)})
    path = recorder.run_dir / "data.h5"
    with xr.open_dataset(path, engine="h5netcdf") as root:
        np.testing.assert_array_equal(root.step, STEPS)
    with xr.open_dataset(path, engine="h5netcdf", group="central") as central:
        assert central.eigenvalues.dims == ("step", "direction")
        assert central.weights.dims == ("weights_step", "parameter")
        np.testing.assert_array_equal(central.direction, np.arange(4))
        assert central.train_loss.attrs["units"] == "loss"
        assert central.sel(direction=1).sigma_eigenvalues.shape == (len(STEPS),)
    with xr.open_dataset(path, engine="h5netcdf", group="central/state") as state:
        assert state.nu_sum.dims == ("step",)
    with xr.open_dataset(path, engine="h5netcdf", group="distance") as distance:
        assert distance["discrete-central"].dims == ("step",)
    with xr.open_datatree(path, engine="h5netcdf") as tree:
        np.testing.assert_array_equal(tree["central"].step, STEPS)


def test_stop_and_status(tmp_path):
    with create(tmp_path) as recorder:
        recorder.write(0, row(0), {}, 0.0)
        recorder.stop("central", 0, "too sharp")
    with h5py.File(recorder.run_dir / "data.h5") as file:
        assert file["central"].attrs["stop_reason"] == "too sharp"
        assert file["central"].attrs["stop_row"] == 0


def test_an_older_run_is_set_aside(tmp_path):
    for number in range(3):
        with create(tmp_path, seed=number) as recorder:
            pass
        expected = None if number == 0 else tmp_path / f"run.{number}"
        assert recorder.backup == expected
    seeds = []
    for name in ("run.1", "run.2", "run"):
        with h5py.File(tmp_path / name / "data.h5") as file:
            seeds.append(int(file.attrs["seed"]))
    assert seeds == [0, 1, 2]


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt, "interrupted"), (RuntimeError, "failed")]
)
def test_data_survives_an_exception(tmp_path, error, status):
    with pytest.raises(error), create(tmp_path) as recorder:
        recorder.write(0, row(0), {}, 0.0)
        recorder.write(1, row(1), {}, 0.0)
        raise error
    with h5py.File(recorder.run_dir / "data.h5") as file:
        assert np.isfinite(file["central/train_loss"][:2]).all()
        assert file.attrs["status"] == status


def test_a_status_given_before_an_exception_stays(tmp_path):
    with pytest.raises(RuntimeError), create(tmp_path) as recorder:
        recorder.finish("numerical stop")
        raise RuntimeError
    with h5py.File(recorder.run_dir / "data.h5") as file:
        assert file.attrs["status"] == "numerical stop"


KILLED = """
import sys
from pathlib import Path
import numpy as np
from centralflow_eqx.record.writer import Layout, Recorder

def row(t, k):
    return {"central": {"train_loss": float(t), "eigenvalues": np.full(k, 2.0)}}

recorder = Recorder.create(Path(sys.argv[1]) / "run", Layout("", np.arange(5000), np.arange(3)))
for t in range(40):
    recorder.write(t, row(t, 2 if t < 20 else 4), {}, 0.0)
recorder.write_weights(0, {"central": np.ones(100)})
recorder.publish()
print("flushed", flush=True)
for t in range(40, 5000):
    recorder.write(t, row(t, 4), {}, 0.0)
    recorder.settle()
print("waiting", flush=True)
sys.stdin.read()
"""


def test_a_killed_process_leaves_its_rows(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "flushed\n"
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    with h5py.File(tmp_path / "run" / "data.h5") as file:
        # what has a line has a row
        assert len(lines) >= 40
        loss = file["central/train_loss"][: len(lines)]
        np.testing.assert_array_equal(loss, np.arange(len(lines)))
        assert file["central/eigenvalues"].shape == (5000, 4)
        assert np.isnan(file["central/eigenvalues"][:20, 2:]).all()
        np.testing.assert_array_equal(file["central/weights"][0], 1)
        assert file.attrs["status"] == "running"


def test_rows_reach_the_disk_while_the_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder_module, "PUBLISH_SECONDS", 0.0)
    with create(tmp_path) as recorder:
        for t in range(3):
            recorder.write(t, row(t), {}, 0.0)
            time.sleep(recorder._cost / recorder_module._PUBLISH_SHARE)
            recorder.settle()
        with h5py.File(recorder.run_dir / "data.h5", locking=False) as file:
            assert np.isfinite(file["central/train_loss"][:3]).all()


def digest(run_dir):
    return hashlib.sha256((run_dir / "data.h5").read_bytes()).hexdigest()


def test_equal_runs_have_equal_bytes(tmp_path, monkeypatch):
    def run(folder, pause):
        with create(folder, weights_steps=STEPS) as recorder:
            for t in range(len(STEPS)):
                recorder.write(t, row(t, k=2 + 2 * (t > 5)), {"distance/a-b": 1.0}, time.time())
                if t % 4 == 0:
                    recorder.write_weights(t, {"central": np.full(300, t)})
                time.sleep(pause)
                recorder.settle()
            recorder.finish("done")
        return digest(recorder.run_dir)

    slow = run(tmp_path / "slow", 0.1)
    # However often rows are brought to disk.
    monkeypatch.setattr(recorder_module, "PUBLISH_SECONDS", 0.0)
    monkeypatch.setattr(recorder_module, "_PUBLISH_SHARE", np.inf)
    assert run(tmp_path / "eager", 0.0) == slow
    monkeypatch.setattr(recorder_module, "PUBLISH_SECONDS", 1e9)
    assert run(tmp_path / "lazy", 0.0) == slow
