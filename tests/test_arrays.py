"""From Python: a task without a spec, labelled arrays of a simulation and of a run on disk."""

import sys

import equinox as eqx
import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from _losses import TinyMLP
from _runs import rows_of, undocumented

from centralflow_eqx.cli import main
from centralflow_eqx.data import Moons
from centralflow_eqx.errors import InputError, NumericalStop, OptionError
from centralflow_eqx.experiment.build import build_task
from centralflow_eqx.experiment.simulate import Row, simulate
from centralflow_eqx.losses import MSE
from centralflow_eqx.models import MLP
from centralflow_eqx.optimizers import GD
from centralflow_eqx.processes.probes import Coordinates, Outputs
from centralflow_eqx.record.arrays import collect, open_run
from centralflow_eqx.record.row import Halt
from centralflow_eqx.record.writer import Layout, Recorder
from centralflow_eqx.spec import load_spec
from centralflow_eqx.task import make_task

SPEC = """\
name: small
precision: float64
data: {type: moons, n: 30}
model: {type: mlp, widths: [4], activation: tanh}
loss: {type: mse}
optimizer: {type: rmsprop, lr: 0.02, beta2: 0.9}
processes: [discrete, central]
steps: 9
warm_start: 5
record:
  every: 2
  weights_every: 2
  coordinates: [2, 11]
  examples: [0, 7]
  preconditioners_every: 4
"""


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same simulation collected and read from its run directory."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "spec.yaml").write_text(SPEC)
    spec = load_spec(folder / "spec.yaml", [f"output.dir={folder}"])
    collected = collect(rows_of(spec), coordinates=[2, 11], weights=True)
    assert main(["run", str(folder / "spec.yaml"), "--set", f"output.dir={folder}"]) == 0
    assert undocumented(folder / "small") == []
    return collected, open_run(folder / "small")


def test_a_task_without_a_spec_is_that_of_the_spec(tmp_path):
    (tmp_path / "spec.yaml").write_text(SPEC)
    expected = build_task(load_spec(tmp_path / "spec.yaml"))
    task = make_task(Moons(n=30), MLP((4,), "tanh"), MSE(), dtype="float64")
    assert eqx.tree_equal(task, expected)
    other = make_task(Moons(n=30), MLP((4,), "tanh"), MSE(), seed=1, dtype="float64")
    assert not np.array_equal(other.initial_weights, task.initial_weights)


def test_initial_weights_replace_the_networks_own():
    w = np.linspace(-1, 1, 17)
    task = make_task(Moons(n=30), MLP((4,)), MSE(), dtype="float64", initial_weights=w)
    np.testing.assert_array_equal(task.initial_weights, w)
    with pytest.raises(OptionError, match="initial_weights: must have 17 entries.* got 16"):
        make_task(Moons(n=30), MLP((4,)), MSE(), initial_weights=w[1:])


def variables(tree):
    """Every variable and coordinate of a tree by its path, stored weights over `step`."""
    found = {f"{node.path}/{k}": v for node in tree.subtree for k, v in node.variables.items()}
    stored = [name for name in found if name.endswith("/weights")]
    for name in stored:
        found[name] = xr.Variable(["step", "parameter"], found[name].data, found[name].attrs)
    # Coordinates are inherited by the nodes below.
    return {name: v for name, v in found.items() if not name.endswith("/weights_step")}


def test_a_collected_simulation_is_what_its_run_leaves(both):
    collected, opened = map(variables, both)
    assert set(collected) == set(opened)
    for name, values in collected.items():
        assert values.dims == opened[name].dims, name
        assert values.dtype == opened[name].dtype, name
        assert values.attrs == opened[name].attrs, name
        np.testing.assert_array_equal(values.values, opened[name].values, err_msg=name)


def test_nodes_and_dimensions(both):
    tree, _ = both
    assert set(tree.children) == {"discrete", "central", "distance"}
    np.testing.assert_array_equal(tree["step"], [0, 2, 4, 6, 8])
    np.testing.assert_array_equal(tree["coordinate"], [2, 11])
    assert tree["central/train_loss"].dims == ("step",)
    assert tree["central/eigenvalues"].dims == ("step", "direction")
    assert tree["central/state/nu_at"].dims == ("step", "coordinate")
    assert tree["central/outputs"].dims == ("step", "output")
    assert tree["central/weights"].dims == ("step", "parameter")
    assert tree["central/stationary/cosine"].dims == ("step",)
    assert tree["distance/discrete-central"].attrs["units"] == "weight"
    assert tree["central/hvps"].dtype == np.int64
    assert tree.attrs["status"] == "done" and tree.attrs["version_jax"] == jax.__version__


def test_what_was_not_measured_is_missing(both):
    for tree in both:
        known = np.isfinite(tree["central/stationary/cosine"])
        np.testing.assert_array_equal(known, [True, False, True, False, True])


def row(step, series, stops=None, comparisons=None):
    arrays = {p: {k: np.asarray(v) for k, v in values.items()} for p, values in series.items()}
    weights = {p: jnp.full(3, step) for p in series}
    return Row(step, arrays, comparisons or {}, weights, stops or {})


