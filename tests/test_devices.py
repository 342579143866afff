"""Runs that several devices, or several processes, share."""

import functools
import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from _marks import quick
from _runs import contents

from centralflow_eqx.cli import main
from centralflow_eqx.errors import OptionError
from centralflow_eqx.placement import Placement, choose_devices, place, to_host

FORCED = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}


@functools.cache
def sharded(action):
    """What `_sharded.py` finds out in a process with eight devices."""
    script = Path(__file__).with_name("_sharded.py")
    env = os.environ | FORCED | {"PYTHONPATH": str(script.parents[1])}
    done = subprocess.run([sys.executable, script, action], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("cases", quick(["uneven", "derivatives"], "uneven"))
def test_devices_change_rounding_alone(cases):
    """100 examples on 8 devices and on 7, which do not divide them, also in microbatches; and
    weights that both divide."""
    found = sharded(cases)
    assert len(found) == 10 * {"uneven": 2, "derivatives": 2 * 4}[cases]
    # An eigenvector is as accurate as its residual by the gap to the next, 1e-13 by some 1e-1.
    assert max(found.values()) < 1e-11


def test_what_devices_exchange():
    found = sharded("collectives")
    size, exchanges = 8 * found["d"], found["exchanges"]["examples"]
    # Nothing is gathered, and beside vectors only a number or two are added up.
    assert {kind for moved in exchanges.values() for kind, _ in moved} == {"all-reduce"}
    large = {name: [n for _, n in moved if n > 64] for name, moved in exchanges.items()}
    assert large["gradient"] == [size]
    assert large["6 third derivatives"] == [6 * size]
    for columns in (1, 8):
        (moved,) = large[f"{columns} products"]
        assert columns * size <= moved <= 1.5 * columns * size
    assert len(exchanges["1 products"]) == len(exchanges["8 products"]) <= 2


def test_what_devices_exchange_that_share_weights():
    found = sharded("collectives")
    size, exchanges = 8 * found["d"], found["exchanges"]["both"]
    gathered = {
        name: [n for kind, n in moved if kind == "all-gather"] for name, moved in exchanges.items()
    }
    # What a forward pass needs: the weights and the direction of a derivative, one at a time, of
    # however many columns. The eigensolver, which has twenty blocks of them, gathers no more.
    times = {"gradient": 1, "1 products": 2, "8 products": 2, "8 eigenpairs": 2}
    assert gathered == {name: [size] * n for name, n in times.items()} | {
        "6 third derivatives": [size] * 3
    }
    kinds = {kind for moved in exchanges.values() for kind, _ in moved}
    assert kinds == {"all-gather", "all-reduce"}
    assert max(n for moved in exchanges.values() for _, n in moved) <= 1.5 * size


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["gd", "rmsprop", "adam"])
def test_steps_on_several_devices(optimizer):
    assert max(sharded(optimizer).values()) < 1e-10


SPEC = """\
name: small
precision: float64
data: {type: moons, n: 31}
model: {type: mlp, widths: [4], activation: tanh}
loss: {type: mse}
optimizer: {type: gd, lr: 0.8}
processes: [discrete, midpoint, central]
eigen: {tol: 1e-12}
steps: 12
"""


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def together(arguments, env=None):
    """The same command in two processes of one run; what they printed."""
    port = free_port()
    started = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "centralflow_eqx", *arguments, "--set"),
                f"distributed={{coordinator: localhost:{port}, processes: 2, index: {index}}}",
            ],
            env=os.environ | (env or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in (0, 1)
    ]
    printed = [process.communicate(timeout=600) for process in started]
    assert [process.returncode for process in started] == [0, 0], printed
    return printed


@pytest.mark.slow
def test_devices_leave_minibatches_as_they_are(tmp_path, monkeypatch):
    """Random keys go to the same processes, whose order is not the alphabet's."""
    monkeypatch.chdir(tmp_path)
    Path("spec.yaml").write_text(SPEC)
    sets = "processes=[stable, discrete, discrete_minibatch]", "minibatch.size=8", "steps=3"
    command = [sys.executable, "-m", "centralflow_eqx", "run", "spec.yaml"]
    env = os.environ | FORCED | {"PYTHONPATH": str(Path(__file__).parents[1])}
    for devices in (1, 2):
        changes = (*sets, f"name=on_{devices}", f"devices={devices}")
        options = [part for change in changes for part in ("--set", change)]
        subprocess.run([*command, *options], env=env, check=True)
    one, many = (contents(Path(f"runs/on_{devices}"))[0] for devices in (1, 2))
    loss = "discrete_minibatch/train_loss"
    np.testing.assert_allclose(many[loss], one[loss], rtol=1e-12)


@pytest.mark.slow
def test_processes_that_share_a_run(tmp_path, monkeypatch):
    """Two of them, then one that goes on, have the rows of one alone."""
    monkeypatch.chdir(tmp_path)
    Path("spec.yaml").write_text(SPEC)
    (first, _), (other, _) = together(["run", "spec.yaml", "--set", "steps=8"])
    assert "report.html" in first and not other
    assert main(["resume", "runs/small", "--steps", "12", "--set", "distributed=off"]) == 0
    assert main(["run", "spec.yaml", "--set", "output.dir=alone"]) == 0
    shared, alone = contents(Path("runs/small"))[0], contents(Path("alone/small"))[0]
    for name in alone:
        if name.endswith(("train_loss", "eigenvalues", "predicted_loss", "sigma_eigenvalues")):
            np.testing.assert_allclose(shared[name], alone[name], rtol=1e-10, atol=1e-10)


