"""Bad input: exit code 2, one line per problem with its file and line, never a traceback."""

import os
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest

import centralflow_eqx
from centralflow_eqx.cli import main
from centralflow_eqx.errors import ExitCode

SPEC = """\
name: small
precision: float64
data:
  type: npz
  path: data.npz
model: {type: mlp, widths: [3]}
loss: {type: mse}
optimizer:
  type: gd
  lr: 0.4
processes: [discrete]
steps: 5
"""
INPUTS, LABELS = np.arange(8.0).reshape(4, 2), np.array([3, -1, 3, -1])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("data.npz", inputs=INPUTS, labels=LABELS, weights=np.zeros(13), short=np.zeros(5))
    return tmp_path


@pytest.fixture
def refused(folder, capsys):
    """The lines that `validate` prints about a spec it must refuse."""

    def refused(text=SPEC, *settings):
        (folder / "s.yaml").write_text(text)
        flags = [word for setting in settings for word in ("--set", setting)]
        code = main(["validate", "s.yaml", *flags])
        captured = capsys.readouterr()
        assert code == ExitCode.BAD_INPUT
        assert "Traceback" not in captured.err
        assert captured.out == ""
        return captured.err.splitlines()

    return refused


def test_the_good_spec_is_good(folder, capsys):
    (folder / "s.yaml").write_text(SPEC)
    assert main(["validate", "s.yaml"]) == 0
    assert capsys.readouterr().out.startswith(
        "s.yaml: valid; 5 steps of gd, 13 weights, 4 examples"
    )


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("steps: 5", "steps: 0", "12: steps: must be a whole number >= 1, got 0"),
        ("steps: 5", "steps: 5.5", "12: steps: must be a whole number >= 1, got 5.5"),
        ("steps: 5", "steps: true", "12: steps: must be a whole number >= 1, got true"),
        ("steps: 5", "steps: '5'", '12: steps: must be a whole number >= 1, got "5"'),
        ("steps: 5", "steps:", "12: steps: must be a whole number >= 1, got null"),
        ("steps: 5\n", "", "1: steps: missing, must be a whole number >= 1"),
        ("steps: 5", "steps: 5\nsteps: 6", "13: steps: key given twice, first on line 12; keep"),
        ("steps: 5", "steps: 5\nseed: -1", "13: seed: must be a whole number >= 0 and < 4294967"),
        ("float64", "double", '2: precision: must be one of float32, float64, got "double"'),
        ("lr: 0.4", "lr: -1e-3", "10: optimizer.lr: must be a number > 0 or {schedule: NAME, ..."),
        ("lr: 0.4", "lr: 0", "10: optimizer.lr: must be a number > 0 or {schedule: NAME, ...}, g"),
        ("lr: 0.4", "lr: .nan", "10: optimizer.lr: must be a number > 0 or {schedule: NAME, ...}"),
        ("lr: 0.4", "lr: fast", "10: optimizer.lr: must be a number > 0 or {schedule: NAME, ..."),
        ("lr: 0.4", "rate: 0.4", "8: optimizer.lr: missing, must be a number > 0 or {schedule"),
        ("lr: 0.4", "lr: {init_value: 1}", "10: optimizer.lr.schedule: missing, must be one of"),
        (
            "lr: 0.4",
            "lr:\n    schedule: cosine_decay\n    init_value: -1\n    decay_steps: 5",
            "12: optimizer.lr.init_value: must be a number >= 0, got -1",
        ),
        (
            "lr: 0.4",
            "lr: {schedule: cosine_decy}",
            "10: optimizer.lr.schedule: must be one of constant, cosine_decay, ",
        ),
        (
            "lr: 0.4",
            "lr: {schedule: cosine_decay, init_value: 1, decay_steps: 0}",
            "10: optimizer.lr: The cosine_decay_schedule requires positive decay_steps",
        ),
        ("type: gd", "type: gdd", "9: optimizer.type: must be one of adagrad, "),
        ("type: gd", "type: [gd]", "9: optimizer.type: must be one of adagrad, "),
        ("  type: gd\n", "", "8: optimizer.type: missing, must be one of adagrad, "),
        ("{type: mse}", "mse", '7: loss: must be {type: NAME, ...}, got "mse"'),
        ("[3]", "3", "6: model.widths: must be a list of up to 100, each a whole number"),
        ("[3]", "[3, 0]", "6: model.widths[1]: must be a whole number > 0, got 0"),
        ("[3]", "[3], activation: gleu", "6: model.activation: must be one of gelu, silu, tanh, "),
        ("[discrete]", "[]", "11: processes: must be a list of one or more, each one of "),
        ("[discrete]", "discrete", "11: processes: must be a list of one or more, each one of "),
        ("[discrete]", "[discrete, discrete]", "11: processes[1]: listed twice; keep one of them"),
        ("name: small", "name: a/b", "1: name: must be a plain directory name "),
        ("name: small", "name: ..", "1: name: must be a plain directory name "),
        ("path: data.npz", "path: nope.npz", "5: data.path: no such file: "),
        ("path: data.npz", "path: .", "5: data.path: no such file: "),
        ("steps: 5", "steps: 5\nrecord: {every: 0}", "13: record.every: must be a whole number >"),
        ("steps: 5", "steps: 5\nflow: {critical_above: 3}", "13: flow.critical_above: must be a n"),
        ("steps: 5", "steps: 5\nflow: {state_rate: off}", "13: flow.state_rate: must be one of e"),
        ("steps: 5", "steps: 5\neigen: {tol: 0}", "13: eigen.tol: must be a number > 0 or null, "),
        ("steps: 5", "steps: 5\neigen: {initial: 0}", "13: eigen.initial: must be a whole number"),
        (
            "steps: 5",
            "steps: 5\neigen: {initial: 14}",
            "13: eigen.initial: must be <= 13, the number of weights, got 14",
        ),
        (
            "steps: 5",
            "steps: 5\neigen: {track_above: 1.99}",
            "13: eigen.track_above: must be <= flow.critical_above = 1.95, got 1.99",
        ),
        (
            "steps: 5",
            "steps: 5\nflow: {critical_above: 1.2}",
            "13: flow.critical_above: must be >= eigen.track_above = 1.5, got 1.2",
        ),
        (
            "steps: 5",
            f"steps: 5\nflow: {{critical_above: 1{'0' * 400}}}",
            "13: flow.critical_above: must be a number > 0 and <= 2, got 1000",
        ),
        ("steps: 5", "steps: 5\nflow:", "13: flow: must be a mapping, got null"),
        ("steps: 5", "steps: !!python/name:os.system x", "12: steps: tag "),
        ("steps: 5", "? [a]\n: 5", "12: a key must be text, not a list or a mapping"),
        ("steps: 5", "steps: [5", "13: not valid YAML: "),
        ("steps: 5", "steps: 5\n  - x: 1", "13: not valid YAML: "),
        ("steps: 5", "steps: *five", "12: not valid YAML: found undefined alias"),
        ("steps: 5", "steps: 5\n---\nsteps: 6", "13: not valid YAML: "),
        ("steps: 5", "steps: &a [*a]", "12: steps[0]: an alias that contains itself"),
        ("steps: 5", "steps: " + "[" * 9000, "1: nested too deeply"),
        ("steps: 5", "steps: " + "[" * 250 + "]" * 250, "12: nested too deeply"),
        ("steps: 5", "steps: " + "{<<: " * 250 + "{a: 1}" + "}" * 250, "12: nested too deeply"),
        (
            "steps: 5",
            "steps: [" + "a, " * 40_000 + "]",
            "12: too large, more than 30000 keys and v",
        ),
        ("steps: 5", "steps: 0x" + "f" * 5000, "12: steps: not a number that can be read: "),
        ("steps: 5", "steps: !!bool yes", '12: steps: "yes" is no bool, write it without a tag'),
        ("steps: 5", "steps: !!null 5", '12: steps: "5" is no null, write it without a tag'),
        ("steps: 5", "steps: !!int 1_0", '12: steps: "1_0" is no int, write it without a tag'),
        ("steps: 5", "steps: !my:map {a: 1}", '12: steps: tag "!my:map" is not allowed'),
        ("steps: 5", 'steps: "\\UFFFFFFFF"', "12: not valid YAML: OverflowError: "),
        (
            "steps: 5",
            'steps: "\\uD800"',
            '12: steps: "\\xd800" has a character that stands for none',
        ),
        (
            "path: data.npz",
            'path: "a\\0"',
            '5: data.path: "a\\u0000" has a character that stands for',
        ),
        (
            "steps: 5",
            'steps: 5\n"\\uD800": 1',
            '13: "\\xd800": has a character that stands for none',
        ),
        ("steps: 5", 'steps: 5\n" ": 1', '13: " ": unknown key, must be one of name, '),
        (
            "steps: 5",
            f"steps: 5\n{'x' * 90}: 1",
            f'13: "{"x" * 56}...: unknown key, must be one of ',
        ),
        ("path: data.npz", "path: ~nobody-of-this-name/a.npz", "5: data.path: no such file: "),
        ("path: data.npz", 'path: "a\\nb"', "5: data.path: no such file: "),
        ("path: data.npz", f"path: {'x' * 9000}", "5: data.path: no such file: "),
        (
            "path: data.npz",
            'path: data.npz\n  inputs: "a\\nb"',
            "6: data.inputs: no array 'a\\x0ab' in",
        ),
        ("name: small", "name: " + "é" * 128, "1: name: must have 240 or fewer bytes, got 256"),
        (
            "[3]",
            f"[{'3, ' * 101}]",
            "6: model.widths: must be a list of up to 100, each a whole numbe",
        ),
    ],
)
def test_one_mistake_is_reported_at_its_line(refused, old, new, line):
    assert old in SPEC
    lines = refused(SPEC.replace(old, new, 1))
    assert any(found.startswith(f"s.yaml:{line}") for found in lines), lines