def test_widths_grow_and_gaps_are_missing():
    wide = {"sigma_eigenvalues": [0.3, 0.1, 0.0], "eigenvalues": [3.0, 2.0, 1.0], "hvps": 7}
    tree = collect(
        [
            row(0, {"central": {"sigma_eigenvalues": [0.2], "eigenvalues": [2.0], "hvps": 5}}),
            row(1, {}),
            row(2, {"central": wide}),
        ],
        attributes={"device": "abacus"},
    )
    central = tree["central"]
    nan = np.nan
    expected = [[0.2, 0, 0], [nan] * 3, [0.3, 0.1, 0.0]]
    np.testing.assert_array_equal(central["sigma_eigenvalues"], expected)
    expected = [[2, nan, nan], [nan] * 3, [3, 2, 1]]
    np.testing.assert_array_equal(central["eigenvalues"], expected)
    np.testing.assert_array_equal(central["hvps"], [5, nan, 7])
    np.testing.assert_array_equal(central["direction"], [0, 1, 2])
    assert tree.attrs["device"] == "abacus"


@pytest.mark.parametrize("stop", [2, 3])
def test_a_process_that_stops_leaves_missing_rows(stop):
    """Rows between recorded steps tell of a stop, their series are not for the record."""
    both = {"stable": {"train_loss": 1.0}, "discrete": {"train_loss": 2.0}}
    one = {"discrete": both["discrete"]}
    rows = {0: row(0, both), 3: row(3, both), 6: row(6, one), 9: row(9, one)}
    rows[stop] = row(stop, both, {"stable": Halt("too sharp", False)})
    if stop < 3:
        rows[3] = row(3, one)
    tree = collect(rows[step] for step in sorted(rows))
    np.testing.assert_array_equal(tree["step"], [0, 3, 6, 9])
    known = np.isfinite(tree["stable/train_loss"])
    np.testing.assert_array_equal(known, np.array([0, 3, 6, 9]) <= stop)
    assert tree["stable"].attrs == {"stop_reason": "too sharp", "stop_row": stop // 3}


def test_rows_before_a_numerical_stop_are_kept():
    def rows():
        yield row(0, {"discrete": {"train_loss": 1.0}})
        raise NumericalStop("discrete", 1, "not finite")

    with pytest.warns(UserWarning, match="discrete stopped at step 1"):
        tree = collect(rows())
    assert tree.sizes["step"] == 1 and tree.attrs["status"] == "numerical stop"
    assert tree["discrete"].attrs == {"stop_reason": "not finite", "stop_row": 1}


def test_nothing_recorded_is_an_empty_tree():
    tree = collect([])
    assert tree.sizes["step"] == 0 and not tree.children


def test_probes_of_a_plain_loss_have_labels():
    loss = TinyMLP.make()
    w = jnp.asarray(np.random.default_rng(0).normal(size=TinyMLP.SIZE))
    chosen = jnp.array([3, 30])
    probes = [Coordinates(indices=chosen), Outputs(function=lambda w: w[:2] ** 2)]
    tree = collect(
        simulate(loss, GD(0.1), w, processes=["discrete"], steps=2, probes=probes),
        coordinates=chosen,
    )
    squared = tree["discrete/grad_sq_at"].sel(coordinate=30)
    assert squared.dims == ("step",) and bool((squared > 0).all())
    np.testing.assert_array_equal(tree["discrete/outputs"][0], w[:2] ** 2)


def test_a_run_that_is_open_elsewhere_can_be_read(tmp_path):
    with Recorder.create(tmp_path / "x", Layout("name: x", np.arange(2), np.arange(0))) as recorder:
        recorder.write(0, {"discrete": {"train_loss": 1.0}}, {}, 0.0)
        recorder.publish()
        assert open_run(recorder.run_dir)["discrete/train_loss"][0] == 1
    with h5py.File(recorder.run_dir / "data.h5") as file:
        np.testing.assert_array_equal(open_run(recorder.run_dir)["step"], file["step"])
    with xr.open_datatree(recorder.run_dir / "data.h5", engine="h5netcdf") as tree:
        xr.testing.assert_equal(open_run(recorder.run_dir)["step"], tree["step"])


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="is this a run directory"):
        open_run(tmp_path)
    (tmp_path / "data.h5").write_text("text")
    with pytest.raises(InputError, match="cannot be read"):
        open_run(tmp_path)
    xr.Dataset({"x": 1}).to_netcdf(tmp_path / "data.h5", engine="h5netcdf")
    with pytest.raises(InputError, match="step"):
        open_run(tmp_path)


def test_without_xarray_the_extra_is_named_before_anything_is_computed(monkeypatch):
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(ImportError, match=r"pip install 'centralflow_eqx\[arrays\]'"):
        collect(iter(lambda: pytest.fail("a row was asked for"), None))
    with pytest.raises(ImportError, match="labelled arrays need xarray"):
        open_run("no_run")
