"""What TensorBoard and Weights & Biases are sent of a run, also of one that is gone on with."""

import sys
import types
from collections import Counter
from typing import get_args

import numpy as np
import pytest
from _runs import contents
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from centralflow_eqx.cli import main
from centralflow_eqx.errors import ExitCode
from centralflow_eqx.experiment import drive, recording
from centralflow_eqx.experiment import run as running
from centralflow_eqx.experiment.drive import chunks
from centralflow_eqx.record import logs
from centralflow_eqx.record.logs import AbstractLog, Logs
from centralflow_eqx.record.quantities import axis
from centralflow_eqx.spec import load_spec
from centralflow_eqx.spec.schema import Record

STEPS, KEPT, KILLED = 9, 4, 6
SPEC = f"""\
name: small
precision: float64
data: {{type: moons, n: 30}}
model: {{type: mlp, widths: [4], activation: tanh}}
loss: {{type: mse}}
optimizer: {{type: gd, lr: 1.0}}
processes: [discrete, central]
steps: {STEPS}
checkpoint: {{every: {KEPT}}}
record:
  log_to: [tensorboard, wandb]
"""


class Killed(BaseException):
    """Ends a run as no error does."""


class Client:
    """Stands in for the package wandb: what it was told, by the identity of the run."""

    Error = RuntimeError

    def __init__(self, mode="online", key=True):
        self.settings, self._key = types.SimpleNamespace(mode=mode), key
        self.begun, self.rows, self.ends = [], [], []

    def module(self):
        def login():
            if not self._key:
                raise self.Error("No API key configured.")

        found = types.ModuleType("wandb")
        found.Error, found.login, found.init = self.Error, login, self._init
        found.setup = lambda: self
        found.Settings = dict
        return found

    def _init(self, **told):
        self.begun.append(told)
        return types.SimpleNamespace(
            log=lambda numbers, step: self.rows.append((step, numbers)),
            finish=lambda exit_code: self.ends.append(exit_code),
        )


@pytest.fixture
def client(monkeypatch):
    def client(**options):
        made = Client(**options)
        monkeypatch.setitem(sys.modules, "wandb", made.module())
        monkeypatch.delitem(sys.modules, "centralflow_eqx.record._wandb", raising=False)
        return made

    yield client
    sys.modules.pop("centralflow_eqx.record._wandb", None)


def killed_in_the_middle(*arguments):
    for chunk in chunks(*arguments):
        if chunk.step > KILLED:
            raise Killed
        yield chunk


def wanted(data):
    """The scalars of a run by the name that logs have, as `[step, value]`."""
    found = {}
    for name, values in data.items():
        if values.ndim == 2 and axis(name) == "direction":
            name, values = f"{name}/0", values[:, 0]
        if "/" in name and values.ndim == 1 and len(values) == STEPS:
            there = np.flatnonzero(~np.isnan(values))
            found[name] = [(int(step), float(values[step])) for step in there]
    return {name: rows for name, rows in found.items() if rows}


def events(folder):
    """What TensorBoard shows of a run: `[step, value]` by process and name."""
    found = {}
    for process in ("", "discrete", "central"):
        accumulator = EventAccumulator(str(folder / process), size_guidance={"scalars": 0})
        accumulator.Reload()
        for tag in accumulator.Tags()["scalars"]:
            rows = [(event.step, event.value) for event in accumulator.Scalars(tag)]
            found[f"{process}/{tag}" if process else tag] = rows
    return found


def test_every_row_is_logged_once_however_often_the_run_is_gone_on_with(
    tmp_path, monkeypatch, client
):
    told = client()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(drive._Pace, "__call__", lambda self, left: 1)
    (tmp_path / "s.yaml").write_text(SPEC)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(recording, "chunks", killed_in_the_middle)
        main(["run", "s.yaml"])
    run_dir = tmp_path / "runs" / "small"
    assert max(step for step, _ in told.rows) == KILLED - 1 > KEPT
    assert main(["resume", str(run_dir)]) == 0
    data = wanted(contents(run_dir)[0])
    assert {"central/train_loss", "central/eigenvalues/0", "distance/discrete-central"} <= set(data)

    shown = events(run_dir / "tensorboard")
    assert shown.keys() == data.keys()
    for name, rows in data.items():
        np.testing.assert_allclose(shown[name], rows, rtol=1e-6, err_msg=name)  # floats of 32 bits

    assert told.ends == [1, 0] and {t["id"] for t in told.begun} == {told.begun[0]["id"]}
    assert told.begun[1]["resume"] == "allow" and told.begun[0]["config"]["steps"] == STEPS
    assert set(Counter(step for step, _ in told.rows).values()) == {1}
    sent = {}
    for step, numbers in told.rows:
        for name, value in numbers.items():
            sent.setdefault(name, []).append((step, value))
    assert sent == data


def refusal(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text(SPEC)
    assert main([command, "s.yaml"]) == ExitCode.BAD_INPUT
    assert not (tmp_path / "runs").exists()
    (line,) = capsys.readouterr().err.splitlines()
    start, _, message = line.partition(" record.log_to: ")
    assert start == "s.yaml:11:"
    return message


@pytest.mark.parametrize("command", ["validate", "run"])
@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_client_is_named_with_its_extra(
    tmp_path, monkeypatch, capsys, client, name, command
):
    client()
    package = {"tensorboard": "tensorboardX"}.get(name, name)
    monkeypatch.setitem(sys.modules, package, None)
    message = refusal(tmp_path, monkeypatch, capsys, command)
    assert message.startswith(f"{name} needs {package}: ")
    assert message.endswith(f"pip install 'centralflow_eqx[{name}]'")


def test_who_is_not_logged_in_is_told_before_anything_is_computed(
    tmp_path, monkeypatch, capsys, client
):
    client(key=False)
    message = refusal(tmp_path, monkeypatch, capsys, "run")
    assert "No API key configured" in message and "WANDB_MODE=offline" in message
    client(key=False, mode="offline")
    logs.log_in(["wandb"])


def test_the_first_of_several_processes_logs_alone(tmp_path, monkeypatch, client):
    told = client()
    (tmp_path / "s.yaml").write_text(SPEC)
    monkeypatch.setattr(running, "is_first", lambda: False)
    with running._logs(load_spec(tmp_path / "s.yaml"), tmp_path, 0) as found:
        found.write(0, {"discrete": {"train_loss": np.float64(1)}}, {})
    assert not told.begun and not (tmp_path / "tensorboard").exists()


class Failing(AbstractLog):
    """A client that lasts for a row."""

    def __init__(self):
        self.steps = []

    def write(self, step, scalars):
        self.steps.append(step)
        if step:
            raise ConnectionError("the service is gone")

    def flush(self):
        pass

    def close(self, failed):
        raise AssertionError("it was left out")


def test_a_client_that_fails_is_left_out_and_the_run_goes_on():
    failing = Failing()
    with Logs({"wandb": failing}) as found:
        found.write(0, {}, {})
        with pytest.warns(UserWarning, match="no more is logged to wandb: .*service is gone"):
            found.write(1, {}, {})
        found.write(2, {}, {})
        found.flush()
    assert failing.steps == [0, 1]


def test_a_spec_names_the_clients_that_there_are():
    (names,) = (get_args(a) for a in get_args(Record.model_fields["log_to"].annotation)[:1])
    assert set(names) == set(logs._CLIENTS)
