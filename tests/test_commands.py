"""What the command line says to somebody who does not know it yet."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import numpy as np
import pytest

from centralflow_eqx.cli import main
from centralflow_eqx.cli.commands import DEMONSTRATION
from centralflow_eqx.errors import ExitCode
from centralflow_eqx.experiment.build import build_task
from centralflow_eqx.options import options_of
from centralflow_eqx.record.reader import load_run
from centralflow_eqx.spec import json_schema, load_spec
from centralflow_eqx.spec.schema import COMPONENTS

ROOT = Path(__file__).parents[1]
SPECS = sorted((ROOT / "specs").rglob("*.yaml"))


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["rnu"], "unknown command 'rnu', must be one of run, resume, sweep"),
        (["rnu", "a.yaml"], "(did you mean 'run'?)"),
        (["run", "a.yaml", "--anwe"], "unknown option '--anwe' (did you mean '--anew'?)"),
        (["resume", "a", "--setps=5"], "unknown option '--setps=5' (did you mean '--steps'?)"),
        (["list", "--verbos"], ""),  # what argparse takes as an abbreviation
        (["validate", "a.yaml", "b.yaml"], "'b.yaml' is one argument too many"),
        (["run", "a.yaml", "--end-with-stdn"], "unknown option '--end-with-stdn'\n"),
    ],
)
def test_mistyped_words_come_with_a_suggestion(capsys, words, answer):
    code = main(words)
    error = capsys.readouterr().err
    assert answer in error
    assert code == (ExitCode.BAD_INPUT if answer else ExitCode.DONE)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("gd_moons", "specs/gd_moons.yaml"),
        ("gd_moons.yaml", "specs/gd_moons.yaml"),
        ("spec/gd_moons.yaml", "specs/gd_moons.yaml"),
        ("specs/gd_mons.yml", "specs/gd_moons.yaml"),
        ("gd_moons/x/y", None),
        ("", None),
    ],
)
def test_a_spec_that_is_elsewhere(tmp_path, monkeypatch, capsys, given, meant):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs" / "gd_moons.yaml").touch()
    assert main(["validate", given]) == ExitCode.BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert ("did you mean" in line) == (meant is not None)
    assert meant is None or line.endswith(f"(did you mean '{meant}'?)")


def test_the_demonstration_crosses_the_edge_and_oscillates_at_once():
    """Gradient descent and dense Hessians, without anything that derives or follows a flow."""
    spec = load_spec(DEMONSTRATION)
    task = build_task(spec)
    lr = spec.optimizer.build().lr(0)
    value_and_grad, w = jax.jit(jax.value_and_grad(task)), task.initial_weights
    losses, path = [], []
    for _ in range(spec.warm_start + 30):
        loss, grad = value_and_grad(w)
        losses.append(loss)
        path.append(w)
        w -= lr * grad
    hessian = jax.jit(jax.hessian(task))
    largest = [lr * np.linalg.eigvalsh(hessian(w))[-1] for w in path[spec.warm_start :: 4]]
    assert largest[0] < 2 < max(largest)
    assert any(np.diff(losses) > 0), "the optimizer's loss falls all the time"


@pytest.mark.slow
def test_without_a_spec_the_demonstration_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["run"]) == ExitCode.DONE
    assert str(DEMONSTRATION) in capsys.readouterr().out
    largest = load_run(tmp_path / "runs" / "edge_of_stability").series["discrete"]["eigenvalues"]
    assert largest[0, 0] < 2 < largest[:30].max()


def test_the_demonstration_is_for_validate_too(capsys):
    assert main(["validate"]) == ExitCode.DONE
    named, valid = capsys.readouterr().out.splitlines()
    assert named == f"no SPEC was given; a demonstration, to be copied: {DEMONSTRATION}"
    assert valid.startswith(f"{DEMONSTRATION}: valid; ")


def test_what_is_no_code_is_in_the_package():
    """The wheel has whatever is in the package's folder."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["tool"]["hatch"]["build"]["targets"]["wheel"] == {
        "packages": [DEMONSTRATION.parents[1].name]
    }
    assert DEMONSTRATION.is_relative_to(ROOT / "centralflow_eqx")


def test_every_option_is_listed_with_what_it_means(capsys):
    assert main(["list", "--verbose"]) == ExitCode.DONE
    listed = capsys.readouterr().out
    for registry in COMPONENTS.values():
        for name in registry.names():
            fields = dict(options_of(registry, name).model_fields)
            del fields["type"]
            assert all(field.description for field in fields.values()), (name, fields)
            assert all(f"\n    {key} " in listed for key in fields)
    assert "    n              a whole number >= 2; 200 by default: Training examples" in listed
    assert "    lr             a number > 0 or {schedule: NAME, ...}; required: " in listed


def test_one_name_is_listed_alone(capsys):
    assert main(["list", "gd"]) == ExitCode.DONE
    heading, line = capsys.readouterr().out.splitlines()
    assert heading == "optimizer:" and line.startswith("  gd ")
    assert main(["list", "adma"]) == ExitCode.BAD_INPUT
    assert capsys.readouterr().err.endswith("(did you mean 'adam'?)\n")


def test_shells_complete_commands_and_options(capsys):
    pytest.importorskip("shtab")
    assert main(["completion", "bash"]) == ExitCode.DONE
    script = capsys.readouterr().out
    assert "complete -o bashdefault -F _shtab_centralflow_eqx centralflow_eqx" in script
    assert "--no-user-code" in script
    assert "--end-with-stdin" not in script


def test_completion_without_its_package_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "zsh"]) == ExitCode.BAD_INPUT
    assert capsys.readouterr().err.endswith("pip install 'centralflow_eqx[completion]'\n")


@pytest.mark.parametrize("words", [["--help"], ["list", "--help"], ["run", "--help"], ["rnu"]])
def test_help_is_quick(words):
    program = (
        f"import sys; from centralflow_eqx.cli import main; main({words}); print(*sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert not {"jax", "pydantic", "rich", "numpy"} & set(found.stdout.decode().split())


def test_the_schema_beside_the_specs_is_that_of_the_package():
    """Renewed by `python -m centralflow_eqx schema > specs/schema.json`."""
    assert json.loads((ROOT / "specs" / "schema.json").read_text()) == json_schema()


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_editors_find_the_schema_of_every_spec(path):
    first = path.read_text().partition("\n")[0]
    start = "# yaml-language-server: $schema="
    assert first.startswith(start)
    assert (path.parent / first.removeprefix(start)).resolve() == ROOT / "specs" / "schema.json"


def test_the_demonstration_is_a_spec():
    assert load_spec(DEMONSTRATION).name == DEMONSTRATION.stem
