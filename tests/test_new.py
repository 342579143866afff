"""`new`: what it writes runs as it is, and nothing is overwritten."""

import json
import runpy
import sys

import pytest
from _marks import quick

from centralflow_eqx.cli import main
from centralflow_eqx.cli.new import SCHEMA
from centralflow_eqx.errors import ExitCode

KINDS = "optimizer", "model", "data", "loss"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory from which Python imports, as it does for pytest there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith(("my_", "test_my_")):
            del sys.modules[name]


@pytest.mark.parametrize("kind", quick(KINDS, "optimizer", "model"))
def test_a_new_class_passes_its_own_tests_and_its_spec_is_valid(folder, capsys, kind):
    assert main(["new", kind, f"my_{kind}"]) == ExitCode.DONE
    printed = capsys.readouterr().out
    assert f"  python -m pytest test_my_{kind}.py\n" in printed
    tests = runpy.run_path(str(folder / f"test_my_{kind}.py"))
    found = [test for name, test in tests.items() if name.startswith("test_")]
    for test in found:
        test()
    assert found
    assert main(["validate", f"my_{kind}.yaml"]) == ExitCode.DONE
    assert f"my_{kind}.yaml: valid; 40 steps" in capsys.readouterr().out


def test_a_new_spec_is_valid_and_names_a_schema_beside_it(folder, capsys):
    assert main(["new", "spec", "first"]) == ExitCode.DONE
    named = (folder / "first.yaml").read_text().partition("\n")[0]
    assert named == f"# yaml-language-server: $schema={SCHEMA}"
    assert json.loads((folder / SCHEMA).read_text())["title"] == "centralflow_eqx spec"
    assert main(["validate", "first.yaml"]) == ExitCode.DONE
    assert "first.yaml: valid; 40 steps of gd" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["spec", *KINDS])
def test_what_is_new_runs(folder, kind):
    assert main(["new", kind, f"my_{kind}"]) == ExitCode.DONE
    assert main(["run", f"my_{kind}.yaml"]) == ExitCode.DONE
    assert (folder / "runs" / f"my_{kind}" / "report.html").exists()


@pytest.mark.parametrize("file", ["my_rule.py", "test_my_rule.py", "my_rule.yaml"])
def test_nothing_is_overwritten(folder, capsys, file):
    (folder / file).write_text("mine")
    assert main(["new", "optimizer", "my_rule"]) == ExitCode.BAD_INPUT
    assert capsys.readouterr().err == (
        f"{file}: exists already, and is left as it is; give another name\n"
    )
    assert [path.name for path in folder.iterdir()] == [file]
    assert (folder / file).read_text() == "mine"


def test_a_schema_that_is_there_is_kept(folder):
    (folder / SCHEMA).write_text("mine")
    assert main(["new", "spec", "first"]) == ExitCode.DONE
    assert (folder / SCHEMA).read_text() == "mine"


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("optimizer", "my-rule", "must be a name that Python takes"),
        ("optimizer", "2fast", "must be a name that Python takes"),
        ("model", "class", "must be a name that Python takes"),
        ("model", "a/b", "must be a name that Python takes"),
        ("data", "__", "must have a letter first"),
        ("data", "_2", "must have a letter first"),
        ("loss", "json", "'json' is a module already, which yours would hide"),
        ("loss", "jax", "'jax' is a module already, which yours would hide"),
        ("loss", "x" * 300, "must have 100 or fewer letters"),
        ("spec", "a/b", "must be a plain file name"),
        ("spec", "..", "must be a plain file name"),
        ("spec", "a" * 300, "must be a plain file name"),
    ],
)
def test_names_that_are_refused(folder, capsys, kind, name, message):
    assert main(["new", kind, name]) == ExitCode.BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"NAME: {message}")
    assert not list(folder.iterdir())


def test_a_folder_that_cannot_be_written(folder, capsys, monkeypatch):
    (folder / "my_rule.yaml").symlink_to(folder / "nowhere" / "a.yaml")  # no file yet, nor can be
    assert main(["new", "spec", "my_rule"]) == ExitCode.BAD_INPUT
    assert capsys.readouterr().err.startswith("my_rule.yaml: ")