@pytest.mark.slow
def test_a_run_of_eight_devices_goes_on_with_two(tmp_path, monkeypatch):
    """With other parts of the weights on each of them; its rows are those of one device."""
    monkeypatch.chdir(tmp_path)
    Path("spec.yaml").write_text(SPEC)
    network = "model={type: mlp, widths: [8], activation: tanh, bias: false}"  # 24 weights
    shared = ["--set", network, "--set", "shard=both", "--set"]
    env = os.environ | FORCED | {"PYTHONPATH": str(Path(__file__).parents[1])}
    start = [sys.executable, "-m", "centralflow_eqx"]
    first = ["run", "spec.yaml", *shared, "devices=8", "--set", "steps=8"]
    second = ["resume", "runs/small", "--steps", "12", "--set", "devices=2"]
    for command in (first, second):
        done = subprocess.run([*start, *command], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert "devices 8, weights in 8 parts, now 2, weights in 2 parts" in done.stderr
    assert main(["run", "spec.yaml", "--set", network, "--set", "output.dir=alone"]) == 0
    many, alone = contents(Path("runs/small"))[0], contents(Path("alone/small"))[0]
    for name in alone:
        if name.endswith(("train_loss", "eigenvalues", "predicted_loss", "sigma_eigenvalues")):
            np.testing.assert_allclose(many[name], alone[name], rtol=1e-10, atol=1e-10)


def test_devices_are_chosen_by_number_or_kind():
    (only,) = choose_devices("all")
    assert choose_devices("auto") == choose_devices(1) == choose_devices(["cpu"]) == [only]
    assert place("auto") is None
    with pytest.raises(OptionError, match="devices: there are 1 of kind cpu, not 3"):
        choose_devices(3)
    with pytest.raises(OptionError, match="devices: there are none of kind 'H100', only cpu"):
        choose_devices(["H100"])
    assert choose_devices(["cpu", "cpu"]) == [only]
    for wrong in ("cpu", (), None):
        with pytest.raises(OptionError, match=r'devices: must be "auto", "all", a number, or'):
            choose_devices(wrong)  # type: ignore


@pytest.mark.parametrize("index", [0, 1])
def test_processes_that_do_not_find_each_other(tmp_path, index):
    """The first waits for the second, the second for the first; neither is ended by JAX."""
    (tmp_path / "spec.yaml").write_text(SPEC)
    patience = "import sys; from centralflow_eqx import hosts; hosts.JOIN_SECONDS = 1; "
    command = f"{patience}from centralflow_eqx.cli import main; sys.exit(main(sys.argv[1:]))"
    cluster = f"distributed={{coordinator: localhost:{free_port()}, processes: 2, index: {index}}}"
    done = subprocess.run(
        [sys.executable, "-c", command, "run", "spec.yaml", "--set", cluster],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    waits, problem = done.stderr.splitlines()[0], done.stderr.splitlines()[-1]
    assert waits.startswith("waiting for the other processes")
    assert "distributed: the processes of the run did not find each other: not all" in problem
    assert not (tmp_path / "runs").exists()


def test_what_is_on_all_devices_stays_where_it_is():
    placement = Placement(tuple(jax.devices()))
    tree = {"w": np.arange(3.0), "key": jax.random.key(3), "name": "x"}
    copied = placement.lay(tree, 3)
    assert copied["name"] == "x"
    assert placement.lay(copied, 3)["w"] is copied["w"]
    np.testing.assert_array_equal(to_host(copied["w"]), tree["w"])
    assert jax.random.key_data(copied["key"]).tolist() == jax.random.key_data(tree["key"]).tolist()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("devices=5", "devices: there are 1 of kind cpu, not 5"),
        ("devices=0", "devices: must be"),
        ("devices=[H100]", "devices: there are none of kind 'H100', only cpu"),
        ("distributed={coordinator: a, processes: 2, index: 0}", "distributed.coordinator: "),
        ("distributed={coordinator: 'a:1', processes: 2, index: 2}", "index: 0 to N - 1}, got"),
    ],
)
def test_devices_that_are_not_there(tmp_path, monkeypatch, capsys, change, line):
    monkeypatch.chdir(tmp_path)
    Path("spec.yaml").write_text(SPEC)
    assert main(["run", "spec.yaml", "--set", change]) == 2
    assert line in capsys.readouterr().err


def test_validate_tells_which_devices_are_not_here(tmp_path, monkeypatch, capsys):
    """Another machine may have them: the spec is valid."""
    monkeypatch.chdir(tmp_path)
    Path("spec.yaml").write_text(SPEC)
    assert main(["validate", "spec.yaml", "--set", "devices=3"]) == 0
    told = capsys.readouterr().out
    assert "not run on this machine: devices: there are 1 of kind cpu, not 3\n" in told
    cluster = "distributed={coordinator: 'a:1', processes: 4, index: 0}"
    assert main(["validate", "spec.yaml", "--set", cluster, "--set", "devices=3"]) == 2
    assert "devices: must be >= 4: each of the processes needs one" in capsys.readouterr().err


def test_processes_do_not_share_a_sweep(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("spec.yaml").write_text(SPEC + "sweep: {grid: {seed: [0, 1]}}\ndistributed: auto\n")
    assert main(["run", "spec.yaml"]) == 2
    assert "distributed: several processes share a run, not a sweep" in capsys.readouterr().err
    assert not Path("runs").exists()


@pytest.mark.parametrize(("d", "parts"), [(2072, 2), (2073, 1)])
def test_weights_are_split_among_as_many_devices_as_divide_them(d, parts):
    placement = Placement(tuple(jax.devices()) * 2, "both")
    assert placement.of_weights(d).parts == parts
    assert replace(placement, shard="examples").of_weights(d).parts == 1
