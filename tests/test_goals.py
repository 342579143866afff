"""Goals that end a run early."""

import math

import h5py
import numpy as np
import pytest

from centralflow_eqx.cli import main
from centralflow_eqx.experiment.goals import GoalWatch
from centralflow_eqx.record.files import set_aside
from centralflow_eqx.spec import json_schema
from centralflow_eqx.spec.schema import Stop

SPEC = """\
name: small
precision: float64
data: {type: moons, n: 30}
model: {type: mlp, widths: [4], activation: softplus}
loss: {type: mse}
optimizer: {type: gd, lr: 0.2}
processes: [discrete, midpoint]
steps: 12
"""


def row(loss, accuracy=0.5):
    return {"discrete": {"train_loss": np.float64(loss), "train_accuracy": np.float64(accuracy)}}


def watched(rows, **goals):
    """What the watch says of each row."""
    watch = GoalWatch(Stop(**goals), ("discrete", "central"))
    return [watch(row) for row in rows]


@pytest.mark.parametrize(
    ("goals", "rows", "met"),
    [
        ({"loss_below": 0.25}, [row(1.0), row(0.2501), row(0.25)], [False, False, True]),
        ({"accuracy_above": 0.9}, [row(1, 0.89), row(1, 0.9)], [False, True]),
        ({"diverged_above": 2.0}, [row(1.5), row(2.99), row(3.0)], [False, False, True]),
        ({"diverged_above": 2.0, "loss_below": 0.1}, [row(1), row(0.05)], [False, True]),
        ({}, [row(1), row(0, 1), row(1e9)], [False, False, False]),
        # nothing is a multiple of a first loss of zero, or of one below
        ({"diverged_above": 2.0}, [row(0), row(0), row(5)], [False, False, False]),
        ({"diverged_above": 2.0}, [row(-1), row(-1.5), row(3)], [False, False, False]),
        (
            {"process": "central", "loss_below": 9.0},
            [row(1), {"central": row(1)["discrete"]}],
            [0, 1],
        ),
        ({"loss_below": 0.5}, [row(1), row(math.nan)], [False, False]),
    ],
)
def test_which_row_meets_a_goal(goals, rows, met):
    assert [bool(text) for text in watched(rows, **goals)] == [bool(m) for m in met]


def test_the_reason_is_in_words():
    assert watched([row(0.125)], loss_below=0.25) == [
        "the training loss of discrete is 0.125, loss_below = 0.25 is reached"
    ]
    assert watched([row(2), row(8)], diverged_above=3.0)[1] == (
        "the training loss of discrete is 8, diverged_above = 3 times the first row's 2 is reached"
    )
    assert watched([row(2, 0.75)], accuracy_above=0.5) == [
        "the training accuracy of discrete is 0.75, accuracy_above = 0.5 is reached"
    ]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the spec with overrides; the exit code, the losses and the attributes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spec.yaml").write_text(SPEC)

    def run(*overrides):
        set_aside(tmp_path / "runs")
        code = main(["run", "spec.yaml", *(w for o in overrides for w in ("--set", o))])
        with h5py.File(tmp_path / "runs" / "small" / "data.h5") as file:
            losses = {name: file[f"{name}/train_loss"][:] for name in ("discrete", "midpoint")}
            return code, losses, dict(file.attrs)

    return run


def test_a_run_ends_after_the_row_that_meets_a_goal(run, tmp_path, capsys):
    _, whole, attributes = run()
    assert "stop_goal" not in attributes
    assert np.all(np.diff(whole["discrete"]) < 0)  # so that the goal has one place
    goal = whole["discrete"][4]
    code, losses, attributes = run(f"stop.loss_below={goal + 1e-9}")
    assert (code, attributes["status"]) == (0, "done")
    assert attributes["stop_goal"].startswith("step 4: the training loss of discrete is ")
    for process, loss in losses.items():
        np.testing.assert_array_equal(loss[:5], whole[process][:5])
        assert np.all(np.isnan(loss[5:]))
    told = capsys.readouterr()
    assert "stopped at step 4: " in told.err
    assert "It ended at its goal, step 4: " in told.out
    assert (tmp_path / "runs" / "small" / "report.html").exists()


def test_only_recorded_rows_of_the_named_process_count(run):
    _, whole, _ = run()
    between = (whole["midpoint"][4] + whole["midpoint"][5]) / 2
    settings = ["stop.process=midpoint", f"stop.loss_below={between}", "record.every=3"]
    _, losses, attributes = run(*settings)
    assert attributes["stop_goal"].startswith("step 6: the training loss of midpoint is ")
    np.testing.assert_array_equal(np.isfinite(losses["midpoint"]), [True, True, True, False])


def test_a_diverging_run_ends_well(run):
    code, losses, attributes = run("optimizer.lr=60", "stop.diverged_above=5", "steps=400")
    loss = losses["discrete"]
    last = np.flatnonzero(np.isfinite(loss))[-1]
    assert (code, attributes["status"]) == (0, "done")
    assert loss[last] >= 5 * loss[0] and np.all(loss[:last] < 5 * loss[0])
    assert "diverged_above = 5 times" in attributes["stop_goal"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "{process: central}",
            "stop.process: must be one of the processes discrete, midpoint, got",
        ),
        ("{process: discret}", "\"discret\" (did you mean 'discrete'?)"),
        ("{loss_below: x}", 'stop.loss_below: must be a number or null, got "x"'),
        ("{accuracy_above: 99}", "stop.accuracy_above: must be a number > 0 and <= 1 or null, got"),
        ("{diverged_above: 0.5}", "stop.diverged_above: must be a number > 1 or null, got 0.5"),
        ("{loss: 0.5}", "stop.loss: unknown key, must be one of process, loss_below, accuracy_abo"),
    ],
)
def test_goals_that_cannot_be(tmp_path, capsys, setting, message):
    (tmp_path / "s.yaml").write_text(SPEC + f"stop: {setting}\n")
    assert main(["validate", str(tmp_path / "s.yaml")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path / 's.yaml'}:9: stop.") and message in line


def test_the_schema_tells_what_the_goals_mean():
    goals = json_schema()["$defs"]["Stop"]["properties"]
    assert set(goals) == {"process", "loss_below", "accuracy_above", "diverged_above"}
    assert all("null: " in goal["description"] for goal in goals.values())