@pytest.mark.parametrize(
    ("old", "new", "suggestion"),
    [
        ("steps: 5", "stesp: 5", "(did you mean 'steps'?)"),
        ("type: gd", "type: gdd", "(did you mean 'gd'?)"),
        ("{type: mse}", "{type: mes}", "(did you mean 'mse'?)"),
        ("widths", "width", "(did you mean 'widths'?)"),
        ("[discrete]", "[discret]", "(did you mean 'discrete'?)"),
        ("lr: 0.4", "lr: {schedule: cosine_decy}", "(did you mean 'cosine_decay'?)"),
        ("path: data.npz", "path: data.npz\n  labels: label", "(did you mean 'labels'?)"),
    ],
)
def test_misspelt_names_come_with_a_suggestion(refused, old, new, suggestion):
    assert any(line.endswith(suggestion) for line in refused(SPEC.replace(old, new, 1)))


def test_a_name_too_long_for_a_file(folder, capsys):
    assert main(["validate", "x" * 9000 + "/s.yaml"]) == ExitCode.BAD_INPUT
    assert capsys.readouterr().err.endswith("/s.yaml: cannot be read: File name too long\n")


def test_a_file_that_does_not_end(folder, capsys):
    assert main(["validate", "/dev/zero"]) == ExitCode.BAD_INPUT
    assert capsys.readouterr().err == "/dev/zero:1: has more than 1 MiB, which is no spec\n"


