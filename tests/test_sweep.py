"""Several runs from one spec: expansion, checks, restarts, and the comparison at the end."""

import functools
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml
from rich.console import Console

import centralflow_eqx
from centralflow_eqx import report
from centralflow_eqx.cli import main
from centralflow_eqx.errors import ExitCode, InputError
from centralflow_eqx.experiment.build import build_task
from centralflow_eqx.experiment.earlier import is_done
from centralflow_eqx.record.writer import Layout, Recorder
from centralflow_eqx.spec import load_plan, load_spec
from centralflow_eqx.sweep import cluster, conduct, find_runs
from centralflow_eqx.sweep.conductor import Event
from centralflow_eqx.sweep.folder import start_folder

SHARED = """\
name: small
precision: float64
data: {type: moons, n: 30}
model: {type: mlp, widths: [4], activation: softplus}
loss: {type: mse}
optimizer: {type: gd, lr: 0.4}
processes: [discrete]
steps: 5
"""
GRID = "sweep:\n  grid:\n    optimizer.lr: [0.1, 2e-1]\n    seed: [0, 1]\n"
LIST = """\
sweep:
  list:
    - {name: gd, optimizer: {type: gd, lr: 0.1}}
    - name: rmsprop
      optimizer:
        type: rmsprop
        lr: 1e-3
        beta2: 0.99
      steps: 3
    - optimizer.lr: 0.3
"""


@pytest.fixture
def spec(tmp_path, monkeypatch):
    """Write a spec of the shared keys and more, and load what it asks for."""
    monkeypatch.chdir(tmp_path)

    def spec(more, *overrides):
        (tmp_path / "s.yaml").write_text(SHARED + more)
        return load_plan("s.yaml", overrides)

    return spec


def names(plan):
    return [member.name for member in plan.specs]


def test_a_grid_has_a_member_for_every_combination(spec, tmp_path):
    plan = spec(GRID)
    assert names(plan) == [
        "lr=0.1,seed=0",
        "lr=0.1,seed=1",
        "lr=0.2,seed=0",
        "lr=0.2,seed=1",
    ]
    assert [(m.optimizer.lr, m.seed) for m in plan.specs] == [
        (0.1, 0),
        (0.1, 1),
        (0.2, 0),
        (0.2, 1),
    ]
    assert plan.folder == tmp_path / "runs" / "small"
    assert plan.specs[3].run_dir == plan.folder / "lr=0.2,seed=1"


def test_entries_give_keys_or_whole_sections(spec):
    gd, rmsprop, plain = spec(LIST).specs
    assert [m.name for m in (gd, rmsprop, plain)] == ["gd", "rmsprop", "lr=0.3"]
    assert (rmsprop.optimizer.type, rmsprop.optimizer.beta2, rmsprop.steps) == ("rmsprop", 0.99, 3)
    assert (plain.optimizer.type, plain.optimizer.lr, plain.steps) == ("gd", 0.3, 5)


def test_the_grid_is_applied_to_every_entry(spec):
    plan = spec(LIST + "  grid: {optimizer.weight_decay: [0.0, 0.5]}\n")
    assert names(plan)[:3] == [
        "gd,weight_decay=0",
        "gd,weight_decay=0.5",
        "rmsprop,weight_decay=0",
    ]
    assert [m.optimizer.weight_decay for m in plan.specs] == [0, 0.5] * 3
    assert [m.optimizer.type for m in plan.specs] == ["gd"] * 2 + ["rmsprop"] * 2 + ["gd"] * 2


@pytest.mark.parametrize(
    ("sweep", "name"),
    [
        ("{grid: {model.widths: [[3, 4]]}}", "widths=3+4"),
        ("{grid: {optimizer: [{type: adam, lr: 1e-3}]}}", "optimizer=adam+lr=0.001"),
        ("{grid: {eigen.initial: [1], data.n: [9]}}", "initial=1,n=9"),
        (
            "{grid: {data.n: [9], record.every: [1], checkpoint.every: [0]}}",
            "n=9,record.every=1,checkpoint.every=0",
        ),
        ("{grid: {data.type: [moons], optimizer.type: [gd]}}", "data.type=moons,optimizer.type=gd"),
        ("{grid: {flow.restoration: [null], memory.remat: [true]}}", "restoration=null,remat=true"),
        ("{grid: {data: [{type: npz, path: ./a b.npz}]}}", "data=npz+path=._a_b.npz"),
    ],
)
def test_members_are_named_after_their_keys(spec, tmp_path, sweep, name):
    np.savez(tmp_path / "a b.npz", inputs=np.ones((2, 1)), labels=[0, 1])
    assert names(spec(f"sweep: {sweep}\n")) == [name]


