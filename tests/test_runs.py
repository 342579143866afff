"""`runs`, `show` and `export`: run directories of every kind, made without a simulation."""

import math
import os
import shutil
import webbrowser

import numpy as np
import pandas as pd
import pytest

from centralflow_eqx.cli import main
from centralflow_eqx.errors import ExitCode
from centralflow_eqx.record.writer import Layout, Recorder
from centralflow_eqx.report import overview
from centralflow_eqx.report.overview import age

SPEC = "name: {}\n"
ROWS = 6
THIRD = 1 / 3


def loss(step):
    return THIRD + step


def record(folder, status=None, goal="", rows=ROWS, every=2):
    """A run that predicts a loss 10% too large, and doubts a row of the four to be seen."""
    layout = Layout(SPEC.format(folder.name), every * np.arange(ROWS), np.array([], int))
    with Recorder.create(folder, layout) as recorder:
        for row in range(rows):
            flow = {"train_loss": 1.0, "predicted_loss": 1.1 * loss(0), "untrusted": row == 1}
            flow["eigenvalues"] = np.array([2.0, 1.5][: 1 + row % 2])
            values = {"discrete": {"train_loss": loss(0)}, "central": flow}
            recorder.write(row, values, {"distance/central-discrete": 0.5 * row}, 0.1 * row)
        if status is not None:
            recorder.finish(status, goal)
    return folder


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Every state that there is, the first the newest."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs"
    record(folder / "finished", "done")
    record(folder / "early", "done", "step 4: loss 0.1 of central", rows=3)
    record(folder / "stopped", "numerical stop", rows=4)
    record(folder / "halted", "interrupted", rows=2)
    record(folder / "killed", rows=3)
    record(folder / "unheard", rows=0)
    (folder / "foreign").mkdir()
    (folder / "a_file").write_text("x")
    shutil.copytree(folder / "finished", folder / "damaged")
    (folder / "damaged" / "data.h5").write_bytes(b"x")
    shutil.copytree(folder / "finished", folder / "empty")
    (folder / "empty" / "data.h5").unlink()
    record(folder / "sweep" / "lr=1", "done")
    (folder / "sweep" / "sweep.yaml").write_text("name: sweep\nmembers: [lr=1]\n")
    return folder


def test_every_run_is_listed_with_its_state(runs, capsys):
    assert main(["runs"]) == ExitCode.DONE
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["run", "state", "steps", "loss", "loss", "error", "trusted", "age"]
    told = {line.split()[0]: line for line in lines}
    states = {
        "finished": " done ",
        "early": " stopped by a goal, step 4: loss 0.1 of central ",
        "stopped": " numerical stop ",
        "halted": " interrupted at step 2 of 11 ",
        "killed": " unfinished at step 4 of 11 ",
        "unheard": " unfinished at step 0 of 11 ",
        "damaged": " cannot be read ",
        "empty": " cannot be read ",
        "sweep/lr=1": " done ",
    }
    assert told.keys() == {f"runs/{name}" for name in states}
    for name, state in states.items():
        assert state in told[f"runs/{name}"]


def test_a_run_is_told_in_figures(runs):
    seen = overview(runs / "finished")
    assert (seen.state, seen.steps) == ("done", 11)
    assert seen.loss == loss(0)
    assert seen.error == pytest.approx(0.1)
    assert seen.trusted == pytest.approx(1 - 1 / ROWS)


def test_the_newest_comes_first(runs, capsys):
    for number, name in enumerate(["early", "halted", "finished"]):
        os.utime(runs / name / "data.h5", (1e9 + number, 1e9 + number))
    assert main(["runs", *(str(runs / name) for name in ("early", "finished", "halted"))]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert [name.rpartition("/")[2] for name in names] == ["finished", "halted", "early"]


def test_a_run_that_is_being_written_is_running(tmp_path):
    layout = Layout(SPEC.format("a"), np.arange(3), np.array([], int))
    with Recorder.create(tmp_path / "a", layout) as recorder:
        recorder.write(0, {"discrete": {"train_loss": 1.0}}, {}, 0.1)
        recorder.publish()
        assert overview(tmp_path / "a").state == "running, at step 0 of 3"
        recorder.finish("done")


def test_no_runs_and_no_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["runs"]) == ExitCode.BAD_INPUT
    assert capsys.readouterr().err == (
        "runs: cannot be read: No such file or directory; "
        "`run` makes runs/NAME, or give the folder of your runs\n"
    )
    assert main(["runs", "."]) == ExitCode.DONE
    assert capsys.readouterr().out == "no run directories\n"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-3, "0 s"),
        (119, "119 s"),
        (120, "2 min"),
        (7200, "2 h"),
        (172800, "2 days"),
        (math.nan, ""),
    ],
)
def test_ages(seconds, words):
    assert age(seconds) == words