def test_a_long_list_of_mistakes_is_found_in_no_time(refused):
    """Problems are looked up by index; entries of a sweep are compared by their keys."""
    begin = time.process_time()
    assert len(refused(SPEC.replace("[3]", f"[{'a, ' * 3000}]"))) == 3000
    keys = ", ".join(f"k{i}: 1" for i in range(1000))
    assert len(refused(SPEC + f"sweep: {{list: [{{name: a, {keys}}}]}}\n")) == 1000
    assert time.process_time() - begin < 5


def test_all_problems_are_reported_at_once_in_the_order_of_the_file(refused):
    text = SPEC.replace("0.4", "-1").replace("float64", "half").replace("steps", "setps")
    lines = refused(text + "seed: 1\nseed: 2\n", "processes=[x]", "model.widths=q")
    assert [line.partition(": ")[0] for line in lines] == [
        "s.yaml:1",
        "s.yaml:2",
        "s.yaml:10",
        "s.yaml:12",
        "s.yaml:14",
        "--set",
        "--set",
    ]


def test_a_long_message_is_one_line(refused):
    (line,) = refused(SPEC + "sede: " + "x" * 500 + "\n")
    assert line.startswith("s.yaml:13: sede: unknown key, must be one of name, seed, ")


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("optimizer.lr=0", "--set: optimizer.lr: must be a number > 0 or {schedule: NAME, ...}, g"),
        ("optimizer.lrr=1", "--set: optimizer.lrr: unknown key, must be one of type, lr, weigh"),
        ("optimzer.lr=1", "--set: optimzer: unknown key, must be one of name, "),
        ("steps.x=1", "--set: steps.x: steps is not a mapping; give a value for steps itself"),
        ("steps=[1", "--set: steps: not valid YAML: "),
        ("record={every: 1, every: 2}", "--set: record.every: key given twice; keep one of them"),
        ("steps", '--set: "steps" is not of the form key.subkey=value'),
        ("eigen.initial=14", "--set: eigen.initial: must be <= 13, the number of weights, got 14"),
        ("data.path=nope.npz", "--set: data.path: no such file: "),
    ],
)
def test_bad_overrides(refused, setting, line):
    assert any(found.startswith(line) for found in refused(SPEC, setting))


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "s.yaml:1: the file is empty, expected"),
        (b"# only\n", "s.yaml:1: the file is empty, expected"),
        (b"- a\n", "s.yaml:1: the file is not a mapping, expected"),
        (b"name: a\nseed: \xff\n", "s.yaml:2: not UTF-8 text"),
        (b"name: a\nseed: \x00\n", "s.yaml:2: not valid YAML: "),
        (
            b"a: &a [x, x, x, x, x, x, x, x, x, x]\n"
            + b"".join(
                b"%c: &%c [%s]\n" % (c, c, b", ".join([b"*%c" % (c - 1)] * 10)) for c in b"bcdefghi"
            ),
            "s.yaml:1: ",
        ),
    ],
)
def test_files_that_are_no_spec(folder, capsys, content, line):
    (folder / "s.yaml").write_bytes(content)
    assert main(["run", "s.yaml"]) == ExitCode.BAD_INPUT
    error = capsys.readouterr().err
    assert error.startswith(line)
    assert len(error.splitlines()) == 1