def test_a_member_is_a_plain_spec(spec, tmp_path):
    member = spec(LIST).specs[1]
    resolved = yaml.safe_load(member.to_yaml())
    assert "sweep" not in resolved
    (tmp_path / "member.yaml").write_text(member.to_yaml())
    again = load_spec(tmp_path / "member.yaml")
    assert again.to_yaml() == member.to_yaml()
    assert again.run_dir == member.run_dir
    (tmp_path / "alone.yaml").write_text(SHARED)
    alone = load_spec(
        "alone.yaml",
        ["optimizer={type: rmsprop, lr: 1e-3, beta2: 0.99}", "steps=3", "name=rmsprop"],
    )
    assert resolved | {"output": None} == yaml.safe_load(alone.to_yaml()) | {"output": None}


def test_members_with_the_same_seed_start_from_the_same_point(spec):
    entries = "[{steps: 9, optimizer.lr: 1}, {optimizer: {type: adam, lr: 0.1}}]"
    plan = spec(f"sweep: {{list: {entries}, grid: {{seed: [0, 1]}}}}\n")
    a0, a1, b0, b1 = map(build_task, plan.specs)
    for a, b in ((a0, b0), (a1, b1)):
        np.testing.assert_array_equal(a.initial_weights, b.initial_weights)
        np.testing.assert_array_equal(a.train_inputs, b.train_inputs)
        np.testing.assert_array_equal(a.train_answers, b.train_answers)
    assert np.any(a0.initial_weights != a1.initial_weights)
    assert np.any(a0.train_inputs != a1.train_inputs)


def test_the_command_line_can_change_a_sweep(spec):
    assert names(spec("", "sweep={grid: {optimizer.lr: [0.1]}}")) == ["lr=0.1"]
    assert names(spec("", "sweep.grid.optimizer.lr=[0.1, 0.2]")) == ["lr=0.1", "lr=0.2"]
    assert names(spec(GRID, "sweep.grid.optimizer.lr=[7]", "sweep.grid.seed=[3]")) == [
        "lr=7,seed=3"
    ]
    assert [m.steps for m in spec(GRID, "steps=9").specs] == [9] * 4
    alone = spec(GRID, "sweep=null")
    assert alone.folder is None and names(alone) == ["small"]


def test_one_run_is_expected_where_a_spec_is_loaded(spec):
    spec(GRID)
    with pytest.raises(InputError, match=r"^s\.yaml: sweep: describes several runs .* sweep=null"):
        load_spec("s.yaml")