def test_show_prints_and_opens_the_report(runs, monkeypatch, capsys):
    opened = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("DISPLAY", ":0")
    page = runs / "finished" / "report.html"
    page.write_text("the report")
    assert main(["show", "runs/finished"]) == ExitCode.DONE
    assert capsys.readouterr().out.endswith("report: runs/finished/report.html\n")
    assert opened == [page.as_uri()]
    assert main(["show", "runs/finished", "--no-open"]) == ExitCode.DONE
    monkeypatch.delenv("DISPLAY")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert main(["show", "runs/finished"]) == ExitCode.DONE
    assert len(opened) == 1
    assert page.read_text() == "the report"


def test_show_writes_a_report_that_is_missing(runs, monkeypatch, capsys):
    written = []
    monkeypatch.setattr("centralflow_eqx.report.write_report", written.append)
    assert main(["show", "runs/killed", "--no-open"]) == ExitCode.DONE
    assert [str(run_dir) for run_dir in written] == ["runs/killed"]
    assert "recorded 3 of 6 rows" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["show", "export"])
@pytest.mark.parametrize("name", ["damaged", "foreign", "nowhere"])
def test_what_is_no_run_is_refused(runs, capsys, command, name):
    assert main([command, f"runs/{name}"]) == ExitCode.BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"runs/{name}/")


def test_the_table_has_every_number_that_was_recorded(runs):
    assert main(["export", "runs/stopped"]) == ExitCode.DONE
    table = pd.read_csv(runs / "stopped" / "series.csv")
    assert list(table) == ["step", "process", "series", "index", "value"]
    assert not table["value"].isna().any()
    losses = table.query("process == 'discrete' and series == 'train_loss'")
    assert list(losses["step"]) == [0, 2, 4, 6]
    assert list(losses["value"]) == [THIRD] * 4
    largest = table.query("series == 'eigenvalues'")
    assert list(zip(largest["step"], largest["index"], largest["value"], strict=True)) == [
        (0, 0, 2.0),
        (2, 0, 2.0),
        (2, 1, 1.5),
        (4, 0, 2.0),
        (6, 0, 2.0),
        (6, 1, 1.5),
    ]
    apart = table.query("process == 'central-discrete' and series == 'distance'")
    assert list(apart["value"]) == [0, 0.5, 1.0, 1.5]
    assert apart["index"].isna().all()


def test_a_table_is_never_overwritten(runs, capsys):
    assert main(["export", "runs/finished", "--output", "a.csv"]) == ExitCode.DONE
    written = (runs.parent / "a.csv").read_text()
    assert capsys.readouterr().out == f"wrote {len(written.splitlines()) - 1} values to a.csv\n"
    assert main(["export", "runs/early", "--output", "a.csv"]) == ExitCode.BAD_INPUT
    assert capsys.readouterr().err.startswith("a.csv: exists already")
    assert (runs.parent / "a.csv").read_text() == written
    assert main(["export", "runs/early", "--output", "no/a.csv"]) == ExitCode.BAD_INPUT
    assert capsys.readouterr().err == "no/a.csv: cannot be written: No such file or directory\n"


def test_the_lines_of_a_run_are_a_table_for_pandas(runs):
    table = pd.read_json(runs / "finished" / "metrics.jsonl", lines=True, precise_float=True)
    assert list(table["step"]) == [0, 2, 4, 6, 8, 10]
    assert list(table["discrete/train_loss"]) == [THIRD] * ROWS