def test_a_missing_file(folder, capsys):
    (folder / "small.yaml").write_text(SPEC)
    assert main(["run", "smal.yaml"]) == ExitCode.BAD_INPUT
    expected = "smal.yaml: cannot be read: No such file or directory (did you mean 'small.yaml'?)\n"
    assert capsys.readouterr().err == expected


NAN = np.where(INPUTS == 5, np.nan, INPUTS)


@pytest.mark.parametrize(
    ("arrays", "line"),
    [
        ({"inputs": INPUTS}, "s.yaml:3: data.labels: no array 'labels' in the file, it has inputs"),
        ({"inputs": NAN}, "s.yaml:3: data.inputs: must be finite, 1 are not, the first at [2, 1]"),
        ({"inputs": INPUTS.ravel()}, "s.yaml:3: data.inputs: must have shape [examples, features]"),
        ({"inputs": INPUTS * 1j}, "s.yaml:3: data.inputs: must hold real numbers, got an array of"),
        ({"inputs": INPUTS[:3]}, "s.yaml:3: data.labels: must have shape [3], one label per input"),
        ({"labels": LABELS * 1.0}, "s.yaml:3: data.labels: must be integers, got an array of flo"),
        ({"labels": LABELS * 0}, "s.yaml:3: data.labels: must take two or more different values"),
        ({"inputs": np.array([None])}, "s.yaml:3: data.inputs: array 'inputs' cannot be read: Obj"),
    ],
)
def test_arrays_that_do_not_fit(refused, arrays, line):
    only = "labels" not in line or "labels" in arrays or "[3]" in line
    np.savez("data.npz", **({"inputs": INPUTS, "labels": LABELS} if only else {}) | arrays)
    (found,) = refused()
    assert found.startswith(line)


@pytest.mark.parametrize("kept", [0, 10, 200, -30])
def test_unreadable_archives(refused, folder, kept):
    content = (folder / "data.npz").read_bytes()
    (folder / "data.npz").write_bytes(content[:kept])
    (line,) = refused()
    assert line.startswith("s.yaml:5: data.path: not a readable npz file: ")


def test_garbage_and_a_bare_array_are_no_archives(refused, folder):
    (folder / "data.npz").write_bytes(b"\x80\x04garbage" * 20)
    assert refused()[0].startswith("s.yaml:5: data.path: not a readable npz file: ")
    with open("data.npz", "wb") as file:
        np.save(file, INPUTS)
    assert refused()[0].startswith("s.yaml:5: data.path: not an npz archive of named arrays: ")