@pytest.mark.parametrize(
    ("sweep", "line"),
    [
        (
            "grid: {optimizer.lr: [0.1,\n    -1]}",
            "11: optimizer.lr: must be a number > 0 or {schedule",
        ),
        (
            "grid:\n    optimizer.rl:\n    - 1\n    - 2",
            "11: optimizer.rl: unknown key, must be one of t",
        ),
        ("grid: {optimzer.lr: [1]}", "10: optimzer: unknown key, must be one of name, seed, "),
        (
            "grid: {steps.x: [1]}",
            "10: steps.x: steps is not a mapping; give a value for steps itse",
        ),
        (
            "grid: {optimizer.lr: []}",
            "10: sweep.grid.optimizer.lr: must be a list of one or more v",
        ),
        (
            "grid: {optimizer: {lr: [1]}}",
            "10: sweep.grid.optimizer: must be a list of one or more ",
        ),
        (
            "grid: {optimizer.lr: 1}",
            "10: sweep.grid.optimizer.lr: must be a list of one or more va",
        ),
        ("grid: {}", "10: sweep.grid: must be a mapping of one or more dotted keys, such as opti"),
        ("grid: {seed: [1,\n    1]}", "11: sweep.grid.seed[1]: listed twice; keep one of them"),
        ("grid: {output.dir: [a]}", "10: sweep.grid.output.dir: output is shared by all members"),
        ("grid: {sweep: [a]}", "10: sweep.grid.sweep: sweep is shared by all members: give it out"),
        ("grid: {name: [a]}", "10: sweep.grid.name: members are named after their values; a list"),
        ("grid: {optimizer..lr: [1]}", "10: sweep.grid.optimizer..lr: must be a dotted key such"),
        (
            "grid: {optimizer.lr: [1], optimizer: [{type: gd, lr: 1}]}",
            "10: sweep.grid.optimizer: r",
        ),
        (
            f"grid: {{seed: {list(range(1001))}}}",
            "10: sweep: has 1001 members, must be 1000 or fewer",
        ),
        (
            f"grid: {{model.widths: [{[1] * 70}]}}",
            "10: sweep.grid: its member would have a name of 146 letters, must be 128 or fewer",
        ),
        (
            "gird: {seed: [1]}",
            "10: sweep.gird: unknown key, must be one of grid, list (did you mea",
        ),
        ("list: []", "10: sweep.list: must be a list of one or more mappings of keys to values, g"),
        ("list: [{}]", "10: sweep.list[0]: has no keys to name its member after; give it a name"),
        ("list: [3]", "10: sweep.list[0]: must be a mapping of keys to values, got 3"),
        (
            "list:\n  - name: a\n  - name: a\n    steps: 3",
            "12: sweep.list[1]: a second member named a",
        ),
        ("list:\n  - name: a\n  - name: b", "12: name: b is the same run as a"),
        ("list:\n  - name: a\n  - {steps: 5}", "12: name: steps=5 is the same run as a"),
        ("list: [{name: a/b}]", "10: name: must be a plain directory name (letters, digits and ._"),
        ("list: [{name: 5}]", "10: name: must be a plain directory name (letters, digits and ._-+"),
        ("list: [{name: figures}]", '10: sweep.list[0]: a member cannot be named "figures", as f'),
        ("list: [{name: a.log}]", '10: sweep.list[0]: a member cannot be named "a.log", as files'),
        ("list:\n  - optimizer: {type: gd}", "11: optimizer.lr: missing, must be a number > 0 or"),
        ("list:\n  - {init: x}\n", "11: init: must be {path: NAME, ...} or null, got"),
        (
            "list: [{optimizer.lr: 1}]\n  grid: {optimizer.lr: [2]}",
            "11: sweep.grid.optimizer.lr: repl",
        ),
        (
            "list: [{name: a, eigen.initial: 18}]",
            "10: eigen.initial: must be <= 17, the number of w",
        ),
        ("# nothing", "9: sweep: must have a grid or a list of members, or both"),
    ],
)
def test_one_mistake_in_a_sweep_is_reported_at_its_line(tmp_path, monkeypatch, capsys, sweep, line):
    monkeypatch.chdir(tmp_path)
    empty = sweep.startswith("#")
    text = SHARED + ("sweep: {}\n" if empty else f"sweep:\n  {sweep}\n")
    (tmp_path / "s.yaml").write_text(text)
    for command in ("validate", "run", "sweep"):
        assert main([command, "s.yaml"]) == ExitCode.BAD_INPUT
        captured = capsys.readouterr()
        assert captured.out == ""
        (found,) = captured.err.splitlines()
        assert found.startswith(f"s.yaml:{line}")
    assert not (tmp_path / "runs").exists()


def test_what_only_some_entries_lack_is_missing_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    entries = "sweep:\n  list:\n  - {name: a, loss: {type: mse}}\n  - name: b\n"
    Path("s.yaml").write_text(SHARED.replace("loss: {type: mse}\n", "") + entries)
    with pytest.raises(InputError, match=r"^s\.yaml:11: loss: missing") as error:
        load_plan("s.yaml")
    assert len(error.value.problems) == 1


