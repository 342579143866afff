"""What the documentation shows runs, and prints what it says."""

import re
import runpy
import shlex

import jax
import matplotlib
import matplotlib.pyplot as plt
import pytest
from _marks import quick
from _pages import FROM_PYTHON, MONITOR, OWN_PROBLEM, ROOT, TUTORIAL, blocks

from benchmarks.optax_rules import verdict
from centralflow_eqx.cli import main
from centralflow_eqx.processes import PROCESSES

EXAMPLES = ROOT / "docs" / "examples"
FIGURES = {
    "loss": ["loss"],
    "eigenvalues": ["eigenvalues"],
    "oscillation": ["oscillation"],
    "predictions": ["outputs", "single_weights"],
    "preconditioner": ["preconditioner"],
    "learning_rates": ["learning_rates"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The tutorial's two files, in a folder of their own."""
    folder = tmp_path_factory.mktemp("tutorial")
    (folder / "my_optimizer.py").write_text(blocks(TUTORIAL, "python")[0])
    (folder / "my_optimizer.yaml").write_text(blocks(TUTORIAL, "yaml")[0])
    return folder


@pytest.fixture
def figures(tmp_path):
    """A folder for figures, drawn without a display."""
    matplotlib.use("Agg")
    yield tmp_path
    plt.close("all")


def test_the_tutorials_rule_is_short():
    rule = blocks(TUTORIAL, "python")[0].partition("class ")[2].splitlines()
    assert len([line for line in rule if line.strip()]) <= 15


@pytest.mark.slow
def test_the_tutorials_commands_print_and_leave_what_it_says(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    commands = [shlex.split(block) for block in blocks(TUTORIAL, "console")]
    for command in commands:
        assert command[:3] == ["python", "-m", "centralflow_eqx"]
        assert main(command[3:]) == 0
        if command[3] == "explain":
            assert capsys.readouterr().out == blocks(TUTORIAL, "text")[0]
    run_dir = folder / "runs" / "quasi_hyperbolic"
    assert {"explain", "run"} == {command[3] for command in commands}
    assert (run_dir / "report.html").stat().st_size > 10_000
    assert len(list((run_dir / "figures").glob("*.png"))) >= 5


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(TUTORIAL, id="tutorial"),
        pytest.param(FROM_PYTHON, id="from_python", marks=pytest.mark.slow),
        pytest.param(ROOT / "README.md", id="readme"),
        pytest.param(ROOT / "docs" / "theory.md", id="theory"),
        pytest.param(ROOT / "docs" / "write_a_process.md", id="process"),
    ],
)
def test_python_blocks_run(path, capsys, figures, monkeypatch):
    monkeypatch.chdir(figures)
    monkeypatch.setattr(PROCESSES, "_components", dict(PROCESSES._components))  # one may be added
    names = {"jax": jax}
    for block in blocks(path, "python"):
        exec(compile(block, path.name, "exec"), names)
    printed = map(float, re.findall(r"\d+\.\d+", capsys.readouterr().out))
    assert min(abs(number - 2) for number in printed) < 1e-3  # an eigenvalue is locked


@pytest.mark.slow
def test_the_page_on_derivatives_tunes_a_schedule(capsys):
    names = {"__name__": "sensitivity"}
    for block in blocks(ROOT / "docs" / "sensitivity.md", "python"):
        exec(compile(block, "sensitivity.md", "exec"), names)
    *predicted, before, after = re.findall(
        r"(\d\.\d+) (?:predicted|is the)", capsys.readouterr().out
    )
    assert float(predicted[-1]) < 0.6 * float(predicted[0])
    assert float(after) < 0.6 * float(before)


def test_the_page_on_ones_own_problem_runs(tmp_path, monkeypatch):
    """Its classes and its function, in one module beside its specs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("\n".join(blocks(OWN_PROBLEM, "python")))
    network, function = blocks(OWN_PROBLEM, "yaml")
    (tmp_path / "network.yaml").write_text(network)
    (tmp_path / "function.yaml").write_text(function)
    few = ["--set", "steps=3", "--set", "processes=[discrete]"]
    assert main(["run", "network.yaml", *few]) == 0
    assert main(["run", "function.yaml", *few]) == 0


@pytest.mark.slow
def test_the_page_on_ones_own_loop_runs(figures, monkeypatch, capsys):
    """Its loops, in the precision that they are written for: that of JAX as it is imported."""
    pytest.importorskip("flax")
    monkeypatch.chdir(figures)
    names = {"__name__": "__main__"}
    with jax.enable_x64(False):
        for block in blocks(MONITOR, "python"):
            exec(compile(block, MONITOR.name, "exec"), names)
    printed, page = capsys.readouterr().out, blocks(MONITOR, "text")[0]
    assert printed.splitlines()[0].startswith("step 375: loss 0.01")
    assert [line.split()[0] for line in page.splitlines()] == [
        line.split()[0] for line in printed.splitlines()[: len(page.splitlines())]
    ]
    late = names["seen"][10:]
    assert all(abs(m.effective_sharpness - 2) < 0.1 and m.oscillating for m in late)
    assert (figures / "monitor.png").stat().st_size > 10_000


SAMPLE = ("sgd", "adabelief", "amsgrad", "lion", "noisy_sgd", "polyak_sgd")


@pytest.mark.parametrize("name", quick(SAMPLE, "sgd", "lion", "noisy_sgd", "polyak_sgd"))
def test_the_table_of_optax_is_what_its_script_makes(name):
    assert f"| `{name}` | {verdict(name)} |" in (ROOT / "docs" / "optax.md").read_text()


def test_every_script_is_tested_and_named():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(FIGURES)
    page = FROM_PYTHON.read_text()
    assert all(f"(examples/{name}.py)" in page for name in FIGURES)


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_scripts_leave_their_figures(name, figures, monkeypatch):
    monkeypatch.setattr("sys.argv", [f"{name}.py", str(figures)])
    runpy.run_path(str(EXAMPLES / f"{name}.py"))
    assert sorted(path.stem for path in figures.glob("*.png")) == FIGURES[name]
    assert all(path.stat().st_size > 10_000 for path in figures.glob("*.png"))