def test_a_damaged_array_is_named(refused, folder):
    content = bytearray((folder / "data.npz").read_bytes())
    content[content.index(INPUTS.tobytes()) + 3] ^= 0xFF
    (folder / "data.npz").write_bytes(content)
    assert refused()[0].startswith("s.yaml:3: data.inputs: array 'inputs' cannot be read: ")


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("wieghts", "s.yaml:13: init.key: no array 'wieghts' in the file, it has "),
        ("short", "s.yaml:13: init.key: must have 13 entries, one per weight of the model, got 5"),
        ("inputs", "s.yaml:13: init.key: must be a flat vector of weights, got [4, 2]"),
    ],
)
def test_initial_weights_that_do_not_fit(refused, key, line):
    (found,) = refused(SPEC + f"init: {{path: data.npz, key: {key}}}\n")
    assert found.startswith(line)


def test_problems_of_data_and_initial_weights_are_reported_together(refused):
    text = SPEC.replace("path: data.npz", "path: data.npz\n  labels: lab")
    lines = refused(text + "init: {path: data.npz, key: lab}\n")
    assert [line.partition(": ")[0] for line in lines] == ["s.yaml:6", "s.yaml:14"]


@pytest.fixture
def run_with(folder, monkeypatch, capsys):
    """Run the good spec with `run_spec` replaced."""

    def run_with(run_spec, *flags):
        module = types.ModuleType("centralflow_eqx.experiment.run")
        module.run_spec = run_spec
        monkeypatch.setitem(sys.modules, "centralflow_eqx.experiment.run", module)
        (folder / "s.yaml").write_text(SPEC)
        return main(["run", "s.yaml", *flags]), capsys.readouterr()

    return run_with


def test_run_gets_the_spec_and_its_code_is_the_exit_code(run_with):
    seen = []

    def run_spec(spec, console, anew, resume):
        seen.append(spec.steps)
        return ExitCode.NUMERICAL_STOP

    assert run_with(run_spec, "--set", "steps=7")[0] == 3
    assert seen == [7]


def test_bad_input_found_during_a_run(run_with):
    def run_spec(spec, console, anew, resume):
        raise spec.error("optimizer.lr", "too large")

    code, captured = run_with(run_spec)
    assert (code, captured.err) == (2, "s.yaml:10: optimizer.lr: too large\n")


def test_an_interrupt_is_code_4(run_with):
    def run_spec(spec, console, anew, resume):
        raise KeyboardInterrupt

    code, captured = run_with(run_spec)
    assert (code, captured.err) == (4, "interrupted\n")


def test_a_bug_shows_its_traceback(run_with):
    def run_spec(spec, console, anew, resume):
        raise RuntimeError("boom")

    code, captured = run_with(run_spec)
    assert code == 1
    assert "RuntimeError: boom" in captured.err
    assert "please report it" in captured.err


def test_relu_warns_in_one_line(folder, capsys):
    (folder / "s.yaml").write_text(SPEC)
    assert main(["validate", "s.yaml", "--set", "model.activation=relu"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: model.activation: relu has kinks")


@pytest.mark.parametrize(
    ("argv", "code", "text"),
    [
        (["--help"], 0, "examples:"),
        (["run", "--help"], 0, "--set 'processes=[central]'"),
        (["--version"], 0, "centralflow_eqx "),
        (["list"], 0, "  moons            Two interleaved half circles"),
        (["schema"], 0, '"sweep"'),
        (["sweep", "--help"], 0, "sweep spec.yaml --dry-run"),
        (["sweep", "s.yaml", "--workers", "0"], 2, "must be a whole number >= 1, got '0'"),
        (["report", "--help"], 0, "report runs/gd_moons runs/small_lr"),
        ([], 2, "COMMAND"),
        (["rnu"], 2, "'rnu'"),
    ],
)
def test_help_and_lists(capsys, argv, code, text):
    assert main(argv) == code
    captured = capsys.readouterr()
    assert text in captured.out + captured.err


def test_the_module_runs_as_a_program(folder):
    (folder / "s.yaml").write_text(SPEC.replace("0.4", "0"))
    command = [sys.executable, "-m", "centralflow_eqx", "validate", "s.yaml"]
    root = Path(centralflow_eqx.__file__).parents[1]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    assert done.returncode == 2
    assert done.stderr.startswith("s.yaml:10: optimizer.lr: ")