def test_mistakes_of_all_members_are_reported_once_and_together(spec):
    with pytest.raises(InputError) as error:
        spec(GRID.replace("seed: [0, 1]", "seed: [0, -1, -2]"), "steps=0", "name=a/b")
    assert [str(problem).partition(", ")[0] for problem in error.value.problems] == [
        "s.yaml:12: seed: must be a whole number >= 0 and < 4294967296",
        "s.yaml:12: seed: must be a whole number >= 0 and < 4294967296",
        "--set: name: must be a plain directory name (letters",
        "--set: steps: must be a whole number >= 1",
    ]


def test_an_override_that_every_member_replaces_is_refused(spec):
    message = "^--set: optimizer.lr: has no effect, every member of the sweep has its own"
    with pytest.raises(InputError, match=message):
        spec(GRID, "optimizer.lr=5")
    assert [m.optimizer.lr for m in spec(LIST, "optimizer.type=gd").specs] == [0.1, 1e-3, 0.3]


def test_validate_names_every_member_and_explain_the_first(spec, capsys):
    spec(LIST)
    assert main(["validate", "s.yaml"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "gd: 5 steps of gd, 17 weights, 30 examples, discrete",
        "rmsprop: 3 steps of rmsprop, 17 weights, 30 examples, discrete",
    ]
    assert lines[3].startswith("s.yaml: valid; 3 members; would write to ")
    assert main(["explain", "s.yaml"]) == 0
    assert capsys.readouterr().out.startswith("gd, the first of 3 members:\n\ngd on 17 weights")


def test_all_members_are_checked_before_the_first_runs(spec, capsys, tmp_path):
    np.savez(tmp_path / "bad.npz", inputs=np.ones((2, 1)))
    spec("sweep:\n  list:\n  - name: good\n  - {name: bad, data: {type: npz, path: bad.npz}}\n")
    for command in ("run", "sweep"):
        assert main([command, "s.yaml"]) == ExitCode.BAD_INPUT
        assert capsys.readouterr().err.startswith("s.yaml:12: data.labels: no array 'labels' in")
    assert not (tmp_path / "runs").exists()


def record(member, status="done", folder=None):
    """A run directory as a run of `member` that ended like this leaves it."""
    attributes = {"precision": "float64", "seed": member.seed, "device": "cpu"}
    folder = folder or member.run_dir.parent
    steps = np.arange(3)
    layout = Layout(member.to_yaml(), steps, steps[:0], attributes)
    with Recorder.create(folder / member.name, layout) as new:
        for row in steps:
            values = {"train_loss": 1.0 / (1 + row), "eigenvalues": np.array([1.0])}
            new.write(row, {"discrete": values}, {}, 0.1)
        new.finish(status)


def test_what_counts_as_done(spec):
    member, other = spec(GRID).specs[:2]
    assert not is_done(member)
    for status, done in (("running", False), ("interrupted", False), ("done", True)):
        record(member, status)
        assert is_done(member) == done
    moved = spec(GRID, f"output.dir={member.run_dir.parent / 'elsewhere'}").specs[0]
    member.run_dir.parent.joinpath("elsewhere", "small").mkdir(parents=True)
    member.run_dir.rename(moved.run_dir)
    assert is_done(moved)
    assert not is_done(
        spec(GRID, "output.dir=" + moved.output.dir[: -len("/small")], "steps=6").specs[0]
    )
    (moved.run_dir / "data.h5").write_bytes(b"\x89HDF\r\n")
    assert not is_done(moved)
    assert not is_done(other)


@pytest.fixture
def quick_reports(monkeypatch):
    """Pages of a title and names, instead of the real ones."""

    def write(path, text):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def write_comparison(run_dirs, out_dir, title):
        return write(out_dir / "report.html", " ".join([title, *(p.name for p in run_dirs)]))

    monkeypatch.setattr(report, "write_comparison", write_comparison)
    monkeypatch.setattr(report, "summarise_comparison", lambda run_dirs: f"{len(run_dirs)} runs")
    monkeypatch.setattr(report, "write_report", lambda d: write(d / "report.html", d.name))


def played(codes):
    """A backend that records members as if they had ended with these codes."""

    def backend(members):
        for member in members:
            yield Event(member, note="log x.log")
            code = codes[member.name]
            if code == "Ctrl-C":
                raise KeyboardInterrupt
            if code != ExitCode.BAD_INPUT:
                record(member, "done" if code == 0 else "failed")
            yield Event(member, code, "x.log")

    return backend


@pytest.mark.parametrize(
    ("codes", "worst"),
    [
        ((0, 0, 0), 0),
        ((0, 3, 0), 3),
        ((4, 3, 0), 3),
        ((3, 2, 4), 2),
        ((3, 1, 2), 1),
        ((0, -9, 3), 1),
        ((0, 77, 3), 1),
        ((0, 4, 0), 4),
    ],
)
def test_the_worst_code_is_that_of_the_sweep(spec, capsys, quick_reports, codes, worst):
    plan = spec(LIST)
    ended = dict(zip(names(plan), codes, strict=True))
    code = conduct(plan, plan.specs, played(ended), Console(), "go on")
    captured = capsys.readouterr()
    assert code == worst
    compared = [name for name in ended if ended[name] != ExitCode.BAD_INPUT]
    assert (plan.folder / "report.html").read_text() == " ".join(["small", *compared])
    assert captured.out.startswith(f"{len(compared)} runs\nreport: ")
    assert all((plan.folder / name / "report.html").exists() for name in compared)
    assert captured.err.count(": started, ") == 3
    for name, code in ended.items():
        listed = [line for line in captured.err.splitlines() if line.endswith("(see x.log)")]
        assert any(line.startswith(f"{name}: ") for line in listed) == (code != 0)
    assert ("killed by SIGKILL" in captured.err) == (-9 in codes)


def test_an_interrupted_sweep_says_how_to_go_on(spec, capsys):
    plan = spec(LIST)
    codes = {"gd": 0, "rmsprop": "Ctrl-C", "lr=0.3": 0}
    assert conduct(plan, plan.specs, played(codes), Console(), "HOW") == ExitCode.INTERRUPTED
    assert "interrupted; 1 of 3 members are done. HOW" in capsys.readouterr().err
    assert not plan.specs[2].run_dir.exists()


def test_progress_has_a_line_per_member_and_the_time_left(spec, capsys, monkeypatch):
    plan, clock = spec(LIST), iter([0.0, 0.0, 60.0, 60.0, 100.0, 100.0, 150.0])
    fake = types.SimpleNamespace(monotonic=lambda: next(clock))
    monkeypatch.setattr("centralflow_eqx.sweep.conductor.time", fake)
    monkeypatch.setattr("centralflow_eqx.sweep.conductor._compare", lambda plan, console: None)

    def backend(members):
        for member in members:
            yield Event(member)
            yield Event(member, 0)

    conduct(plan, plan.specs, backend, Console(), "")
    assert capsys.readouterr().err.splitlines() == [
        "gd: started, 1 of 3",
        "gd: done, 1 of 3, after 1:00, 2:00 left",
        "rmsprop: started, 2 of 3",
        "rmsprop: done, 2 of 3, after 0:40, 0:50 left",
        "lr=0.3: started, 3 of 3",
        "lr=0.3: done, 3 of 3, after 0:50, 0:00 left",
    ]


def test_a_plain_run_of_the_same_name_is_set_aside(spec, quick_reports):
    plan = spec(LIST)
    record(spec("").specs[0])
    plan = spec(LIST)
    assert conduct(plan, plan.specs, played(dict.fromkeys(names(plan), 0)), Console(), "") == 0
    assert (plan.folder.with_name("small.1") / "data.h5").exists()
    assert not (plan.folder / "data.h5").exists()


def test_run_runs_all_members_and_a_numerical_stop_keeps_none_from_running(spec, capsys):
    plan = spec("sweep:\n  grid: {optimizer.lr: [1e8, 0.2]}\n", "steps=30")
    assert main(["run", "s.yaml", "--set", "steps=30"]) == ExitCode.NUMERICAL_STOP
    captured = capsys.readouterr()
    assert "lr=1e+08: stopped numerically\n" in captured.err
    assert [is_done(member) for member in plan.specs] == [False, True]
    assert main(["sweep", "s.yaml", "--set", "steps=30", "--dry-run"]) == 0
    listed = "stopped lr=1e+08\ndone    lr=0.2\n0 of 2 to run, "
    assert capsys.readouterr().out.startswith(listed)
    # What has stopped numerically would do so again.
    assert main(["sweep", "s.yaml", "--set", "steps=30"]) == ExitCode.NUMERICAL_STOP
    again = capsys.readouterr().err
    assert "lr=1e+08: stopped numerically before, and would at the same step" in again
    assert f"remove {plan.specs[0].run_dir} to have it run again" in again
    assert "started" not in again
    losses = []
    for member in plan.specs:
        assert (member.run_dir / "report.html").exists()
        with h5py.File(member.run_dir / "data.h5") as file:
            losses.append(file["discrete/train_loss"][:])
    assert losses[0][0] == losses[1][0] and losses[0][1] != losses[1][1]
    assert (plan.folder / "report.html").exists()


@pytest.fixture
def command():
    """Starts processes of ours in the working directory, which do not outlive the test."""
    root, started = Path(centralflow_eqx.__file__).parents[1], []

    def start(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-m", "centralflow_eqx", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(root)},
            # Jobs in a shell's background ignore Ctrl-C, and what they start inherits that.
            preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def wait_for(condition, seconds=300.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "took too long"
        time.sleep(0.05)


def contents(folder):
    """Every file of a folder, its content and when it was written."""
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def children(pid):
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in found.split()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
def test_a_killed_sweep_goes_on_where_it_stopped(spec, command):
    """The second member would take for ever; killed, it is run again and the first is not."""
    sweep = "sweep:\n  list:\n  - {name: a}\n  - {name: b, steps: %d}\n"
    a, b = spec(sweep % 10**6).specs
    first = command("sweep", "s.yaml")
    wait_for(lambda: is_done(a) and (b.run_dir / "metrics.jsonl").exists())
    wait_for(lambda: (b.run_dir / "metrics.jsonl").read_text().count("\n") > 3)
    (worker,) = children(first.pid)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    wait_for(lambda: not alive(worker), 30)
    before = contents(a.run_dir)
    assert not is_done(b)

    a, b = spec(sweep % 6).specs
    listed = command("sweep", "s.yaml", "--dry-run").communicate()[0].splitlines()
    assert listed[:2] == ["done    a", "to run  b"]
    second = command("sweep", "s.yaml")
    _, error = second.communicate(timeout=300)
    assert second.returncode == 0, error
    assert "a: " not in error and "b: done, 1 of 1" in error
    assert contents(a.run_dir) == before
    assert is_done(b) and (b.run_dir.with_name("b.1") / "data.h5").exists()
    assert (b.run_dir.parent / "report.html").exists()


@pytest.mark.slow
def test_ctrl_c_ends_the_running_members(spec, command):
    a, b = spec("sweep:\n  grid: {seed: [0, 1]}\n", "steps=1000000").specs
    sweep = command("sweep", "s.yaml", "--set", "steps=1000000")
    wait_for(lambda: (a.run_dir / "metrics.jsonl").exists())
    wait_for(lambda: (a.run_dir / "metrics.jsonl").read_text().count("\n") > 3)
    sweep.send_signal(signal.SIGINT)
    _, error = sweep.communicate(timeout=300)
    assert sweep.returncode == ExitCode.INTERRUPTED
    assert "interrupted; 0 of 2 members are done. The same command runs the others" in error
    assert "Traceback" not in error
    with h5py.File(a.run_dir / "data.h5") as file:
        assert file.attrs["status"] == "interrupted"
    assert not b.run_dir.exists()


@pytest.mark.slow
def test_a_job_of_a_cluster(spec, command):
    (member,) = spec("sweep:\n  grid: {optimizer.lr: [1e8]}\n", "steps=30").specs
    sweep = command("sweep", "s.yaml", "--set", "steps=30", "--cluster", "local")
    output, error = sweep.communicate(timeout=600)
    assert sweep.returncode == ExitCode.NUMERICAL_STOP, error
    with h5py.File(member.run_dir / "data.h5") as file:
        assert file.attrs["status"] == "numerical stop"
    assert "lr=1e+08: stopped numerically (see " in error
    assert "report.html" in output


@pytest.fixture
def slurm(monkeypatch, tmp_path):
    """A file with what was submitted to a cluster that starts nothing, and is not waited for."""
    calls = tmp_path / "calls"
    scripts = {
        "srun": "",
        "sbatch": f'cat "$1" >> {calls}; echo Submitted batch job 7',
        "sacct": "printf 'JobID|State|NodeList\\n7_[0-1]|PENDING|None\\n'",
    }
    (tmp_path / "bin").mkdir()
    for name, text in scripts.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")

    def impatient(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(
        "centralflow_eqx.sweep.cluster.time", types.SimpleNamespace(sleep=impatient)
    )
    return calls


def test_jobs_that_slurm_has_are_not_submitted_again(spec, capsys, slurm):
    spec("sweep:\n  grid: {seed: [0, 1]}\n")
    flags = ["--slurm", "--workers", "1", "--slurm-set", "timeout_min=33"]
    for _ in range(2):
        assert main(["sweep", "s.yaml", *flags]) == ExitCode.INTERRUPTED
        error = capsys.readouterr().err
        assert "seed=0: started, 1 of 2, job 7_0, log " in error
        assert "seed=1: started, 2 of 2, job 7_1, log " in error
        assert "interrupted; 0 of 2 members are done. Jobs go on by themselves" in error
    script = slurm.read_text()
    assert script.count("#SBATCH --array=0-1%1\n") == 1
    assert "#SBATCH --time=33\n" in script


def test_processes_of_one_job_share_its_run(spec, capsys, slurm):
    sweep = "sweep:\n  grid: {seed: [0, 1]}\n"
    spec(sweep)
    flags = ["--slurm", "--slurm-set", "tasks_per_node=2"]
    assert main(["sweep", "s.yaml", *flags]) == ExitCode.BAD_INPUT
    assert "distributed: jobs of several tasks need `distributed: auto`" in capsys.readouterr().err
    assert not slurm.exists()
    assert main(["sweep", "s.yaml", *flags, "--set", "distributed=auto"]) == ExitCode.INTERRUPTED
    assert "#SBATCH --ntasks-per-node=2\n" in slurm.read_text()


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--slurm-set", "timeout_min=1"], "--slurm-set: needs --slurm"),
        (["--cluster", "local", "--slurm-set", "x"], '--slurm-set: "x" is not of the form key=val'),
        (["--cluster", "local", "--slurm-set", "x=["], "--slurm-set: not valid YAML"),
        (["--cluster", "local", "--slurm-set", "x=1"], "--slurm-set: NameError: Parameter 'x' nee"),
        (["--cluster", "local", "--slurm-set", "mem_gb=a"], "--slurm-set: AssertionError: Paramet"),
        (["--slurm"], "--slurm: RuntimeError: Could not detect"),
    ],
)
def test_cluster_options_that_cannot_be(spec, capsys, monkeypatch, tmp_path, flags, line):
    monkeypatch.setenv("PATH", "")
    spec(GRID)
    assert main(["sweep", "s.yaml", *flags]) == ExitCode.BAD_INPUT
    (found,) = capsys.readouterr().err.splitlines()
    assert found.startswith(line)
    assert not (tmp_path / "runs").exists()


def test_without_submitit_the_extra_is_named(spec, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    spec(GRID)
    assert main(["sweep", "s.yaml", "--slurm"]) == ExitCode.BAD_INPUT
    expected = "--slurm: needs submitit: pip install 'centralflow_eqx[slurm]'\n"
    assert capsys.readouterr().err == expected


def test_a_sweep_needs_a_section(spec, capsys):
    spec("")
    assert main(["sweep", "s.yaml"]) == ExitCode.BAD_INPUT
    assert capsys.readouterr().err == "s.yaml:1: sweep: missing; `run` runs a spec without it\n"


@pytest.fixture
def recorded(spec):
    """A sweep with two recorded members, one of them set aside once, beside a plain run."""
    plan = spec(LIST)
    start_folder(plan)
    for member in (*plan.specs[:2], plan.specs[0]):
        record(member)
    record(spec("", "name=plain").specs[0])
    return plan.folder


def test_report_of_one_run_is_written_anew(recorded, capsys):
    page = recorded.parent / "plain" / "report.html"
    assert not page.exists()
    assert main(["report", "runs/plain"]) == 0
    assert page.exists()
    assert capsys.readouterr().out.startswith("plain\n")


@pytest.mark.parametrize(
    ("arguments", "page"),
    [
        (["runs/small"], "runs/small/report.html: small gd rmsprop"),
        (["runs/small/rmsprop", "runs/small/gd"], "runs/small/report.html: small rmsprop gd"),
        (["runs/small/gd", "runs/plain"], "comparison/report.html: comparison gd plain"),
        (["runs"], "comparison/report.html: comparison plain"),
        (["runs/small", "runs/plain", "--output", "a/b"], "a/b/report.html: b gd rmsprop plain"),
        (["runs/small", "--title", "A B"], "runs/small/report.html: A B gd rmsprop"),
        (["runs/plain", "runs/plain"], "comparison/report.html: comparison plain"),
    ],
)
def test_report_of_several_runs_compares_them(recorded, capsys, quick_reports, arguments, page):
    assert main(["report", *arguments]) == 0
    path, content = page.split(": ")
    assert Path(path).read_text() == content
    assert path in capsys.readouterr().out


def test_the_real_comparison_is_written_where_it_should_be(recorded, capsys):
    assert main(["report", "runs/small", "--output", "there/it", "--title", "<T>"]) == 0
    assert "&lt;T&gt;" in Path("there/it/report.html").read_text()
    assert capsys.readouterr().out.endswith("report: there/it/report.html\n")


def test_runs_are_found_in_the_order_of_their_sweep(recorded):
    assert [p.name for p in find_runs([recorded])] == ["gd", "rmsprop"]
    (recorded / "sweep.yaml").write_text("name: small\nmembers: [rmsprop, lr=0.3, gd]\n")
    assert [p.name for p in find_runs([recorded])] == ["rmsprop", "gd"]
    (recorded / "sweep.yaml").unlink()
    assert (recorded / "gd.1" / "data.h5").exists()
    assert [p.name for p in find_runs([recorded])] == ["gd", "rmsprop"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nowhere"], "nowhere: no such directory"),
        (["empty"], "empty: no run directory, and holds none"),
        (["file"], "file: no run directory, and holds none"),
        (["runs/small", "empty"], "empty: no run directory, and holds none"),
        (["broken"], "broken/"),
        (["runs/small", "--output", "file/below"], "file/below"),
    ],
)
def test_what_is_no_run_directory(recorded, capsys, arguments, line):
    Path("empty").mkdir()
    Path("file").touch()
    Path("broken").mkdir()
    Path("broken/data.h5").write_text("no HDF5")
    assert main(["report", *arguments]) == ExitCode.BAD_INPUT
    captured = capsys.readouterr()
    assert captured.err.startswith(line) and len(captured.err.splitlines()) == 1
    assert captured.out == ""


def test_a_preempted_job_ends_well_and_is_queued_again(tmp_path, monkeypatch):
    """What submitit does before a time limit, in a process that takes its time to end."""
    stand_in, log = tmp_path / "python", tmp_path / "log"
    stand_in.write_text(
        f"#!{sys.executable}\n"
        "import signal, sys, time\n"
        "def end(*_):\n"
        "    time.sleep(0.3)\n"
        "    print('ended', file=log, flush=True)\n"
        "    sys.exit(4)\n"
        "signal.signal(signal.SIGINT, end)\n"  # a shell cannot where it is ignored
        f"log = open({str(log)!r}, 'w')\n"
        "print('started', *sys.argv[3:], file=log, flush=True)\n"
        "time.sleep(60)\n"
    )
    stand_in.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stand_in))
    job, queued = cluster._Command(), []

    def preempt():
        wait_for(lambda: log.exists() and "started" in log.read_text())
        os.kill(os.getpid(), signal.SIGUSR2)

    def handle(*_):
        queued.append(job.checkpoint(["run", "s.yaml"]))
        assert log.read_text() == "started run s.yaml\nended\n"

    before = signal.signal(signal.SIGUSR2, handle)
    try:
        threading.Thread(target=preempt).start()
        assert job(["run", "s.yaml"]) == ExitCode.INTERRUPTED
    finally:
        signal.signal(signal.SIGUSR2, before)
    (again,) = queued
    assert (again.function, again.args) == (job, (["run", "s.yaml"],))
    pickle.dumps(again)  # as submitit keeps it
    assert job.checkpoint(["run", "s.yaml"]).args == again.args  # of one that has ended already
