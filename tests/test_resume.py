"""Runs that are interrupted, killed or extended, and what their directories have then."""

import dataclasses
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from _runs import contents

from centralflow_eqx.cli import main
from centralflow_eqx.errors import ExitCode
from centralflow_eqx.experiment import checkpoint, drive, recording, run
from centralflow_eqx.experiment.checkpoint import find_checkpoint
from centralflow_eqx.experiment.drive import chunks
from centralflow_eqx.experiment.earlier import is_done, is_resumable
from centralflow_eqx.record import owner, writer
from centralflow_eqx.spec import load_spec
from centralflow_eqx.sweep.folder import run_arguments

STEPS, EVERY = 16, 4
SPEC = f"""\
name: small
precision: float64
data: {{type: moons, n: 30}}
model: {{type: mlp, widths: [4], activation: tanh}}
loss: {{type: mse}}
optimizer: {{type: gd, lr: 1.0}}
processes: [discrete, midpoint, central, discrete_minibatch]
steps: {STEPS}
warm_start: 5
minibatch: {{size: 10}}
record: {{weights_every: 2, coordinates: 2}}
checkpoint: {{every: {EVERY}}}
"""


class Killed(BaseException):
    """Ends a run as no error does."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing happened to, and what it looked like before each of its steps."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "spec.yaml").write_text(SPEC)
    run_dir = folder / "runs" / "small"

    def watched(*arguments):
        for chunk in chunks(*arguments):
            yield chunk
            # SIGKILL leaves what is on the disk now
            shutil.copytree(run_dir, folder / f"before_{chunk.step}")

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(recording, "chunks", watched)
        patch.setattr(drive._Pace, "__call__", lambda self, left: 1)
        assert main(["run", "spec.yaml"]) == 0
    return folder


@pytest.fixture
def killed(whole, tmp_path, monkeypatch):
    """The directory of the run as it was before a step, in a working directory of its own."""

    def killed(step):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "spec.yaml").write_text(SPEC)
        run_dir = tmp_path / "runs" / "small"
        shutil.copytree(whole / f"before_{step}", run_dir)
        (run_dir / owner._NAME).unlink(missing_ok=True)
        text = (run_dir / "spec.yaml").read_text().replace(str(whole), str(tmp_path))
        (run_dir / "spec.yaml").write_text(text)
        return run_dir

    return killed


def same(run_dir, other):
    """Whether two runs have recorded the same, to the last bit."""
    (found, status), (wanted, _) = contents(run_dir), contents(other)
    assert found.keys() == wanted.keys() and status["status"] == "done"
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    lines = [(d / "metrics.jsonl").read_text().splitlines() for d in (run_dir, other)]
    return len(lines[0]) == len(lines[1])


@pytest.mark.parametrize("step", [9, pytest.param(4, marks=pytest.mark.slow)])
def test_a_resumed_run_is_the_run(step, killed, whole, capsys):
    run_dir = killed(step)
    assert find_checkpoint(run_dir).step == step // EVERY * EVERY
    assert main(["resume", str(run_dir)]) == 0
    assert same(run_dir, whole / "runs" / "small")
    told = capsys.readouterr()
    assert "warning" not in told.err and "What happened" in told.out
    assert main(["resume", str(run_dir)]) == 0
    assert f"has all of its {STEPS} steps" in capsys.readouterr().out


@pytest.mark.slow
def test_rods_go_on_where_they_were(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("spec.yaml").write_text(SPEC.replace("midpoint, central", "rod, edge"))
    assert main(["run", "spec.yaml", "--set", "steps=5"]) == 0
    assert main(["resume", "runs/small", "--steps", str(STEPS)]) == 0
    assert main(["run", "spec.yaml", "--set", "output.dir=whole"]) == 0
    assert same(Path("runs/small"), Path("whole/small"))


def test_a_killed_process_can_be_gone_on_with(whole, tmp_path, monkeypatch):
    """The same by SIGKILL, and the program that the user starts."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spec.yaml").write_text(SPEC)
    run_dir = tmp_path / "runs" / "small"
    command = [sys.executable, "-m", "centralflow_eqx", "run", "spec.yaml"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while not list(run_dir.glob("checkpoints/*.npz")) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    contents(run_dir)
    assert main(["resume", str(run_dir)]) == 0
    assert same(run_dir, whole / "runs" / "small")


def test_a_finished_run_can_be_extended(killed, whole, capsys):
    run_dir = killed(4)
    assert main(["resume", str(run_dir), "--steps", "10"]) == 0
    assert load_spec(run_dir / "spec.yaml").steps == 10
    assert contents(run_dir)[0]["step"].size == 10
    assert main(["resume", str(run_dir), "--steps", str(STEPS)]) == 0
    assert same(run_dir, whole / "runs" / "small")


def test_a_run_that_ended_at_a_goal_can_go_on(killed, whole):
    run_dir = killed(4)
    loss = contents(whole / "runs" / "small")[0]["discrete/train_loss"]
    goal = loss.min() * (1 + 1e-9)
    row = int(np.argmax(loss <= goal))
    assert main(["resume", str(run_dir), "--set", f"stop.loss_below={goal}"]) == 0
    data, attributes = contents(run_dir)
    assert f"step {row}:" in attributes["stop_goal"]
    assert np.isnan(data["discrete/train_loss"][row + 1 :]).all()
    assert main(["resume", str(run_dir), "--set", "stop.loss_below=null"]) == 0
    assert same(run_dir, whole / "runs" / "small")


def test_a_changed_spec_is_refused_unless_told(killed, capsys):
    run_dir = killed(4)
    before = (run_dir / "data.h5").read_bytes()
    arguments = ["resume", str(run_dir), "--set", "optimizer.lr=0.5"]
    assert main(arguments) == 2
    assert "is not the spec of the run so far" in capsys.readouterr().err
    for other in ("precision=float32", "record.every=2"):
        assert main(["resume", str(run_dir), "--changed", "--set", other]) == 2
        assert "cannot be changed" in capsys.readouterr().err
    assert main(["resume", str(run_dir), "--changed", "--set", "model.widths=[5]"]) == 2
    assert "its checkpoint is of another spec" in capsys.readouterr().err
    assert (run_dir / "data.h5").read_bytes() == before
    assert main([*arguments, "--changed"]) == 0


def test_a_run_is_not_cut_short(killed, capsys):
    run_dir = killed(9)
    before = (run_dir / "data.h5").read_bytes()
    assert main(["resume", str(run_dir), "--steps", "3"]) == 2
    assert capsys.readouterr().err == "--set: steps: must be at least 8: so many are done\n"
    assert (run_dir / "data.h5").read_bytes() == before


def test_what_is_no_run_cannot_be_resumed(tmp_path, capsys):
    assert main(["resume", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"{tmp_path}: no run directory: it has no spec.yaml\n"


def damage(path, how, inside=None):
    """Spoil a file: by a bit of the middle, or of the bytes `inside`."""
    if how == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "missing":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[content.index(inside) if inside else len(content) // 2] ^= 16
        path.write_bytes(content)


@pytest.mark.parametrize("how", ["cut", "flipped"])
def test_a_damaged_checkpoint_is_passed_over(how, killed, capsys):
    run_dir = killed(9)
    # Not every byte of the archive matters: some are of dates.
    weights = find_checkpoint(run_dir).kept[".processes['central'].w"]
    damage(run_dir / "checkpoints" / "step_000000008.npz", how, weights.tobytes())
    with pytest.warns(UserWarning, match="step_000000008.npz cannot be used"):
        assert find_checkpoint(run_dir).step == 4


@pytest.mark.parametrize("how", ["missing", "cut", "flipped"])
def test_without_its_rows_a_run_begins_anew_and_loses_nothing(how, killed, monkeypatch, capsys):
    run_dir = killed(9)
    damage(run_dir / "data.h5", how)
    begun = []
    monkeypatch.setattr(
        "centralflow_eqx.experiment.run._carry_out",
        lambda spec, run_dir, console, checkpoint, changed=False: (
            begun.append(checkpoint) or ExitCode.DONE
        ),
    )
    assert main(["resume", str(run_dir)]) == 0
    told = capsys.readouterr().err
    assert begun == [None] and "starting from its first step" in told and "data.h5" in told


def test_other_data_are_noticed(killed, capsys):
    run_dir = killed(4)
    path = run_dir / "checkpoints" / "step_000000004.npz"
    found = find_checkpoint(run_dir)
    made = {**found.made, "data": "other"}
    checkpoints = checkpoint.Checkpoints(run_dir, 0, 2)
    checkpoints.save(dataclasses.replace(found, made=made))
    assert path.exists()
    assert main(["resume", str(run_dir)]) == 2
    assert "data or initial weights are not those of the run so far" in capsys.readouterr().err


def test_damaged_checkpoints_do_not_displace_good_ones(killed):
    run_dir = killed(9)
    folder = run_dir / "checkpoints"
    (folder / "step_000000099.npz").write_bytes(b"PK")
    (folder / ".step_000000012.npz.part").write_bytes(b"PK")
    with pytest.warns(UserWarning, match="step_000000099.npz cannot be used"):
        found = find_checkpoint(run_dir)
    checkpoint.Checkpoints(run_dir, 0, 2).save(dataclasses.replace(found, step=12))
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["step_000000008.npz", "step_000000012.npz"]


def test_a_run_whose_processes_have_ended_stays_as_it_is(killed, capsys):
    arguments = ["--set", "optimizer.lr=60", "--set", "steps=400"]
    arguments += ["--set", "processes=[discrete]", "--set", "model.activation=softplus"]
    killed(4)
    assert main(["run", "spec.yaml", *arguments, "--set", "name=lost"]) == 3
    run_dir = load_spec("spec.yaml", ["name=lost"]).run_dir
    before = contents(run_dir)[0]
    assert main(["resume", str(run_dir)]) == 3
    assert "starting from its first step" not in capsys.readouterr().err
    for name, values in contents(run_dir)[0].items():
        np.testing.assert_array_equal(values, before[name], err_msg=name)


def test_flipped_bits_never_go_unseen(killed, tmp_path):
    run_dir = killed(9)
    folder = run_dir / "checkpoints"
    good = find_checkpoint(run_dir)
    (folder / "step_000000004.npz").unlink()
    path = folder / "step_000000008.npz"
    content, rng = path.read_bytes(), np.random.default_rng(0)
    for place in rng.integers(8 * len(content), size=60):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << (place % 8)
        path.write_bytes(flipped)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.warn", lambda *_, **__: None)
            found = find_checkpoint(run_dir)
        if found is not None:  # a bit of the archive that means nothing
            assert found.stops == good.stops and found.step == good.step
            assert all(np.array_equal(found.kept[k], v, equal_nan=v.dtype.kind == "f")
                       for k, v in good.kept.items())  # fmt: skip


def test_run_does_not_displace_an_unfinished_run(killed, capsys):
    run_dir = killed(4)
    spec = load_spec("spec.yaml")
    assert is_resumable(spec) and not is_done(spec)
    assert main(["run", "spec.yaml"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("spec.yaml:1: name: ") and f"`resume {run_dir}` goes on" in told
    # a sweep starts its members so that they go on
    assert run_arguments(spec, user_code=False)[0::2] == ["run", "--resume"]
    # of another spec it is none
    assert not is_resumable(load_spec("spec.yaml", ["seed=7"]))
    assert main(["run", "spec.yaml", "--anew", "--set", "processes=[discrete]"]) == 0
    assert find_checkpoint(run_dir.with_name("small.1")).step == 4


def test_a_directory_has_one_writer(killed, capsys, monkeypatch):
    run_dir = killed(4)
    before = (run_dir / "data.h5").read_bytes()
    with owner.Owner(run_dir):
        assert main(["resume", str(run_dir)]) == 2
        assert f"is being written by process {os.getpid()}" in capsys.readouterr().err
        assert main(["run", "spec.yaml", "--anew"]) == 2
        assert f"is being written by process {os.getpid()}" in capsys.readouterr().err
    assert (run_dir / "data.h5").read_bytes() == before


def test_a_dead_owner_holds_nobody_back(tmp_path, monkeypatch):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    mark = tmp_path / owner._NAME
    for pid, host, age, holds in (
        (gone.pid, owner._host(), 0, False),
        (os.getpid(), owner._host(), 0, True),
        # its number may be another process's by now
        (os.getpid(), owner._host(), 2 * owner._DEAD_SECONDS, False),
        (1, "elsewhere/0", 0, True),
        (1, "elsewhere/0", 2 * owner._DEAD_SECONDS, False),
        # clocks may jump
        (1, "elsewhere/0", -1e6, True),
        (-1, owner._host(), 0, False),
        (1e400, owner._host(), 0, False),
    ):
        mark.write_text(f'{{"pid": {pid}, "host": "{host}"}}'.replace("inf", "Infinity"))
        os.utime(mark, (time.time() - age,) * 2)
        if holds:
            with pytest.raises(owner.DirectoryInUse):
                owner.Owner(tmp_path).__enter__()
        else:
            with owner.Owner(tmp_path) as mine:
                assert mine.holds()
                mark.write_text('{"pid": 1, "host": "elsewhere"}')
                assert not mine.holds()
    mark.write_text('{"pid": 12')  # cut off
    with owner.Owner(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("writes", [3, 6])
def test_a_full_disk_loses_nothing_that_was_written(writes, killed, whole, monkeypatch, capsys):
    run_dir, left = killed(4), [writes]
    real = writer.write_whole

    def write_whole(path, write):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        real(path, write)

    monkeypatch.setattr(writer, "PUBLISH_SECONDS", 0.0)
    monkeypatch.setattr(writer, "write_whole", write_whole)
    monkeypatch.setattr("centralflow_eqx.experiment.checkpoint.write_whole", write_whole)
    assert main(["resume", str(run_dir)]) == 4
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(str(run_dir)) and "No space left on device" in line
    assert line.endswith(f"`resume {run_dir}` goes on")
    assert np.isfinite(contents(run_dir)[0]["discrete/train_loss"][:4]).all()
    monkeypatch.undo()
    assert main(["resume", str(run_dir)]) == 0
    assert same(run_dir, whole / "runs" / "small")


def test_a_directory_that_vanishes_is_written_anew(killed, monkeypatch, capsys):
    def vanishing(*arguments):
        yield next(chunks(*arguments))
        shutil.rmtree(run_dir)

    run_dir = killed(4)
    monkeypatch.setattr(recording, "chunks", vanishing)
    assert main(["resume", str(run_dir)]) == 4
    line = capsys.readouterr().err.splitlines()[-1]
    assert "No such file or directory" in line
    data, attributes = contents(run_dir)
    assert np.isfinite(data["discrete/train_loss"][:5]).all() and attributes["status"] == "failed"


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"before")

    def fails(file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="full"):
        writer.write_whole(path, fails)
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]
    writer.write_whole(path, lambda file: file.write(b"after"))
    assert path.read_bytes() == b"after"


@pytest.mark.parametrize("place", ["a_file", "/proc/nowhere", "a_file/below"])
def test_where_nothing_can_be_written(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spec.yaml").write_text(SPEC + f"output: {{dir: {place}}}\n")
    (tmp_path / "a_file").write_text("")
    monkeypatch.setattr(run, "build_task", None)  # it is told before anything is computed
    assert main(["run", "spec.yaml"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("spec.yaml:13: output.dir: ") and "cannot be written" in line


def test_lack_of_memory_is_told_with_what_takes_less(killed, monkeypatch, capsys):
    def exhausted(*arguments):
        yield next(chunks(*arguments))
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")

    run_dir = killed(4)
    monkeypatch.setattr(recording, "chunks", exhausted)
    assert main(["resume", str(run_dir)]) == 4
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("out of memory") and "memory.hvp_chunk: 1" in line
    assert contents(run_dir)[1]["status"] == "failed" and is_resumable(load_spec("spec.yaml"))


TWICE = """
import os, signal, time
from centralflow_eqx.experiment.interruption import Interruption
with Interruption() as interruption:
    assert not interruption
    os.kill(os.getpid(), signal.SIGTERM)
    while not interruption:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
"""


def test_a_second_signal_ends_at_once():
    begun = time.monotonic()
    found = subprocess.run([sys.executable, "-c", TWICE], stderr=subprocess.PIPE, text=True)
    assert found.returncode == 4 and time.monotonic() - begun < 50
    assert "another signal ends at once" in found.stderr


OWN = """\
name: own
precision: float64
task: {function: mine.loss, start: [1.0, 0.5]}
optimizer: {type: gd, lr: 0.3}
processes: [discrete]
steps: 6
"""


def test_changed_code_of_ones_own_is_refused_unless_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("spec.yaml").write_text(OWN)
    Path("mine.py").write_text("from parts import half\n\ndef loss(w):\n    return half(w @ w)\n")
    Path("parts.py").write_text("def half(x):\n    return x / 2\n")
    assert main(["run", "spec.yaml"]) == 0
    assert main(["resume", "runs/own", "--steps", "7"]) == 0
    Path("parts.py").write_text("def half(x):\n    return x / 3\n")
    capsys.readouterr()
    assert main(["resume", "runs/own", "--steps", "8"]) == 2
    assert "code of your own that it names is not that" in capsys.readouterr().err
    assert main(["resume", "runs/own", "--steps", "8", "--changed"]) == 0
